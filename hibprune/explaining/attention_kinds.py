"""Which attention matters: an encoder's own, a decoder's own, or a decoder's to the encoder.

Heads of one stack are silenced, the lowest first, while those of the others stay (Voita et al. 2019
count the heads that training under a penalty keeps; here nothing is trained).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hibprune.attribution.methods import Taylor
from hibprune.comparing.measuring import Silent, evaluate_plans
from hibprune.comparing.repairing import evaluations_repaired
from hibprune.compression.settings import RepairKind
from hibprune.execution.progress import StepNarration
from hibprune.execution.steps import Done, Step
from hibprune.models.families import has_decoder
from hibprune.records.comparison import Estimate
from hibprune.records.explanation import StackCurve, StackPoint, Stacks
from hibprune.records.measurements import Evaluation
from hibprune.records.units import ENCODER, Head, Scores
from hibprune.stages.credibility import credible_evaluation
from hibprune.stages.run import Run, once
from hibprune.stages.score import attribute, calibration_targets

SHARES = (0.25, 0.5, 0.75, 1.0)
REPAIRED = SHARES[:-1]
"""Those at which a model is also repaired: where a layer has no head, some cannot be built."""
REPAIR: RepairKind = "least-squares"


def compared_stacks(run: Run, number: int) -> Stacks:
    """The metric over the share of each stack's heads that is silent, on some validation clips.

    Raises:
        UserError: there are too few calibration clips for the repair, or a model gives out numbers
            that are not finite.
    """
    validation = run.material.validation
    chosen = validation.first(number) if number else validation
    run = replace(run, material=replace(run.material, validation=chosen))
    model, task = run.checkpoint.model, run.recipe.task
    names = [stack.name for stack in run.checkpoint.family.stacks]
    stacks = tuple(names if has_decoder(model) else [ENCODER])
    method = Taylor.model_validate({"method": "taylor", "stacks": stacks})
    scored = attribute(
        run, calibration_targets(run), name="explain/stacks-scores", label="taylor", method=method
    )
    scores = scored.result
    metric = task.curve_metric or task.metric_name
    plans = {(stack, share): lowest(scores, stack, share) for stack in stacks for share in SHARES}
    found = _silenced(run, metric, [(), *plans.values()], scored.key).result
    silenced = dict(zip([(), *plans.values()], found, strict=True))
    places = [(stack, share) for stack in stacks for share in REPAIRED if plans[stack, share]]
    repaired: dict[Silent, Evaluation] = {}
    if places:
        wanted = {metric: [plans[place] for place in places]}
        repaired = evaluations_repaired(_with_fit_alone(run), wanted)[1][metric]
    curves = []
    for stack in stacks:
        silent = {share: silenced[plans[stack, share]] for share in SHARES}
        curves.append(_curve(scores, stack, "none", silent, plans))
        own = {share: repaired[plans[name, share]] for name, share in places if name == stack}
        if own:
            curves.append(_curve(scores, stack, REPAIR, own, plans))
    whole = silenced[()]
    return Stacks(
        metric=metric,
        higher_is_better=whole.higher_is_better,
        clips=len(chosen.utterances),
        method=scores.method,
        ranking_fault=scores.ranking_fault,
        whole=Estimate(value=whole.value, interval=whole.interval),
        curves=tuple(curves),
    )


def _with_fit_alone(run: Run) -> Run:
    """The run with the repair in closed form: gradient steps would take minutes a point."""
    removal = run.recipe.removal.model_copy(update={"repair": REPAIR, "refine": None})
    recipe = run.recipe.model_copy(update={"removal": removal})
    return replace(run, loaded=replace(run.loaded, recipe=recipe))


def lowest(scores: Scores, stack: str, share: float) -> Silent:
    """A share of a stack's heads, rounded down, those with the lowest scores.

    Every layer keeps one unless all are to go. Ties break on (layer, head).
    """
    values = {head: value for head, value in scores.values.items() if head.stack == stack}
    order = sorted(values, key=lambda head: (values[head], head))
    if share >= 1:
        return tuple(sorted(order))
    best: dict[int, Head] = {head.layer: head for head in order}
    spared = set(best.values())
    can_go = [head for head in order if head not in spared]
    return tuple(sorted(can_go[: int(round(share * len(order), 9))]))


def _silenced(
    run: Run, metric: str, plans: Sequence[Silent], scores: str
) -> Done[tuple[Evaluation, ...]]:
    clips, limits = run.material.validation.utterances, run.recipe.validation.durations

    def compute(
        _: Step[tuple[Evaluation, ...]], narration: StepNarration
    ) -> tuple[Evaluation, ...]:
        task = run.recipe.task
        return tuple(
            evaluate_plans(run.checkpoint, task, metric, clips, limits, plans, narration.advance)
        )

    return once(
        run,
        "explain/stacks",
        {
            "validation": run.material.validation.identity,
            "metric": metric,
            "scores": scores,
            "shares": list(SHARES),
        },
        tuple[Evaluation, ...],
        compute,
        lambda found: f"{len(found)} sets of heads silenced",
        credible=lambda kept: (
            len(kept) == len(plans) and all(credible_evaluation(one, len(clips)) for one in kept)
        ),
        said="stacks",
    )


def _curve(
    scores: Scores,
    stack: str,
    repair: str,
    found: dict[float, Evaluation],
    plans: dict[tuple[str, float], Silent],
) -> StackCurve:
    heads = sum(head.stack == stack for head in scores.heads)
    return StackCurve(
        stack=stack,
        heads=heads,
        repair=repair,
        points=tuple(
            StackPoint(
                removed=len(plans[stack, share]),
                value=Estimate(value=one.value, interval=one.interval),
            )
            for share, one in found.items()
        ),
    )
