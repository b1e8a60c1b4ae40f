"""Many plans in one go through the clips give what each plan gives on each clip alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from standin import StandIn, write_clip
from torch import Tensor
from transformers import PreTrainedModel

from hibprune.attribution.passes import passes_counted
from hibprune.comparing.measuring import batches_of_one_length, evaluate_silenced
from hibprune.compression.remove import remove_heads
from hibprune.evaluation.metric import evaluate
from hibprune.recipe import load_recipe
from hibprune.records.base import Interval
from hibprune.records.measurements import Evaluation
from hibprune.records.units import Head, Plan
from hibprune.stages.load import load
from hibprune.tasks import Measure, Target

PLANS: tuple[tuple[Head, ...], ...] = (
    (),
    (Head(0, 1),),
    (Head(0, 0), Head(0, 3), Head(1, 2)),
    tuple(Head(layer, index) for layer in (0, 1) for index in (1, 2, 3)),
)


class RawOutputs(Measure):
    """Hands out what the model gives out, to be looked at."""

    def __init__(self, read: Callable[[PreTrainedModel, dict[str, Tensor]], Tensor]) -> None:
        self.read = read
        self.seen: list[list[np.ndarray]] = []
        self.batches: list[int] = []

    def answers(
        self, model: PreTrainedModel, inputs: dict[str, Tensor], targets: Sequence[Target]
    ) -> list[Any]:
        with torch.inference_mode():
            outputs = self.read(model, inputs)
        self.batches.append(len(outputs))
        return list(outputs.numpy())

    def evaluate(self, answers: Sequence[Any], references: Sequence[Target]) -> Evaluation:
        self.seen.append(list(answers))
        return Evaluation(
            metric="none", value=0.0, interval=Interval(0, 0), n=1, higher_is_better=True
        )


def logits(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    return model(**inputs).logits


def states(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    return model.get_encoder()(**inputs).last_hidden_state


@pytest.mark.parametrize(
    ("name", "read"),
    [("keyword_spotting", logits), ("speech_recognition", logits), ("encoder_decoder", states)],
)
def test_it_equals_removal_clip_by_clip(
    stand_in_of: Callable[[str], StandIn],
    name: str,
    read: Callable[[PreTrainedModel, dict[str, Tensor]], Tensor],
) -> None:
    stand_in = stand_in_of(name)
    # Every third clip has one length, all others their own.
    total = len(stand_in.rows("validation"))
    for number in range(0, total, 3):
        write_clip(stand_in.clip("validation", number), OneLength(number), 300 + 20 * number)
    material = load(load_recipe(stand_in.recipe), torch.device("cpu"))
    checkpoint, clips = material.checkpoint, material.validation.utterances
    limits = load_recipe(stand_in.recipe).recipe.validation.durations
    batches = batches_of_one_length(checkpoint, clips, limits)
    assert sorted(place for batch in batches for place in batch) == list(range(total))
    assert max(map(len, batches)) >= total // 3

    measure = RawOutputs(read)
    with passes_counted(checkpoint.model) as passes:
        evaluate_silenced(checkpoint, measure, clips, limits, batches, PLANS)
    assert passes.forwards == total * len(PLANS)
    assert max(measure.batches) >= total // 3

    for plan, seen in zip(PLANS, measure.seen, strict=True):
        smaller = copy.deepcopy(checkpoint.model)
        remove_heads(smaller, Plan(removed=plan, kept=()))
        for clip, output in zip(clips, seen, strict=True):
            waveform = checkpoint.read(clip.content, limits)
            with torch.inference_mode():
                alone = read(smaller, checkpoint.inputs(waveform))[0]
            np.testing.assert_allclose(output, alone, atol=2e-4)


class OneLength:
    """A generator of noise that always draws the same length."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)

    def uniform(self, low: float, high: float) -> float:
        return 0.3

    def normal(self, **settings: Any) -> np.ndarray:
        return self._generator.normal(**settings)


