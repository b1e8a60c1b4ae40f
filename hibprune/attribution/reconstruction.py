"""The surgeon's score: what the best linear repair cannot restore of what units are read for.

Units go one after the other, each time the one whose loss the others make up for best. With A the
centred second moment of what the units still there give out, H = (A + damping)⁻¹ and W their
columns as made up for so far, unit P costs tr(W_P ([H]_PP)⁻¹ W_Pᵀ) (Hassibi and Stork 1993; by
blocks as in Kurtic et al. 2023). Forward passes only, and no labels. Of a convolution's channel P
are the columns of the matrix that reads it: of the next convolution as many as its kernel, on
unfolded windows, or of the projection behind the last.

Where observations are hardly more than columns, as tokens of a few transcripts are, any of the
columns make up for the others, on these clips alone. Their second moment is then shrunk towards
that of columns that have nothing in common (OAS: Chen et al. 2010, arXiv 0907.4698).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hibprune.attribution.methods import Reconstruction
from hibprune.attribution.session import Loss, Sample, Session, scores_of
from hibprune.models.attention import frozen
from hibprune.models.front_end import front_end_parts
from hibprune.models.front_end_passes import (
    frames_by_part,
    passed,
    waveforms,
    window_moments,
    window_step,
)
from hibprune.models.hidden_states import HiddenStates
from hibprune.models.layerwise import (
    CalibrationClip,
    LayerwiseEncoder,
    clip_batches,
    unchunked,
)
from hibprune.models.layerwise_decoder import LayerwiseDecoder, transcript_batches
from hibprune.models.moments import Moments
from hibprune.models.sublayers import sublayers, writing_recorded
from hibprune.models.units import units_of
from hibprune.records.units import DECODER, ENCODER, POOLS, Pool, Scores, Unit, is_of_decoder
from hibprune.tasks.seq2seq import fed_tokens

DAMPING = 1e-6
"""Of the mean variance of a column."""
PLENTY = 2
"""Observations per column from which on their second moment is taken as it is."""
DELAY = 128
"""Columns that go before matrices are brought up to date, in one product instead of many."""

Weighing = Literal["none", "stream"]
"""How layers are weighed against each other: errors as they are, or as shares of the variance of
what they are a part of: the residual stream, or what the matrix that reads a channel writes."""


@dataclass(frozen=True)
class Removal:
    """One step of a greedy removal: the block that goes, and the error that adds in closed form.

    `error` is in units of the second moment: summed over frames, where that is.
    """

    block: int
    error: float


def attribute(
    method: Reconstruction,
    model: PreTrainedModel,
    samples: Sequence[Sample],
    loss: Loss,
    session: Session,
    pool: Pool = "head",
) -> Scores:
    """Score the units of a pool, all samples together; the loss is not looked at."""
    clips = [CalibrationClip(sample.inputs) for sample in samples]
    if is_of_decoder(POOLS[pool][1]):
        device = next(model.parameters()).device
        fed = [fed_tokens(model.config, [sample.target], device)[0] for sample in samples]
        clips = [replace(clip, tokens=own) for clip, own in zip(clips, fed, strict=True)]

    def progress(done: int, total: int) -> None:
        session.progress(len(samples) * done / total, len(samples), None)

    weighing, room = method.normalise, int(method.memory_gib * 2**30)
    with TemporaryDirectory() as scratch:
        states = HiddenStates(Path(scratch), room)
        if pool == "channel":
            scores = channel_scores(model, clips, weighing, states, progress)
        else:
            scores = sublayer_scores(model, clips, pool, weighing, states, progress)
    units = units_of(model, pool)
    return scores_of(method, model, samples, [tuple(scores[unit] for unit in units)], units)


@torch.no_grad()
def sublayer_scores(
    model: PreTrainedModel,
    clips: Sequence[CalibrationClip],
    pool: Pool,
    weighing: Weighing,
    states: HiddenStates,
    progress: Callable[[int, int], None],
) -> dict[Unit, float]:
    """The score of every head or neuron that is still there: its step's error, per frame.

    Within a sublayer scores never fall in the order in which units go, so that the lowest of the
    whole model are those that go first everywhere.
    """
    kind, stack = POOLS[pool]
    in_decoder = is_of_decoder(stack)
    batches = (transcript_batches if in_decoder else clip_batches)(model, clips)
    scores: dict[Unit, float] = {}
    with frozen(model), unchunked(model):
        through = (LayerwiseDecoder if in_decoder else LayerwiseEncoder)(model, states)
        for batch in batches:
            states.put(str(batch.number), through.start(batch, clips))
        layers = sublayers(model, DECODER if in_decoder else ENCODER)
        for number, layer in enumerate(layers):
            chosen = [one for one in layer if (one.kind, one.stack) == (kind, stack) and one.units]
            sums = [_nothing(one.writer.weight) for one in chosen]
            for batch in batches:
                with writing_recorded(chosen) as written:
                    after = through(batch, number, states.get(str(batch.number)))
                states.put(str(batch.number), after)
                for place, one in enumerate(chosen):
                    counts = batch.counts.to(after.device)
                    own = written[place]
                    stream = own.residual + one.scale * own.written
                    sums[place] = sums[place] + Moments.of(own.units[counts], stream[counts])
            for one, moments in zip(chosen, sums, strict=True):
                second, _ = moments.centred()
                weight = one.scale * one.writer.weight
                scores.update(_scores(one.units, one.blocks, second, weight, moments, weighing))
            progress(number + 1, len(layers))
    return scores


@torch.no_grad()
def channel_scores(
    model: PreTrainedModel,
    clips: Sequence[CalibrationClip],
    weighing: Weighing,
    states: HiddenStates,
    progress: Callable[[int, int], None],
) -> dict[Unit, float]:
    """The score of every channel of the front end that is still there, by what reads it.

    Where a convolution has no bias, repair can make none, and moments are not centred.
    """
    batches, parts = clip_batches(model, clips), front_end_parts(model)
    frames = frames_by_part(model, parts, batches, clips)
    scores: dict[Unit, float] = {}
    with frozen(model):
        for batch in batches:
            states.put(str(batch.number), waveforms(model, batch, clips))
        for number, part in enumerate(parts):
            weight = part.writer.weight.flatten(1)
            sums = _nothing(weight)
            for batch in batches:
                done = passed(part, states.get(str(batch.number)))
                states.put(str(batch.number), done.after)
                if part.units:
                    every = torch.ones(len(batch.places), dtype=torch.bool)
                    step = window_step(frames[number], part)
                    sums += window_moments(done.windows, done.written, batch, step, every)
            if part.units:
                second = sums.inputs if part.writer.bias is None else sums.centred()[0]
                scores |= _scores(part.units, part.blocks, second, weight, sums, weighing)
            progress(number + 1, len(parts))
    return scores


def _nothing(weight: Tensor) -> Moments:
    rows, columns = weight.shape
    return Moments.nothing(rows, columns, weight.device)


def _scores(
    units: Sequence[Unit],
    blocks: Sequence[Sequence[int]],
    second: Tensor,
    weight: Tensor,
    moments: Moments,
    weighing: Weighing,
) -> dict[Unit, float]:
    share = moments.weight * ((moments.spread() or 1.0) if weighing == "stream" else 1.0)
    found: dict[Unit, float] = {}
    highest = 0.0
    for step in removal_order(believable(second, moments.weight), weight, blocks):
        highest = max(highest, step.error)
        found[units[step.block]] = highest / share
    return found


def believable(second: Tensor, observations: float) -> Tensor:
    """A second moment (columns, columns) as it is, or shrunk where observations are too few.

    The share ρ = min(1, (a + μ²) / ((n + 1) (a − μ²/p))) of it becomes that of p columns alike,
    with μ their mean variance and a the mean of the squared entries (Chen et al. 2010, eq. 23).
    """
    columns = len(second)
    if observations >= PLENTY * columns:
        return second
    alike = float(second.diagonal().mean())
    squares = float(second.square().mean())
    beyond = (observations + 1) * (squares - alike**2 / columns)
    share = 1.0 if beyond <= 0 else min(1.0, (squares + alike**2) / beyond)
    shrunk = (1 - share) * second
    shrunk.diagonal().add_(share * alike)
    return shrunk


def removal_order(
    second: Tensor, weight: Tensor, blocks: Sequence[Sequence[int]], damping: float = DAMPING
) -> list[Removal]:
    """In what order blocks of columns go if each time that one does which repair misses least.

    `second` is the centred second moment of the inputs (columns, columns), `weight` (rows,
    columns). Blocks are all of one size, and together all columns.
    """
    if not blocks:
        return []
    matrix = second.double().clone()
    # Of units that never vary, rounding may leave less than nothing.
    matrix.diagonal().add_(damping * max(float(second.diagonal().mean()), 0.0) or 1.0)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(matrix))
    w = weight.detach().to(inverse)
    # Columns of a block side by side, blocks in their order.
    places = torch.tensor([column for block in blocks for column in block], device=inverse.device)
    gram = (w.T @ w)[places][:, places]
    return _order(inverse[places][:, places], gram, len(blocks[0]))


def _order(inverse: Tensor, gram: Tensor, size: int) -> list[Removal]:
    """The greedy order of blocks of `size` columns, on WᵀW in the place of W.

    When P goes, H ← H − aᵀ [H]_PP a and WᵀW ← WᵀW − aᵀ b − bᵀ a, with a = ([H]_PP)⁻¹ H_P: and
    b = G_P: − ½ G_PP a. What stands on the diagonal is kept up to date, other rows are brought up
    to date when they are needed, and the matrices after about `DELAY` columns.
    """
    left = torch.arange(len(inverse) // size, device=inverse.device)
    order: list[Removal] = []
    while len(left):
        steps = min(max(1, DELAY // size), len(left))
        a, ha, b = (inverse.new_zeros(steps * size, len(left) * size) for _ in range(3))
        h, g = (_on_diagonal(matrix, size) for matrix in (inverse, gram))
        there = torch.ones(len(left), dtype=torch.bool, device=inverse.device)
        for step in range(steps):
            scores = h.new_full((len(left),), torch.inf)
            scores[there] = _missed(h[there], g[there])
            p = int(scores.argmin())
            order.append(Removal(int(left[p]), max(0.0, float(scores[p]))))
            there[p] = False
            own, past = slice(p * size, (p + 1) * size), slice(step * size)
            new = slice(step * size, (step + 1) * size)
            ha[new] = inverse[own] - a[past, own].T @ ha[past]
            products = gram[own] - a[past, own].T @ b[past] - b[past, own].T @ a[past]
            a[new] = torch.linalg.solve(ha[new, own], ha[new])
            b[new] = products - products[:, own] @ a[new] / 2
            in_blocks = [one[new].unflatten(1, (-1, size)) for one in (a, ha, b)]
            h = h - torch.einsum("kpi,kpj->pij", in_blocks[0], in_blocks[1])
            crossed = torch.einsum("kpi,kpj->pij", in_blocks[0], in_blocks[2])
            g = g - crossed - crossed.mT
        columns = there.repeat_interleave(size)
        a, ha, b, left = a[:, columns], ha[:, columns], b[:, columns], left[there]
        inverse = inverse[columns][:, columns] - a.T @ ha
        crossed = a.T @ b
        gram = gram[columns][:, columns] - crossed - crossed.T
    return order


def _on_diagonal(matrix: Tensor, size: int) -> Tensor:
    """The square blocks on a matrix's diagonal (blocks, size, size)."""
    blocks: Tensor = matrix.unflatten(0, (-1, size)).unflatten(2, (-1, size))
    return blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1).clone()


def _missed(h: Tensor, g: Tensor) -> Tensor:
    """tr([H]_PP⁻¹ [WᵀW]_PP) of each block (blocks, size, size)."""
    if h.shape[1] == 1:
        return (g.clamp(min=0) / h).flatten()
    solved: Tensor = torch.linalg.solve(h, g)
    return solved.diagonal(dim1=1, dim2=2).sum(1)
