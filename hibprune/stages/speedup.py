"""The mix of units without which a model is as fast as asked: foretold, then measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import truediv
from pathlib import Path
from statistics import median

from hibprune.compression.latency_costs import latency_cost
from hibprune.compression.solver import Cost, least_cost
from hibprune.compression.unit_mixture import Mixture
from hibprune.errors import UserError
from hibprune.execution.files import scratch_directory
from hibprune.execution.progress import StepNarration
from hibprune.execution.steps import Done, Step
from hibprune.records.latency_table import LatencyTable
from hibprune.records.speedup import SpeedFound, SpeedSearch, SpeedTry
from hibprune.records.units import POOLS, Pool, Unit, pool_words
from hibprune.report.numbers import listing
from hibprune.stages.export import write_graphs
from hibprune.stages.run import Run, once
from hibprune.stages.trial_exports import export_without, time_together

TRIES = 5
"""Mixes that are exported and timed, each corrected by what the one before came to."""
WITHIN = 0.05
"""Of the speed that was asked for: nearer will do."""
ABOVE = 1.015
"""What is aimed at, of what was asked: a little more, since times vary."""


def search_speedup(
    run: Run, mixture: Mixture, table: LatencyTable, kinds: Sequence[Pool], depends_on: str
) -> Done[SpeedSearch]:
    """Find the mix of least error that is as fast as `budget.speedup`; `depends_on` is a key.

    Raises:
        UserError: no removal is as fast, or the variant is as it is.
    """
    asked, variant = run.recipe.budget.amount, run.recipe.gates.variant

    def search(_: Step[SpeedSearch], narration: StepNarration) -> SpeedSearch:
        cost = latency_cost(table, mixture.places, mixture.cost)
        most = table.original_milliseconds / least_cost(mixture.groups, cost)
        whole = table.original_milliseconds / table.whole_milliseconds
        if most < asked:
            taken = listing(list(map(pool_words, kinds)))
            raise UserError(
                f"budget.speedup: {asked:g} cannot be reached: {variant} is {most:.2f} times as "
                f"fast as the original at {table.at} when all {taken} are gone that may go: lower "
                "it to less than that"
            )
        if whole >= asked:
            raise UserError(
                f"budget.speedup: {variant} is {whole:.2f} times as fast as the original at "
                f"{table.at} with nothing removed: raise it to more than that"
            )
        with scratch_directory(run.directory) as scratch:
            original = scratch / "original"
            write_graphs(run, run.checkpoint.model, original)
            return _Search(run, mixture, table, cost, most, original, scratch).found(narration)

    return once(
        run,
        "speedup",
        {"speedup": asked, "scores": depends_on},
        SpeedSearch,
        search,
        lambda search: (
            f"{search.found.chosen.measured:.2f} times as fast, "
            f"{search.found.chosen.foretold:.2f} foretold, after {len(search.found.tries)} "
            f"{'try' if len(search.found.tries) == 1 else 'tries'}"
        ),
        credible=lambda kept: (
            0 <= kept.found.taken < len(kept.found.tries)
            and set(kept.units) <= {unit for own in mixture.places.values() for unit in own}
            and _by_pool(kept.units) == kept.found.chosen.removed
        ),
    )


@dataclass(frozen=True)
class _Search:
    run: Run
    mixture: Mixture
    table: LatencyTable
    cost: Cost
    most: float
    original: Path
    scratch: Path

    def found(self, narration: StepNarration) -> SpeedSearch:
        asked = self.run.recipe.budget.amount
        aim = asked * ABOVE
        tries: list[tuple[tuple[Unit, ...], SpeedTry]] = []
        while len(tries) < TRIES:
            limit = self.table.original_milliseconds / min(aim, self.most)
            # What floats make of the least there can be.
            units, left = self.mixture.cheapest(self.cost, limit * (1 + 1e-9))
            if any(units == earlier for earlier, _ in tries):
                break
            one = self._measured(units, self.table.original_milliseconds / left)
            tries.append((units, one))
            narration.advance(len(tries), TRIES)
            if asked <= one.measured <= asked * (1 + WITHIN / 2):
                break
            aim *= asked * ABOVE / one.measured
        taken = min(range(len(tries)), key=lambda place: _miss(tries[place][1].measured, asked))
        units, chosen = tries[taken]
        if chosen.measured < asked * (1 - WITHIN):
            raise UserError(
                f"budget.speedup: {asked:g} cannot be reached: {chosen.measured:.2f} times as fast "
                f"at {self.table.at} came of it: lower it"
            )
        return SpeedSearch(
            found=SpeedFound(at=self.table.at, tries=tuple(one for _, one in tries), taken=taken),
            units=units,
        )

    def _measured(self, units: tuple[Unit, ...], foretold: float) -> SpeedTry:
        with scratch_directory(self.scratch) as place:
            export_without(self.run, units, place)
            times = time_together(self.run, {"original": self.original, "smaller": place})
        return SpeedTry(
            removed=_by_pool(units),
            foretold=foretold,
            measured=median(map(truediv, times["original"], times["smaller"])),
        )


def _by_pool(units: Sequence[Unit]) -> dict[Pool, int]:
    counts: dict[Pool, int] = {pool: sum(unit.is_of(pool) for unit in units) for pool in POOLS}
    return {pool: count for pool, count in counts.items() if count}


def _miss(measured: float, asked: float) -> float:
    """How far a speed is from what was asked; slower than that counts double."""
    return (measured / asked - 1) if measured >= asked else 2 * (1 - measured / asked)
