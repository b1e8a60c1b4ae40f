"""The mix without which a model is as fast as asked: foretold, then measured.

Units alone are tried first. Where projections as two matrices are foretold to cost less for the
same speed, mixes with them are tried as well; one of those is taken if it is as fast and clearly
of less error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import truediv
from pathlib import Path
from statistics import median

from hibprune.compression.latency_costs import latency_cost
from hibprune.compression.projection_ranks import by_place, layered
from hibprune.compression.rank_mixture import Mix, Mixes, Ranks
from hibprune.compression.unit_mixture import Mixture
from hibprune.errors import UserError
from hibprune.execution.files import scratch_directory
from hibprune.execution.progress import StepNarration
from hibprune.execution.steps import Done, Step
from hibprune.records.latency_table import LatencyTable
from hibprune.records.speedup import SpeedFound, SpeedSearch, SpeedTry
from hibprune.records.units import POOLS, Pool, Unit
from hibprune.stages.budget import are_ranks, mix_words
from hibprune.stages.export import write_graphs
from hibprune.stages.run import Run, once
from hibprune.stages.trial_exports import export_without, time_together

TRIES = 5
"""Mixes that are exported and timed, each corrected by what the one before came to; as many again
with ranks."""
WITHIN = 0.05
"""Of the speed that was asked for: nearer will do."""
ABOVE = 1.015
"""What is aimed at, of what was asked: a little more, since times vary."""
LESS = 0.9
"""Of the error of units alone, what that of a mix with ranks is at most.

