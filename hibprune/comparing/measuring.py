"""Measures many plans by silenced heads, which gives what removal would leave; or many models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hibprune.data import DurationLimits, Utterance
from hibprune.models.attention import frame_count, input_length, silenced
from hibprune.models.checkpoint import Checkpoint
from hibprune.models.replay import prefix_recorded, prefix_replayed
from hibprune.records.measurements import Evaluation
from hibprune.records.units import Head
from hibprune.tasks import Measure, Target, TaskBase

Silent = tuple[Head, ...]
"""The heads that a plan would remove, sorted."""

CLIPS_AT_ONCE = 16
FRAMES_AT_ONCE = 3000
"""Of the encoder in one batch, a minute of sound: what bounds the memory."""


def batches_of_one_length(
    checkpoint: Checkpoint, clips: Sequence[Utterance], limits: DurationLimits
) -> list[list[int]]:
    """Places of clips that can go through the model together, since there is nothing to pad."""
    model = checkpoint.model
    waiting: dict[tuple[int, ...], list[int]] = {}
    full: list[list[int]] = []
    for place, clip in enumerate(clips):
        inputs = checkpoint.inputs(checkpoint.read(clip.content, limits))
        shape = tuple(inputs[model.main_input_name].shape)
        batch = waiting.setdefault(shape, [])
        batch.append(place)
        frames = frame_count(model, input_length(model, inputs))
        if len(batch) >= min(CLIPS_AT_ONCE, FRAMES_AT_ONCE // frames):
            full.append(waiting.pop(shape))
    return [*full, *waiting.values()]


def evaluate_silenced(
    checkpoint: Checkpoint,
    measure: Measure,
    clips: Sequence[Utterance],
    limits: DurationLimits,
    batches: Sequence[Sequence[int]],
    plans: Sequence[Silent],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Evaluation]:
    """The metric over labelled clips for each plan, with its 95 % interval.

    `batches` are places of equally long clips.

    Raises:
        UserError: the model gives out numbers that are not finite.
    """
    models = [(checkpoint.model, plan) for plan in plans]
    return evaluate_models(checkpoint, measure, clips, limits, batches, models, progress)


def evaluate_plans(
    checkpoint: Checkpoint,
    task: TaskBase,
    metric: str,
    clips: Sequence[Utterance],
    limits: DurationLimits,
    plans: Sequence[Silent],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Evaluation]:
    """A metric of a task for each plan, as `evaluate_silenced` measures it, in batches of its own.

    Raises:
        UserError: the model gives out numbers that are not finite.
    """
    measure = task.measure(metric, checkpoint.vocabulary)
    batches = batches_of_one_length(checkpoint, clips, limits)
    return evaluate_silenced(checkpoint, measure, clips, limits, batches, plans, progress)


def evaluate_models(
    checkpoint: Checkpoint,
    measure: Measure,
    clips: Sequence[Utterance],
    limits: DurationLimits,
    batches: Sequence[Sequence[int]],
    models: Sequence[tuple[PreTrainedModel, Silent]],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Evaluation]:
    """The metric for each of several models with some of its heads silenced.

    They are alike in front of the first attention, which is computed once for all of them.

    Raises:
        UserError: a model gives out numbers that are not finite.
    """
    references = [clip.target for clip in clips if clip.target is not None]
    answers: list[list[Any]] = [[None] * len(clips) for _ in models]
    done = 0
    for places in batches:
        features = [
            checkpoint.inputs(checkpoint.read(clips[place].content, limits)) for place in places
        ]
        inputs = {name: torch.cat([one[name] for one in features]) for name in features[0]}
        targets = [references[place] for place in places]
        for number, batch in enumerate(_answers(measure, inputs, targets, models)):
            for place, answer in zip(places, batch, strict=True):
                answers[number][place] = answer
            done += len(places)
            progress(done, len(clips) * len(models))
    return [measure.evaluate(own, references) for own in answers]


def _answers(
    measure: Measure,
    inputs: dict[str, Tensor],
    targets: Sequence[Target],
    models: Sequence[tuple[PreTrainedModel, Silent]],
) -> Iterator[list[Any]]:
    model, plan = models[0]
    with torch.inference_mode(), prefix_recorded(model) as prefix, silenced(model, plan):
        first = measure.answers(model, inputs, targets)
    yield first
    for model, plan in models[1:]:
        with prefix_replayed(model, prefix), silenced(model, plan):
            rest = measure.answers(model, inputs, targets)
        yield rest
