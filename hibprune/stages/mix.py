"""A mix of units of all kinds by one number: scored alike, and taken where it costs least error."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hibprune.compression.projection_ranks import by_place, layered
from hibprune.compression.projection_times import projection_time
from hibprune.compression.rank_mixture import (
    CountMix,
    FindSpectra,
    Mix,
    RankMixture,
    Ranks,
    by_weights,
)
from hibprune.compression.rank_spectra import Spectra, rank_spectra
from hibprune.compression.unit_mixture import Mixture
from hibprune.errors import UserError
from hibprune.execution.files import digest, scratch_directory
from hibprune.execution.progress import StepNarration
from hibprune.execution.steps import Done, Step
from hibprune.models.attention import heads_of
from hibprune.models.hidden_states import HiddenStates
from hibprune.models.low_rank import projections_of, ranks_within
from hibprune.records.speedup import SpeedSearch
from hibprune.records.units import Kind, Plan, Pool, Scores, Unit, pool_words
from hibprune.stages.budget import Counting, are_ranks, mixed_kinds, takes_ranks
from hibprune.stages.latency_table import latency_table
from hibprune.stages.mix_limits import within_drop, within_size, without_steps
from hibprune.stages.repair import calibration_clips, repair_inputs
from hibprune.stages.rounds import Choice, FinishedRound
from hibprune.stages.run import Run, once
from hibprune.stages.score import attribute
from hibprune.stages.score_others import attribute_others, wanted
from hibprune.stages.speedup import search_speedup
from hibprune.tasks import Target

WEIGHTS: dict[Kind, float] = {"head": 1.0, "neuron": 1.0, "channel": 1.0}
"""What an error weighs by the kind of unit, each a share of the variance of what reads it.

On calibration clips of the quickstart left out of scoring and repair, factors of 4, 16 and 64 on
channels took repaired models further from the original at most budgets
(`python tests/benchmarks/mix_weights.py recipes/quickstart.yaml`). On 20 such clips of
whisper-tiny.en at 85 % of the parameters the KL divergence is 0.18, and 0.21 and 0.23 where all of
the decoder's errors weigh four times as much and a quarter (the same with `--of decoder`; its whole
command stands in tests/benchmarks/results/mix_weights_whisper.json).
"""


RANK_WEIGHT = 0.25
"""What an error of a rank weighs beside one of a unit.

