"""A mix of units of all kinds by one number: scored alike, and taken where it costs least error."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hibprune.compression.mixture import Mixture
from hibprune.errors import UserError
from hibprune.execution.files import digest
from hibprune.execution.progress import StepNarration
from hibprune.execution.steps import Done, Step
from hibprune.models.attention import heads_of
from hibprune.records.speedup import SpeedSearch
from hibprune.records.units import Kind, Plan, Pool, Scores, Unit, pool_words
from hibprune.stages.budget import Counting, mixed_kinds
from hibprune.stages.latency_table import latency_table
from hibprune.stages.mix_limits import within_drop, within_size, without_steps
from hibprune.stages.repair import repair_inputs
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
(`python tests/benchmarks/mix_weights.py recipes/quickstart.yaml`).
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
    alone = Plan(removed=plan.result.removed, kept=plan.result.kept)
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
    table = latency_table(run, kinds)
    least = [list(kinds), WEIGHTS, budget.min_heads_per_layer]
    depends_on = digest(key, table.key, json.dumps(least))
    return search_speedup(run, _mixture(run, scores), table.result, kinds, depends_on)


def _plan(
    run: Run,
    heads: Done[Scores],
    others: dict[Pool, Done[Scores]],
    scores: Sequence[Scores],
    speed: Done[SpeedSearch] | None,
) -> Done[Plan]:
    budget = run.recipe.budget
    kinds = mixed_kinds(run.recipe, run.checkpoint.model)
    length = run.recipe.benchmark.lengths(run.recipe.task.medium)[0]
    there = set(heads_of(run.checkpoint.model))

    def plan(_: Step[Plan], narration: StepNarration) -> Plan:
        units = _units(run, scores, narration) if speed is None else speed.result.units
        return Plan.of(units, heads.result.heads)

    def finding(plan: Plan) -> str:
        parts = [
            f"{sum(unit.is_of(pool) for unit in plan.units)} {pool_words(pool)}" for pool in kinds
        ]
        return f"{', '.join(parts)} to remove ({budget.one_number} {budget.amount:g})"

    inputs: dict[str, Any] = {
        "heads": heads.key,
        **{pool_words(pool): done.key for pool, done in others.items()},
        "budget": budget.model_dump(mode="json"),
        "kinds": list(kinds),
        "weights": WEIGHTS,
        length.unit: length.value,
    }
    if budget.one_number == "size_mb":
        inputs |= {"variant": run.recipe.gates.variant, "opset": run.recipe.export.opset}
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
        ),
    )


def _units(run: Run, scores: Sequence[Scores], narration: StepNarration) -> tuple[Unit, ...]:
    """What goes by the recipe's one number.

    Raises:
        UserError: no removal gets there.
    """
    budget = run.recipe.budget
    mixture = _mixture(run, scores)
    try:
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
    counting = Counting(run.recipe, run.checkpoint, run.material.references)
    speed = budget.one_number == "speedup"
    count = counting.in_currency("multiply_adds" if speed else budget.currency)
    if budget.one_number == "size_mb":
        count = counting.weight_bytes
    return Mixture.of(scores, WEIGHTS, budget.min_heads_per_layer, count)
