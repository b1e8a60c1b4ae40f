"""The latency table of a run: what is saved where every layer keeps fewer units of a kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from hibprune.execution.files import scratch_directory
from hibprune.execution.machine import describe_machine, installed_versions
from hibprune.execution.progress import StepNarration
from hibprune.execution.steps import Done, Step, kept_result
from hibprune.models.units import units_of
from hibprune.records.latency_table import LatencyTable, LevelTimes
from hibprune.records.units import POOLS, Kind, Pool, Unit, min_kept
from hibprune.records.variants import precision_of
from hibprune.stages.export import write_graphs
from hibprune.stages.run import Run, once
from hibprune.stages.trial_exports import export_without, time_together

LATENCY_TABLE = "latency-table"
LEVELS: Mapping[Kind, tuple[float, ...]] = {
    "head": (0.5, 0.0),
    "neuron": (0.5, 0.0),
    "channel": (0.5, 0.25),
}
"""Shares that every layer keeps, of what has to stay at least that."""


def latency_table(run: Run, pools: Sequence[Pool]) -> Done[LatencyTable]:
    """Time the variant that gates hold with every kind cut down, once per machine and setting.

    All layers of a stack are cut at once: what one layer saves drowns in the noise of the rest.
    """
    recipe, machine = run.recipe, describe_machine()
    settings, length = recipe.benchmark, recipe.benchmark.middle(recipe.task.medium)
    kept = kept_result(run.directory, LATENCY_TABLE, LatencyTable)
    if kept is not None and kept[0].machine != machine:
        run.narrator.say("the latency table that is there is of another machine: measured anew")

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
        return LatencyTable(
            variant=recipe.gates.variant,
            at=length,
            threads=settings.threads,
            machine=machine,
            original=both["original"],
            whole=both["whole"],
            levels=tuple(levels),
        )

    return once(
        run,
        LATENCY_TABLE,
        {
            "kinds": list(pools),
            "variant": recipe.gates.variant,
            "full_range": recipe.quantize.full_range,
            "opset": recipe.export.opset,
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
        lambda table: f"{len(table.levels)} levels of {len(pools)} kinds at {length}",
        credible=lambda table: all(
            len(times) == settings.repetitions and min(times) > 0
            for level in table.levels
            for times in (table.original, table.whole, level.times, level.whole)
        ),
    )


def left_by_layer(units: Sequence[Unit], share: float, pool: Pool) -> dict[int, int]:
    """How many units each layer keeps of a pool: about a share, and something of what has some.

    Nothing at all only where nothing is asked for, and of what may be emptied.
    """
    layers: dict[int, int] = {}
    for unit in units:
        layers[unit.layer] = layers.get(unit.layer, 0) + 1
    least = max(1 if share else 0, min_kept(*POOLS[pool]))
    return {layer: max(least, round(share * number)) for layer, number in layers.items()}


def _level(
    run: Run, units: Sequence[Unit], left: dict[int, int], whole: Path, place: Path
) -> LevelTimes:
    seen = dict.fromkeys(left, 0)
    gone = []
    for unit in units:
        seen[unit.layer] += 1
        if seen[unit.layer] > left[unit.layer]:
            gone.append(unit)
    export_without(run, gone, place)
    times = time_together(run, {"whole": whole, "level": place})
    return LevelTimes(
        kind=units[0].kind,
        stack=units[0].stack,
        left=left,
        times=times["level"],
        whole=times["whole"],
    )
