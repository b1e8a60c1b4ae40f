"""A mix of units of all kinds by one number: scored alike, and taken where it costs least error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from hibprune.compression.solver import cheapest_mix
from hibprune.compression.unit_costs import counted_cost, groups_of, in_order
from hibprune.errors import UserError
from hibprune.execution.files import digest
from hibprune.execution.progress import StepNarration
from hibprune.execution.steps import Done, Step
from hibprune.models.attention import heads_of
from hibprune.records.units import Kind, Plan, Scores, Unit, units_by_layer
from hibprune.stages.budget import NAMED, Counting, mixed_kinds
from hibprune.stages.rounds import Choice, FinishedRound
from hibprune.stages.run import Run, once
from hibprune.stages.score import attribute
from hibprune.stages.score_others import attribute_others, wanted
from hibprune.tasks import Target

WEIGHTS: dict[Kind, float] = {"head": 1.0, "neuron": 1.0, "channel": 1.0}
"""What an error weighs by the kind of unit."""
TRIES = 10
"""Of coming below a limit where counts are not quite sums of what units cost."""


def choose_mix(run: Run, targets: tuple[dict[str, Target], str]) -> Choice:
    """Score all kinds that may go, and plan the mix that the budget asks for."""
    recipe, model = run.recipe, run.checkpoint.model
    heads = attribute(run, targets, method=recipe.method_of("head"))
    others = {
        name: attribute_others(run, want, targets) for name, want in wanted(recipe, model).items()
    }
    plan = _plan(run, heads, others)
    parts = {
        name: replace(
            plan,
            key=digest(plan.key, name),
            result=Plan.model_validate(
                {"removed": (), "kept": (), name: getattr(plan.result, name)}
            ),
            seconds=0.0,
        )
        for name in others
    }
    alone = plan.result.model_copy(update={"neurons": {}, "channels": {}})
    return Choice(
        (FinishedRound(heads, replace(plan, result=alone)),),
        {name: FinishedRound(scores, parts[name]) for name, scores in others.items()},
    )


def _plan(run: Run, heads: Done[Scores], others: dict[str, Done[Scores]]) -> Done[Plan]:
    budget = run.recipe.budget
    assert budget.currency is not None
    counting = Counting(run.recipe, run.checkpoint, run.material.references)
    kinds = mixed_kinds(run.recipe, run.checkpoint.model)
    scores = [*([heads.result] if "head" in kinds else []), *(d.result for d in others.values())]
    length = run.recipe.benchmark.lengths(run.recipe.task.medium)[0]
    there = set(heads_of(run.checkpoint.model))

    def plan(_: Step[Plan], narration: StepNarration) -> Plan:
        return _as_plan(mixed(counting, scores), heads.result)

    def finding(plan: Plan) -> str:
        parts = [f"{sum(unit.kind == kind for unit in plan.units)} {kind}s" for kind in kinds]
        assert budget.currency is not None
        return (
            f"{', '.join(parts)} to remove, until {budget.share_kept:.1%} of the "
            f"{NAMED[budget.currency]} are left"
        )

    inputs: dict[str, Any] = {
        "heads": heads.key,
        **{name: done.key for name, done in others.items()},
        "budget": budget.model_dump(mode="json"),
        "kinds": list(kinds),
        "weights": WEIGHTS,
        length.unit: length.value,
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


def mixed(counting: Counting, scores: Sequence[Scores]) -> tuple[Unit, ...]:
    """The units of least error without which the model costs what the budget leaves it.

    Raises:
        UserError: no removal gets there.
    """
    budget = counting.recipe.budget
    assert budget.currency is not None
    count = counting.in_currency(budget.currency)
    places = in_order(scores)
    groups = groups_of(scores, WEIGHTS, budget.min_heads_per_layer)
    cost = counted_cost(places, count)
    limit = wanted_cost = budget.share_kept * count(())
    for _ in range(TRIES):
        try:
            gone = cheapest_mix(groups, cost, limit)
        except ValueError as error:
            raise UserError(f"budget.{budget.currency}: {error}: raise it") from error
        units = tuple(
            unit for number, own in zip(gone, places.values(), strict=True) for unit in own[:number]
        )
        found = count(units)
        if found <= wanted_cost:
            break
        limit -= found - wanted_cost
    return units


def _as_plan(units: Sequence[Unit], heads: Scores) -> Plan:
    def by_layer(kind: Literal["neuron", "channel"]) -> dict[int, tuple[int, ...]]:
        return units_by_layer(unit for unit in units if unit.kind == kind)

    removed = sorted(unit for unit in units if unit.kind == "head")
    return Plan(
        removed=tuple(removed),
        kept=tuple(sorted(set(heads.heads) - set(removed))),
        neurons=by_layer("neuron"),
        channels=by_layer("channel"),
    )
