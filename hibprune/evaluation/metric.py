"""Measures a task's metric on clips or texts, whatever runs the model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from hibprune.data import DurationLimits, Utterance
from hibprune.errors import UserError
from hibprune.execution.runtime import Predict
from hibprune.models.checkpoint import Checkpoint
from hibprune.records.measurements import Evaluation
from hibprune.tasks import OwnMetric, Target, TaskBase


def predict_targets(
    predict: Predict,
    checkpoint: Checkpoint,
    task: TaskBase,
    utterances: Sequence[Utterance],
    limits: DurationLimits,
    progress: Callable[[int, int], None] = lambda done, total: None,
    inputs: Callable[[Utterance], dict[str, Tensor]] | None = None,
) -> list[Target]:
    """What the model says about each clip or text; `inputs` gives those that are made already.

    One at a time, as at deployment: padding would change the outputs of many checkpoints.

    Raises:
        UserError: the model gives out numbers that are not finite.
    """
    predictions: list[Target] = []
    for utterance in utterances:
        made = (
            checkpoint.inputs(checkpoint.read(utterance.content, limits))
            if inputs is None
            else inputs(utterance)
        )
        output = predict(made)[0]
        if not np.isfinite(output).all():
            raise UserError(
                f"{utterance.id}: the model's outputs are not finite: its weights are damaged, "
                f"or it cannot take this {task.medium.one}"
            )
        predictions.append(task.decode(output, checkpoint.vocabulary))
        progress(len(predictions), len(utterances))
    return predictions


def evaluate(
    predict: Predict,
    checkpoint: Checkpoint,
    task: TaskBase,
    utterances: Sequence[Utterance],
    limits: DurationLimits,
    progress: Callable[[int, int], None] = lambda done, total: None,
    inputs: Callable[[Utterance], dict[str, Tensor]] | None = None,
) -> tuple[Evaluation, list[Target]]:
    """The task's metric over labelled clips or texts, with its 95 % interval, and predictions."""
    predictions = predict_targets(predict, checkpoint, task, utterances, limits, progress, inputs)
    references = [utterance.target for utterance in utterances if utterance.target is not None]
    measure = OwnMetric(task, checkpoint.vocabulary)
    return measure.evaluate(predictions, references), predictions


def prediction_lines(
    utterances: Sequence[Utterance], predictions: Sequence[Target], evaluation: Evaluation
) -> str:
    """A JSON object a clip and line: what was said, what the model heard, and how wrong that is.

    `errors` of `counted` is what the clip adds to the error rate: words for a transcript.
    """
    return "".join(
        json.dumps(
            {
                "id": utterance.id,
                "reference": utterance.target,
                "prediction": prediction,
                "errors": errors,
                "counted": counted,
            },
            ensure_ascii=False,
        )
        + "\n"
        for utterance, prediction, errors, counted in zip(
            utterances, predictions, evaluation.errors, evaluation.counted, strict=True
        )
    )


def metric_line(evaluation: Evaluation) -> str:
    """A metric with its interval, in percent."""
    low, high = evaluation.interval
    return (
        f"{evaluation.metric} {evaluation.value:.2%} ({low:.2%} to {high:.2%}, n = {evaluation.n})"
    )
