"""Gradient steps behind the fit: they help on clips held out, or nothing has happened."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import run
from standin import StandIn
from test_repair import GONE, InThread, by_name, clips_of, hidden, without
from tiny_models import TinyModel
from torch import Tensor
from transformers import PreTrainedModel

from hibprune.compression import layer_work, refine
from hibprune.compression import repair as repairing
from hibprune.compression.repair import repair
from hibprune.compression.settings import RemovalSettings
from hibprune.models import layerwise
from hibprune.models.hidden_states import HiddenStates
from hibprune.models.layerwise import CalibrationClip, encoder_layers
from hibprune.records.manifest import Manifest
from hibprune.records.repair import LayerRefinement, Repair, SublayerRepair
from hibprune.records.units import Unit
from hibprune.report.repair import repair_section
from hibprune.stages.repair import repair_line

STEPS = 20
MORE_STEPS, MANY_STEPS = 60, 100
"""Where it matters how good they are."""
UNLIKE = (
    "wav2vec2", "wavlm-stable", "conformer-relative", "ast", "whisper", "moonshine", "distilbert",
)  # fmt: skip
"""Families of which each hands its layers something else, which is all that steps know of them."""
every_kind = pytest.mark.parametrize("tiny", map(by_name, UNLIKE), ids=lambda tiny: tiny.name)


def weights_of(model: torch.nn.Module) -> dict[str, Tensor]:
    return {
        name: value.clone()
        for values in (model.named_parameters(), model.named_buffers())
        for name, value in values
    }


def refined(
    model: PreTrainedModel,
    smaller: PreTrainedModel,
    clips: Sequence[CalibrationClip],
    scratch: Path,
    **more: Any,
) -> Repair:
    more = {"refine_steps": STEPS, **more}
    return repair(model, smaller, clips, "least-squares", scratch, 2**30, **more)


@every_kind
def test_the_error_falls_and_only_layers_move(
    tiny: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of noise nothing can be learned that holds for other noise: no clip is held out.
    monkeypatch.setattr(layer_work, "HELD_OUT_EVERY", 1000)
    model, clips = tiny.build(), clips_of(tiny)
    smaller = without(model, GONE["both"])
    fitted = copy.deepcopy(smaller)
    refined(model, fitted, clips, tmp_path, refine_steps=0)
    before = weights_of(smaller)
    found = refined(model, smaller, clips, tmp_path, refine_steps=MORE_STEPS)
    assert [one.layer for one in found.refinements] == [0, 1]
    assert found.refined
    for one in found.refinements:
        assert one.after < one.before
        assert 0 < one.steps <= MORE_STEPS
    inside = {id(weight) for layer in encoder_layers(smaller) for weight in layer.parameters()}
    moved = set()
    for name, weight in smaller.named_parameters():
        if not torch.equal(weight, before[name]):
            moved.add(name)
            assert id(weight) in inside, name
            assert "norm" not in name.lower(), name
    # Matrices in front of the softmax or the activation, which the fit leaves alone.
    assert len(moved) > sum(not torch.equal(w, before[n]) for n, w in fitted.named_parameters())
    assert not [name for name in moved if "embed" in name]
    for name, buffer in smaller.named_buffers():
        assert torch.equal(buffer, before[name]), name
    assert all(weight.grad is None for weight in smaller.parameters())


def test_what_the_model_says_comes_nearer_than_by_the_fit(tmp_path: Path) -> None:
    tiny = by_name("wav2vec2-stable")
    model = tiny.build()
    clips, others = clips_of(tiny, 60)[:40], clips_of(tiny, 60)[40:]
    wanted = hidden(model, others)
    missed = {}
    for steps in (0, MANY_STEPS):
        smaller = without(model, [Unit(0, 0), Unit(0, 1), Unit(0, 2), *GONE["neurons"]])
        refined(model, smaller, clips, tmp_path, refine_steps=steps)
        missed[steps] = float((hidden(smaller, others) - wanted).square().mean())
    assert missed[MANY_STEPS] < 0.97 * missed[0]


def test_where_steps_do_not_help_the_fitted_weights_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = by_name("wav2vec2")
    model, clips = tiny.build(), clips_of(tiny)
    fitted, stepped = (without(model, GONE["both"]) for _ in range(2))
    refined(model, fitted, clips, tmp_path, refine_steps=0)
    # Steps as large as this make everything worse.
    monkeypatch.setattr(refine, "LEARNING_RATE", 1e3)
    found = refined(model, stepped, clips, tmp_path)
    assert all(not one.kept and one.after == one.before for one in found.refinements)
    assert not found.refined
    for name, weight in weights_of(fitted).items():
        assert torch.equal(weight, weights_of(stepped)[name]), name


def test_steps_that_leave_all_numbers_are_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = by_name("wav2vec2-stable")
    model, clips = tiny.build(), clips_of(tiny)
    smaller = without(model, GONE["both"])
    monkeypatch.setattr(refine, "LEARNING_RATE", float("nan"))
    found = refined(model, smaller, clips, tmp_path)
    assert not found.refined
    assert all(torch.isfinite(weight).all() for weight in smaller.parameters())


def test_two_runs_are_equal(tmp_path: Path) -> None:
    tiny = by_name("wavlm")
    model, clips = tiny.build(), clips_of(tiny)
    model.train()
    one, other = (without(model, GONE["both"]) for _ in range(2))
    # Dropout would draw on these.
    torch.manual_seed(1)
    first = refined(model, one, clips, tmp_path)
    torch.manual_seed(2)
    assert refined(model, other, clips, tmp_path) == first
    for name, weight in weights_of(one).items():
        assert torch.equal(weight, weights_of(other)[name]), name
    assert one.training
    assert all(weight.requires_grad for weight in one.parameters())


def test_a_model_that_lost_nothing_is_not_refined(tmp_path: Path) -> None:
    tiny = by_name("bert")
    model = tiny.build()
    same = copy.deepcopy(model)
    assert refined(model, same, clips_of(tiny), tmp_path).refinements == ()
    for name, weight in weights_of(model).items():
        assert torch.equal(weight, weights_of(same)[name]), name


@pytest.mark.parametrize("name", ["wav2vec2", "distilbert"])
def test_a_layer_without_units_is_no_trap(name: str, tmp_path: Path) -> None:
    tiny = by_name(name)
    model, clips = tiny.build(), clips_of(tiny)
    smaller = without(model, GONE["a layer emptied"])
    found = refined(model, smaller, clips, tmp_path)
    assert [one.layer for one in found.refinements] == [0, 1]
    assert all(torch.isfinite(weight).all() for weight in smaller.parameters())


def test_targets_of_layers_that_are_done_take_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = by_name("wav2vec2")
    model, clips = tiny.build(), clips_of(tiny)
    there: list[HiddenStates] = []

    class Watched(HiddenStates):
        def __init__(self, *inputs: Any) -> None:
            super().__init__(*inputs)
            there.append(self)

    monkeypatch.setattr(repairing, "HiddenStates", Watched)
    refined(model, without(model, GONE["both"]), clips, tmp_path, refine_steps=3)
    assert there
    assert not [name for name in there[0]._kept if name.startswith("target/")]


# One batch, so that the second rank has none; then batches for both.
@pytest.mark.parametrize(("size", "count"), [(16, 4), (4, 14)])
def test_processes_that_share_the_batches_come_to_the_same_weights(
    size: int, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = by_name("wav2vec2")
    monkeypatch.setattr(layerwise, "CLIPS_AT_ONCE", size)
    model, clips = tiny.build(), clips_of(tiny, count)
    parts: dict[int, Tensor] = {}
    barrier = threading.Barrier(2)
    models = [without(model, GONE["both"]) for _ in range(2)]
    originals = [copy.deepcopy(model) for _ in range(2)]
    reports: dict[int, Repair] = {}

    def work(number: int) -> None:
        processes = InThread(number, 2, parts, barrier)
        reports[number] = refined(
            originals[number], models[number], clips, tmp_path / str(number), processes=processes
        )

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert reports[0] == reports[1]
    assert len(reports[0].refinements) == 2
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", ["none", "mean", "scale"])
def test_steps_go_on_from_a_fit_of_all_weights(kind: str) -> None:
    with pytest.raises(ValueError, match=f"repair is {kind}: set repair to least-squares or leave"):
        RemovalSettings.model_validate({"repair": kind, "refine": {"steps": 3}})
    assert RemovalSettings.model_validate({"refine": {"steps": 3}}).refine_steps == 3
    assert RemovalSettings().refine_steps == 0


def test_the_report_says_of_every_layer_what_steps_brought() -> None:
    found = Repair(
        kind="least-squares",
        clips=8,
        held_out=2,
        frames=100,
        sublayers=(
            SublayerRepair(
                layer=0, kind="head", name="attention", removed=1, kept=3, strength=0.1,
                before=0.5, after=0.25, refitted=True,
            ),
        ),
        refinements=(
            LayerRefinement(layer=0, before=0.3, after=0.2, steps=75),
            LayerRefinement(layer=1, before=0.4, after=0.4, steps=0),
        ),
    )  # fmt: skip
    manifest = Manifest.model_construct(repair=found, input="sound")
    page = repair_section(manifest)
    assert "| 0 | 75 | 30.0 % | 20.0 % |" in page
    assert "| 1 | 0 | 40.0 % | fitted weights kept |" in page
    assert "In 1 of 2 layers they did not help on the clips held out" in page
    assert "Nothing was trained" not in page
    alone = Manifest.model_construct(
        repair=found.model_copy(update={"refinements": ()}), input="sound"
    )
    assert "Gradient steps" not in repair_section(alone)
    assert "Nothing was trained" in repair_section(alone)
    assert repair_line(found).endswith("of what they write, 1 of 2 layers refined")


@pytest.mark.slow
def test_a_run_with_steps_keeps_them_and_notices_others(stand_in: StandIn) -> None:
    output = stand_in.root / "out"

    def kept(steps: str) -> tuple[dict[str, Any], bytes]:
        done = run(stand_in, "--quiet", "--set", f"removal.refine={steps}")
        assert done.exit_code == 0, done.output or done.exception
        record = json.loads((output / "steps/repair.json").read_text())
        return record, (output / "model.safetensors").read_bytes()

    first, weights = kept("{steps: 8}")
    assert len(first["result"]["repair"]["refinements"]) == 2
    assert kept("{steps: 8}") == (first, weights)
    other, _ = kept("null")
    assert other["key"] != first["key"]
    assert other["result"]["repair"]["refinements"] == []
    again, same = kept("{steps: 8}")
    assert again["result"] == first["result"]
    assert same == weights
