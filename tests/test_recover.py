"""Training towards the original: what moves, what stays, and that it goes on as it would have."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_distillation import clips_of, task_of
from tiny_models import TINY_MODELS, TinyModel
from torch import Tensor
from transformers import PreTrainedModel

from hibprune.compression import recover as compression_recover
from hibprune.compression.augmentation import augmented
from hibprune.compression.distillation import Distillation
from hibprune.compression.recover import Session, recover
from hibprune.compression.recover_settings import Augmentation, LossWeights, TrainingSettings
from hibprune.compression.remove import copy_without
from hibprune.compression.trained_weights import trained_weights
from hibprune.compression.training_clips import (
    TrainingClip,
    batches_from,
    batches_of_epoch,
    cut,
    passes,
    shares_kept,
)
from hibprune.compression.training_plan import Recovering
from hibprune.compression.training_state import TrainingState, load_state, save_state
from hibprune.errors import OutputError
from hibprune.records.recovery import Losses, RecoveredModel, Recovery
from hibprune.records.repair import Repair, SublayerRepair
from hibprune.records.units import Unit
from hibprune.stages.recovery_lines import broken_line, recovery_line, told_as

GONE = [Unit(0, 1), Unit(0, 2), *(Unit(1, index, kind="neuron") for index in range(0, 37, 2))]
WAV2VEC2 = TINY_MODELS[0]


@dataclass(frozen=True)
class InMemory:
    """Clips that are there already."""

    clips: Sequence[TrainingClip]

    @property
    def lengths(self) -> list[float]:
        return [1.0] * len(self.clips)

    def read(self, place: int, draw: int | None) -> TrainingClip:
        return self.clips[place]


def recovering(
    tiny: TinyModel = WAV2VEC2,
    pruned: PreTrainedModel | None = None,
    clips: int = 8,
    weights: dict[str, Tensor] | None = None,
    **settings: Any,
) -> Recovering:
    chosen = {"steps": 6, "learning_rate": 3e-3, "checkpoint_steps": 2, "patience": 9, **settings}
    model = tiny.build()
    pruned = copy_without(model, GONE) if pruned is None else pruned
    made = TrainingSettings(**chosen)
    return Recovering(
        original=model,
        pruned=pruned,
        weights=trained_weights(pruned, made.train, None) if weights is None else weights,
        loss=Distillation(task_of(tiny), made.loss, made.temperature),
        clips=InMemory(clips_of(tiny, clips)),
        learned=range(clips - 2),
        held=range(clips - 2, clips),
        settings=made,
        room=2.0,
        seed=0,
        may_cut=False,
    )


def weights_of(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("tiny", TINY_MODELS, ids=lambda tiny: tiny.name)
def test_a_step_works_on_every_family(tiny: TinyModel) -> None:
    work = recovering(tiny, clips=4, steps=1, checkpoint_steps=1, held_out=0)
    work = replace(work, held=())
    before = weights_of(work.pruned)
    grad_before = [weight.requires_grad for weight in work.pruned.parameters()]
    found, _ = recover(work, Session())
    assert (found.steps, found.ended, found.best_step) == (1, "all steps", 1)
    assert found.curve[1].training is not None
    assert found.curve[1].training > 0
    moved = [name for name, value in work.pruned.state_dict().items() if not
             torch.equal(value, before[name])]  # fmt: skip
    assert len(moved) > len(before) / 2
    assert [weight.requires_grad for weight in work.pruned.parameters()] == grad_before
    assert all(weight.grad is None for weight in work.pruned.parameters())
    assert not work.pruned.training


def test_training_comes_nearer_to_the_original_and_leaves_that_alone() -> None:
    work = recovering(steps=40, checkpoint_steps=10)
    whole = weights_of(work.original)
    found, _ = recover(work, Session())
    assert found.best_step > 0
    assert found.best.held_out is not None
    assert found.start.held_out is not None
    assert found.best.held_out < 0.9 * found.start.held_out
    assert same(weights_of(work.original), whole)


def test_no_learning_rate_changes_nothing() -> None:
    work = recovering(learning_rate=0.0)
    before = weights_of(work.pruned)
    found, _ = recover(work, Session())
    assert same(weights_of(work.pruned), before)
    assert found.best_step == 0
    assert len({one.held_out for one in found.curve}) == 1


def test_a_model_that_lost_nothing_stays_itself() -> None:
    model = WAV2VEC2.build()
    work = recovering(pruned=copy.deepcopy(model))
    found, _ = recover(work, Session())
    assert found.start.held_out == 0.0
    assert found.best_step == 0
    assert same(weights_of(work.pruned), weights_of(model))


def test_the_best_weights_are_kept_not_the_last() -> None:
    seen: list[TrainingState] = []
    work = recovering(steps=30, checkpoint_steps=3, learning_rate=0.05, patience=4)
    found, _ = recover(work, Session(save=seen.append))
    held = [one.held_out for one in found.curve if one.held_out is not None]
    assert found.best.held_out == min(held)
    (best,) = [state for state in seen if state.step == found.best_step] or [None]
    if best is not None:
        for name, weight in work.weights.items():
            assert torch.equal(weight, best.current[name])
    if found.ended == "no better":
        assert found.steps - found.best_step == 4 * 3


@pytest.mark.parametrize("trained", ["norms+biases", "repaired"])
def test_weights_that_are_not_to_move_stay(trained: Any) -> None:
    model = WAV2VEC2.build()
    pruned = copy_without(model, GONE)
    repair = Repair(
        kind="least-squares", clips=1, held_out=0, frames=9,
        sublayers=(SublayerRepair(layer=1, kind="neuron", name="feed-forward", removed=1, kept=1,
                                  strength=1.0, before=1, after=0.5, refitted=True),),
    )  # fmt: skip
    moving = trained_weights(pruned, trained, repair)
    if trained == "repaired":
        place = "wav2vec2.encoder.layers.1.feed_forward.output_dense"
        assert set(moving) == {f"{place}.weight", f"{place}.bias"}
    else:
        assert {weight.dim() for weight in moving.values()} == {1}
        assert all("norm" in name or name.endswith("bias") for name in moving)
        assert "wav2vec2.encoder.layers.0.attention.q_proj.bias" in moving
        assert "wav2vec2.encoder.layer_norm.weight" in moving
    before = weights_of(pruned)
    found, _ = recover(
        recovering(pruned=pruned, weights=moving, held_out=0, train=trained), Session()
    )
    assert found.parameters == sum(weight.numel() for weight in moving.values())
    for name, value in pruned.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in moving), name


class KilledError(Exception):
    """Stands for the end of a process."""


@pytest.mark.parametrize(("at", "rate"), [(2, 3e-3), (4, 3e-3), (6, 3e-3), (2, 0.02), (4, 0.02)])
def test_a_training_taken_up_comes_to_the_same_weights_bit_for_bit(
    at: int, rate: float, tmp_path: Path
) -> None:
    """Also where a rate that is too high was lowered before."""
    path = tmp_path / "state.safetensors"
    whole = recovering(learning_rate=rate)
    found, _ = recover(whole, Session())
    work = recovering(learning_rate=rate)

    def save(state: TrainingState) -> None:
        save_state(path, "key", state)
        if state.step == at:
            raise KilledError

    with pytest.raises(KilledError):
        recover(work, Session(save=save))
    again = recovering(learning_rate=rate)
    shapes = {name: weight.shape for name, weight in again.weights.items()}
    state = load_state(path, "key", shapes, tmp_path)
    assert state is not None
    assert state.step == at
    taken_up, _ = recover(again, Session(state=state))
    assert taken_up == found
    assert same(weights_of(again.pruned), weights_of(whole.pruned))


def spoilt(tensors: dict[str, Tensor], metadata: dict[str, str]) -> list[Any]:
    name = next(name for name in tensors if name.startswith("current/"))
    nan = {**tensors, name: torch.full_like(tensors[name], math.nan)}
    short = {**tensors, name: tensors[name].flatten()[:-1]}
    without = {key: value for key, value in tensors.items() if key != name}
    no_curve = {**metadata, "state": metadata["state"].replace('"curve"', '"curse"')}
    return [(nan, metadata), (short, metadata), (without, metadata), (tensors, no_curve),
            (tensors, {**metadata, "state": "[" * 5000}), (tensors, {**metadata, "key": "other"}),
            (tensors, {})]  # fmt: skip


def test_a_state_that_cannot_be_right_is_not_taken_up(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    path, work = tmp_path / "state.safetensors", recovering(steps=2)
    recover(work, Session(save=lambda state: save_state(path, "key", state)))
    shapes = {name: weight.shape for name, weight in work.weights.items()}
    assert load_state(path, "key", shapes, tmp_path) is not None
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    for changed, told in spoilt(tensors, metadata):
        save_file(changed, path, told)
        assert load_state(path, "key", shapes, tmp_path) is None
    for content in (b"", b"no tensors", b"\xff" * 100):
        path.write_bytes(content)
        assert load_state(path, "key", shapes, tmp_path) is None
    path.unlink()
    assert load_state(path, "key", shapes, tmp_path) is None
    elsewhere = tmp_path / "elsewhere.safetensors"
    save_file(tensors, elsewhere, metadata)
    path.symlink_to(elsewhere)
    assert load_state(path, "key", shapes, tmp_path) is None


def test_a_full_disk_at_a_checkpoint_is_a_plain_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    from hibprune.compression import training_state

    def full(*_: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    path, work = tmp_path / "state.safetensors", recovering(steps=2)
    monkeypatch.setattr(training_state, "save_file", full)
    with pytest.raises(OutputError, match="the disk is full") as caught:
        recover(work, Session(save=lambda state: save_state(path, "key", state)))
    assert len(str(caught.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_not_finite_stops_and_the_best_weights_stay() -> None:
    work = recovering(steps=20, checkpoint_steps=1)
    heard = InMemory(list(work.clips.clips))  # type: ignore[attr-defined]
    calls: list[int] = []

    class Spoilt(InMemory):
        def read(self, place: int, draw: int | None) -> TrainingClip:
            clip = super().read(place, draw)
            calls.append(place)
            if draw is None or draw < 5:
                return clip
            return replace(clip, inputs={k: v * math.nan for k, v in clip.inputs.items()})

    seen: list[TrainingState] = []
    found, _ = recover(replace(work, clips=Spoilt(heard.clips)), Session(save=seen.append))
    assert (found.ended, found.steps) == ("not finite", 5)
    assert found.broke_off
    for name, weight in work.weights.items():
        assert weight.isfinite().all()
        assert torch.equal(weight, seen[-1].best[name])


def test_a_rate_that_leads_astray_is_lowered_and_wins_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {"steps": 40, "checkpoint_steps": 2, "learning_rate": 0.02, "warmup": 0}
    found, _ = recover(recovering(**settings), Session())
    held = [one.held_out for one in found.curve if one.held_out is not None]
    astray = [loss > 1.05 * held[0] for loss in held]
    assert any(astray)
    assert not astray[-1]
    assert min(held) < held[0]
    monkeypatch.setattr(compression_recover, "ASTRAY", float("inf"))
    stubborn, _ = recover(recovering(**settings), Session())
    assert stubborn.best.held_out is not None
    assert min(held) < stubborn.best.held_out


def test_a_loss_that_diverges_stops_and_the_repaired_weights_stay() -> None:
    work = recovering(steps=50, checkpoint_steps=1, learning_rate=1.0, warmup=0, patience=50)
    before = weights_of(work.pruned)
    found, _ = recover(work, Session())
    assert found.broke_off
    assert found.steps < 50
    if found.best_step == 0:
        assert same(weights_of(work.pruned), before)


def test_a_loss_that_was_next_to_nothing_is_not_said_to_diverge() -> None:
    """All but the original at first, so that a single step loses many times as much."""
    almost = WAV2VEC2.build()
    with torch.no_grad():
        almost.classifier.weight.mul_(1.01)
    settings = {"steps": 4, "checkpoint_steps": 1, "learning_rate": 1e-4, "warmup": 0}
    found, _ = recover(recovering(pruned=almost, **settings), Session())
    held = curve(found)
    assert 0 < 10 * held[0] < max(held) < 0.1
    assert (found.ended, found.steps) == ("all steps", 4)


@pytest.mark.parametrize(
    ("steps", "held_out", "best", "line"),
    [
        (1, [3.03e-5, 0.01353], 0, "1 step on 11 clips, loss on 1 held out 3.0e-05 → 0.0135: no "
         "better, the repaired weights stay"),
        (2, [0.5, 0.25, 0.125], 2, "2 steps on 11 clips, loss on 1 held out 0.5000 → 0.1250, "
         "weights of step 2 kept"),
    ],
)  # fmt: skip
def test_what_a_training_came_to_is_told_in_a_line(
    steps: int, held_out: list[float], best: int, line: str
) -> None:
    assert recovery_line(_found(steps, held_out, best)) == line


def test_a_training_behind_a_round_is_told_of_by_the_round() -> None:
    found = _found(1, [3.0, 40.0], 0).recovery.model_copy(
        update={"ended": "diverged", "planned": 2}
    )
    place = told_as("recover-round", 1)
    assert place == "recover-round-1"
    assert (told_as("recover-round-2", 2), told_as("recover", None)) == (
        "recover-round-2", "recover",
    )  # fmt: skip
    assert broken_line(found, place) == (
        "recover-round-1: stopped after 1 of 2 steps, as its loss has diverged: the best weights "
        "so far are kept, the repaired weights; lower recover.learning_rate"
    )


def _found(steps: int, held_out: list[float], best: int) -> RecoveredModel:
    recovery = Recovery(
        clips=11, held_out=1, seen_elsewhere=False, planned=steps, steps=steps, best_step=best,
        ended="all steps", trained="all", parameters=9, precision="fp32",
        curve=tuple(Losses(step=step, held_out=loss) for step, loss in enumerate(held_out)),
    )  # fmt: skip
    return RecoveredModel(recovery=recovery, seconds=1.0, files=())


def curve(found: Recovery) -> list[float]:
    return [loss for one in found.curve for loss in (one.training, one.held_out) if loss]


def test_parts_of_a_batch_add_up_to_it() -> None:
    one, _ = recover(recovering(steps=4), Session())
    three, _ = recover(recovering(steps=4, accumulation=3), Session())
    assert curve(three) == pytest.approx(curve(one), rel=1e-3)


def test_a_task_s_own_loss_is_part_of_it_by_its_weight() -> None:
    losses = []
    for weights in ({"task": 0}, {"task": 2}, {"logits": 0, "hidden": 0, "task": 2}):
        work = recovering(steps=1, checkpoint_steps=1, learning_rate=0.0, loss=weights)
        losses.append(recover(work, Session())[0].start.held_out or 0.0)
    assert losses[1] == pytest.approx(losses[0] + losses[2], rel=1e-6)
    model = recovering().pruned
    clips = [clips_of(WAV2VEC2, 8)[place] for place in (6, 7)]
    (batch,) = passes(model, clips)
    with torch.no_grad():
        logits = model(**batch.batch.inputs).logits.numpy()
    own = -np.log(np.exp(logits[:, 1]) / np.exp(logits).sum(1))
    assert losses[2] == pytest.approx(2 * own.mean(), rel=1e-5)


def test_the_rate_rises_and_falls_evenly() -> None:
    work = recovering(steps=10, warmup=0.2, learning_rate=1.0)
    rates = [work.rate(step) for step in range(10)]
    assert rates[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert np.diff(rates[2:]) == pytest.approx([-1 / 8] * 7)


def test_every_clip_comes_once_an_epoch_in_batches_that_fit() -> None:
    lengths = np.random.default_rng(3).uniform(0.5, 9, 200).tolist()
    first, second = (batches_of_epoch(lengths, 16.0, 5, epoch) for epoch in (0, 1))
    for found in (first, second):
        assert sorted(place for batch in found for place in batch) == list(range(200))
        assert all(
            sum(lengths[p] for p in batch) <= 16 + 1e-6 or len(batch) == 1 for batch in found
        )
        spread = [max(lengths[p] for p in b) - min(lengths[p] for p in b) for b in found]
        assert np.mean(spread) < 2
    assert first != second
    endless = batches_from(lengths, 16.0, 5, len(first) + 2)
    assert [next(endless) for _ in range(3)] == second[2:5]
    assert batches_of_epoch([99.0, 1.0], 16.0, 0, 0) in ([[0], [1]], [[1], [0]])


def test_epochs_are_as_many_steps_as_their_batches() -> None:
    assert recovering(steps=None, epochs=3).steps == 3 * 3


def test_ends_are_cut_for_nearly_equal_lengths() -> None:
    lengths = (8000, 4000, 4200, 4100)
    shares = shares_kept(lengths)
    assert shares == pytest.approx([1, 1, 4000 / 4200, 4000 / 4100])
    model = WAV2VEC2.build()
    clips = [
        TrainingClip(str(length), {"input_values": torch.randn(1, length)}) for length in lengths
    ]
    kept = [cut(model, clip, share) for clip, share in zip(clips, shares, strict=True)]
    assert [len(batch.batch.ids) for batch in passes(model, kept)] == [1, 3]
    whole = clips[2].inputs["input_values"]
    assert torch.equal(kept[2].inputs["input_values"], whole[:, :4000])
    text = next(one for one in TINY_MODELS if one.takes == "tokens")
    (clip,) = clips_of(text, 1)
    assert cut(text.build(), clip, 0.95) is clip


def test_how_processes_share_a_batch_does_not_change_what_is_cut() -> None:
    class Uneven(InMemory):
        @property
        def lengths(self) -> list[float]:
            return [value.inputs["input_values"].shape[1] / 16000 for value in self.clips]

    def uneven(**settings: Any) -> list[float]:
        work = recovering(steps=3, checkpoint_steps=1, **settings)
        clips = [
            replace(clip, inputs={"input_values": clip.inputs["input_values"][:, : 4000 - 30 * n]})
            for n, clip in enumerate(clips_of(WAV2VEC2, 8))
        ]
        return curve(recover(replace(work, clips=Uneven(clips), may_cut=True), Session())[0])

    assert uneven(accumulation=2) == pytest.approx(uneven(), rel=1e-5)


def tone(hertz: float, seconds: float = 1.0) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * np.arange(round(16000 * seconds)) / 16000).astype(np.float32)


def test_speed_moves_pitch_and_length_alike() -> None:
    found = augmented(tone(500), 16000, Augmentation(speed=(1.25,)), "a", (0.1, 30))
    assert len(found) == pytest.approx(16000 / 1.25, abs=2)
    spectrum = np.abs(np.fft.rfft(found))
    assert np.argmax(spectrum) * 16000 / len(found) == pytest.approx(625, abs=2)
    kept = augmented(tone(500), 16000, Augmentation(speed=(1.25,)), "a", (0.9, 30))
    assert len(kept) == 16000


def test_masks_take_sound_away_and_a_draw_decides_which() -> None:
    settings = Augmentation(time_masks=2, frequency_masks=2)
    noise = np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    state = torch.get_rng_state()
    one, again, other = (augmented(noise, 16000, settings, draw, (0, 9)) for draw in "aab")
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert len(one) == len(noise)
    for found in (one, other):
        assert 0.3 < np.square(found).sum() / np.square(noise).sum() < 0.999
    nothing = Augmentation(time_masks=0)
    assert not nothing.changes
    assert np.array_equal(augmented(noise, 16000, nothing, "a", (0, 9)), noise)


def test_bf16_trains_too() -> None:
    found, _ = recover(recovering(steps=2, precision="bf16"), Session())
    assert all(math.isfinite(loss) for loss in curve(found))


@pytest.mark.parametrize("broken", [{"steps": 1, "epochs": 1}, {}, {"steps": 1, "loss": {
    "logits": 0, "hidden": 0}}, {"steps": 1, "augment": {"speed": [3.0]}}])  # fmt: skip
def test_settings_that_contradict_themselves_are_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError, match=r"give one of steps and epochs|weights are 0|between 0\.5"
    ):
        TrainingSettings(**broken)


def test_weights_of_the_loss_that_are_left_out_are_those_of_the_documents() -> None:
    assert LossWeights().model_dump() == {"logits": 1.0, "hidden": 1.0, "task": 0.0}
