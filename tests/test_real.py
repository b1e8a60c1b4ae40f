"""A published Whisper on human speech: needs the directory named by HIBPRUNE_REAL.

The recordings are not ours to ship; what is measured on them is.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import invoke
from real_speech import REAL, RECIPE, SPEECH, lay_out

from hibprune.recipe import load_recipe
from hibprune.records.manifest import Manifest

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        not (SPEECH / "manifest.jsonl").is_file(),
        reason=f"no real recordings in {REAL}: set HIBPRUNE_REAL",
    ),
]


def test_its_recipe_checks_out(tmp_path: Path) -> None:
    recipe = lay_out(tmp_path, calibration=16, validation=252)
    assert invoke("check", recipe, "--offline").output.endswith(f"\n{recipe}: ok\n")
    shipped = load_recipe(RECIPE.parents[2] / "recipes" / RECIPE.name).recipe
    ours = load_recipe(recipe).recipe
    for part in ("name", "task", "attribution", "budget", "removal", "export", "benchmark"):
        assert getattr(ours, part) == getattr(shipped, part), part


@pytest.mark.slow
def test_whisper_runs_from_recipe_to_onnx_on_human_speech(tmp_path: Path) -> None:
    recipe = lay_out(tmp_path, calibration=4, validation=5)
    quick = (
        "calibration.samples=1", "calibration.repair_samples=4",
        "export={seconds: [1], batches: [1]}",
        "benchmark={seconds: [1], repetitions: 2, warmup: 1}",
        "export.variants=[fp32]", "benchmark.rivals=false",
        # So few clips do not restore the model, which then says the same without end.
        "task.max_new_tokens=32",
    )  # fmt: skip
    output = tmp_path / "out"
    overrides = [f"--set={override}" for override in quick]
    result = invoke("run", recipe, "--output", output, "--quiet", *overrides)
    assert result.exit_code == 0, result.output
    manifest = Manifest.model_validate_json((output / "manifest.json").read_text())
    # whisper-tiny.en stands at 0.11 on 100 of these clips; 5 of them leave room for chance.
    assert manifest.original.metric.value < 0.35
    assert manifest.heads.total == 24
    assert manifest.heads.removed_count == 6
