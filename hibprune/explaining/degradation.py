"""Whether attributions to inputs hold: what ranks highest goes first, and the answer is watched.

The degradation test of Jiang et al. 2020, section 4.1, on the original model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from hibprune.attribution.base import Loss
from hibprune.attribution.methods import Answer, AttAttr
from hibprune.errors import OutputError, UserError
from hibprune.execution.progress import StepNarration
from hibprune.execution.steps import Done, Partial, Row, Step
from hibprune.explaining.input_attribution import (
    COPIES,
    STEPS,
    WEIGHT,
    attributed_inputs,
    chosen_beta,
    layer_name,
)
from hibprune.explaining.removal import AS, Removal, answers, removal_of
from hibprune.explaining.subjects import Subject, subject_of
from hibprune.models.attention import frozen
from hibprune.models.layerwise import encoder_layers
from hibprune.records.base import Interval
from hibprune.records.comparison import Estimate
from hibprune.records.explanation import (
    Degradation,
    DegradationCurve,
    InputAttribution,
    InputScores,
)
from hibprune.records.statistics import area_under, bootstrap_interval
from hibprune.stages.run import Run, once

SHARES = (0.05, 0.11, 0.2, 0.3, 0.5, 0.75, 1.0)
TABLE_SHARE = 0.11
"""At which the paper's table 1 looks."""
LAYERS = 6
"""At which the bottleneck is tried in the test; of deeper models, evenly spaced ones."""
USUAL_LAYER = 0.75
"""How deep the bottleneck sits on a clip's page: behind layer 9 of 12 in the paper."""
DIGITS = 4


def usual_layer(model: PreTrainedModel) -> int:
    """The layer behind which a clip's bottleneck sits unless another is asked for."""
    return max(0, math.floor(USUAL_LAYER * len(encoder_layers(model))) - 1)


def tried_layers(number: int) -> tuple[int, ...]:
    """Layers of an encoder with so many that the test looks at."""
    spaced = np.linspace(0, number - 1, min(number, LAYERS)).round()
    return tuple(int(layer) for layer in spaced)


def answer_of(run: Run) -> Answer:
    """What is explained of an answer: what AttAttr looks at in this kind of task."""
    answer = AttAttr(method="attattr").for_task(run.recipe.task.kind).answer
    assert answer is not None
    return answer


def settings_of(run: Run) -> dict[str, object]:
    """What attributions to inputs depend on beside model, clip and layer."""
    return {
        "seed": run.recipe.seed,
        "bottleneck": [COPIES, STEPS, WEIGHT],
        "answer": answer_of(run),
    }


def inputs_of(run: Run, subject: Subject, layer: int) -> Done[InputAttribution]:
    """What each position of a clip is worth, by all methods.

    Raises:
        UserError: its positions cannot be removed.
    """
    model, task = run.checkpoint.model, run.recipe.task
    removal = removal_of(run.checkpoint, subject)

    def compute(_: Step[InputAttribution], narration: StepNarration) -> InputAttribution:
        with frozen(model):
            beta = chosen_beta(own_loss(model, task.loss, removal))
            found = attributed_inputs(
                model, removal, task.loss, answer_of(run), (layer,), beta, run.recipe.seed
            )
        return InputAttribution(
            clip=subject.clip.id,
            layer=layer,
            beta=beta,
            removable=removal.removable,
            scores=tuple(
                InputScores(method=name, values=_few_digits(values))
                for name, values in found.items()
            ),
        )

    return once(
        run,
        f"explain/inputs-{subject.identity[:16]}",
        {
            "clip": subject.identity,
            "target": list(subject.sample.target),
            "layer": layer,
            **settings_of(run),
        },
        InputAttribution,
        compute,
        lambda found: f"{len(found.scores)} attributions to {len(found.removable)} positions",
        credible=lambda kept: all(len(one.values) == subject.axis.positions for one in kept.scores),
        said="inputs",
    )


def own_loss(model: PreTrainedModel, loss: Loss, removal: Removal) -> float:
    """The loss of the model's own answer."""
    return -answers(model, loss, [removal.without(())], "log-likelihood")[0]


def _few_digits(values: Tensor) -> tuple[float, ...]:
    return tuple(float(f"{value:.{DIGITS}g}") for value in values.tolist())


