"""Which units go beside heads: those of the model as it was are scored once, and planned."""

from __future__ import annotations

import math
from dataclasses import dataclass

from transformers import PreTrainedModel

from hibprune.attribution import MethodBase
from hibprune.attribution.passes import effort_measured
from hibprune.attribution.session import Session
from hibprune.compression.plan import check_budget, check_share, lowest_units
from hibprune.compression.ranking import heads_counted
from hibprune.execution.progress import StepNarration
from hibprune.execution.steps import Done, Step
from hibprune.models.attention import heads_of
from hibprune.models.low_rank import projections_of, ranks_within
from hibprune.models.units import units_of
from hibprune.recipe import Recipe
from hibprune.records.units import (
    POOLS,
    Plan,
    Pool,
    Scope,
    Scores,
    is_of_decoder,
    pool_words,
)
from hibprune.report.numbers import count
from hibprune.report.wording import NAMED
from hibprune.stages.budget import mixed_kinds
from hibprune.stages.rounds import FinishedRound
from hibprune.stages.run import Run, once
from hibprune.stages.score import calibration_samples
from hibprune.tasks import Target


@dataclass(frozen=True)
class Wanted:
    """How many units of a pool are to go by a recipe: a share of all or of every layer.

    There is no share where one number for all kinds decides.
    """

    pool: Pool
    share: float | None
    scope: Scope
    method: MethodBase

    @property
    def many(self) -> str:
        """What they are called."""
        return pool_words(self.pool)

    @property
    def step(self) -> str:
        """What steps that choose among them are called by."""
        return self.many.replace(" ", "-")


def wanted(recipe: Recipe, model: PreTrainedModel) -> dict[Pool, Wanted]:
    """What a recipe wants to go beside heads."""
    budget = recipe.budget
    found: dict[Pool, Wanted] = {}
    if budget.one_number is not None:
        for pool in mixed_kinds(recipe, model):
            found[pool] = Wanted(pool, None, budget.scope, recipe.method_of(pool))
        found.pop("head", None)
        return found
    for pool in POOLS:
        share, scope = (0.0, budget.scope) if pool == "head" else budget.share_of(pool)
        if share:
            found[pool] = Wanted(pool, share, scope, recipe.method_of(pool))
    return found


def units_to_go(recipe: Recipe, model: PreTrainedModel) -> tuple[str, ...]:
    """How many units would go, of how many, whatever their scores; a line for each kind."""
    budget, lines = recipe.budget, []
    if budget.takes_heads:
        heads = heads_of(model, recipe.method_of("head").scored_stacks())
        gone = check_budget(budget, heads)
        lines.append(f"{gone} of {heads_counted(len(heads))} of the encoder ({budget.scope})")
    for want in wanted(recipe, model).values():
        if want.share is None:
            continue
        units = units_of(model, want.pool)
        gone = check_share(budget, want.pool, units)
        lines.append(f"{gone} of {len(units)} {NAMED[want.pool]} ({want.scope})")
    if budget.ranks:
        lines.append(_ranks_line(model, budget.ranks))
    return tuple(lines)


def _ranks_line(model: PreTrainedModel, share: float) -> str:
    projections, ranks = projections_of(model), ranks_within(model, share)
    if not ranks:
        return f"none of {len(projections)} projections: two matrices are no cheaper than one"
    shapes = [(rank, projections[place]) for place, rank in ranks.items()]
    before = sum(one.in_features * one.out_features for _, one in shapes)
    after = sum(rank * (one.in_features + one.out_features) for rank, one in shapes)
    least, most = min(ranks.values()), max(ranks.values())
    return (
        f"{count(before - after)} of {count(before)} weights of {len(ranks)} of "
        f"{len(projections)} projections, as pairs of thinner matrices of ranks {least} to {most} "
        "(fewer where heads or neurons go)"
    )


def choose_others(run: Run, targets: tuple[dict[str, Target], str]) -> dict[Pool, FinishedRound]:
    """Score what the recipe wants to go beside heads, and plan which of it goes."""
    return {
        pool: _choose(run, one, targets)
        for pool, one in wanted(run.recipe, run.checkpoint.model).items()
    }


def _choose(run: Run, want: Wanted, targets: tuple[dict[str, Target], str]) -> FinishedRound:
    scores = attribute_others(run, want, targets)
    total = len(scores.result.heads)

    def plan(_: Step[Plan], narration: StepNarration) -> Plan:
        return Plan.of(lowest_units(scores.result, run.recipe.budget, want.pool), ())

    done = once(
        run,
        f"plan-{want.step}",
        {"scores": scores.key, want.many: want.share, "scope": want.scope},
        Plan,
        plan,
        lambda plan: (
            f"{len(plan.units)} of {total} {want.many} to remove, {want.scope} "
            f"(share {want.share:g})"
        ),
    )
    return FinishedRound(scores, done)


def attribute_others(
    run: Run, want: Wanted, targets: tuple[dict[str, Target], str]
) -> Done[Scores]:
    """Score the units of a pool on the calibration clips."""
    recipe, model, method = run.recipe, run.checkpoint.model, want.method
    units = units_of(model, want.pool)
    in_decoder = is_of_decoder(POOLS[want.pool][1])

    def attribute(step: Step[Scores], narration: StepNarration) -> Scores:
        # A decoder hears what an encoder makes of all that it is used on.
        samples = calibration_samples(run, targets[0], in_decoder)
        session = Session(
            seed=recipe.seed,
            progress=lambda done, total, loss: narration.advance(done, total),
            notice=run.narrator.say,
        )
        with effort_measured(model, len(samples)) as effort:
            scores = method.attribute(model, samples, recipe.task.loss, session, want.pool)
        return scores.model_copy(update={"effort": effort()})

    return once(
        run,
        f"attribute-{want.step}",
        {
            "calibration": run.material.calibration.identity,
            "crop_seconds": recipe.calibration.crop_seconds,
            "targets": targets[1],
            "method": method.model_dump(mode="json", exclude=set(method.resources)),
            "seed": recipe.seed,
        },
        Scores,
        attribute,
        lambda scores: f"{len(scores.heads)} {want.many} by {scores.method}",
        credible=lambda kept: (
            kept.heads == units
            and len(kept.per_sample) == 1
            and all(map(math.isfinite, kept.per_sample[0]))
        ),
        timed=frozenset({"effort"}),
    )
