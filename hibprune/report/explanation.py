"""`explain.html`, its pictures and `explain.json`: an explanation for people and for programs."""

from __future__ import annotations

import base64
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from hibprune.execution.files import write_text
from hibprune.execution.output import EXPLANATION
from hibprune.records.comparison import Estimate
from hibprune.records.explanation import Degradation, Explanation, HeadFunctions, Stacks, Triggers
from hibprune.records.medium import MEDIA
from hibprune.report.explanation_figures import (
    NAMES,
    functions_figure,
    maps_figure,
    pictures_of,
    stacks_figure,
)
from hibprune.report.explanation_gates import gates_figure, kept_rows
from hibprune.report.explanation_inputs import degradation_figure, inputs_figure
from hibprune.report.explanation_tree import tree_figure
from hibprune.report.numbers import MINUS, capitalised
from hibprune.report.ranking import ranking_finding
from hibprune.report.template import filled_page
from hibprune.report.wording import percent_estimate

Draw = Callable[[Path], None]

NUMBERS = {
    "positional": "share of largest weights at one offset",
    "globalness": "globalness",
    "verticality": "verticality",
    "diagonality": "diagonality",
    "rarest": "share of largest weights on the rarest token",
}


def write_explanation(explanation: Explanation, directory: Path) -> None:
    """Write pictures and page and, last of all, the JSON; remove pictures of an earlier one."""
    pictures = drawings(explanation)
    for path in directory.glob(f"{EXPLANATION}-*.png"):
        if path.name not in pictures:
            path.unlink()
    embedded = {}
    for name, draw in pictures.items():
        draw(directory / name)
        encoded = base64.b64encode((directory / name).read_bytes()).decode()
        embedded[name] = f"data:image/png;base64,{encoded}"
    write_text(directory / f"{EXPLANATION}.html", explanation_page(explanation, embedded))
    write_text(directory / f"{EXPLANATION}.json", explanation.model_dump_json(indent=1) + "\n")


def drawings(explanation: Explanation) -> dict[str, Draw]:
    """All pictures by the name of their file."""
    clips = {clip.id: clip for clip in explanation.clips}
    found: dict[str, Draw] = {}
    for number, maps in enumerate(explanation.maps, start=1):
        for page, heads in enumerate(pictures_of(maps), start=1):
            name = f"{EXPLANATION}-maps-{number}-{page}.png"
            found[name] = partial(maps_figure, clips[maps.clip], heads)
    for number, inputs in enumerate(explanation.inputs, start=1):
        name = f"{EXPLANATION}-inputs-{number}.png"
        found[name] = partial(inputs_figure, clips[inputs.clip], inputs)
    for number, tree in enumerate(explanation.trees, start=1):
        found[f"{EXPLANATION}-tree-{number}.png"] = partial(tree_figure, tree)
    if explanation.degradation is not None:
        name = f"{EXPLANATION}-degradation.png"
        found[name] = partial(degradation_figure, explanation.degradation)
    if explanation.functions is not None:
        found[f"{EXPLANATION}-functions.png"] = partial(functions_figure, explanation.functions)
    if explanation.stacks is not None:
        found[f"{EXPLANATION}-stacks.png"] = partial(stacks_figure, explanation.stacks)
    if explanation.kept is not None:
        found[f"{EXPLANATION}-gates.png"] = partial(gates_figure, explanation.kept)
    return found


