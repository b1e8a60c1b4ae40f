"""What budgets of several kinds leave of whisper-tiny.en: WER, size, speed.

    HIBPRUNE_REAL=/path/to/real python tests/benchmarks/whisper_budgets.py DIRECTORY [ROW …]

lays tests/real/whisper_tiny_en.yaml out in DIRECTORY; each row is one `hibprune run` of it into
DIRECTORY/budgets/<row>, which is taken up there when the script runs again. Units are scored on 24
clips of human speech, what stays is fitted on 80 or 100; 100 others tell. Writes
tests/benchmarks/results/whisper_budgets.json and prints it as a table.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ctc_budgets import asked, removed_by_kind, stored, wer_percent
from recovery import manifest_of_run

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "tests/benchmarks/results/whisper_budgets.json"
CLIPS = 100
SHARED = (
    "calibration.samples=24", "calibration.repair_samples=80", "export.variants=[fp32]",
    "benchmark.rivals=false", "benchmark.seconds=[5]",
)  # fmt: skip
IN_INT8 = (
    "calibration.samples=24", "calibration.repair_samples=100", "benchmark.seconds=[5, 10]",
    "quantize.max_drop=100",
)  # fmt: skip
ROWS: dict[str, tuple[str, ...]] = {
    "decoder heads": (*SHARED, "budget={decoder_heads: 0.25, cross_heads: 0.25}"),
    "9 heads, refined": (*SHARED, "budget={heads: 9}", "removal.refine={steps: 100}"),
    "speedup 1.3": (*SHARED, "benchmark.repetitions=15", "budget={speedup: 1.3}"),
    "int8": (*IN_INT8, "budget.heads=6", "budget.decoder_neurons=0.25"),
}
"""What each is asked for."""


def row(name: str, settings: Sequence[str], manifest: dict[str, Any]) -> dict[str, Any]:
    """What a table tells of a run."""
    speed = (manifest["budget"] or {}).get("speed")
    return {
        "row": name,
        "settings": list(settings),
        "removed": removed_by_kind(manifest),
        "factored": len((manifest["ranks"] or {"factored": ()})["factored"]),
        "tries": None if speed is None else speed["tries"],
        "step_seconds": manifest["steps"],
        "variants": [
            {
                "name": one["name"],
                "metric": one["metric"],
                "change": one["change"],
                "faults": one["faults"],
                "size_bytes": one["size_bytes"],
                "speed": [
                    {key: time[key] for key in ("seconds", "ratio", "ratio_interval", "parts")}
                    for time in one["latency"]
                ],
            }
            for one in manifest["variants"]
        ],
    }


def variants_table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The rows as a table of a document: a line for each variant but the original."""
    yield "| budget | variant | WER, % | MB | speed, 5 s |"
    yield "| :-- | :-- | --: | --: | --: |"
    for one in rows:
        for variant in one["variants"][1:]:
            wer = wer_percent(variant["metric"])
            speed = variant["speed"][0]
            slowest, fastest = speed["ratio_interval"]
            times = f"{speed['ratio']:.2f}× ({slowest:.2f}–{fastest:.2f})"
            size = f"{variant['size_bytes'] / 1e6:.0f}"
            yield f"| {one['row']} | {variant['name']} | {wer} | {size} | {times} |"


def main() -> None:
    directory, names = asked(__doc__.splitlines()[0], ROWS)
    sys.path.insert(0, str(ROOT / "tests"))
    from real_speech import lay_out

    recipe = directory / "whisper_tiny_en.yaml"
    if not recipe.is_file():
        lay_out(directory, CLIPS, CLIPS)

    def found(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        place = directory / "budgets" / name.replace(" ", "_").replace(",", "")
        place.parent.mkdir(exist_ok=True)
        manifest = manifest_of_run(str(recipe), place, ROWS[name])
        return row(name, ROWS[name], manifest), manifest["machine"]

    command = "python tests/benchmarks/whisper_budgets.py DIRECTORY"
    print("\n".join(variants_table(stored(RESULTS, command, map(found, names)))))


if __name__ == "__main__":
    main()
