"""What large budgets cost the small HuBERT that recognises speech: WER, size, multiply-adds.

    python tests/benchmarks/ctc_model.py DIRECTORY
    python tests/benchmarks/ctc_budgets.py DIRECTORY [ROW …]

Each row is one `hibprune run` of DIRECTORY/ctc_words.yaml into DIRECTORY/budgets/<row>, which is
taken up there when the script runs again. What stays is fitted on 300 calibration clips without
labels, and trained towards the original on the same, or on 1500 clips with their labels that the
model was trained on; the repaired model is measured on the way.
Writes tests/benchmarks/results/ctc_budgets.json and prints it as a table.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from recovery import manifest_of_run

from hibprune.execution.files import write_text

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "tests/benchmarks/results/ctc_budgets.json"
SHARED = (
    "calibration.source.path=calibration_300.jsonl", "calibration.repair_samples=300",
    "export.variants=[fp32]", "benchmark.rivals=false",
)  # fmt: skip
ROWS: dict[str, tuple[str, ...]] = {
    "macs40": ("budget={multiply_adds: 0.4}", "recover={steps: 300}"),
    "macs25": ("budget={multiply_adds: 0.25}", "recover={steps: 400}"),
    "two_thirds": ("budget.fraction=0.67", "budget.neurons=0.67", "recover={steps: 300}"),
    "two_thirds_of_every_layer": (
        "budget={fraction: 0.67, neurons: 0.67, scope: layerwise}",
        "attribution={method: reconstruction}",
        "recover={steps: 1600, learning_rate: 1.0e-3, labels: dataset, loss: {task: 0.3}, "
        "data: {kind: manifest, path: training.jsonl}}",
    ),
}
"""What each is asked for, beyond what all share."""
KINDS = ("heads", "neurons", "channels", "decoder_heads", "cross_heads", "decoder_neurons")


def row(name: str, settings: Sequence[str], manifest: dict[str, Any]) -> dict[str, Any]:
    """What a table tells of a run."""
    original, pruned = manifest["variants"][:2]
    recovery = manifest["recovery"]
    return {
        "row": name,
        "settings": list(settings),
        "unpruned": original["metric"],
        "repaired": recovery["repaired"],
        "recovered": pruned["metric"],
        "change": pruned["change"],
        "steps": recovery["recovery"]["steps"],
        "best_step": recovery["recovery"]["best_step"],
        "seconds": recovery["seconds"],
        "parameters": [original["parameters"], pruned["parameters"]],
        "multiply_adds": [original["macs"], pruned["macs"]],
        "removed": removed_by_kind(manifest),
    }


def removed_by_kind(manifest: dict[str, Any]) -> dict[str, int]:
    """How many units of each kind went that was to go."""
    return {
        kind: sum(map(len, manifest[kind]["removed"].values()))
        for kind in KINDS
        if manifest[kind] is not None
    }


def budgets_table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The rows as a table of a document."""
    yield "| budget | parameters | multiply-adds | WER repaired, % | WER recovered, % |"
    yield "| :-- | --: | --: | --: | --: |"
    for one in rows:
        kept = [after / before for before, after in (one["parameters"], one["multiply_adds"])]
        told = [wer_percent(one["repaired"]), wer_percent(one["recovered"])]
        yield f"| {one['row']} | {kept[0]:.0%} | {kept[1]:.0%} | {told[0]} | {told[1]} |"


def wer_percent(wer: dict[str, Any]) -> str:
    low, high = (100 * end for end in wer["interval"])
    return f"{100 * wer['value']:.1f} ({low:.1f}–{high:.1f})"


def asked(about: str, rows: Collection[str]) -> tuple[Path, list[str]]:
    """The directory and the rows, by default all, that the command line names."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("directory", type=Path)
    parser.add_argument("rows", nargs="*", default=list(rows), metavar="ROW")
    arguments = parser.parse_args()
    if unknown := set(arguments.rows) - set(rows):
        parser.error(f"no row {', '.join(sorted(unknown))}: there are {', '.join(rows)}")
    return arguments.directory.resolve(), arguments.rows


def stored(
    results: Path, command: str, found: Iterable[tuple[dict[str, Any], dict[str, Any]]]
) -> list[dict[str, Any]]:
    """All rows, each with the machine it was found on, written as they come."""
    rows: list[dict[str, Any]] = []
    for one, machine in found:
        rows.append(one)
        report = {"command": command, "machine": machine, "rows": rows}
        write_text(results, json.dumps(report, indent=1) + "\n")
    return rows


def main() -> None:
    directory, names = asked(__doc__.splitlines()[0], ROWS)

    def found(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        output, settings = directory / "budgets" / name, (*SHARED, *ROWS[name])
        manifest = manifest_of_run(str(directory / "ctc_words.yaml"), output, settings)
        return row(name, ROWS[name], manifest), manifest["machine"]

    rows = stored(RESULTS, "python tests/benchmarks/ctc_budgets.py DIRECTORY", map(found, names))
    print("\n".join(budgets_table(rows)))


if __name__ == "__main__":
    main()