def explanation_page(explanation: Explanation, pictures: dict[str, str]) -> str:
    """The page, with its pictures in it: `pictures` are data URIs by name."""
    medium = MEDIA[explanation.medium]

    def shown(part: str) -> list[dict[str, str]]:
        names = [name for name in pictures if name.startswith(f"{EXPLANATION}-{part}")]
        return [{"name": name, "data": pictures[name]} for name in names]

    return filled_page(
        "explain.html.jinja",
        {
            "it": explanation,
            "medium": medium,
            "maps": [
                {"clip": maps, "pictures": shown(f"maps-{number}-")}
                for number, maps in enumerate(explanation.maps, start=1)
            ],
            "said": {clip.id: clip.said for clip in explanation.clips},
            "inputs": [
                {"clip": inputs, "pictures": shown(f"inputs-{number}.")}
                for number, inputs in enumerate(explanation.inputs, start=1)
            ],
            "trees": [
                {"clip": tree, "pictures": shown(f"tree-{number}.")}
                for number, tree in enumerate(explanation.trees, start=1)
            ],
            "degradation": explanation.degradation,
            "degradation_picture": shown("degradation"),
            "drops": _drops(explanation.degradation),
            "functions": explanation.functions,
            "functions_picture": shown("functions"),
            "counts": _counts(explanation.functions),
            "correlations": _correlations(explanation.functions),
            "triggers": explanation.triggers,
            "attacks": _attacks(explanation.triggers),
            "stacks": explanation.stacks,
            "stacks_picture": shown("stacks"),
            "stacks_whole": percent_estimate(explanation.stacks.whole)
            if explanation.stacks
            else "",
            "stacks_fault": _stacks_fault(explanation.stacks),
            "stack_rows": _stack_rows(explanation.stacks),
            "kept": explanation.kept,
            "kept_picture": shown("gates"),
            "kept_rows": [] if explanation.kept is None else kept_rows(explanation.kept),
            "kept_names": [NAMES[name] for name in explanation.kept.heads]
            if explanation.kept
            else [],
            "versions": ", ".join(f"{k} {v}" for k, v in explanation.versions.items()),
        },
    )


def _drops(found: Degradation | None) -> list[dict[str, str]]:
    """What the table's share costs the answer by each ranking, and beyond a random one."""
    return [
        {
            "method": curve.method,
            "drop": _with_interval(curve.drop, 3),
            "beyond": "" if curve.beyond_chance is None else _finding(curve.beyond_chance, 3),
            "area": f"{curve.area:.3f}".replace("-", MINUS),
        }
        for curve in (found.curves if found else ())
    ]


def _with_interval(estimate: Estimate, decimals: int) -> str:
    low, high = estimate.interval
    told = f"{estimate.value:.{decimals}f} ({low:.{decimals}f} to {high:.{decimals}f})"
    return told.replace("-", MINUS)


def _finding(estimate: Estimate, decimals: int) -> str:
    """A value with its interval, and whether that holds 0."""
    low, high = estimate.interval
    told = _with_interval(estimate, decimals)
    return f"{told} – within the noise" if low <= 0 <= high else told


def _stack_rows(found: Stacks | None) -> list[dict[str, str]]:
    """The metric at each number of heads gone, stack by stack."""
    return [
        {
            "name": NAMES[curve.stack] + ("" if curve.repair == "none" else ", repaired"),
            "removed": f"{point.removed} of {curve.heads}",
            "value": percent_estimate(point.value),
        }
        for curve in (found.curves if found else ())
        for point in curve.points
    ]


def _stacks_fault(found: Stacks | None) -> str:
    """That the order in which heads go says nothing; empty where it says something."""
    fault = None if found is None else found.ranking_fault
    return "" if fault is None else capitalised(ranking_finding(fault))


def _attacks(found: Triggers | None) -> list[dict[str, str]]:
    """How often each pattern, and then those by chance, changed an answer."""
    if found is None:
        return []
    return [
        {
            "words": " … ".join(one.words) or "drawn by chance",
            "of": one.of,
            "rate": f"{100 * one.changed / one.tried:.0f} %" if one.tried else "–",
            "interval": f"{100 * one.interval.low:.0f} to {100 * one.interval.high:.0f} %",
            "tried": str(one.tried),
        }
        for one in (*found.attacks, found.random)
    ]


def _counts(functions: HeadFunctions | None) -> list[dict[str, Any]]:
    """Each function with how many heads have it and their mean score."""
    rows: dict[str, list[float | None]] = {}
    for one in functions.heads if functions else ():
        rows.setdefault(one.function, []).append(one.score)
    return [
        {
            "name": name,
            "heads": len(scores),
            "score": None if None in scores else sum(filter(None, scores)) / len(scores),
        }
        for name, scores in sorted(rows.items(), key=lambda row: -len(row[1]))
    ]


def _correlations(functions: HeadFunctions | None) -> list[dict[str, str]]:
    rows = []
    for one in functions.correlations if functions else ():
        told = "not defined: all equal" if one.spearman is None else _finding(one.spearman, 2)
        rows.append({"name": NUMBERS[one.number], "value": told})
    return rows
