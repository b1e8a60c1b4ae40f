"""A killed run takes up where it stopped; what changed is redone, and only what it reaches."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from processes import finish, kill_after
from safetensors.torch import load_file, save_file
from standin import ALL_HEADS, CALIBRATION_CLIPS, StandIn, write_clip

import hibprune.attribution.hib
from hibprune.attribution.batches import CalibrationBatch
from hibprune.cli import main
from hibprune.execution.files import sha256_of

STEPS = (
    "export-original", "original", "attribute", "plan", "prune", "repair", "export", "pruned",
    "benchmark", "example",
)  # fmt: skip
AFTER_EXPORT = ["export", "pruned", "benchmark", "example"]
LONG = (
    "--set", "attribution.steps=30", "--set", "attribution.batch_size=4",
    "--set", "export.seconds=[0.5]", "--set", "validation.limit=8", "--quiet",
)  # fmt: skip
"""Attribution in several batches, so that it can be killed between two."""


def step_result(output: Path, step: str) -> Any:
    return json.loads((output / "steps" / f"{step}.json").read_text())["result"]


def files(output: Path) -> set[str]:
    return {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}


def redone(output: str) -> list[str]:
    """The steps that were not taken from an earlier run."""
    lines = [line.split() for line in output.splitlines()]
    return [line[0] for line in lines if line and line[0] in STEPS and line[1] != "done"]


def run(recipe: Path, output: Path, *options: str) -> list[str]:
    """Run to the end; returns the steps that were done anew."""
    arguments = ["run", str(recipe), "--output", str(output), "--quiet", *options]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output or result.exception
    return redone(result.stdout)


def assert_same_outcome(one: Path, other: Path) -> None:
    assert step_result(one, "plan") == step_result(other, "plan")
    rows = [np.array(step_result(output, "attribute")["per_sample"]) for output in (one, other)]
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-4)
    assert files(one) == files(other)
    for name in ("config.json", "model.safetensors", "onnx/model.onnx"):
        assert sha256_of(one / name) == sha256_of(other / name), name


# Killed --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(stand_ins: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with many steps of attribution that nothing happened to."""
    place = tmp_path_factory.mktemp("undisturbed")
    recipe = stand_ins("keyword_spotting") / "recipe.yaml"
    said = finish(place / "said", "run", str(recipe), "--output", str(place / "out"), *LONG)
    assert redone(said) == list(STEPS)
    return place / "out"


@pytest.fixture
def arguments(stand_ins: Callable[[str], Path], tmp_path: Path) -> tuple[str, ...]:
    """The same run into `tmp_path/out`."""
    recipe = stand_ins("keyword_spotting") / "recipe.yaml"
    return ("run", str(recipe), "--output", str(tmp_path / "out"), *LONG)


