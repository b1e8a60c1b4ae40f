"""Whether budgets can be had of a model, and what it costs without some of its units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from hibprune.compression.plan import Budget, check_share
from hibprune.compression.projection_ranks import take_shape
from hibprune.compression.rank_mixture import CountMix
from hibprune.compression.remove import copy_without
from hibprune.compression.unit_costs import Place, kept_of
from hibprune.errors import UserError
from hibprune.evaluation.footprint import measure_footprint
from hibprune.evaluation.work import window_of
from hibprune.models.checkpoint import Checkpoint
from hibprune.models.front_end import require_front_end
from hibprune.models.low_rank import (
    LowRankLinear,
    ProjectionPlace,
    projections_of,
    ranks_within,
)
from hibprune.models.units import require_decoder, units_of
from hibprune.recipe import Recipe
from hibprune.records.measurements import Footprint
from hibprune.records.units import POOLS, RANK, Currency, Pool, Unit, pool_words
from hibprune.records.variants import precision_of
from hibprune.report.mix import COUNTED
from hibprune.report.numbers import listing
from hibprune.tasks import Target

FITTED = "least-squares"
"""The repair that ranks are foretold for."""
Ranks = Mapping[ProjectionPlace, int]


@dataclass(frozen=True)
class Counting:
    """Counts what a recipe's model costs without some units, and with some projections thinner."""

    recipe: Recipe
    checkpoint: Checkpoint
    references: Sequence[Target]

    def _without(self, units: Sequence[Unit], ranks: Ranks | None) -> PreTrainedModel:
        if not units and not ranks:
            return self.checkpoint.model
        smaller = copy_without(self.checkpoint.model, units)
        take_shape(smaller, ranks or {})
        return smaller

    def footprint(self, units: Sequence[Unit], ranks: Ranks | None = None) -> Footprint:
        """Parameters, and multiply-adds at the first length of the benchmark."""
        task, preprocessor = self.recipe.task, self.checkpoint.preprocessor
        length = self.recipe.benchmark.lengths(task.medium)[0]
        return measure_footprint(
            self._without(units, ranks),
            preprocessor.example(length, 1),
            length,
            task.decoded_tokens(self.references, self.checkpoint.vocabulary),
            window_of(preprocessor),
        )

    def weight_bytes(self, units: Sequence[Unit], ranks: Ranks | None = None) -> float:
        """What the weights take up in the precision of `gates.variant`: int8 is for matrices."""
        model = self._without(units, ranks)
        small = precision_of(self.recipe.gates.variant) == "int8"
        matrices = {
            id(module.weight)
            for module in model.modules()
            if isinstance(module, nn.Linear | LowRankLinear)
        }
        return sum(
            float(weight.numel()) * (1 if small and id(weight) in matrices else 4)
            for weight in model.parameters()
        )

    def in_currency(self, currency: Currency) -> CountMix:
        """The cost alone, in what a budget is counted in."""

        def count(units: Sequence[Unit], ranks: Ranks | None = None) -> float:
            found = self.footprint(units, ranks)
            return found.parameters if currency == "parameters" else found.macs

        return count


def mixed_kinds(recipe: Recipe, model: PreTrainedModel) -> tuple[Pool, ...]:
    """The kinds of units that one number for all kinds may take of a model."""
    return tuple(
        pool for pool in POOLS if pool in (recipe.kinds or POOLS) and units_of(model, pool)
    )


def takes_ranks(recipe: Recipe) -> bool:
    """Whether one number for all kinds may make two matrices of a projection.

    Not where what comes of it would not be fitted.
    """
    named = RANK in recipe.kinds if recipe.kinds else True
    return named and recipe.removal.repair == FITTED


def are_ranks(recipe: Recipe, model: PreTrainedModel, ranks: Ranks) -> bool:
    """Whether ranks that were kept are ones that a model's projections can have."""
    whole = projections_of(model)
    return not ranks or (
        takes_ranks(recipe)
        and all(
            place in whole and 1 <= rank < min(whole[place].in_features, whole[place].out_features)
            for place, rank in ranks.items()
        )
    )


