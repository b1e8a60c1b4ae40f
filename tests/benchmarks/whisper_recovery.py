"""What recovery wins on whisper-tiny.en without half of its encoder and a third of its decoder.

    HIBPRUNE_REAL=/path/to/real python tests/benchmarks/whisper_recovery.py DIRECTORY

lays tests/real/whisper_tiny_en.yaml out in DIRECTORY and runs it there, which is taken up when the
script runs again: heads and neurons are scored on 24 clips of human speech, what stays is fitted on
80 and trained on the same towards the original; 100 others tell. Writes
tests/benchmarks/results/whisper_recovery.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ctc_budgets import row
from recovery import manifest_of_run

from hibprune.execution.files import write_text

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "tests/benchmarks/results/whisper_recovery.json"
CLIPS = 100
SETTINGS = (
    "calibration.samples=24", "calibration.repair_samples=80",
    "budget={fraction: 0.5, neurons: 0.5, decoder_heads: 0.3, cross_heads: 0.3, "
    "decoder_neurons: 0.3}",
    "recover={steps: 150, batch_seconds: 32, learning_rate: 2.0e-5}",
    "export.variants=[fp32]", "benchmark.rivals=false", "benchmark.seconds=[5]",
    "benchmark.repetitions=10",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args().directory.resolve()
    sys.path.insert(0, str(ROOT / "tests"))
    from real_speech import lay_out

    recipe = directory / "whisper_tiny_en.yaml"
    if not recipe.is_file():
        lay_out(directory, CLIPS, CLIPS)
    manifest = manifest_of_run(str(recipe), directory / "recovered", SETTINGS)
    pruned = manifest["variants"][1]
    found = row("half_and_a_third", SETTINGS, manifest)
    report = {
        "command": "python tests/benchmarks/whisper_recovery.py DIRECTORY",
        "machine": manifest["machine"],
        "rows": [
            {
                **found,
                "faults": pruned["faults"],
                "speed": {one["seconds"]: one["ratio"] for one in pruned["latency"]},
                "size_bytes": [one["size_bytes"] for one in manifest["variants"]],
                "curve": manifest["recovery"]["recovery"]["curve"],
                "step_seconds": manifest["steps"],
            }
        ],
    }
    write_text(RESULTS, json.dumps(report, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
