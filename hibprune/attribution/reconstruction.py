"""Reconstruction: the error that the best linear repair leaves when a unit goes.

Units of a sublayer are taken away one after the other, each time the one whose going the others
make up for best (compression/least_squares.py); the error that adds is the unit's score. It knows
of the repair that follows removal, and nothing of the task.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from hibprune.attribution.base import Loss, Sample, Session, scores_of
from hibprune.attribution.methods import Reconstruction
from hibprune.compression.least_squares import Moments, removal_order
from hibprune.compression.repair import RepairClip, calibration_batches
from hibprune.models.attention import frozen, stack_layers
from hibprune.models.families import family_of
from hibprune.models.sublayers import Sublayer, layer_calls, sublayers, writing_recorded
from hibprune.records.units import Kind, Scores, Unit


def attribute(
    method: Reconstruction,
    model: PreTrainedModel,
    samples: Sequence[Sample],
    loss: Loss,
    session: Session,
    kind: Kind = "head",
) -> Scores:
    """Score the units of one kind, all samples together; labels and loss are not looked at."""
    with frozen(model), torch.no_grad():
        moments = _moments(model, samples, kind, session)
    scores: dict[Unit, float] = {}
    for sublayer, sums in moments:
        second, _ = sums.centred()
        order = removal_order(second, sublayer.writer.weight, sublayer.blocks)
        scale = sums.weight * ((sums.spread() or 1.0) if method.normalise == "stream" else 1.0)
        # Never lower than that of one which went before: the order is the layer's.
        highest = 0.0
        for step in order:
            highest = max(highest, step.error)
            scores[sublayer.units[step.block]] = highest / scale
    units = [unit for sublayer, _ in moments for unit in sublayer.units]
    return scores_of(method, model, samples, [tuple(scores[one] for one in units)], tuple(units))


def _moments(
    model: PreTrainedModel, samples: Sequence[Sample], kind: Kind, session: Session
) -> list[tuple[Sublayer, Moments]]:
    """Of each sublayer with units of a kind: sums of what these give out and of the stream."""
    layers = stack_layers(model.base_model, family_of(model.config.model_type).encoder)
    rows = sublayers(model)
    found: dict[tuple[int, int], Moments] = {}
    done = 0
    for batch in calibration_batches(model, [RepairClip(one.inputs) for one in samples]):
        states, calls = layer_calls(model, batch.inputs)
        for place, (layer, call) in enumerate(zip(layers, calls, strict=True)):
            chosen = [one for one in rows[place] if one.kind == kind]
            with writing_recorded(chosen) as written:
                states = call(layer, states)
            for part, sublayer in enumerate(chosen):
                one = written[part]
                stream = one.residual + sublayer.scale * one.written
                sums = Moments.of(one.units.flatten(0, 1), stream.flatten(0, 1))
                known = found.get((place, part))
                found[place, part] = sums if known is None else known + sums
        done += batch.inputs[model.main_input_name].shape[0]
        session.progress(done, len(samples), None)
    return [
        (sublayer, found[place, part])
        for place, row in enumerate(rows)
        for part, sublayer in enumerate(one for one in row if one.kind == kind)
    ]