Much of what a projection loses is made up for by those fitted behind it, which the error foretold
does not know of. On the quickstart's calibration clips left out of scoring and repair, the KL
divergence at 50, 30 and 20 % of the parameters was 3.2e-4, 3.4e-4 and 1.3e-3 at a weight of 1,
3e-5, 5.8e-4 and 1.0e-3 at ¼, 5.7e-4, 1.3e-3 and 3.4e-3 at 4; units alone came to 5.0e-4, 2.6e-3 and
1.2e-2, ranks alone to 1e-5, 2.4e-3 and 0.68
(`python tests/benchmarks/rank_weights.py recipes/quickstart.yaml`).
"""


def choose_mix(run: Run, targets: tuple[dict[str, Target], str]) -> Choice:
    """Score all kinds that may go, and plan the mix that the budget asks for."""
    heads, others = _attributed(run, targets)
    kinds, scores = mixed_kinds(run.recipe, run.checkpoint.model), _pooled(run, heads, others)
    speed = _speed(run, kinds, scores, digest(heads.key, *(done.key for done in others.values())))
    plan = _plan(run, heads, others, scores, speed)
    parts = {
        pool: replace(
            plan,
            key=digest(plan.key, pool_words(pool)),
            result=Plan.of([unit for unit in plan.result.units if unit.is_of(pool)], ()),
            seconds=0.0,
        )
        for pool in others
    }
    alone = Plan(removed=plan.result.removed, kept=plan.result.kept, ranks=plan.result.ranks)
    return Choice(
        (FinishedRound(heads, replace(plan, result=alone)),),
        {pool: FinishedRound(scores, parts[pool]) for pool, scores in others.items()},
        speed,
    )


def scored_pools(run: Run, targets: tuple[dict[str, Target], str]) -> list[Scores]:
    """The scores of all units that may go, a pool at a time."""
    return _pooled(run, *_attributed(run, targets))


def _attributed(
    run: Run, targets: tuple[dict[str, Target], str]
) -> tuple[Done[Scores], dict[Pool, Done[Scores]]]:
    recipe, model = run.recipe, run.checkpoint.model
    heads = attribute(run, targets, method=recipe.method_of("head"))
    others = {
        pool: attribute_others(run, want, targets) for pool, want in wanted(recipe, model).items()
    }
    return heads, others


def _pooled(run: Run, heads: Done[Scores], others: dict[Pool, Done[Scores]]) -> list[Scores]:
    kinds = mixed_kinds(run.recipe, run.checkpoint.model)
    return [*([heads.result] if "head" in kinds else []), *(d.result for d in others.values())]


def _speed(
    run: Run, kinds: Sequence[Pool], scores: Sequence[Scores], key: str
) -> Done[SpeedSearch] | None:
    """The search for a mix that is as fast as asked; `key` is one of all scores."""
    budget = run.recipe.budget
    if budget.one_number != "speedup":
        return None
    ranks = takes_ranks(run.recipe) and bool(ranks_within(run.checkpoint.model, 1.0))
    table = latency_table(run, kinds, ranks)
    chosen_by = [list(kinds), WEIGHTS, budget.min_heads_per_layer]
    if ranks:
        chosen_by.append(_rank_inputs(run))
    depends_on = digest(key, table.key, json.dumps(chosen_by))
    time = projection_time(table.result) if ranks else None
    own = None if time is None else Ranks(_spectra(run), time, RANK_WEIGHT)
    return search_speedup(run, _mixture(run, scores), own, table.result, depends_on)


def _plan(
    run: Run,
    heads: Done[Scores],
    others: dict[Pool, Done[Scores]],
    scores: Sequence[Scores],
    speed: Done[SpeedSearch] | None,
) -> Done[Plan]:
    recipe, budget = run.recipe, run.recipe.budget
    kinds = mixed_kinds(recipe, run.checkpoint.model)
    length = run.recipe.benchmark.lengths(run.recipe.task.medium)[0]
    there = set(heads_of(run.checkpoint.model))

    def plan(_: Step[Plan], narration: StepNarration) -> Plan:
        if speed is not None:
            return Plan.of(speed.result.units, heads.result.heads, speed.result.ranks)
        mix = _mix(run, scores, narration)
        return Plan.of(mix.units, heads.result.heads, layered(mix.ranks))

    def finding(plan: Plan) -> str:
        numbers = {pool: sum(unit.is_of(pool) for unit in plan.units) for pool in kinds}
        parts = [f"{number} {pool_words(pool, number)}" for pool, number in numbers.items()]
        factored = sum(map(len, plan.ranks.values()))
        thinner = f", {factored} projections to factor" if takes_ranks(recipe) else ""
        return f"{', '.join(parts)} to remove{thinner} ({budget.one_number} {budget.amount:g})"

    inputs: dict[str, Any] = {
        "heads": heads.key,
        **{pool_words(pool): done.key for pool, done in others.items()},
        "budget": budget.model_dump(mode="json"),
        "kinds": list(kinds),
        "weights": WEIGHTS,
        length.unit: length.value,
    }
    if takes_ranks(recipe):
        inputs["ranks"] = _rank_inputs(run)
    if budget.one_number == "size_mb":
        inputs |= {"variant": run.recipe.gates.variant, **run.recipe.export.of_trials}
    if speed is not None:
        inputs["speedup"] = speed.key
    if budget.one_number == "metric_drop":
        held_out = run.material.held_out
        inputs |= {
            "held_out": None if held_out is None else held_out.identity,
            "repair": repair_inputs(without_steps(run)),
        }
    return once(
        run,
        "plan",
        inputs,
        Plan,
        plan,
        finding,
        credible=lambda kept: (
            {*kept.removed, *kept.kept} == there
            and len(kept.removed) + len(kept.kept) == len(there)
            and are_ranks(recipe, run.checkpoint.model, by_place(kept.ranks))
        ),
    )


def _rank_inputs(run: Run) -> dict[str, Any]:
    """What the choice of ranks depends on."""
    return {"weight": RANK_WEIGHT, "clips": run.material.repair.identity}


def _mix(run: Run, scores: Sequence[Scores], narration: StepNarration) -> Mix:
    """What goes by the recipe's one number.

    Raises:
        UserError: no removal gets there.
    """
    budget = run.recipe.budget
    try:
        mixture = _with_ranks(run, _mixture(run, scores))
        if budget.one_number == "size_mb":
            return within_size(run, mixture)
        if budget.one_number == "metric_drop":
            return within_drop(run, mixture, narration.advance)
        return mixture.within(budget.amount * mixture.whole)
    except ValueError as error:
        raise UserError(f"budget.{budget.one_number}: {error}: raise it") from error


def _mixture(run: Run, scores: Sequence[Scores]) -> Mixture:
    """What may go, counted in what the recipe's one number asks for, or in what tells of it."""
    budget = run.recipe.budget
    return Mixture.of(scores, WEIGHTS, budget.min_heads_per_layer, _counted(run))


def _counted(run: Run) -> CountMix:
    budget = run.recipe.budget
    counting = Counting(run.recipe, run.checkpoint, run.material.references)
    if budget.one_number == "size_mb":
        return counting.weight_bytes
    speed = budget.one_number == "speedup"
    return counting.in_currency("multiply_adds" if speed else budget.currency)


def _with_ranks(run: Run, mixture: Mixture) -> RankMixture:
    """The same, and ranks of projections where they may be taken."""
    count, model = _counted(run), run.checkpoint.model
    thinnest = ranks_within(model, 1.0)
    if not takes_ranks(run.recipe) or not thinnest:
        return RankMixture(mixture, count)
    # All projections of an encoder see as many frames: one tells what a weight of any costs.
    place = next(iter(thinnest))
    one = projections_of(model)[place]
    saved = one.in_features * one.out_features - one.in_features - one.out_features
    per_weight = (count(()) - count((), {place: 1})) / saved
    return RankMixture(mixture, count, Ranks(_spectra(run), by_weights(per_weight), RANK_WEIGHT))


def _spectra(run: Run) -> FindSpectra:
    """What tells on the calibration clips what projections are worth."""

    def spectra(mixes: Sequence[Sequence[Unit]]) -> list[Spectra]:
        with scratch_directory(run.directory) as scratch:
            states = HiddenStates(scratch, int(run.recipe.removal.memory_gib * 2**30))
            model = run.checkpoint.model
            return rank_spectra(model, calibration_clips(run), list(map(set, mixes)), states)

    return spectra
