"""Measures many plans with a repair in place: heads removed from a copy, which is then repaired."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from hibprune.comparing.measuring import Silent, batches_of_one_length, evaluate_models
from hibprune.compression.settings import RepairKind
from hibprune.execution.files import digest
from hibprune.execution.steps import Step
from hibprune.records.comparison import RepairedEvaluation, TriedRepair
from hibprune.records.measurements import Evaluation
from hibprune.records.units import ENCODER, heads_by_layer
from hibprune.report.numbers import duration
from hibprune.stages.credibility import credible_evaluation
from hibprune.stages.repair import calibration_clips, repair_inputs, repaired_copy
from hibprune.stages.run import Run

FOLDER = "evaluate-repaired"
"""Of the steps' records."""
MODELS_AT_ONCE = 8
"""Measured in one go through the clips, where memory allows."""

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
    repair = repair_inputs(run)
    own = {
        stack: heads_by_layer(head for head in plan if head.stack == stack)
        for stack in dict.fromkeys(head.stack for head in plan)
    }
    # Of the encoder's heads alone it has always been their layers.
    heads = own[ENCODER] if own.keys() == {ENCODER} else own
    inputs = {
        **run.basis,
        "validation": run.material.validation.identity,
        "metric": metric,
        "removed": {str(place): gone for place, gone in heads.items()},
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
    """Remove, repair and measure, a few sets of heads at a time: as much as a kill would lose."""
    task, vocabulary = run.recipe.task, run.checkpoint.vocabulary
    repaired_on = calibration_clips(run, [head for plan in missing for head in plan])
    clips, limits = run.material.validation.utterances, run.recipe.validation.durations
    batches = batches_of_one_length(run.checkpoint, clips, limits)
    total = sum(1 + len(metrics) for metrics in missing.values())
    finished = 0

    def advance(done: int, of: int, parts: int = 1) -> None:
        progress(finished + parts * done / of, total)

    found = {}
    plans, size = list(missing), _models_at_once(run)
    for start in range(0, len(plans), size):
        models, seconds = {}, {}
        for plan in plans[start : start + size]:
            began = time.perf_counter()
            models[plan], _ = repaired_copy(run, plan, advance, repaired_on)
            seconds[plan] = time.perf_counter() - began
            finished += 1
        for metric in dict.fromkeys(name for plan in models for name in missing[plan]):
            own = [plan for plan in models if metric in missing[plan]]
            results = evaluate_models(
                run.checkpoint,
                task.measure(metric, vocabulary),
                clips,
                limits,
                batches,
                [(models[plan], ()) for plan in own],
                functools.partial(advance, parts=len(own)),
            )
            finished += len(own)
            for plan, evaluation in zip(own, results, strict=True):
                result = RepairedEvaluation(evaluation=evaluation, seconds=seconds[plan])
                step = steps[metric, plan]
                found[metric, plan] = step.once(functools.partial(_same, result)).result
    return found


def _models_at_once(run: Run) -> int:
    """How many repaired models are held to be measured together, within the repair's memory."""
    parameters = run.checkpoint.model.parameters()
    size: int = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    return max(1, min(MODELS_AT_ONCE, int(run.recipe.removal.memory_gib * 2**30) // size))


def _same(result: RepairedEvaluation) -> RepairedEvaluation:
    return result
