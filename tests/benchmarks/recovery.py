"""What recovery wins on the quickstart at a budget beyond repair: accuracy, parameters, speed.

    python tests/benchmarks/training_clips.py --work WORK
    python tests/benchmarks/recovery.py --work WORK --json results/recovery_quickstart.json

runs the recipe four times into WORK/run, one after the other, so that they share what they have in
common: with nothing done about the weights that stay, with repair alone, and with recovery behind
it on the calibration clips and on those of the build script's training.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RECIPE = "recipes/quickstart.yaml"
BUDGET = (
    "budget.fraction=0.9", "budget.neurons=0.85", "budget.channels=0.65",
    "attribution.method=reconstruction", "removal.refine=null", "export.variants=[fp32]",
    "benchmark.rivals=false",
)  # fmt: skip
TRAINING = (
    "recover.data.kind=manifest", "recover.data.path={work}/training.jsonl",
    "recover.limit={clips}",
)  # fmt: skip
ARMS: dict[str, tuple[str, ...]] = {
    "nothing": ("removal.repair=none",),
    "repair": (),
    "repair, recovery on calibration clips": ("recover.steps={steps}",),
    "repair, recovery on training clips": ("recover.steps={steps}", *TRAINING),
}
LENGTH = 5.0
"""Seconds of sound that speed is given at."""


def manifest_of_run(recipe: str, output: Path, settings: Sequence[str]) -> dict[str, Any]:
    """Run a recipe with some settings, or take it up where it was, and read its manifest."""
    words = [sys.executable, "-c", "from hibprune.cli import main; main()", "run", recipe]
    words += ["--output", str(output), "--quiet"]
    for setting in settings:
        words += ["--set", setting]
    done = subprocess.run(words, cwd=ROOT, check=False)
    if done.returncode not in (0, 3):
        sys.exit(done.returncode)
    manifest: dict[str, Any] = json.loads((output / "manifest.json").read_text())
    return manifest


def measured(work: Path, arm: str, steps: int, clips: int, more: Sequence[str]) -> dict[str, Any]:
    """Run one arm and read its manifest."""
    settings = [one.format(work=work, steps=steps, clips=clips) for one in (*BUDGET, *ARMS[arm])]
    settings += [one for one in more if arm.startswith("repair,")]
    manifest = manifest_of_run(RECIPE, work / "run", settings)
    variants = {one["name"]: one for one in manifest["variants"]}
    pruned, recovery = variants["pruned"], manifest["recovery"]
    (speed,) = [one["ratio"] for one in pruned["latency"] if one.get("seconds") == LENGTH]
    return {
        "arm": arm,
        "accuracy": pruned["metric"]["value"],
        "interval": pruned["metric"]["interval"],
        "unpruned": variants["original"]["metric"]["value"],
        "parameters": pruned["parameters"],
        "speed": speed,
        "recovery": recovery and recovery["recovery"],
        "seconds": recovery and recovery["seconds"],
    }


def recovery_table(report: dict[str, Any]) -> str:
    """The rows as a table of a document."""
    lines = [
        "| done with the weights that stay | accuracy, % | 95 % interval | training took |",
        "| :-- | --: | --: | --: |",
    ]
    for row in report["rows"]:
        low, high = (100 * end for end in row["interval"])
        took = "–" if row["seconds"] is None else f"{row['seconds'] / 60:.0f} min"
        lines.append(
            f"| {row['arm']} | {100 * row['accuracy']:.1f} | {low:.1f}–{high:.1f} | {took} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Read the command line, run, and store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="of training_clips.py")
    parser.add_argument("--json", type=Path, help="store the rows here")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--clips", type=int, default=3200, help="of those of training")
    parser.add_argument("--arms", default=",".join(map(str, range(len(ARMS)))), help="by number")
    parser.add_argument("--set", action="append", default=[], help="override a key of recovery")
    options = parser.parse_args()
    names = [list(ARMS)[int(number)] for number in options.arms.split(",")]
    work = options.work.resolve()
    rows = [measured(work, name, options.steps, options.clips, options.set) for name in names]
    report = {
        "command": f"python tests/benchmarks/recovery.py --work WORK --steps {options.steps} "
        f"--clips {options.clips}" + "".join(f" --set {one}" for one in options.set),
        "rows": sorted(rows, key=lambda row: list(ARMS).index(row["arm"])),
    }
    print(recovery_table(report))
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