def test_killed_in_the_middle_of_attribution(
    arguments: tuple[str, ...], undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    kill_after("steps/attribute.partial.json", tmp_path / "said", *arguments)
    assert not (output / "steps/attribute.json").exists()
    partial = json.loads((output / "steps/attribute.partial.json").read_text())
    scored = len(partial["rows"])
    assert 0 < scored < CALIBRATION_CLIPS
    said = finish(tmp_path / "said", *arguments)
    assert f"attribute: going on after {scored} samples scored before" in said.splitlines()
    assert redone(said) == list(STEPS[2:])
    assert_same_outcome(output, undisturbed)


@pytest.mark.parametrize(
    "moment", [pytest.param("steps/repair.json", marks=pytest.mark.slow), "onnx/model.onnx"]
)
def test_killed_before_the_export_is_done(
    arguments: tuple[str, ...], undisturbed: Path, tmp_path: Path, moment: str
) -> None:
    output = tmp_path / "out"
    kill_after(f"out/{moment}", tmp_path / "said", *arguments)
    assert (output / "steps/repair.json").exists()
    assert not (output / "steps/export.json").exists()
    said = finish(tmp_path / "said", *arguments)
    assert redone(said) == AFTER_EXPORT
    assert_same_outcome(output, undisturbed)


def test_rows_scored_before_are_not_scored_again(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    partial = output / "steps/attribute.partial.json"
    kill_after("steps/attribute.partial.json", tmp_path / "said", *arguments)
    content = json.loads(partial.read_text())
    content["rows"] = {sample: [7.0] * ALL_HEADS for sample in content["rows"]}
    partial.write_text(json.dumps(content))
    kill_after("steps/attribute.json", tmp_path / "said", *arguments)
    scores = step_result(output, "attribute")
    marked = {
        sample
        for sample, row in zip(scores["samples"], scores["per_sample"], strict=True)
        if row == [7.0] * ALL_HEADS
    }
    assert marked == set(content["rows"])


# Changed -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(stand_ins: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task in `task` with a finished run in `out`, to be copied."""
    place = tmp_path_factory.mktemp("base")
    shutil.copytree(stand_ins("keyword_spotting"), place / "task")
    assert run(place / "task/recipe.yaml", place / "out") == list(STEPS)
    return place


@pytest.fixture
def task(base: Path, tmp_path: Path) -> StandIn:
    """The task whose finished run is in `output`."""
    shutil.copytree(base, tmp_path / "copy")
    return StandIn(tmp_path / "copy/task")


@pytest.fixture
def output(task: StandIn) -> Path:
    return task.root.parent / "out"


AFTER_PLAN = list(STEPS[3:])


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed=0", []),
        ("gates.max_file_mb=9", []),
        ("attribution.batch_size=3", []),
        ("budget.fraction=0.6", AFTER_PLAN),
        ("budget.scope=layerwise", AFTER_PLAN),
        ("seed=1", ["attribute", *AFTER_PLAN]),
        ("attribution.steps=4", ["attribute", *AFTER_PLAN]),
        ("attribution={method: magnitude}", ["attribute", *AFTER_PLAN]),
        ("calibration.samples=10", ["attribute", *AFTER_PLAN]),
        ("validation.limit=12", ["original", *AFTER_EXPORT]),
        ("export.tolerance=0.01", ["export-original", "original", *AFTER_EXPORT]),
        ("name=other", AFTER_EXPORT),
        ("benchmark.repetitions=4", ["benchmark"]),
    ],
)
def test_a_changed_recipe_redoes_what_the_change_reaches(
    task: StandIn, output: Path, override: str, expected: list[str]
) -> None:
    assert run(task.recipe, output, "--set", override) == expected


def test_a_changed_budget_changes_every_file_that_tells_of_it(task: StandIn, output: Path) -> None:
    digests = {name: sha256_of(output / name) for name in files(output)}
    run(task.recipe, output, "--set", "budget={heads: 6}")
    assert len(step_result(output, "plan")["removed"]) == 6
    for name in ("model.safetensors", "config.json", "onnx/model.onnx", "manifest.json"):
        assert sha256_of(output / name) != digests[name], name
    assert "heads: 6" in (output / "recipe.yaml").read_text()
    assert sha256_of(output / "steps/attribute.json") == digests["steps/attribute.json"]


def test_going_back_to_an_earlier_recipe_gives_the_earlier_files(
    task: StandIn, output: Path, base: Path
) -> None:
    run(task.recipe, output, "--set", "budget={heads: 6}")
    assert run(task.recipe, output) == AFTER_PLAN
    assert_same_outcome(output, base / "out")


def new_clip(task: StandIn, split: str) -> None:
    write_clip(task.clip(split, 3), np.random.default_rng(len(split)))


def new_label(task: StandIn, split: str) -> None:
    rows = task.rows(split)
    rows[3]["label"] = "w0"
    task.write_rows(split, rows)


@pytest.mark.parametrize("change", [new_clip, new_label])
def test_changed_data_redo_what_they_reach(
    task: StandIn, output: Path, change: Callable[[StandIn, str], None]
) -> None:
    change(task, "validation")
    # As many are right as before: what the graphs say of that stays.
    assert run(task.recipe, output) == ["original", "pruned", "benchmark"]
    change(task, "calibration")
    assert run(task.recipe, output) == ["attribute", *AFTER_PLAN]


