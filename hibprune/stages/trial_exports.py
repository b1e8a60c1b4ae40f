"""Exports of a model without some units, to find out their size and speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from hibprune.compression.factoring import factor
from hibprune.compression.quantize.guard import write_guarded
from hibprune.compression.remove import copy_without
from hibprune.evaluation.latency import Times, measure_latency
from hibprune.execution.files import link_or_copy, scratch_directory
from hibprune.execution.runtime import ONNX_DIRECTORY, Timed
from hibprune.models.low_rank import ProjectionPlace
from hibprune.records.units import Unit
from hibprune.records.variants import precision_of
from hibprune.stages.export import write_graphs
from hibprune.stages.remove import decoded_tokens
from hibprune.stages.run import Run
from hibprune.stages.self_description import graph_properties

MANY_DIGITS = 0.1 + 0.2
"""For the metric that graphs are told: as many as it can have."""


def export_without(
    run: Run, units: Sequence[Unit], place: Path, ranks: Mapping[ProjectionPlace, int] | None = None
) -> None:
    """Write the graphs of the variant that gates hold, without some units, to `place`/onnx.

    Projections of `ranks` are two matrices. Weights that stay are not repaired, which changes
    neither size nor speed, and int8 is as it comes, without what a guard may leave in float32.
    """
    task, settings = run.recipe.task, run.recipe.quantize
    model, smaller = run.checkpoint.model, copy_without(run.checkpoint.model, units)
    # Not of zeros, of which a graph would store but one.
    factor(model, smaller, (), "none", ranks or {}, place, 0)
    properties = graph_properties(run, units, task.metric_name, MANY_DIGITS) if units else None
    if precision_of(run.recipe.gates.variant) != "int8":
        write_graphs(run, smaller, place, properties)
        return
    with scratch_directory(run.directory) as scratch:
        write_graphs(run, smaller, scratch, properties)
        source, target = scratch / ONNX_DIRECTORY, place / ONNX_DIRECTORY
        target.mkdir(parents=True)
        for name in task.beside_graphs:
            link_or_copy(source / name, target / name)
        write_guarded(source, place, task.graphs, settings.full_range, ())


def time_together(run: Run, places: Mapping[str, Path]) -> Times:
    """Milliseconds of models whose graphs lie in `places`, in turn, at the length of `speedup`."""
    return in_turn(run, {name: whole_timed(run, place) for name, place in places.items()})


def whole_timed(run: Run, place: Path) -> Timed:
    """The work on a model whose graphs lie in `place`; of one with a decoder, not on its parts."""
    device, threads = run.device.type, run.recipe.benchmark.threads
    timed = run.recipe.task.onnx_timed(place, device, threads, decoded_tokens(run))
    return lambda inputs: {"model": next(iter(timed(inputs).values()))}


def in_turn(run: Run, timed: Mapping[str, Timed]) -> Times:
    """Milliseconds of work of one part each, in turn, at the length of `speedup`."""
    task, settings = run.recipe.task, run.recipe.benchmark
    length = settings.middle(task.medium)
    ((_, parts),) = measure_latency(
        timed,
        run.checkpoint.preprocessor.example,
        settings.model_copy(update={length.unit: (length.value,)}),
        task.medium,
    )
    return next(iter(parts.values()))