def mix_words(recipe: Recipe, model: PreTrainedModel) -> str:
    """What one number for all kinds may take: `heads, neurons and ranks`."""
    kinds = [*mixed_kinds(recipe, model), *([RANK] if takes_ranks(recipe) else [])]
    return listing([pool_words(kind) for kind in kinds])


def check_shares(budget: Budget, model: PreTrainedModel) -> None:
    """See that shares of units beside heads can be had of a model.

    Raises:
        UserError: it does not have a kind, more of it would go than may, or nothing goes at all.
    """
    if budget.channels:
        require_front_end(model)
    gone = int(budget.takes_heads or budget.one_number is not None)
    shares = {f"{pool}s": budget.share_of(pool)[0] for pool in POOLS if pool != "head"}
    for pool in POOLS:
        if shares.get(f"{pool}s"):
            require_decoder(model, pool, f"budget.{pool}s")
            gone += check_share(budget, pool, units_of(model, pool))
    if not gone and not (budget.ranks and ranks_within(model, budget.ranks)):
        given = [
            f"{name} {share:g}"
            for name, share in (shares | {"ranks": budget.ranks}).items()
            if share
        ]
        raise UserError(f"budget: by {listing(given)} nothing of this model would go: raise it")


def check_mix(recipe: Recipe, checkpoint: Checkpoint, references: Sequence[Target]) -> str | None:
    """See that one number for all kinds can be had of a model; say what would stay, in a line.

    None where there is a number for each kind.

    Raises:
        UserError: a kind that the model does not have is to go, or no removal gets there.
    """
    budget, model = recipe.budget, checkpoint.model
    if budget.one_number is None:
        return None
    if "channel" in (recipe.kinds or ()):
        require_front_end(model, "budget.kinds")
    for pool in POOLS:
        if pool in (recipe.kinds or ()):
            require_decoder(model, pool, "budget.kinds")
    of_files = {"size_mb": "size", "speedup": "speed"}.get(budget.one_number)
    if of_files is not None and precision_of(recipe.gates.variant) == "fp16":
        raise UserError(
            f"budget.{budget.one_number}: the {of_files} of pruned-fp16 is not known before it is "
            "made: set gates.variant to pruned or pruned-int8"
        )
    taken = mix_words(recipe, model)
    if budget.one_number == "metric_drop":
        return f"{taken} until the metric has fallen by {budget.amount:g}"
    if budget.one_number == "speedup":
        length = recipe.benchmark.middle(recipe.task.medium)
        return (
            f"{taken} until {recipe.gates.variant} is {budget.amount:g} times as fast at {length}"
        )
    counting = Counting(recipe, checkpoint, references)
    most = _all_that_may_go(recipe, model, mixed_kinds(recipe, model))
    # Of rank 1 where that is cheaper than to be one.
    thinnest = ranks_within(copy_without(model, most), 1.0) if takes_ranks(recipe) else {}
    if budget.one_number == "size_mb":
        least = counting.weight_bytes(most, thinnest) / 1e6
        if least > budget.amount:
            raise UserError(
                f"budget.size_mb: {budget.amount:g} MB cannot be reached: the weights alone take "
                f"{least:.2f} MB when all {taken} are gone that may go: raise it"
            )
        return f"{taken} until {recipe.gates.variant} takes {budget.amount:g} MB"
    count, named = counting.in_currency(budget.currency), COUNTED[budget.currency]
    least = count(most, thinnest) / count(())
    if least > budget.amount:
        raise UserError(
            f"budget.{budget.currency}: {budget.amount:g} of the {named} cannot be reached: "
            f"{least:.3f} stay when all {taken} are gone that may go: raise it to more than that"
        )
    return f"{taken} until {budget.amount:.1%} of the {named} are left ({least:.1%} is the least)"


def _all_that_may_go(recipe: Recipe, model: PreTrainedModel, kinds: Sequence[Pool]) -> list[Unit]:
    places: dict[Place, list[Unit]] = {}
    for kind in kinds:
        for unit in units_of(model, kind):
            places.setdefault((unit.kind, unit.stack, unit.layer), []).append(unit)
    return [
        unit
        for place, units in places.items()
        for unit in units[kept_of(place, recipe.budget.min_heads_per_layer) :]
    ]
