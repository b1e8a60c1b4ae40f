"""wav2vec2-base's shape with random weights, and a recipe that halves it on the quickstart's clips.

    python tests/benchmarks/base_shape.py DIRECTORY
    hibprune run DIRECTORY/base_shape.yaml

`--json FILE` runs it into DIRECTORY/run, which is taken up when the script runs again, and stores
the seconds of each step, sizes, multiply-adds and speeds.

Random weights tell seconds, memory and speed, and nothing about accuracy.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import yaml
from recovery import manifest_of_run
from speed_cases import base_shape
from transformers import AutoConfig, Wav2Vec2FeatureExtractor

from hibprune.execution.files import write_text

QUICKSTART = Path(__file__).resolve().parents[2] / "recipes/quickstart"
HALF = 0.5
VALIDATION_CLIPS = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not (options.directory / "base_shape.yaml").is_file():
        lay_out(options.directory)
    if options.json is not None:
        run = options.directory.resolve() / "run"
        found = measured(manifest_of_run(str(run.with_name("base_shape.yaml")), run, ()))
        write_text(options.json, json.dumps(found, indent=1) + "\n")
        print(speed_table(found))


def measured(manifest: dict[str, Any]) -> dict[str, Any]:
    """What is told of a run: nothing of what the model knows."""
    return {
        "command": "python tests/benchmarks/base_shape.py DIRECTORY --json FILE",
        "machine": manifest["machine"],
        "step_seconds": manifest["steps"],
        "variants": [
            {
                "name": one["name"],
                "parameters": one["parameters"],
                "macs": one["macs"],
                "size_bytes": one["size_bytes"],
                "latency": [
                    {key: length[key] for key in ("seconds", "times", "ratio", "ratio_interval")}
                    for length in one["latency"]
                ],
            }
            for one in manifest["variants"]
        ],
    }


def speed_table(report: dict[str, Any]) -> str:
    """Sizes and speeds as a table of a document."""
    original, pruned = report["variants"]
    lines = [
        "| | parameters | multiply-adds, 1 s | ONNX | "
        + " | ".join(f"{one['seconds']:g} s" for one in pruned["latency"])
        + " |",
        "| :-- | --: | --: | --: |" + " --: |" * len(pruned["latency"]),
    ]
    for one in (original, pruned):
        cells = [one["name"], f"{one['parameters'] / 1e6:.1f} M", f"{one['macs'] / 1e9:.2f} G"]
        cells.append(f"{one['size_bytes'] / 1e6:.0f} MB")
        for length in one["latency"]:
            low, high = length["ratio_interval"]
            spread = "" if low == high else f", {length['ratio']:.2f}× ({low:.2f}–{high:.2f})"
            cells.append(f"{length['times']['p50']:.0f} ms{spread}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def lay_out(directory: Path) -> None:
    """Put the model and the recipe into a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    model = base_shape()
    labels = AutoConfig.from_pretrained(QUICKSTART / "model").id2label
    if len(labels) != model.config.num_labels:
        raise SystemExit(f"the quickstart has {len(labels)} words, not {model.config.num_labels}")
    model.config.update(
        {"id2label": labels, "label2id": {word: index for index, word in labels.items()}}
    )
    model.save_pretrained(directory / "model")
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(directory / "model")
    clips = (QUICKSTART / "validation.jsonl").read_text().splitlines()
    every = len(clips) // VALIDATION_CLIPS
    few = [line + "\n" for line in clips[::every]][:VALIDATION_CLIPS]
    (directory / "validation.jsonl").write_text("".join(few))
    (directory / "base_shape.yaml").write_text(yaml.safe_dump(recipe(), sort_keys=False))
    print(json.dumps({"parameters": model.num_parameters()}))


def recipe() -> dict[str, object]:
    """Half of the heads, neurons and channels of every layer, repaired on 200 clips of 1 s."""

    def clips(manifest: str) -> dict[str, object]:
        return {"source": {"kind": "manifest", "path": manifest, "root": str(QUICKSTART)}}

    return {
        "name": "base_shape",
        "model": {"source": "model"},
        "task": {"kind": "keyword-spotting"},
        "calibration": {**clips(str(QUICKSTART / "calibration.jsonl")), "samples": 200},
        # Random weights know nothing.
        "validation": {**clips("validation.jsonl"), "allow_chance_baseline": True},
        "attribution": {"method": "reconstruction"},
        "budget": {"fraction": HALF, "neurons": HALF, "channels": HALF, "scope": "layerwise"},
        "export": {"variants": ["fp32"]},
        "benchmark": {"rivals": False},
    }


if __name__ == "__main__":
    main()
