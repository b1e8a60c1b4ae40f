"""What an encoder's projections lose as two matrices of any rank, foretold on calibration clips.

What a projection gives out is W z, and the least that a product of rank r misses of it is the sum
of all but the r largest eigenvalues of W Σ Wᵀ, with Σ the second moment of z (Eckart and Young
1936). Where units are gone, what reads has fewer rows; what writes has fewer columns and is fitted
anew first, which leaves W Σ_:K Σ_KK⁻¹ Σ_K: Wᵀ in the place of W Σ Wᵀ.

Errors are counted as those of heads and neurons are: what writes, as a share of the variance of the
residual stream that it writes into; what reads, as the share of its own output's variance that is
lost, times the share of the stream that its sublayer writes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hibprune.compression.layer_work import inputs_recorded
from hibprune.compression.low_rank_fit import root_of
from hibprune.models.attention import frozen
from hibprune.models.hidden_states import HiddenStates
from hibprune.models.layerwise import (
    CalibrationClip,
    ClipBatch,
    LayerwiseEncoder,
    clip_batches,
    encoder_layers,
    unchunked,
)
from hibprune.models.low_rank import ProjectionPlace, readers_and_writer
from hibprune.models.moments import Moments
from hibprune.models.sublayers import Sublayer, sublayers, writing_recorded
from hibprune.records.units import Unit

DAMPING = 1e-6
"""Of the mean variance of a column."""


@dataclass(frozen=True)
class Spectrum:
    """A projection of some shape, and what each of its directions is worth, the largest first."""

    rows: int
    columns: int
    values: tuple[float, ...]

    @property
    def weights(self) -> int:
        """Of the projection as one matrix."""
        return self.rows * self.columns


Spectra = dict[ProjectionPlace, Spectrum]


@dataclass(frozen=True)
class _Watched:
    """A sublayer with the projections that read for it, and the paths of all in their layer."""

    sublayer: Sublayer
    readers: list[nn.Linear]
    paths: list[str]
    writer: str


@torch.no_grad()
def rank_spectra(
    model: PreTrainedModel,
    clips: Sequence[CalibrationClip],
    mixes: Sequence[Collection[Unit]],
    states: HiddenStates,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Spectra]:
    """What all projections of the encoder are worth without the units of each of some mixes.

    One pass of the clips, a layer at a time. Projections without rows or columns are left out.
    """
    batches, layers = clip_batches(model, clips), encoder_layers(model)
    found: list[Spectra] = [{} for _ in mixes]
    with frozen(model), unchunked(model):
        through = LayerwiseEncoder(model, states)
        for batch in batches:
            states.put(str(batch.number), through.start(batch, clips))
        for number, own in enumerate(sublayers(model)):
            # Where no units are left there is nothing to run, nor to factor.
            watched = [_watched(model, one, layers[number]) for one in own if one.units]
            read, written = _sums(watched, number, batches, through, states)
            for spectra, gone in zip(found, mixes, strict=True):
                for one in watched:
                    spectra |= _of_sublayer(one, read, written[one.writer], gone)
            progress(number + 1, len(layers))
    return found


def _watched(model: PreTrainedModel, sublayer: Sublayer, layer: nn.Module) -> _Watched:
    paths, writer = readers_and_writer(model, sublayer.kind, sublayer.part)
    readers = [layer.get_submodule(path) for path in paths]
    assert all(isinstance(one, nn.Linear) for one in readers)
    return _Watched(sublayer, readers, paths, writer)  # type: ignore[arg-type]


def _sums(
    watched: Sequence[_Watched],
    layer: int,
    batches: Sequence[ClipBatch],
    through: LayerwiseEncoder,
    states: HiddenStates,
) -> tuple[dict[str, Moments], dict[str, Moments]]:
    """Moments of what goes into each projection of a layer, by path; of writers, with the stream.

    Hidden states are passed on to the next layer.
    """
    parts = [one.sublayer for one in watched]
    readers = [reader for one in watched for reader in one.readers]
    paths = [path for one in watched for path in one.paths]
    read = [_nothing(0, reader) for reader in readers]
    written = [_nothing(part.writer.out_features, part.writer) for part in parts]
    same = list(range(len(readers)))
    for batch in batches:
        with writing_recorded(parts) as wrote, inputs_recorded(readers, then_stop=False) as inputs:
            after = through(batch, layer, states.get(str(batch.number)))
        states.put(str(batch.number), after)
        counts = batch.counts.to(after.device)
        for place, part in enumerate(parts):
            stream = wrote[place].residual + part.scale * wrote[place].written
            own = Moments.of(wrote[place].units[counts], stream[counts])
            written[place] = written[place] + own
        # What is one tensor to several is summed up once.
        same = [next(n for n in range(p + 1) if inputs[n] is inputs[p]) for p in same]
        for place in set(same):
            frames = inputs[place][counts]
            read[place] = read[place] + Moments.of(frames, frames[..., :0])
    return (
        {path: read[place] for path, place in zip(paths, same, strict=True)},
        {one.writer: sums for one, sums in zip(watched, written, strict=True)},
    )


def _nothing(rows: int, matrix: nn.Linear) -> Moments:
    return Moments.nothing(rows, matrix.in_features, matrix.weight.device)


def _of_sublayer(
    one: _Watched, read: dict[str, Moments], written: Moments, gone: Collection[Unit]
) -> Spectra:
    part, layer = one.sublayer, one.sublayer.layer
    kept = [place for place, unit in enumerate(part.units) if unit not in gone]
    if not kept:
        return {}
    columns = torch.tensor([column for place in kept for column in part.blocks[place]])
    columns = columns.to(part.writer.weight.device)
    second = _second(written, part.writer)
    cross = part.writer.weight.double() @ second[:, columns]
    root = root_of(second[columns][:, columns], _damping(second))
    whitened = torch.linalg.solve_triangular(root, cross.T, upper=False)
    values = part.scale**2 * _eigenvalues(whitened) / (written.weight * (written.spread() or 1.0))
    share = float(values.sum())
    found = {(layer, one.writer): _spectrum(part.writer.out_features, len(columns), values)}
    for path, reader in zip(one.paths, one.readers, strict=True):
        # Of a feed-forward with gates, a unit's rows lie a block of all units apart.
        blocks = reader.out_features // (len(part.units) * part.size)
        rows = torch.cat([columns + n * len(part.units) * part.size for n in range(blocks)])
        inputs = _second(read[path], reader)
        weighed = reader.weight.double()[rows] @ root_of(inputs, _damping(inputs))
        values = _eigenvalues(weighed)
        values = share * values / (float(values.sum()) or 1.0)
        found[layer, path] = _spectrum(len(rows), reader.in_features, values)
    return found


def _second(moments: Moments, matrix: nn.Linear) -> Tensor:
    """A bias takes up the mean; where there is none, all has to come of the matrix."""
    return moments.inputs if matrix.bias is None else moments.centred()[0]


def _damping(second: Tensor) -> float:
    return DAMPING * float(second.diagonal().mean()) or DAMPING


def _eigenvalues(matrix: Tensor) -> Tensor:
    """Of M Mᵀ, or of Mᵀ M, which has the same but for zeros: the largest first."""
    square = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    values: Tensor = torch.linalg.eigvalsh(square).flip(0).clamp(min=0)
    return values


def _spectrum(rows: int, columns: int, values: Tensor) -> Spectrum:
    return Spectrum(rows, columns, tuple(values.tolist()))
