"""Measures many plans with a repair in place: heads removed from a copy, which is then repaired."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from hibprune.comparing.measuring import Silent, batches_of_one_length, evaluate_silenced
from hibprune.compression.settings import RepairKind
from hibprune.execution.files import digest
from hibprune.execution.steps import Step
from hibprune.records.comparison import RepairedEvaluation, TriedRepair
from hibprune.records.measurements import Evaluation
from hibprune.records.units import heads_by_layer
from hibprune.report.numbers import duration
from hibprune.stages.credibility import credible_evaluation
from hibprune.stages.repair import calibration_clips, repair_inputs, repaired_copy
from hibprune.stages.run import Run

FOLDER = "evaluate-repaired"
"""Of the steps' records."""

Steps = Mapping[tuple[str, Silent], Step[RepairedEvaluation]]
"""Where each metric of each plan is kept."""


def with_repair(run: Run, kind: RepairKind) -> Run:
    """The run with another repair; gradient steps follow only where the recipe wants them."""
    removal = run.recipe.removal
    refine = removal.refine if kind == "least-squares" else None
    changed = removal.model_copy(update={"repair": kind, "refine": refine})
    recipe = run.recipe.model_copy(update={"removal": changed})
    return replace(run, loaded=replace(run.loaded, recipe=recipe))


def evaluations_repaired(
    run: Run, plans: Mapping[str, Sequence[Silent]]
) -> tuple[TriedRepair, dict[str, dict[Silent, Evaluation]]]:
    """Each metric for its plans, of the model without their heads, repaired as the recipe says.

    Every set of heads is removed and repaired once, however many metrics want it, and kept in the
    directory as soon as it is measured.

    Raises:
        UserError: there are too few calibration clips for the repair, or a model gives out numbers
            that are not finite.
    """
    settings = run.recipe.removal
    steps = {(metric, plan): _step(run, metric, plan) for metric in plans for plan in plans[metric]}
    with run.narrator.step(f"evaluate {settings.repair}") as narration:
        clips = len(run.material.validation.utterances)
        kept = {
            place: step.kept(credible=lambda one: credible_evaluation(one.evaluation, clips))
            for place, step in steps.items()
        }
        found = {place: done.result for place, done in kept.items() if done is not None}
        missing: dict[Silent, list[str]] = {}
        for metric, plan in steps:
            if (metric, plan) not in found:
                missing.setdefault(plan, []).append(metric)
        models = len({plan for _, plan in steps})
        if missing:
            found |= _measured(run, missing, steps, narration.advance)
        before = models - len(missing)
        known = f", {before} of them before" if before else ""
        seconds = statistics.median(one.seconds for one in found.values())
        narration.found(
            f"{models} sets of heads removed and repaired{known}, {duration(seconds)} for each"
        )
    tried = TriedRepair(
        kind=settings.repair,
        clips=len(run.material.repair.utterances),
        refine_steps=settings.refine_steps,
        seconds=seconds,
    )
    return tried, {
        metric: {plan: found[metric, plan].evaluation for plan in own}
        for metric, own in plans.items()
    }


def _step(run: Run, metric: str, plan: Silent) -> Step[RepairedEvaluation]:
    heads, repair = heads_by_layer(plan), repair_inputs(run)
    inputs = {
        **run.basis,
        "validation": run.material.validation.identity,
        "metric": metric,
        "removed": {str(layer): own for layer, own in heads.items()},
        "repair": repair,
    }
    name = f"{FOLDER}/{digest(metric, str(repair), str(heads))[:16]}"
    return Step[RepairedEvaluation](run.directory, name, 1, inputs, RepairedEvaluation)


def _measured(
    run: Run,
    missing: Mapping[Silent, Sequence[str]],
    steps: Steps,
    progress: Callable[[float, float], None],
) -> dict[tuple[str, Silent], RepairedEvaluation]:
    """Remove, repair and measure, a set of heads at a time: as much as a kill would lose."""
    vocabulary = run.checkpoint.vocabulary
    measures = {
        metric: run.recipe.task.measure(metric, vocabulary)
        for metrics in missing.values()
        for metric in metrics
    }
    repaired_on = calibration_clips(run)
    clips, limits = run.material.validation.utterances, run.recipe.validation.durations
    batches = batches_of_one_length(run.checkpoint, clips, limits)
    found = {}
    for number, (plan, metrics) in enumerate(missing.items()):

        def advance(part: int, done: int, total: int, number: int, parts: int) -> None:
            progress(number + (part + done / total) / parts, len(missing))

        told = functools.partial(advance, number=number, parts=1 + len(metrics))
        start = time.perf_counter()
        model, _ = repaired_copy(run, plan, functools.partial(told, 0), repaired_on)
        seconds = time.perf_counter() - start
        checkpoint = replace(run.checkpoint, model=model)
        for part, metric in enumerate(metrics, start=1):
            (evaluation,) = evaluate_silenced(
                checkpoint,
                measures[metric],
                clips,
                limits,
                batches,
                [()],
                functools.partial(told, part),
            )
            result = RepairedEvaluation(evaluation=evaluation, seconds=seconds)
            step = steps[metric, plan]
            found[metric, plan] = step.once(functools.partial(_same, result)).result
    return found


def _same(result: RepairedEvaluation) -> RepairedEvaluation:
    return result
