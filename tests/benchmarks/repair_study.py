"""What rankings and repairs are worth over several draws of calibration clips.

    python tests/benchmarks/repair_study.py NAME RECIPE [--draws 3] [options of hibprune compare]

Each draw is one `hibprune compare` with another seed, by which calibration clips are drawn and
random rankings too. Comparisons lie in WORK/NAME/<seed> and are taken up there when the script runs
again. Writes tests/benchmarks/results/study_NAME.json, and prints its tables as they stand in
hibprune/attribution/README.md: of every ranking with every repair the median over the draws, with
the lowest and the highest.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hibprune.execution.files import write_text
from hibprune.records.comparison import Comparison, Curve

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("recipe")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("study"))
    arguments, options = parser.parse_known_args()
    path = ROOT / f"tests/benchmarks/results/study_{arguments.name}.json"
    comparisons = []
    for seed in range(arguments.draws):
        directory = arguments.work / arguments.name / str(seed)
        compare(arguments.recipe, directory, [*options, "--seeds", "1", "--set", f"seed={seed}"])
        comparisons.append(Comparison.model_validate_json((directory / "compare.json").read_text()))
        words = ["python", "tests/benchmarks/repair_study.py", *without(sys.argv[1:], "--work")]
        report = {"command": shlex.join(words), **study(comparisons)}
        write_text(path, json.dumps(report, indent=1) + "\n")
    print("\n\n".join(tables(report)))


def compare(recipe: str, directory: Path, options: Sequence[str]) -> None:
    command = "from hibprune.cli import main; main()"
    subprocess.run(
        [sys.executable, "-c", command, "compare", recipe, "--output", str(directory), *options],
        check=True,
    )


def without(words: Sequence[str], option: str) -> list[str]:
    """The words less an option and its value: where something lay on one machine."""
    kept = list(words)
    if option in kept:
        place = kept.index(option)
        del kept[place : place + 2]
    return kept


def study(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Rows of scope, metric, repair and ranking: of each share removed the value in every draw."""
    first = comparisons[0]
    rows = []
    for curves in zip(*map(_curves, comparisons), strict=True):
        one = curves[0]
        rows.append(
            {
                "scope": one.scope,
                "metric": one.metric,
                "repair": one.repair,
                "ranking": one.label,
                "removed": [point.removed for point in one.points],
                "values": [
                    [round(curve.points[place].value, 4) for curve in curves]
                    for place in range(len(one.points))
                ],
            }
        )
    return {
        "model": first.model.model_dump(mode="json"),
        "machine": first.machine.model_dump(mode="json"),
        "versions": first.versions,
        "heads": len(first.heads),
        "calibration": first.calibration.model_dump(mode="json"),
        "validation": first.validation.model_dump(mode="json"),
        "whole": {metric: round(found.value, 4) for metric, found in first.whole.items()},
        "higher_is_better": first.higher_is_better,
        "scoring_seconds": {
            method.label: [
                round(next(m for m in one.methods if m.label == method.label).seconds, 1)
                for one in comparisons
            ]
            for method in first.methods
        },
        "repair_seconds": {
            repair.kind: [
                next(r for r in one.repairs if r.kind == repair.kind).seconds for one in comparisons
            ]
            for repair in first.repairs
        },
        "rows": rows,
    }


def _curves(comparison: Comparison) -> Iterator[Curve]:
    yield from comparison.curves
    yield from comparison.points


def tables(report: dict[str, Any]) -> list[str]:
    """A Markdown table for each metric and scope."""
    places = dict.fromkeys((row["metric"], row["scope"]) for row in report["rows"])
    return [table(report, metric, scope) for metric, scope in places]


def table(report: dict[str, Any], metric: str, scope: str) -> str:
    """Rankings and repairs down, heads removed across; the median, and its range over draws."""
    rows = [row for row in report["rows"] if (row["metric"], row["scope"]) == (metric, scope)]
    # Two shares may come to the same number of heads.
    removed = rows[0]["removed"]
    places = [removed.index(count) for count in dict.fromkeys(removed)]
    lines = [
        f"| {metric}, {scope}, % | {' | '.join(f'{removed[place]} heads' for place in places)} |",
        f"| :-- |{' --: |' * len(places)}",
    ]
    for row in rows:
        cells = " | ".join(cell(row["values"][place]) for place in places)
        lines.append(f"| `{row['ranking']}`, {row['repair']} | {cells} |")
    return "\n".join(lines)


def cell(values: Sequence[float]) -> str:
    """`96.5 (95.8–97.0)`."""
    low, high = min(values) * 100, max(values) * 100
    return f"{statistics.median(values) * 100:.1f} ({low:.1f}–{high:.1f})"


if __name__ == "__main__":
    main()
