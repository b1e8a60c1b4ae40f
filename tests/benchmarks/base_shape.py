"""wav2vec2-base's shape with random weights, and a recipe that halves it on the quickstart's clips.

    python tests/benchmarks/base_shape.py DIRECTORY
    hibprune run DIRECTORY/base_shape.yaml

Random weights tell seconds, memory and speed, and nothing about accuracy.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import yaml
from speed_cases import base_shape
from transformers import AutoConfig, Wav2Vec2FeatureExtractor

QUICKSTART = Path(__file__).resolve().parents[2] / "recipes/quickstart"
HALF = 0.5
VALIDATION_CLIPS = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args().directory
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
