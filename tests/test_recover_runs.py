"""Recovery from the recipe to the report: what is exported is the recovered model, also after a
kill, in rounds, of decoders and under torchrun; and what is refused."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import faults, invoke, manifest, refused, run, words_of_steps
from manifests import unwrapped
from processes import finish, kill_after
from safetensors.torch import load_file
from standin import CALIBRATION_CLIPS, StandIn, quick_keyword_spotting
from test_several_processes import HIBPRUNE, TOGETHER, call

from hibprune.execution.files import sha256_of
from hibprune.records.recovery import Recovery

QUICK = {"heads": 3}
RECOVER = ("--set", "recover={steps: 6, learning_rate: 1.0e-3, held_out: 0.2, checkpoint_steps: 2}")
UNREPAIRED = ("--set", "removal.repair=none")
CHEAP = ("--set", "export.variants=[fp32]", "--set", "benchmark.rivals=false", "--quiet")


@pytest.fixture(scope="module")
def recovered(
    tmp_path_factory: pytest.TempPathFactory,
    drawing: Callable[[], contextlib.AbstractContextManager[None]],
) -> StandIn:
    stand_in = quick_keyword_spotting(tmp_path_factory.mktemp("recover") / "keywords", QUICK)
    with drawing():
        done = run(stand_in, *RECOVER, *UNREPAIRED, *CHEAP[:-1])
    assert done.exit_code == 0, done.output or done.exception
    (stand_in.root / "said.txt").write_text(done.stdout)
    return stand_in


def test_the_recovered_model_is_what_is_left_and_measured(recovered: StandIn) -> None:
    out, found = recovered.root / "out", manifest(recovered).recovery
    assert found is not None
    recovery = found.recovery
    assert (recovery.clips, recovery.held_out) == (16, 4)
    assert (recovery.planned, recovery.steps, recovery.ended) == (6, 6, "all steps")
    assert [one.step for one in recovery.curve] == [0, 2, 4, 6]
    assert recovery.best_step > 0
    before, after = (
        load_file(out / place / "model.safetensors") for place in ("steps/repaired", "")
    )
    assert before.keys() == after.keys()
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert any("q_proj" in name for name in moved)
    assert recovery.parameters == sum(value.numel() for value in after.values())
    pruned = manifest(recovered).variant("pruned")
    assert pruned.parity is not None
    assert pruned.parity.max_relative_diff < 1e-4
    assert pruned.done[-1] == f"recovered ({recovery.best_step} steps)"
    assert found.repaired.n == pruned.metric.n
    assert found.data == manifest(recovered).calibration


def test_what_users_load_is_what_was_trained(recovered: StandIn) -> None:
    from transformers import AutoModelForAudioClassification

    out = recovered.root / "out"
    model = AutoModelForAudioClassification.from_pretrained(out)
    for name, value in load_file(out / "model.safetensors").items():
        assert torch.equal(model.state_dict()[name], value), name


def test_everything_tells_of_it(recovered: StandIn) -> None:
    report = unwrapped((recovered.root / "out/report.md").read_text())
    assert "## Recovery" in report
    assert "6 steps on 16 clips of calibration" in report
    assert "Recovery saw only the 16 calibration clips: give it more of them" in report
    assert "![Loss over the steps of training](figures/recovery.png)" in report
    assert "Retraining on labels" not in report
    assert (recovered.root / "out/figures/recovery.png").stat().st_size > 1000
    card = unwrapped((recovered.root / "out/README.md").read_text())
    assert "it was then trained towards the original, 6 steps on 16 clips" in card
    assert "No training followed" not in card
    said = (recovered.root / "said.txt").read_text()
    assert "6 steps on 16 clips, loss on 4 held out " in said


def test_it_is_not_done_again(recovered: StandIn) -> None:
    before = sha256_of(recovered.root / "out/model.safetensors")
    said = words_of_steps(run(recovered, *RECOVER, *UNREPAIRED, *CHEAP).stdout)
    assert {said[step] for step in ("repair", "repaired", "recover", "export")} == {"done"}
    assert sha256_of(recovered.root / "out/model.safetensors") == before


def test_without_it_the_repaired_model_is_left(recovered: StandIn, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(recovered.root / "out", out)
    repaired = sha256_of(out / "steps/repaired/model.safetensors")
    assert run(recovered, *UNREPAIRED, *CHEAP, output=out).exit_code == 0
    assert sha256_of(out / "model.safetensors") == repaired
    assert not list((out / "steps/repaired").glob("*"))
    assert "## Recovery" not in (out / "report.md").read_text()
    assert json.loads((out / "manifest.json").read_text())["recovery"] is None


# Killed ------------------------------------------------------------------------------------


def test_killed_in_the_middle_it_comes_to_the_same_bytes(recovered: StandIn) -> None:
    settings = ("--set", "recover={steps: 30, checkpoint_steps: 3, held_out: 0.2, patience: 99}")
    root, bytes_of = recovered.root, {}
    for name, killed in (("whole", False), ("killed", True)):
        out = root / name
        words = ("run", str(recovered.recipe), "--output", str(out), *settings, *CHEAP)
        if killed:
            kill_after("steps/recover.partial.safetensors", root / "said", *words)
            assert not (out / "steps/recover.json").exists()
        said = finish(root / "said", *words)
        assert ("recover: going on after " in said) == killed
        assert not list((out / "steps").glob("*partial*"))
        bytes_of[name] = [sha256_of(out / one) for one in ("model.safetensors", "onnx/model.onnx")]
    assert bytes_of["whole"] == bytes_of["killed"]
    results = [
        json.loads((root / name / "steps/recover.json").read_text())["result"]["recovery"]
        for name in bytes_of
    ]
    assert results[0] == results[1]


# Rounds, decoders, processes ---------------------------------------------------------------


def test_projections_of_two_matrices_are_trained_and_reload(quick: StandIn) -> None:
    """A configuration that forgot them would build whole ones, for which there are no weights."""
    steps = ("--set", "recover={steps: 2, learning_rate: 1.0e-3, held_out: 0}")
    done = run(quick, *steps, "--set", "budget.ranks=0.5", *CHEAP)
    assert done.exit_code == 0, done.output or done.exception
    out = quick.root / "out"
    before, after = (
        load_file(out / place / "model.safetensors") for place in ("steps/repaired", "")
    )
    assert before.keys() == after.keys()
    assert any(name.endswith("outer.weight") for name in after)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    configs = (
        json.loads((out / place / "config.json").read_text()) for place in ("steps/repaired", "")
    )
    first, second = (config["projection_ranks"] for config in configs)
    assert first == second


def test_rounds_recover_in_between(tmp_path: Path) -> None:
    stand_in = quick_keyword_spotting(tmp_path / "keywords", {"heads": 4, "neurons": 0.3})
    options = ("--set", "recover={steps: 2, held_out: 0}", "--set", "schedule.rounds=2", *CHEAP)
    done = run(stand_in, *options)
    assert done.exit_code == 0, done.output or done.exception
    out, found = stand_in.root / "out", manifest(stand_in)
    assert [sum(map(len, one.removed.values())) for one in found.rounds] == [2, 2]
    assert {"recover-round", "recover"} <= found.steps.keys()
    first, last = (
        json.loads((out / "steps" / f"{name}.json").read_text())
        for name in ("recover-round", "recover")
    )
    assert first["result"]["recovery"]["steps"] == last["result"]["recovery"]["steps"] == 2
    config = json.loads((out / "steps/round-1/config.json").read_text())
    assert sum(map(len, config["pruned_heads"].values())) == 2
    again = words_of_steps(run(stand_in, *options).stdout)
    assert {again[step] for step in ("recover-round-1", "attribute-2", "recover")} == {"done"}


@pytest.mark.parametrize("labels", [pytest.param("dataset", marks=pytest.mark.slow), "model"])
def test_decoders_hear_transcripts_given_or_the_original_s_own(
    stand_ins: Callable[[str], Path], tmp_path: Path, labels: str
) -> None:
    stand_in = StandIn(tmp_path / "told")
    shutil.copytree(stand_ins("encoder_decoder_of_languages"), stand_in.root)
    settings = (
        "--set", "recover={steps: 2, held_out: 0, loss: {task: 0.5}, "
        f"data: {{kind: manifest, path: calibration.jsonl}}, limit: 6, labels: {labels}}}",
        "--set", "attribution={method: magnitude}",
        "--set", "budget={heads: 1, decoder_neurons: 0.3}",
        "--set", "validation.limit=2",
        "--set", "export.seconds=[0.5]", "--set", "export.batches=[1]",
    )  # fmt: skip
    done = run(stand_in, *settings, *CHEAP)
    assert done.exit_code == 0, done.output or done.exception
    found = manifest(stand_in).recovery
    assert found is not None
    assert (found.recovery.seen_elsewhere, found.recovery.steps) == (True, 2)
    assert 0 < found.recovery.clips <= 6
    assert (stand_in.root / "out/steps/label-recovery.json").exists() == (labels == "model")
    before, after = (
        load_file(stand_in.root / "out" / place / "model.safetensors")
        for place in ("steps/repaired", "")
    )
    assert any(
        "decoder.layers" in name and not torch.equal(before[name], after[name]) for name in after
    )


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(recovered: StandIn) -> None:
    curves = []
    for name, start in (("alone", ()), ("together", TOGETHER)):
        out = recovered.root / name
        words = ("run", recovered.recipe, "--output", out, *RECOVER, *UNREPAIRED, *CHEAP)
        done = call(*start, *HIBPRUNE, *words)
        assert done.returncode == 0, done.stderr
        result = json.loads((out / "steps/recover.json").read_text())["result"]
        curves.append(Recovery.model_validate(result["recovery"]).curve)
    alone, together = (
        [loss for one in c for loss in (one.training, one.held_out) if loss] for c in curves
    )
    assert len(alone) == 7
    # Sums in another order, which every step carries on: within a thousandth after six of them.
    assert together == pytest.approx(alone, rel=1e-3)
    assert together[0] == pytest.approx(alone[0], rel=1e-6)


# Refused -----------------------------------------------------------------------------------


def with_data(stand_in: StandIn, rows: list[dict[str, Any]], **settings: Any) -> None:
    content = stand_in.content()
    path = stand_in.root / "more.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    content["recover"] = {
        "steps": 2,
        "data": {"kind": "manifest", "path": "more.jsonl"},
        **settings,
    }
    stand_in.write(content)


@pytest.fixture
def quick(tmp_path: Path) -> StandIn:
    return quick_keyword_spotting(tmp_path / "keywords", QUICK)


def test_clips_to_learn_from_are_none_to_measure_on(quick: StandIn) -> None:
    shutil.copy(quick.clip("validation", 3), quick.root / "copy.wav")
    with_data(quick, [*quick.rows("calibration"), {"audio": "copy.wav", "label": "w1"}])
    line = (
        "recover.data and validation share 1 clip: copy.wav = validation/3.wav; validate on clips "
        "that the model is not trained on"
    )
    assert refused(quick) == [line]
    assert faults(invoke("check", quick.recipe)) == [line]


def test_a_task_s_loss_takes_labels(quick: StandIn) -> None:
    rows = [{"audio": row["audio"]} for row in quick.rows("calibration")]
    unlabelled = {"kind": "manifest", "path": "more.jsonl", "labelled": False}
    with_data(quick, rows, data=unlabelled, loss={"task": 1})
    line = (
        "recover.loss.task: clip calibration/0.wav of recover.data has no label: label them, leave "
        "task out, or set recover.labels: model"
    )
    assert refused(quick) == [line]
    assert faults(invoke("check", quick.recipe)) == [line]
    with_data(quick, rows, data=unlabelled)
    said = invoke("check", quick.recipe)
    assert said.exit_code == 0, said.output
    assert f"recover: {CALIBRATION_CLIPS} clips" in said.stdout


def test_check_knows_of_clips_that_are_not_there(quick: StandIn) -> None:
    with_data(quick, [{"audio": "gone.wav", "label": "w1"}])
    assert faults(invoke("check", quick.recipe)) == [
        f"{quick.recipe}: recover.data: 1 audio files are missing, the first gone.wav"
    ]
    (quick.root / "more.jsonl").unlink()
    assert faults(invoke("check", quick.recipe)) == [
        f"{quick.recipe}: recover.data: {quick.root}/more.jsonl: no such manifest"
    ]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            ("recover={steps: 2, epochs: 1}",),
            "recover: give one of steps and epochs: there are both",
        ),
        (("recover={}",), "recover: give one of steps and epochs: there is neither"),
        (
            ("recover.steps=2", "attribution={method: hib, paper: true}"),
            "recover trains what is left, and under attribution.paper nothing is trained: leave "
            "one of them out",
        ),
        (
            ("recover={steps: 2, train: repaired}", "removal.repair=none"),
            "recover.train: repaired, but removal.repair is none, so that nothing is: set "
            "recover.train to all or norms+biases",
        ),
        (
            ("recover={steps: 2, labels: dataset}", "calibration.labels=model"),
            "recover.labels: dataset, but the calibration clips that it learns from are taken to "
            "have none (calibration.labels: model): give recover.data or leave it out",
        ),
        (
            ("recover={steps: 2, batch_tokens: 9}",),
            "recover.batch_tokens: keyword-spotting takes sound: give batch_seconds",
        ),
        (
            ("recover={steps: 2, limit: 9}",),
            "recover: limit draws from data, of which there are none: leave it out",
        ),
        (
            ("recover={steps: 2, loss: {logits: 0, hidden: 0}}",),
            "recover.loss: all weights are 0, so that there is nothing to learn: raise one",
        ),
        (
            ("recover={steps: 2, precision: fp16}",),
            "recover.precision: fp16 is for GPUs: set it to fp32 or bf16",
        ),
    ],
)
def test_contradictions_are_told_in_a_line(
    quick: StandIn, options: tuple[str, ...], line: str
) -> None:
    found = refused(quick, *(word for option in options for word in ("--set", option)))
    assert [one.removeprefix("recipe.yaml: ") for one in found] == [line]


def test_one_clip_is_too_few_to_hold_any_out(quick: StandIn) -> None:
    with_data(quick, quick.rows("calibration")[:1])
    assert refused(quick) == [
        "recover: 1 clip to learn from, and 1 of them to hold out: give more, or set "
        "recover.held_out: 0"
    ]


def test_a_loss_of_labels_that_calibration_does_not_take_is_refused(quick: StandIn) -> None:
    options = ("--set", "recover={steps: 2, loss: {task: 1}}", "--set", "calibration.labels=model")
    assert refused(quick, *options) == [
        "recover.loss.task: the calibration clips have no labels: label them, leave task out, or "
        "set recover.labels: model"
    ]


def test_a_training_that_breaks_off_is_told_of(quick: StandIn) -> None:
    options = (
        "--set", "recover={steps: 30, learning_rate: 1, warmup: 0, held_out: 0.2, "
        "checkpoint_steps: 1, patience: 50}",
    )  # fmt: skip
    done = run(quick, *options, *CHEAP)
    assert done.exit_code == 0, done.output or done.exception
    found = manifest(quick).recovery
    assert found is not None
    assert found.recovery.broke_off
    (line,) = [one for one in done.stdout.splitlines() if one.startswith("recover: stopped after ")]
    assert f"stopped after {found.recovery.steps} of 30 steps, as its loss " in line
    assert line.endswith("lower recover.learning_rate")
    report = unwrapped((quick.root / "out/report.md").read_text())
    assert f"Recovery was stopped after {found.recovery.steps} of 30 steps" in report
    weights = load_file(quick.root / "out/model.safetensors")
    assert all(bool(value.isfinite().all()) for value in weights.values())
