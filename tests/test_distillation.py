"""The loss of recovery: what it is by hand in numpy, and nothing between equal models."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tiny_models import TINY_MODELS, TinyModel
from torch.nn import functional

from hibprune.compression.distillation import Distillation, divergence, state_distance
from hibprune.compression.recover_settings import LossWeights
from hibprune.compression.training_clips import TrainingClip, passes
from hibprune.tasks import KeywordSpotting, SpeechRecognitionCTC, SpeechRecognitionSeq2Seq, TaskBase
from hibprune.tasks.base import Choice
from hibprune.tasks.intent import IntentClassification
from hibprune.tasks.text import TextClassification
from hibprune.tasks.vocabulary import Batch

TARGET = (7, 9, 2)
"""Tokens, of which the last ends a transcript of the tiny models."""


def softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(raised / raised.sum(-1, keepdims=True))


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_divergence_is_that_of_the_softened_distributions(temperature: float) -> None:
    teacher, student = drawn(3, 4, 6), drawn(3, 4, 6, seed=1)
    counts = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 0, 0]], dtype=torch.bool)
    got = divergence(Choice(teacher, counts), Choice(student, counts), temperature)
    p, q = (softmax(one.numpy() / temperature) for one in (teacher, student))
    each = temperature**2 * (p * np.log(p / q)).sum(-1)
    by_hand = [each[row][counts[row].numpy()].mean() for row in range(3)]
    assert got.numpy() == pytest.approx(by_hand, rel=1e-9)
    # torch's own, which wants logarithms of the student and takes a mean over the batch.
    torchs = functional.kl_div(
        functional.log_softmax(student[:1, 0] / temperature, -1),
        functional.softmax(teacher[:1, 0] / temperature, -1),
        reduction="batchmean",
    )
    alone = torch.tensor([[True, False, False, False]])
    first = divergence(Choice(teacher[:1], alone), Choice(student[:1], alone), temperature)
    assert float(first) == pytest.approx(float(temperature**2 * torchs), rel=1e-9)


def test_distance_of_states_is_l1_as_a_share_and_cosine() -> None:
    teacher = [drawn(2, 5, 8), 40 * drawn(2, 5, 8, seed=1)]
    student = [drawn(2, 5, 8, seed=2), 40 * drawn(2, 5, 8, seed=3)]
    counts = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], dtype=torch.bool)
    got = state_distance(teacher, student, [counts, counts]).numpy()
    for clip, frames in enumerate((5, 3)):
        layers = []
        for t, s in zip(teacher, student, strict=True):
            a, b = (one[clip, :frames].float().numpy() for one in (t, s))
            cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
            layers.append(np.abs(a - b).sum() / np.abs(a).sum() + (1 - cosine).mean())
        assert got[clip] == pytest.approx(np.mean(layers), rel=1e-5)


def task_of(tiny: TinyModel) -> TaskBase:
    if tiny.speaks:
        return SpeechRecognitionSeq2Seq(kind="asr-seq2seq")
    if tiny.takes == "tokens":
        return TextClassification(kind="text-classification")
    return KeywordSpotting(kind="keyword-spotting")


def clips_of(tiny: TinyModel, number: int = 3) -> list[TrainingClip]:
    inputs = tiny.inputs(batch=number)[tiny.main_input]
    target = TARGET if tiny.speaks else (1,)
    return [
        TrainingClip(str(place), {tiny.main_input: inputs[place : place + 1]}, None, target)
        for place in range(number)
    ]


WEIGHTS = LossWeights(logits=1, hidden=1)


@pytest.mark.parametrize("tiny", TINY_MODELS, ids=lambda tiny: tiny.name)
def test_equal_models_are_nothing_apart_and_clips_do_not_look_at_each_other(
    tiny: TinyModel,
) -> None:
    model, other = tiny.build(), tiny.build()
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    distillation = Distillation(task_of(tiny), WEIGHTS, 1.0)
    clips = clips_of(tiny)
    (together,) = passes(model, clips)
    with torch.no_grad():
        wanted = distillation.answer(model, together)
        same = distillation.answer(copy.deepcopy(model), together)
        found = distillation.answer(other, together)
        assert distillation.losses(model, wanted, same, together).tolist() == [0.0] * len(clips)
        all_at_once = distillation.losses(other, wanted, found, together)
        for clip, loss in zip(clips, all_at_once.tolist(), strict=True):
            (alone,) = passes(model, [clip])
            pair = (distillation.answer(one, alone) for one in (model, other))
            own = distillation.losses(other, *pair, alone)
            assert loss > 1e-3
            assert float(own) == pytest.approx(loss, rel=2e-3)


def test_a_decoder_counts_in_the_loss_and_its_hidden_states_are_matched() -> None:
    tiny = next(one for one in TINY_MODELS if one.name == "whisper")
    model, other = tiny.build(), tiny.build()
    with torch.no_grad():
        for name, weight in other.named_parameters():
            if "decoder.layers" in name:
                weight.add_(0.05 * torch.randn_like(weight))
    (batch,) = passes(model, clips_of(tiny))
    for weights in (LossWeights(logits=0, hidden=1), LossWeights(logits=1, hidden=0)):
        distillation = Distillation(task_of(tiny), weights, 1.0)
        with torch.no_grad():
            wanted, found = (distillation.answer(one, batch) for one in (model, other))
            assert distillation.losses(other, wanted, found, batch).min() > 1e-4
        assert len(found.states) == (4 if weights.hidden else 0)


def test_each_slot_is_a_choice_of_its_own() -> None:
    slots = {"action": ("on", "off"), "object": ("lamp", "heat", "none")}
    task = IntentClassification(kind="intent-classification", slots=slots)
    batch = Batch(("a",), {}, (), (1,))
    choices = task.choices(drawn(1, 5), batch)
    assert [tuple(one.logits.shape) for one in choices] == [(1, 1, 2), (1, 1, 3)]
    shifted = drawn(1, 5)
    shifted[:, :2] += 3
    pairs = zip(choices, task.choices(shifted, batch), strict=True)
    # The softmax of a slot does not see what is added to all of its logits.
    assert all(float(divergence(one, other)) < 1e-12 for one, other in pairs)


def test_frames_behind_the_end_are_no_choice() -> None:
    task = SpeechRecognitionCTC(kind="asr-ctc")
    (choice,) = task.choices(drawn(2, 4, 3), Batch(("a", "b"), {}, (), (4, 4), (4, 2)))
    assert choice.counts.tolist() == [[True] * 4, [True, True, False, False]]