Errors are foretold: on the quickstart's calibration clips left out of scoring and repair, mixes
with 15 % less at speeds of 2 and 2.5 were 40 and 30 % nearer to the original, those with 7 % less
at 1.25 and 1.5 farther from it (`python tests/benchmarks/rank_speeds.py recipes/quickstart.yaml`).
"""
NEAR = 2.0
"""Ranks save little time: mixes of units that they are chosen behind lie near the aim."""


def search_speedup(
    run: Run, mixture: Mixture, ranks: Ranks | None, table: LatencyTable, depends_on: str
) -> Done[SpeedSearch]:
    """Find the mix of least error that is as fast as `budget.speedup`; `depends_on` is a key.

    `ranks` are there where projections may become two matrices.

    Raises:
        UserError: no removal is as fast, or the variant is as it is.
    """
    asked, variant = run.recipe.budget.amount, run.recipe.gates.variant

    def search(_: Step[SpeedSearch], narration: StepNarration) -> SpeedSearch:
        cost = latency_cost(table, mixture.places, mixture.cost)
        original = table.original_milliseconds
        units = Mixes(mixture, cost)
        both = Mixes(mixture, cost, ranks, original / (asked * ABOVE), NEAR)
        ways = [units] if original / units.least >= asked else []
        if ranks is not None and (ways or original / both.least >= asked):
            ways.append(both)
        if not ways:
            raise UserError(
                f"budget.speedup: {asked:g} cannot be reached: {variant} is "
                f"{original / both.least:.2f} times as fast as the original at {table.at} when all "
                f"{mix_words(run.recipe, run.checkpoint.model)} are gone that may go: lower it to "
                "less than that"
            )
        whole = original / table.whole_milliseconds
        if whole >= asked:
            raise UserError(
                f"budget.speedup: {variant} is {whole:.2f} times as fast as the original at "
                f"{table.at} with nothing removed: raise it to more than that"
            )
        with scratch_directory(run.directory) as scratch:
            graphs = scratch / "original"
            write_graphs(run, run.checkpoint.model, graphs)
            return _Search(run, table, graphs, scratch, narration).found(ways)

    def of_this_model(kept: SpeedSearch) -> bool:
        factored = by_place(kept.ranks)
        return (
            0 <= kept.found.taken < len(kept.found.tries)
            and set(kept.units) <= {unit for own in mixture.places.values() for unit in own}
            and _by_pool(kept.units) == kept.found.chosen.removed
            and len(factored) == kept.found.chosen.factored
            and are_ranks(run.recipe, run.checkpoint.model, factored)
        )

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
        credible=of_this_model,
    )


Try = tuple[Mix, SpeedTry]


@dataclass(frozen=True)
class _Search:
    run: Run
    table: LatencyTable
    original: Path
    scratch: Path
    narration: StepNarration

    @property
    def asked(self) -> float:
        return self.run.recipe.budget.amount

    def found(self, ways: Sequence[Mixes]) -> SpeedSearch:
        """What comes of the first way, unless the second is as fast at less error.

        Raises:
            UserError: neither comes near the speed that was asked for.
        """
        tries: list[Try] = []
        best: Try | None = None
        for number, mixes in enumerate(ways):
            if best is not None and self._too_slow(best):
                best = None
            own = self._tried(mixes, best, (number * TRIES, len(ways) * TRIES))
            tries += own
            best = nearest(self.asked, tries if best is None else own, best)
        assert best is not None
        mix, chosen = best
        if self._too_slow(best):
            raise UserError(
                f"budget.speedup: {self.asked:g} cannot be reached: {chosen.measured:.2f} times as "
                f"fast at {self.table.at} came of it: lower it"
            )
        return SpeedSearch(
            found=SpeedFound(
                at=self.table.at, tries=tuple(one for _, one in tries), taken=tries.index(best)
            ),
            units=mix.units,
            ranks=layered(mix.ranks),
        )

    def _too_slow(self, one: Try) -> bool:
        return one[1].measured < self.asked * (1 - WITHIN)

    def _tried(self, mixes: Mixes, best: Try | None, done: tuple[int, int]) -> list[Try]:
        """Mixes by what they are foretold to cost, each corrected by what the one before came to.

        Where there is a best one of units alone, its correction is begun with, only ranks of
        clearly less error are tried, and the first that is as fast will do.
        """
        enough = WITHIN / 2 if best is None else WITHIN
        original = self.table.original_milliseconds
        aim = self.asked * ABOVE
        if best is not None:
            aim *= best[1].foretold / best[1].measured
        tries: list[Try] = []
        while len(tries) < TRIES:
            # What floats make of the least there can be.
            mix = mixes.cheapest(max(original / aim, mixes.least) * (1 + 1e-9))
            again = any((mix.units, mix.ranks) == (one.units, one.ranks) for one, _ in tries)
            worth = best is None or (mix.ranks and mix.error <= LESS * best[0].error)
            if again or not worth:
                break
            one = self._measured(mix, original / mix.cost)
            tries.append((mix, one))
            self.narration.advance(done[0] + len(tries), done[1])
            if self.asked <= one.measured <= self.asked * (1 + enough):
                break
            aim *= self.asked * ABOVE / one.measured
        return tries

    def _measured(self, mix: Mix, foretold: float) -> SpeedTry:
        with scratch_directory(self.scratch) as place:
            export_without(self.run, mix.units, place, mix.ranks)
            times = time_together(self.run, {"original": self.original, "smaller": place})
        return SpeedTry(
            removed=_by_pool(mix.units),
            factored=len(mix.ranks),
            foretold=foretold,
            measured=median(map(truediv, times["original"], times["smaller"])),
        )


def nearest(asked: float, tries: Sequence[Try], best: Try | None = None) -> Try | None:
    """The try that came nearest to the speed that was asked for; slower than that counts double.

    Where there is a best one already, it stays so unless one is no slower than asked and not much
    faster, or else no farther off than the best one.
    """
    slowest, fastest = asked, asked * (1 + WITHIN)
    if best is not None:
        slowest, fastest = min(slowest, best[1].measured), max(fastest, best[1].measured)
        tries = [one for one in tries if slowest <= one[1].measured <= fastest]

    def miss(one: Try) -> float:
        share = one[1].measured / asked - 1
        return share if share >= 0 else -2 * share

    return min(tries, key=miss, default=best)


def _by_pool(units: Sequence[Unit]) -> dict[Pool, int]:
    counts: dict[Pool, int] = {pool: sum(unit.is_of(pool) for unit in units) for pool in POOLS}
    return {pool: count for pool, count in counts.items() if count}
