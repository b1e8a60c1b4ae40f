"""Which heads go in a round: those left are scored on the calibration data, and planned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hibprune.attribution import MethodBase
from hibprune.attribution.passes import effort_measured
from hibprune.attribution.session import Sample, Session
from hibprune.compression.plan import ONLY_ROUND, Round, make_plan, plan_line
from hibprune.execution.processes import ALONE
from hibprune.execution.progress import StepNarration
from hibprune.execution.steps import Done, Partial, Step
from hibprune.models.attention import heads_of
from hibprune.records.units import Head, Plan, Scores, heads_by_layer
from hibprune.report.ranking import SAYS_NOTHING
from hibprune.stages.credibility import credible_partial, credible_scores
from hibprune.stages.load import calibration_sample
from hibprune.stages.own_labels import own_labels
from hibprune.stages.recover import Training, help_training
from hibprune.stages.repair import Start, repair_inputs, repaired_copy
from hibprune.stages.rounds import step_name
from hibprune.stages.run import Run, once
from hibprune.tasks import Target

ATTRIBUTE = "attribute"


def calibration_targets(run: Run) -> tuple[dict[str, Target], str]:
    """Targets of the calibration clips by id, and a key of where they came from."""
    clips = run.material.calibration.utterances
    if run.recipe.calibration.labels == "dataset":
        return {clip.id: clip.target for clip in clips if clip.target is not None}, "dataset"

    done = own_labels(
        run,
        "label",
        {"calibration": run.material.calibration.identity},
        clips,
        run.recipe.calibration.durations,
        "calibration",
    )
    return done.result, done.key


def calibration_samples(
    run: Run, targets: Mapping[str, Target], whole: bool = False
) -> list[Sample]:
    """The calibration clips as units are scored on them, `whole` as `calibration_sample` has it."""
    return [
        calibration_sample(run.recipe, run.checkpoint, clip, targets[clip.id], whole)
        for clip in run.material.calibration.utterances
    ]


def attribute(
    run: Run,
    targets: tuple[dict[str, Target], str],
    part: Round = ONLY_ROUND,
    name: str = ATTRIBUTE,
    label: str = "",
    method: MethodBase | None = None,
    start: Start | None = None,
) -> Done[Scores]:
    """Score the heads that are left on the calibration clips.

    Where heads have gone in earlier rounds, the model is scored as it will be: without them, and
    repaired as the recipe says, or as it was recovered in between (`start`).

    `name` keeps the scores of several methods apart in one directory; `label` is how to call them.
    `method` is the recipe's unless another is given.
    """
    method = method or recipes_method(run)
    said = step_name(ATTRIBUTE, part.number)
    samples = [clip.id for clip in run.material.calibration.utterances]
    there = heads_of(run.checkpoint.model, method.scored_stacks())
    heads = [head for head in there if head not in part.gone]

    def attribute(step: Step[Scores], narration: StepNarration) -> Scores:
        def progress(done: float, total: int, loss: float | None) -> None:
            shown = "" if loss is None else f", loss {loss:.3f}"
            narration.advance(done, total, f"{done:.0f} of {total} samples{shown}")

        before = credible_partial(step.partial(), heads, samples)
        if before.rows:
            run.narrator.say(f"{said}: going on after {len(before.rows)} samples scored before")
        if before.training:
            run.narrator.say(f"{said}: going on after {before.training.steps} steps of training")
        work = Work(tuple(part.gone), targets[0], before, start)
        if method.by_sample:
            run.processes.tell(work)
        session = Session(save=step.save_partial, progress=progress, notice=run.narrator.say)

        def repairing(done: int, total: int) -> None:
            narration.advance(0, len(samples), f"repaired {done} of {total} layers")

        return _scored(run, work, session, method, repairing)

    def finding(scores: Scores) -> str:
        split_half = scores.split_half
        stability = "" if split_half is None else f", split-half rank correlation {split_half:.2f}"
        steps = "" if scores.steps is None else f", {scores.steps} steps"
        empty = "" if scores.ranking_fault is None else f": {SAYS_NOTHING}"
        return f"{len(scores.heads)} heads by {label or scores.method}{steps}{stability}{empty}"

    return once(
        run,
        step_name(name, part.number),
        {
            "calibration": run.material.calibration.identity,
            "crop_seconds": run.recipe.calibration.crop_seconds,
            "targets": targets[1],
            "method": method.model_dump(mode="json", exclude=set(method.resources)),
            "seed": run.recipe.seed,
            **_gone_inputs(run, part.gone),
            **({} if start is None else {"recovered": start.key}),
        },
        Scores,
        attribute,
        finding,
        credible=lambda kept: credible_scores(kept, heads, samples),
        timed=frozenset({"effort"}),
        said=said,
    )


def recipes_method(run: Run) -> MethodBase:
    """How the recipe has heads scored."""
    method: MethodBase = run.recipe.attribution.for_task(run.recipe.task.kind)
    return method


def _gone_inputs(run: Run, gone: Sequence[Head]) -> dict[str, Any]:
    """What the model of a later round depends on: what has gone, and how the rest was repaired."""
    if not gone:
        return {}
    heads = {"gone": heads_by_layer(gone)}
    return heads if run.recipe.removal.repair == "none" else heads | {"repair": repair_inputs(run)}


@dataclass(frozen=True)
class Work:
    """What all processes have to know to score the heads that are left together."""

    gone: tuple[Head, ...]
    targets: dict[str, Target]
    before: Partial
    start: Start | None = None


def _scored(
    run: Run,
    work: Work,
    session: Session,
    method: MethodBase,
    repairing: Callable[[int, int], None] = lambda done, total: None,
) -> Scores:
    recipe, before = run.recipe, work.before
    samples = calibration_samples(run, work.targets)
    session = replace(
        session,
        seed=recipe.seed,
        done=before.rows,
        steps=before.steps,
        training=before.training,
        processes=run.processes,
    )
    model = run.checkpoint.model
    if work.start is not None:
        model = work.start.model(run)
    elif work.gone:
        # The others are there only where they have a share of the samples.
        present = run if method.by_sample else replace(run, processes=ALONE)
        model, _ = repaired_copy(present, work.gone, repairing)
    own = len(session.waiting(samples) if method.by_sample else samples)
    if before.training is not None:
        # So much of the work is left as would be if so many samples were.
        own = round(own * (1 - before.training.share))
    with effort_measured(model, own) as effort:
        scores = method.attribute(model, samples, recipe.task.loss, session)
    return scores.model_copy(update={"effort": effort()})


def help_scoring(run: Run) -> None:
    """Score a share of the samples, or train between rounds, until the leader has chosen."""
    while (work := run.processes.hear()) is not None:
        if isinstance(work, Training):
            help_training(run, work)
        else:
            _scored(run, work, Session(), recipes_method(run))


def plan(run: Run, scores: Done[Scores], part: Round) -> Done[Plan]:
    """Choose the heads to remove, or those of one round."""
    budget = run.recipe.budget
    return once(
        run,
        step_name("plan", part.number),
        {
            "scores": scores.key,
            "budget": budget.model_dump(mode="json"),
            **({"round": [part.number, part.rounds]} if part.rounds > 1 else {}),
        },
        Plan,
        lambda *_: make_plan(scores.result, budget, part),
        lambda plan: plan_line(plan, budget, part),
        # To make it again costs nothing, and tells every other plan.
        credible=lambda kept: kept == make_plan(scores.result, budget, part),
    )
