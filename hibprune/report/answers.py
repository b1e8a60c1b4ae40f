"""The report's section on answers that changed: which inputs pruning lost, and which it won."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hibprune.errors import shortened
from hibprune.execution.files import read_text_bounded
from hibprune.execution.output import PREDICTIONS
from hibprune.records.manifest import Manifest
from hibprune.records.variants import ORIGINAL
from hibprune.report.markdown import table

NAMED = 20
"""Inputs that the table shows; all of them are in the files."""
LONGEST = 80


def changed_answers(manifest: Manifest, directory: Path) -> str:
    """A table of the inputs the judged variant answers otherwise, the worst first.

    Read from the answers that the run left; empty where there are none to compare.
    """
    before = _answers(directory, ORIGINAL)
    after = _answers(directory, manifest.held.name)
    both = [(before[name], one) for name, one in after.items() if name in before]
    changed = [pair for pair in both if pair[0]["prediction"] != pair[1]["prediction"]]
    if not both:
        return ""
    medium = manifest.medium
    if not changed:
        said = f"{manifest.held.name} says the same of every {medium.one} as the original."
        return f"## Answers that changed\n\n{said}"
    worse = sum(_change(pair) > 0 for pair in changed)
    better = sum(_change(pair) < 0 for pair in changed)
    ordered = sorted(changed, key=lambda pair: (-_change(pair), pair[0]["id"]))
    rows = [
        (
            one["id"],
            _words(one.get("reference")),
            _words(one["prediction"]),
            _words(other["prediction"]),
            _verdict(_change((one, other))),
        )
        for one, other in ordered[:NAMED]
    ]
    said = (
        f"Of {medium.counted(len(both))}, {manifest.held.name} answers {len(changed)} otherwise "
        f"than the original: {worse} worse, {better} better."
    )
    shown = f"The first {NAMED} of them; all" if len(changed) > NAMED else "All"
    header = [medium.one, "truth", "original", manifest.held.name, ""]
    return "\n\n".join(
        [
            "## Answers that changed",
            said,
            table("lllll", header, rows),
            f"*{shown} answers of every variant lie in `predictions/`.*",
        ]
    )


def _answers(directory: Path, variant: str) -> dict[str, dict[str, Any]]:
    path = directory / PREDICTIONS / f"{variant}.jsonl"
    if not path.is_file():
        return {}
    rows = (json.loads(line) for line in read_text_bounded(path, within=directory).splitlines())
    return {row["id"]: row for row in rows}


def _change(pair: tuple[dict[str, Any], dict[str, Any]]) -> float:
    """By how many errors the second answer is worse."""
    before, after = (float(one.get("errors") or 0.0) for one in pair)
    return after - before


def _verdict(change: float) -> str:
    return "worse" if change > 0 else "better" if change < 0 else "neither"


def _words(answer: object) -> str:
    if isinstance(answer, dict):
        return shortened(", ".join(f"{slot}={label}" for slot, label in answer.items()), LONGEST)
    return shortened(str(answer or "–"), LONGEST)
