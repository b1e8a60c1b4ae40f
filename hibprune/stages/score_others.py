"""Which neurons and channels go: those of the model as it was are scored once, and planned."""

from __future__ import annotations

import math
from dataclasses import dataclass

from transformers import PreTrainedModel

from hibprune.attribution import MethodBase
from hibprune.attribution.base import Session
from hibprune.attribution.passes import effort_measured
from hibprune.compression.plan import Budget, lowest_channels, lowest_neurons
from hibprune.execution.progress import StepNarration
from hibprune.execution.steps import Done, Step
from hibprune.models.units import units_of
from hibprune.recipe import Recipe
from hibprune.records.units import Kind, Plan, Scope, Scores, Unit, units_by_layer
from hibprune.report.wording import CHANNELS, NEURONS
from hibprune.stages.budget import mixed_kinds
from hibprune.stages.load import calibration_sample
from hibprune.stages.rounds import FinishedRound
from hibprune.stages.run import Run, once
from hibprune.tasks import Target


@dataclass(frozen=True)
class Wanted:
    """How many units of a kind are to go by a recipe: a share of all or of every layer.

    There is no share where one number for all kinds decides.
    """

    kind: Kind
    share: float | None
    scope: Scope
    method: MethodBase

    @property
    def many(self) -> str:
        """What they are called."""
        return f"{self.kind}s"

    @property
    def named(self) -> str:
        """What they are called, and of what they are."""
        return NEURONS if self.kind == "neuron" else CHANNELS


def wanted(recipe: Recipe, model: PreTrainedModel) -> dict[str, Wanted]:
    """What a recipe wants to go beside heads, by `neurons` and `channels`."""
    budget = recipe.budget
    if budget.one_number is not None:
        shares: dict[Kind, float | None] = dict.fromkeys(mixed_kinds(recipe, model))
    else:
        shares = {"neuron": budget.neurons or None, "channel": budget.channels or None}
        shares = {kind: share for kind, share in shares.items() if share is not None}
    others: tuple[Kind, ...] = ("neuron", "channel")
    found = [
        Wanted(
            kind,
            shares[kind],
            "layerwise" if kind == "channel" and budget.one_number is None else budget.scope,
            recipe.method_of(kind),
        )
        for kind in others
        if kind in shares
    ]
    return {one.many: one for one in found}


def others_to_go(recipe: Recipe, model: PreTrainedModel) -> tuple[str, ...]:
    """How many units would go beside heads, of how many, whatever their scores; a line a kind."""
    lines = []
    for want in wanted(recipe, model).values():
        if want.share is None:
            continue
        units = units_of(model, want.kind)
        flat = Scores(method="none", heads=units, samples=(), per_sample=((0.0,) * len(units),))
        gone = _lowest(want, flat, recipe.budget)
        lines.append(f"{len(gone)} of {len(units)} {want.named} ({want.scope})")
    return tuple(lines)


def _lowest(want: Wanted, scores: Scores, budget: Budget) -> tuple[Unit, ...]:
    return (lowest_neurons if want.kind == "neuron" else lowest_channels)(scores, budget)


def choose_others(run: Run, targets: tuple[dict[str, Target], str]) -> dict[str, FinishedRound]:
    """Score what the recipe wants to go beside heads, and plan which of it goes."""
    return {
        name: _choose(run, one, targets)
        for name, one in wanted(run.recipe, run.checkpoint.model).items()
    }


def _choose(run: Run, want: Wanted, targets: tuple[dict[str, Target], str]) -> FinishedRound:
    scores, budget = attribute_others(run, want, targets), run.recipe.budget
    total = len(scores.result.heads)

    def plan(_: Step[Plan], narration: StepNarration) -> Plan:
        removed = units_by_layer(_lowest(want, scores.result, budget))
        return Plan.model_validate({"removed": (), "kept": (), want.many: removed})

    done = once(
        run,
        f"plan-{want.many}",
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
    """Score the units of a kind on the calibration clips."""
    recipe, model, method = run.recipe, run.checkpoint.model, want.method
    units = units_of(model, want.kind)

    def attribute(step: Step[Scores], narration: StepNarration) -> Scores:
        samples = [
            calibration_sample(recipe, run.checkpoint, clip, targets[0][clip.id])
            for clip in run.material.calibration.utterances
        ]
        session = Session(
            seed=recipe.seed,
            progress=lambda done, total, loss: narration.advance(done, total),
            notice=run.narrator.say,
        )
        with effort_measured(model, len(samples)) as effort:
            scores = method.attribute(model, samples, recipe.task.loss, session, want.kind)
        return scores.model_copy(update={"effort": effort()})

    return once(
        run,
        f"attribute-{want.many}",
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
