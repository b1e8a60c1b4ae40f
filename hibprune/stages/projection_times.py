"""Times of single projections under ONNX Runtime, as one matrix and as two of several ranks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hibprune.compression.quantize.int8 import write_int8
from hibprune.compression.remove import copy_without
from hibprune.deployment.export import export_layer
from hibprune.execution.runtime import Timed, guarded, onnx_session
from hibprune.models.attention import run_encoder
from hibprune.models.low_rank import LowRankLinear, projections_of, rank_within
from hibprune.records.latency_table import ProjectionTimes, RankTimes
from hibprune.records.units import Unit
from hibprune.records.variants import precision_of
from hibprune.stages.run import Run
from hibprune.stages.trial_exports import in_turn, whole_timed

WEIGHTS_GONE = (0.25, 0.5, 0.875)
"""Shares of a projection's weights that go by its rank."""
MOST_SHAPES = 12
"""Of projections that are timed: models that were pruned before have many."""
WHOLE = "whole"


def time_projections(
    run: Run, mixes: Sequence[Collection[Unit]], whole: Path, scratch: Path
) -> RankTimes:
    """Time projections alone, in turn with the whole model, whose graphs lie in `whole`.

    They have the shapes of the encoder's without the units of each of some mixes, and as many
    frames as the length of `speedup` gives. Their graphs go to `scratch`.
    """
    frames, opset = _frames(run), run.recipe.export.opset
    timed: dict[str, Timed] = {WHOLE: whole_timed(run, whole)}
    measured: dict[str, tuple[int, int, int | None]] = {}
    for rows, columns in _shapes(run, mixes):
        example = _noise(frames, columns)
        for rank in (None, *dict.fromkeys(rank_within(rows, columns, one) for one in WEIGHTS_GONE)):
            name = f"{rows}x{columns}-{rank}"
            if name in measured:
                # Too small for two matrices of any rank.
                continue
            measured[name] = rows, columns, rank
            path = scratch / f"{name}.onnx"
            export_layer(_projection(rows, columns, rank), path, example, opset)
            timed[name] = _timed(run, path, example)
    times = in_turn(run, timed)
    return RankTimes(
        whole=times[WHOLE],
        projections=tuple(
            ProjectionTimes(rows=rows, columns=columns, rank=rank, times=times[name])
            for name, (rows, columns, rank) in measured.items()
        ),
    )


def _frames(run: Run) -> int:
    """How many frames projections of the encoder see."""
    model, task = run.checkpoint.model, run.recipe.task
    length = run.recipe.benchmark.middle(task.medium)
    # Attention without heads runs none of its own.
    projections = projections_of(model).values()
    first = next(one for one in projections if one.out_features and one.in_features)
    seen: list[int] = []

    def look(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].numel() // inputs[0].shape[-1])

    handle = first.register_forward_pre_hook(look)
    try:
        run_encoder(model, run.checkpoint.preprocessor.example(length, 1))
    finally:
        handle.remove()
    return seen[0]


def _shapes(run: Run, mixes: Sequence[Collection[Unit]]) -> list[tuple[int, int]]:
    """Rows and columns of the encoder's projections; of too many, some from least to largest."""
    found = sorted(
        {
            (one.out_features, one.in_features)
            for units in mixes
            for one in projections_of(copy_without(run.checkpoint.model, units)).values()
            if one.out_features and one.in_features
        }
    )
    if len(found) <= MOST_SHAPES:
        return found
    last = len(found) - 1
    return [found[round(step * last / (MOST_SHAPES - 1))] for step in range(MOST_SHAPES)]


def _projection(rows: int, columns: int, rank: int | None) -> nn.Module:
    """A projection with weights of seeded noise: of zeros a graph would store but one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = nn.Linear(columns, rows) if rank is None else LowRankLinear(columns, rows, rank)
        nn.init.normal_(made.weight)
    return made


def _noise(frames: int, columns: int) -> Tensor:
    return torch.randn((1, frames, columns), generator=torch.Generator().manual_seed(0))


def _timed(run: Run, path: Path, example: Tensor) -> Timed:
    """The work on a graph of one layer, in the precision of the variant that gates hold."""
    if precision_of(run.recipe.gates.variant) == "int8":
        write_int8(path, path, run.recipe.quantize.full_range, ())
    session: Any = onnx_session(path, run.device.type, run.recipe.benchmark.threads)
    call = partial(
        guarded(session.run, path), None, {session.get_inputs()[0].name: example.numpy()}
    )
    return lambda _: {"model": call}
