"""The latency table of a run: times with fewer units of a kind, and of projections by rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hibprune.execution.files import scratch_directory
from hibprune.execution.machine import describe_machine, installed_versions
from hibprune.execution.progress import StepNarration
from hibprune.execution.steps import Done, Step, kept_result
from hibprune.models.units import units_of
from hibprune.records.latency_table import LatencyTable, LevelTimes
from hibprune.records.units import ENCODER, POOLS, RANK, Kind, Pool, Unit, min_kept
from hibprune.records.variants import precision_of
from hibprune.report.numbers import listing
from hibprune.stages.export import write_graphs
from hibprune.stages.projection_times import time_projections
from hibprune.stages.run import Run, once
from hibprune.stages.trial_exports import export_without, time_together

LATENCY_TABLE = "latency-table"
LEVELS: Mapping[Kind, tuple[float, ...]] = {
    "head": (0.5, 0.0),
    "neuron": (0.5, 0.0),
    "channel": (0.5, 0.25),
}
"""Shares that every layer keeps, of what has to stay at least that."""
UNITS_LEFT = (1.0, 0.5)
"""Shares that every layer keeps where projections are timed, which shrink as units go."""


def latency_table(run: Run, pools: Sequence[Pool], ranks: bool) -> Done[LatencyTable]:
    """Time the variant that gates hold with every kind cut down, once per machine and setting.

    All layers of a stack are cut at once: what one layer saves drowns in the noise of the rest.
    With `ranks`, projections are timed as well, which can be done one at a time.
    """
    recipe, machine = run.recipe, describe_machine()
    settings, length = recipe.benchmark, recipe.benchmark.middle(recipe.task.medium)
    kept = kept_result(run.directory, LATENCY_TABLE, LatencyTable)
    if kept is not None and kept[0].machine != machine:
        run.narrator.say("the latency table that is there is of another machine: measured anew")
    elif kept is not None and ranks and kept[0].ranks is None:
        run.narrator.say("the latency table that is there knows no ranks: measured anew")

    def measure(_: Step[LatencyTable], narration: StepNarration) -> LatencyTable:
        wanted = [
            (units, left)
            for pool in pools
            for units in [units_of(run.checkpoint.model, pool)]
            for share in LEVELS[POOLS[pool][0]]
            for left in [left_by_layer(units, share, pool)]
            # Where layers have but what has to stay, there is nothing to time.
            if sum(left.values()) < len(units)
        ]
        with scratch_directory(run.directory) as scratch:
            whole, original = scratch / "whole", scratch / "whole"
            export_without(run, (), whole)
            if precision_of(recipe.gates.variant) != "fp32":
                original = scratch / "original"
                write_graphs(run, run.checkpoint.model, original)
            both = time_together(run, {"original": original, "whole": whole})
            levels = []
            for number, (units, left) in enumerate(wanted, start=1):
                levels.append(_level(run, units, left, whole, scratch / f"level-{number}"))
                narration.advance(number, len(wanted))
            mixes = [encoder_units_beyond(run, pools, share) for share in UNITS_LEFT]
            projections = time_projections(run, mixes, whole, scratch) if ranks else None
        return LatencyTable(
            variant=recipe.gates.variant,
            at=length,
            threads=settings.threads,
            machine=machine,
            original=both["original"],
            whole=both["whole"],
            levels=tuple(levels),
            ranks=projections,
        )

    return once(
        run,
        LATENCY_TABLE,
        {
            "kinds": [*pools, *([RANK] if ranks else [])],
            "variant": recipe.gates.variant,
            "full_range": recipe.quantize.full_range,
            **recipe.export.of_trials,
            "settings": settings.model_dump(mode="json", exclude={"seconds", "tokens", "rivals"}),
            length.unit: length.value,
            "machine": machine.model_dump(mode="json"),
            "runtime": {
                name: version
                for name, version in installed_versions().items()
                if name.startswith("onnxruntime")
            },
        },
        LatencyTable,
        measure,
        lambda table: _finding(table, len(pools)),
        credible=lambda table: (
            bool(table.ranks and table.ranks.projections) == ranks
            and all(
                len(times) == settings.repetitions and min(times) > 0 for times in _all_times(table)
            )
        ),
    )


def _finding(table: LatencyTable, kinds: int) -> str:
    timed = [f"{len(table.levels)} levels of {kinds} kinds"] if table.levels else []
    if table.ranks is not None:
        timed.append(f"{len(table.ranks.projections)} projections")
    return f"{listing(timed)} at {table.at}"


def _all_times(table: LatencyTable) -> Iterator[tuple[float, ...]]:
    yield from (table.original, table.whole)
    for level in table.levels:
        yield from (level.times, level.whole)
    if table.ranks is not None:
        yield table.ranks.whole
        yield from (one.times for one in table.ranks.projections)


def encoder_units_beyond(run: Run, pools: Sequence[Pool], share: float) -> list[Unit]:
    """What goes where every layer of the encoder keeps a share of its units."""
    return [
        unit
        for pool in pools
        if POOLS[pool][1] == ENCODER
        for units in [units_of(run.checkpoint.model, pool)]
        for unit in gone_beyond(units, left_by_layer(units, share, pool))
    ]


def left_by_layer(units: Sequence[Unit], share: float, pool: Pool) -> dict[int, int]:
    """How many units each layer keeps of a pool: about a share, and something of what has some.

    Nothing at all only where nothing is asked for, and of what may be emptied.
    """
    layers: dict[int, int] = {}
    for unit in units:
        layers[unit.layer] = layers.get(unit.layer, 0) + 1
    least = max(1 if share else 0, min_kept(*POOLS[pool]))
    return {layer: max(least, round(share * number)) for layer, number in layers.items()}


def gone_beyond(units: Sequence[Unit], left: Mapping[int, int]) -> list[Unit]:
    """The units that go where each layer keeps its first so many."""
    seen = dict.fromkeys(left, 0)
    gone = []
    for unit in units:
        seen[unit.layer] += 1
        if seen[unit.layer] > left[unit.layer]:
            gone.append(unit)
    return gone


def _level(
    run: Run, units: Sequence[Unit], left: dict[int, int], whole: Path, place: Path
) -> LevelTimes:
    export_without(run, gone_beyond(units, left), place)
    times = time_together(run, {"whole": whole, "level": place})
    return LevelTimes(
        kind=units[0].kind,
        stack=units[0].stack,
        left=left,
        times=times["level"],
        whole=times["whole"],
    )