def test_batches_are_bounded_by_the_sound_in_them(
    stand_in_of: Callable[[str], StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    import hibprune.comparing.measuring as measuring

    stand_in = stand_in_of("encoder_decoder")
    material = load(load_recipe(stand_in.recipe), torch.device("cpu"))
    limits = load_recipe(stand_in.recipe).recipe.validation.durations
    clips = material.validation.utterances
    # The window is one second, however short a clip is.
    monkeypatch.setattr(measuring, "FRAMES_AT_ONCE", 200)
    batches = batches_of_one_length(material.checkpoint, clips, limits)
    assert max(map(len, batches)) == 4
    monkeypatch.setattr(measuring, "FRAMES_AT_ONCE", 25)
    batches = batches_of_one_length(material.checkpoint, clips, limits)
    assert {len(batch) for batch in batches} == {1}


def test_token_accuracy_is_that_of_the_models_own_labels(
    stand_in_of: Callable[[str], StandIn],
) -> None:
    stand_in = stand_in_of("encoder_decoder")
    recipe = load_recipe(stand_in.recipe)
    material = load(recipe, torch.device("cpu"))
    checkpoint, task = material.checkpoint, recipe.recipe.task
    model = checkpoint.model
    clips = material.validation.utterances[:10]
    # An untrained decoder is never right; one that prefers the end of text is right at the end.
    with torch.no_grad():
        norm = model.model.decoder.layer_norm
        norm.bias.add_(20 * model.proj_out.weight[model.config.eos_token_id])
    limits = recipe.recipe.validation.durations
    batches = batches_of_one_length(checkpoint, clips, limits)
    measure = task.measure("token accuracy", checkpoint.vocabulary)
    (result,) = evaluate_silenced(checkpoint, measure, clips, limits, batches, [()])

    wrong, counted = [], []
    for clip in clips:
        waveform = checkpoint.read(clip.content, limits)
        tokenizer = checkpoint.vocabulary.tokenizer
        prefix = [tokenizer.convert_tokens_to_ids("<|notimestamps|>")]
        text = tokenizer(f" {clip.target}", add_special_tokens=False).input_ids
        labels = [*prefix, *text, tokenizer.eos_token_id]
        with torch.inference_mode():
            # transformers shifts labels to decoder inputs by itself.
            said = model(**checkpoint.inputs(waveform), labels=torch.tensor([labels])).logits
        best = said[0].argmax(-1).tolist()
        pairs = list(zip(best, labels, strict=True))[len(prefix) :]
        wrong.append(float(sum(a != b for a, b in pairs)))
        counted.append(float(len(pairs)))
    assert (result.errors, result.counted) == (tuple(wrong), tuple(counted))
    assert 0 < sum(wrong) < sum(counted), "all right or all wrong would prove little"
    assert result.value == pytest.approx(1 - sum(wrong) / sum(counted))
    assert result.interval.low <= result.value <= result.interval.high
    assert (result.metric, result.higher_is_better, result.n) == ("token accuracy", True, 10)


@pytest.mark.slow
def test_transcripts_do_not_depend_on_the_batch(stand_in_of: Callable[[str], StandIn]) -> None:
    recipe = load_recipe(stand_in_of("encoder_decoder").recipe)
    material = load(recipe, torch.device("cpu"))
    checkpoint, clips = material.checkpoint, material.validation.utterances
    with torch.no_grad():
        checkpoint.model.proj_out.weight.mul_(30)
    limits = recipe.recipe.validation.durations
    measure = recipe.recipe.task.measure("WER", checkpoint.vocabulary)
    together = batches_of_one_length(checkpoint, clips, limits)
    alone = [[place] for place in range(len(clips))]
    first, second = (
        evaluate_silenced(checkpoint, measure, clips, limits, batches, PLANS)
        for batches in (together, alone)
    )
    assert max(map(len, together)) == 16
    assert first == second
    ended, _ = evaluate(
        recipe.recipe.task.torch_predict(checkpoint.model),
        checkpoint, recipe.recipe.task, clips, limits,
    )  # fmt: skip
    assert first[0] == ended


def test_passes_are_counted_in_clips(stand_ins: Callable[[str], Path]) -> None:
    recipe = load_recipe(stand_ins("keyword_spotting") / "recipe.yaml")
    model = load(recipe, torch.device("cpu")).checkpoint.model
    sound = torch.randn(3, 4000)
    hooks = sum(len(module._forward_hooks) for module in model.modules())
    with passes_counted(model) as passes:
        with torch.no_grad():
            model(sound)
        assert (passes.forwards, passes.backwards) == (3, 0)
        loss = model(sound[:2]).logits.sum()
        assert (passes.forwards, passes.backwards) == (5, 0)
        loss.backward()
    assert (passes.forwards, passes.backwards) == (5, 2)
    assert sum(len(module._forward_hooks) for module in model.modules()) == hooks