def test_changed_weights_redo_everything(task: StandIn, output: Path) -> None:
    path = task.model / "model.safetensors"
    weights = load_file(path)
    weights["classifier.bias"][0] += 1
    save_file(weights, path, metadata={"format": "pt"})
    assert run(task.recipe, output) == list(STEPS)


# Tampered with -------------------------------------------------------------------------------


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "step", "tamper"),
    [
        ("model.safetensors", "repair", flip_a_bit),
        ("model.safetensors", "repair", Path.unlink),
        ("preprocessor_config.json", "repair", Path.unlink),
        ("config.json", "repair", lambda path: path.write_text("{}")),
        ("onnx/model.onnx", "export", flip_a_bit),
        ("onnx/model.onnx", "export", Path.unlink),
    ],
)
def test_a_file_that_was_tampered_with_is_made_again(
    task: StandIn,
    output: Path,
    base: Path,
    name: str,
    step: str,
    tamper: Callable[[Path], object],
) -> None:
    tamper(output / name)
    assert run(task.recipe, output) == [step]
    assert sha256_of(output / name) == sha256_of(base / "out" / name)


def test_records_that_merely_exist_are_not_believed(task: StandIn, output: Path) -> None:
    for record in (output / "steps").glob("*.json"):
        record.write_text("")
    assert run(task.recipe, output) == list(STEPS)


def test_the_records_of_one_task_do_not_do_for_another(
    task: StandIn, output: Path, stand_ins: Callable[[str], Path]
) -> None:
    assert run(stand_ins("intents") / "recipe.yaml", output) == list(STEPS)


def test_another_task_leaves_no_tokenizer_of_the_one_before(
    finished: Callable[[str], Path], stand_ins: Callable[[str], Path], tmp_path: Path
) -> None:
    output = Path(shutil.copytree(finished("speech_recognition"), tmp_path / "out"))
    (output / "notes.txt").write_text("by hand")
    assert (output / "tokenizer_config.json").exists()
    assert run(stand_ins("keyword_spotting") / "recipe.yaml", output) == list(STEPS)
    assert files(output) == files(finished("keyword_spotting")) | {"notes.txt"}


def test_what_killed_writers_left_is_gone_after_the_next_run(task: StandIn, output: Path) -> None:
    before = files(output)
    (output / ".scratch.12345.partial").mkdir()
    for name in (
        ".scratch.12345.partial/model.safetensors",
        "onnx/.model.12345.partial.onnx",
        "steps/.plan.12345.partial.json",
    ):
        (output / name).write_bytes(b"half")
    assert run(task.recipe, output) == []
    assert files(output) == before


# Batches -------------------------------------------------------------------------------------


def scores_of(output: Path) -> np.ndarray:
    return np.array(step_result(output, "attribute")["per_sample"])


def test_scores_do_not_depend_on_the_batches(
    task: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--set", "attribution.steps=8", "--set", "validation.limit=5")
    run(task.recipe, tmp_path / "seven", *options)
    run(task.recipe, tmp_path / "one", *options, "--set", "attribution.batch_size=1")

    optimise = hibprune.attribution.hib.optimise
    sizes: list[int] = []

    def short_of_memory(
        method: Any, model: Any, calibration: CalibrationBatch, *more: Any
    ) -> dict[int, torch.Tensor]:
        sizes.append(len(calibration.batch.ids))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return optimise(method, model, calibration, *more)

    monkeypatch.setattr(hibprune.attribution.hib, "optimise", short_of_memory)
    run(task.recipe, tmp_path / "halved", *options)
    # The first measures what samples take.
    assert sizes[0] == 2
    assert sizes[1] > 2
    assert set(sizes[3:]) <= {1, 2}
    log = (tmp_path / "halved/run.log").read_text()
    assert "memory ran out; going on with batches of 3" in log
    seven, one, halved = (scores_of(tmp_path / name) for name in ("seven", "one", "halved"))
    assert np.ptp(seven, axis=0).min() > 1e-3, "scores that all agree would prove nothing"
    np.testing.assert_allclose(one, seven, atol=1e-4)
    np.testing.assert_allclose(halved, seven, atol=1e-4)