def degraded(run: Run, number: int) -> Done[Degradation]:
    """The degradation test over the first clips of the validation set, taken up clip by clip.

    Raises:
        UserError: no clip can be degraded.
    """
    model = run.checkpoint.model
    clips = run.material.validation.utterances
    chosen = clips[: number or len(clips)]
    layers = tried_layers(len(encoder_layers(model)))
    methods = (*map(layer_name, layers), "integrated gradients", "occlusion", "random")
    width = len(methods) * len(SHARES) + 1
    medium = run.recipe.task.medium

    def compute(step: Step[Degradation], narration: StepNarration) -> Degradation:
        rows = _credible(step.partial(), {clip.id for clip in chosen}, width)
        if rows:
            run.narrator.say(f"degradation: going on after {len(rows)} clips done before")
        fault = None
        for clip in chosen:
            if clip.id not in rows:
                try:
                    rows[clip.id] = _row(run, subject_of(run, clip.id, clip.content), layers)
                except OutputError:
                    raise
                except UserError as error:
                    # Such as a clip to which the model says nothing.
                    fault = error
                    continue
                step.save_partial(rows)
            narration.advance(len(rows), len(chosen), f"{len(rows)} of {len(chosen)}")
        if fault is not None and not rows:
            raise fault
        done = [rows[clip.id] for clip in chosen if clip.id in rows]
        return summary(done, methods, AS[medium.name])

    return once(
        run,
        "explain/degradation",
        {
            "validation": run.material.validation.identity,
            "clips": [clip.id for clip in chosen],
            "layers": list(layers),
            "shares": list(SHARES),
            **settings_of(run),
        },
        Degradation,
        compute,
        lambda found: f"{medium.counted(found.clips)} by {len(found.curves)} rankings",
        credible=lambda kept: tuple(curve.method for curve in kept.curves) == methods,
        said="degradation",
    )


def _credible(partial: Partial, wanted: set[str], width: int) -> dict[str, Row]:
    """The rows of an interrupted test that can be its own."""
    return {
        name: row
        for name, row in partial.rows.items()
        if name in wanted and len(row) == width and all(0 <= value <= 1 for value in row)
    }


def _row(run: Run, subject: Subject, layers: Sequence[int]) -> Row:
    """The answer's probability for a whole clip, then by method and share removed."""
    model, task = run.checkpoint.model, run.recipe.task
    removal = removal_of(run.checkpoint, subject)
    with frozen(model):
        beta = chosen_beta(own_loss(model, task.loss, removal))
        found = attributed_inputs(
            model, removal, task.loss, answer_of(run), layers, beta, run.recipe.seed
        )
        return degraded_answers(model, task.loss, removal, list(found.values()))


def degraded_answers(
    model: PreTrainedModel, loss: Loss, removal: Removal, scores: Sequence[Tensor]
) -> Row:
    """The answer's probability whole, then for each ranking and share: the highest go first.

    Of equals, the earlier goes first. Within `frozen`.
    """
    samples = [removal.without(())]
    for values in scores:
        order = sorted(removal.removable, key=lambda place: (-float(values[place]), place))
        for share in SHARES:
            samples.append(removal.without(order[: math.ceil(share * len(order))]))
    return tuple(min(1.0, value) for value in answers(model, loss, samples, "probability"))


def summary(rows: Sequence[Row], methods: Sequence[str], removed_as: str) -> Degradation:
    """Means over clips with their intervals, normalised as in the paper: (p − m)/(o − m).

    o is the mean probability of whole clips, m the smallest mean when all is removed.
    """
    if not rows:
        raise UserError("there is no clip to degrade")
    table = np.array(rows)
    whole, parts = table[:, 0], table[:, 1:].reshape(len(rows), len(methods), len(SHARES))
    means = parts.mean(0)
    original, least = float(whole.mean()), float(means[:, -1].min())
    place = SHARES.index(TABLE_SHARE)
    chance = parts[:, methods.index("random"), place]
    curves = []
    for number, method in enumerate(methods):
        drops = whole - parts[:, number, place]
        better = chance - parts[:, number, place]
        normalised = (means[number] - least) / (original - least or 1.0)
        curves.append(
            DegradationCurve(
                method=method,
                probabilities=tuple(means[number].tolist()),
                normalised=tuple(normalised.tolist()),
                area=float(area_under([0.0, *SHARES], np.array([1.0, *normalised]))),
                drop=_estimate(drops),
                beyond_chance=None if method == "random" else _estimate(better),
            )
        )
    return Degradation(
        clips=len(rows),
        removed_as=removed_as,
        original=original,
        least=least,
        shares=SHARES,
        table_share=TABLE_SHARE,
        curves=tuple(curves),
    )


def _estimate(values: np.ndarray) -> Estimate:
    interval = bootstrap_interval([values.tolist()], np.mean)
    return Estimate(value=float(values.mean()), interval=Interval(*interval))
