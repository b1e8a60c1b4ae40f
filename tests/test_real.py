"""A published Whisper on human speech: needs the directory named by HIBPRUNE_REAL.

The recordings are not ours to ship; what is measured on them is.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from hibprune.cli import main
from hibprune.manifest import Manifest

REAL = Path(os.environ.get("HIBPRUNE_REAL", Path(__file__).parents[2] / "shared/real")).resolve()
SPEECH, MODEL = REAL / "speech/uqm-dev", REAL / "models/whisper-tiny.en"

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        not (SPEECH / "manifest.jsonl").is_file(),
        reason=f"no real recordings in {REAL}: set HIBPRUNE_REAL",
    ),
]


def write_recipe(root: Path, calibration: int, validation: int, **changes: Any) -> Path:
    """A recipe on clips of uqm-dev split by clip with random.seed(0), calibration first."""
    rows = [json.loads(line) for line in (SPEECH / "manifest.jsonl").read_text().splitlines()]
    random.Random(0).shuffle(rows)
    splits = {
        "calibration": rows[:calibration],
        "validation": rows[calibration : calibration + validation],
    }
    for name, clips in splits.items():
        (root / f"{name}.jsonl").write_text("".join(f"{json.dumps(clip)}\n" for clip in clips))
    recipe = {
        "name": "whisper_tiny_en_real",
        "model": {"source": str(MODEL)},
        "task": {"kind": "asr-seq2seq"},
        **{
            name: {"source": {"kind": "manifest", "path": f"{name}.jsonl", "root": str(SPEECH)}}
            for name in splits
        },
        "attribution": {
            "method": "hib",
            "bottleneck": "mutual-information",
            "score": "information",
            "beta": 10,
            "steps": 5,
        },
        "budget": {"heads": 2},
        "export": {"seconds": [5], "batches": [1]},
        "benchmark": {"seconds": [5], "repetitions": 2, "warmup": 1},
        **changes,
    }
    recipe["calibration"]["samples"] = calibration
    path = root / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def test_whisper_runs_from_recipe_to_onnx_on_human_speech(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, calibration=2, validation=8)
    output = tmp_path / "out"
    result = CliRunner().invoke(main, ["run", str(recipe), "--output", str(output), "--quiet"])
    assert result.exit_code == 0, result.output
    manifest = Manifest.model_validate_json((output / "manifest.json").read_text())
    # whisper-tiny.en stands at 0.11 on 100 of these clips; 8 of them leave room for chance.
    assert manifest.metric.baseline.value < 0.35
    assert manifest.heads.total == 24
    assert manifest.heads.removed_count == 2
    assert manifest.metric.exported == manifest.metric.pruned
