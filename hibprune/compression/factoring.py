"""Projections of an encoder become two thinner matrices, layer by layer from the input up.

What reads the residual stream (queries, keys, values, the first matrix of a feed-forward) is to
give out on the pruned model's own inputs what it gave out whole. What writes into it is first
fitted, as in repair, to what the original writes there, so that what is lost further down is put
right as well. Only forward passes are needed, a layer at a time on kept hidden states, no labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from hibprune.compression.front_end_repair import front_end_affected
from hibprune.compression.layer_work import LayerWork, held_out, layer_by_layer
from hibprune.compression.low_rank_fit import Factors, fitted_factors, plain_factors
from hibprune.compression.matrix_fit import require_frames
from hibprune.compression.projection_ranks import tell_configuration
from hibprune.compression.remove import NOTE
from hibprune.compression.settings import RepairKind
from hibprune.errors import UserError
from hibprune.execution.processes import ALONE, Processes
from hibprune.models.attention import frozen
from hibprune.models.hidden_states import HiddenStates
from hibprune.models.layerwise import (
    CalibrationClip,
    LayerwiseEncoder,
    clip_batches,
    encoder_layers,
    entering_states,
    unchunked,
)
from hibprune.models.low_rank import (
    ProjectionPlace,
    projection,
    readers_and_writer,
    thinner,
)
from hibprune.models.moments import Moments
from hibprune.models.sublayers import Sublayer, sublayers
from hibprune.records.repair import FactoredProjection


def factor(
    original: PreTrainedModel,
    pruned: PreTrainedModel,
    clips: Sequence[CalibrationClip],
    kind: RepairKind,
    ranks: Mapping[ProjectionPlace, int],
    scratch: Path,
    room_bytes: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    processes: Processes = ALONE,
) -> tuple[FactoredProjection, ...]:
    """Let two matrices stand for projections of a pruned model, in place, where that is cheaper.

    Those of `ranks`, which says of what rank. With the repair `none` the matrices alone are looked
    at and `clips` are not needed. Hidden states beyond `room_bytes` go to files in `scratch`.

    Raises:
        UserError: there are fewer frames than a fit has unknowns (says how many clips it takes), or
            the model gives out NaN or infinite values.
    """
    layers = encoder_layers(pruned)
    found: list[FactoredProjection] = []
    if kind == "none":
        with torch.no_grad():
            for (layer, path), rank in ranks.items():
                whole = _whole(layers[layer], path)
                factors = plain_factors(whole.weight, whole.bias, rank)
                found.append(_put(layers[layer], layer, path, factors, None))
    elif ranks:
        batches = clip_batches(original, clips)
        walk = _Walk(pruned, kind, ranks)
        walk.require_frames(
            sum(int(batch.counts[~held_out(batch)].sum()) for batch in batches),
            sum(int((~held_out(batch)).sum()) for batch in batches),
        )
        with torch.no_grad(), ExitStack() as stack:
            for model in (original, pruned):
                stack.enter_context(frozen(model))
                stack.enter_context(unchunked(model))
            states = HiddenStates(scratch, max(0, room_bytes - walk.moments_bytes))
            own = processes.share(batches)
            through, parted = (
                LayerwiseEncoder(original, states),
                front_end_affected(original, pruned),
            )
            for batch in own:
                entering = through.start(batch, clips)
                states.put(f"original/{batch.number}", entering)
                if parted:
                    entering = entering_states(pruned, batch, clips)
                states.put(f"pruned/{batch.number}", entering)
            for work in layer_by_layer(
                through, sublayers(original), layers, own, states, processes
            ):
                found += walk.layer(work)
                work.pass_repaired()
                progress(work.layer + 1, len(layers))
    if found:
        tell_configuration(pruned)
        pruned.config._hibprune = NOTE
    return tuple(found)


class _Walk:
    """The projections of a pruned model as they were whole, and what is to become of them."""

    def __init__(
        self, pruned: PreTrainedModel, kind: RepairKind, ranks: Mapping[ProjectionPlace, int]
    ) -> None:
        self._kind = kind
        self._ranks = ranks
        self._sublayers = sublayers(pruned)
        self._pruned = pruned
        layers = encoder_layers(pruned)
        self._wholes = {(n, path): _whole(layers[n], path) for n, path in ranks}

    def _of(self, sublayer: Sublayer) -> tuple[list[str], str | None]:
        """Which projections of a sublayer become two: those that read, and the one that writes."""
        readers, writer = readers_and_writer(self._pruned, sublayer.kind, sublayer.part)
        layer = sublayer.layer
        return (
            [path for path in readers if (layer, path) in self._ranks],
            writer if (layer, writer) in self._ranks else None,
        )

    def require_frames(self, frames: int, clips: int) -> None:
        """See that there are more frames to fit on than any fit has unknowns."""
        for sublayer in (one for own in self._sublayers for one in own):
            if self._of(sublayer)[1] is not None:
                require_frames(sublayer, self._kind, frames, clips)

    @property
    def moments_bytes(self) -> int:
        """What sums take up in float64: of clips fitted on and held out, and while decomposed."""
        shapes = [one.weight.shape for one in self._wholes.values()]
        columns = max(shape[1] for shape in shapes)
        return 8 * 8 * columns * (columns + max(shape[0] for shape in shapes))

    def layer(self, work: LayerWork) -> list[FactoredProjection]:
        """Factor a layer's projections, in the order they run."""
        found: list[FactoredProjection] = []
        for part, sublayer in enumerate(self._sublayers[work.layer]):
            readers, writer = self._of(sublayer)
            if readers:
                wholes = [self._wholes[work.layer, path] for path in readers]
                sums = work.input_moments(wholes)
                for path, whole, (fit, held) in zip(readers, wholes, sums, strict=True):
                    targets = [one.of_outputs(whole.weight, whole.bias) for one in (fit, held)]
                    found.append(self._one(work, path, (targets[0], targets[1]), refit=False))
            if writer is not None:
                found.append(self._one(work, writer, work.moments(part, sublayer), refit=True))
        return found

    def _one(
        self, work: LayerWork, path: str, moments: tuple[Moments, Moments], refit: bool
    ) -> FactoredProjection:
        if not moments[0].finite:
            raise UserError(
                f"budget.ranks: layer {work.layer}'s {path} is given NaN or infinite values on the "
                "calibration clips: see whether the model works on them unpruned"
            )
        whole, rank = self._wholes[work.layer, path], self._ranks[work.layer, path]
        factors, error = fitted_factors(
            whole.weight, whole.bias is not None, moments, rank, self._kind, refit
        )
        return _put(work.pruned, work.layer, path, factors, error)


def _whole(layer: nn.Module, path: str) -> nn.Linear:
    found = projection(layer, path)
    assert isinstance(found, nn.Linear)
    return found


def _put(
    layer: nn.Module, number: int, path: str, factors: Factors, error: float | None
) -> FactoredProjection:
    """Put two matrices in the place of a projection; says what became of it."""
    made = thinner(layer, path, factors.inner.shape[0])
    made.weight.copy_(factors.inner)
    made.outer.weight.copy_(factors.outer)
    if factors.bias is not None:
        made.outer.bias.copy_(factors.bias)
    rows, columns = factors.outer.shape[0], factors.inner.shape[1]
    return FactoredProjection(
        layer=number, name=path, rows=rows, columns=columns, rank=made.rank, error=error
    )
