"""Heads that training keeps once each has its price, in every kind of attention.

Voita et al. 2019: gates are learnt together with the weights from the trained model on, under a
penalty on the number of open gates. A sweep of penalties gives models with ever fewer heads, and
with them what the metric costs and which attention is given up first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from hibprune.attribution.gates import Trained, train, usual_gates
from hibprune.attribution.methods import HardConcreteGates
from hibprune.attribution.session import Session
from hibprune.comparing.measuring import evaluate_plans
from hibprune.data import Selection
from hibprune.execution.progress import StepNarration
from hibprune.execution.steps import Step
from hibprune.models.attention import (
    AttentionSite,
    frozen,
    head_places,
    heads_of,
    outputs_changed,
)
from hibprune.models.checkpoint import Checkpoint
from hibprune.models.families import has_decoder
from hibprune.records.comparison import Estimate
from hibprune.records.explanation import KeptHeads, KeptPoint
from hibprune.records.measurements import Evaluation
from hibprune.records.units import ENCODER
from hibprune.stages.credibility import credible_evaluation
from hibprune.stages.run import Run, once
from hibprune.stages.score import calibration_samples, calibration_targets
from hibprune.tasks import Target


def kept_heads(run: Run, penalties: Sequence[float], number: int) -> KeptHeads:
    """Heads kept and the metric on some validation clips, a training for each penalty.

    Raises:
        UserError: a model gives out numbers that are not finite, or a clip does not fit into
            memory.
    """
    validation = run.material.validation
    chosen = validation.first(number) if number else validation
    metric = run.recipe.task.curve_metric or run.recipe.task.metric_name
    method = sweep_method(run)
    targets = calibration_targets(run)
    whole = _whole(run, metric, chosen)
    points = tuple(
        _point(run, method.model_copy(update={"penalty": penalty}), targets, metric, chosen)
        for penalty in penalties
    )
    there = heads_of(run.checkpoint.model, method.stacks)
    return KeptHeads(
        metric=metric,
        higher_is_better=whole.higher_is_better,
        clips=len(chosen.utterances),
        samples=len(run.material.calibration.utterances),
        trained=method.train,
        steps=method.steps,
        heads={name: sum(head.stack == name for head in there) for name in method.stacks},
        whole=Estimate(value=whole.value, interval=whole.interval),
        points=points,
    )


def sweep_method(run: Run) -> HardConcreteGates:
    """The recipe's gates, or the usual ones with the weights trained, on all kinds of attention."""
    recipes = run.recipe.attribution
    method = (
        recipes
        if isinstance(recipes, HardConcreteGates)
        else HardConcreteGates(method="gates", train="model")
    )
    model = run.checkpoint.model
    stacks = tuple(stack.name for stack in run.checkpoint.family.stacks)
    return HardConcreteGates.model_validate(
        {**method.model_dump(), "stacks": stacks if has_decoder(model) else (ENCODER,)}
    )


def _point(
    run: Run,
    method: HardConcreteGates,
    targets: tuple[dict[str, Target], str],
    metric: str,
    chosen: Selection,
) -> KeptPoint:
    """What a penalty leaves. Resumes with the next one; a training begins anew."""

    def compute(_: Step[KeptPoint], narration: StepNarration) -> KeptPoint:
        recipe, model = run.recipe, run.checkpoint.model
        samples = calibration_samples(run, targets[0])

        def progress(done: float, total: int, loss: float | None) -> None:
            shown = "" if loss is None else f", loss {loss:.3f}"
            step = round(done / total * method.steps)
            narration.advance(step, method.steps, f"{step} of {method.steps} steps{shown}")

        session = Session(seed=recipe.seed, progress=progress, notice=run.narrator.say)
        with frozen(model):
            trained = train(method, model, samples, recipe.task.loss, session)
        gates = usual_gates(method, trained.log_alpha).tolist()
        evaluation = _measured(run, method, trained, metric, chosen)
        return KeptPoint(
            penalty=method.penalty,
            value=Estimate(value=evaluation.value, interval=evaluation.interval),
            kept=tuple(
                head
                for head, gate in zip(heads_of(model, method.stacks), gates, strict=True)
                if gate > 0
            ),
        )

    there = set(heads_of(run.checkpoint.model, method.stacks))
    return once(
        run,
        f"explain/gates-{method.penalty:g}",
        {
            "calibration": run.material.calibration.identity,
            "validation": chosen.identity,
            "crop_seconds": run.recipe.calibration.crop_seconds,
            "targets": targets[1],
            "metric": metric,
            "method": method.model_dump(mode="json", exclude=set(method.resources)),
            "seed": run.recipe.seed,
        },
        KeptPoint,
        compute,
        lambda found: f"{len(found.kept)} of {len(there)} heads kept at {method.penalty:g} each",
        credible=lambda kept: there.issuperset(kept.kept) and kept.penalty == method.penalty,
        said=f"gates at {method.penalty:g}",
    ).result


def _measured(
    run: Run, method: HardConcreteGates, trained: Trained, metric: str, chosen: Selection
) -> Evaluation:
    """The metric of a trained model, each head times its gate."""
    places = head_places(trained.model, method.stacks)
    gates = usual_gates(method, trained.log_alpha)

    def gated(site: AttentionSite, outputs: Tensor) -> Tensor:
        return outputs * gates[places[site.stack, site.layer], None]

    with outputs_changed(trained.model, gated, method.stacks):
        return _evaluation(replace(run.checkpoint, model=trained.model), run, metric, chosen)


def _whole(run: Run, metric: str, chosen: Selection) -> Evaluation:
    """The metric of the model as it is."""
    return once(
        run,
        "explain/gates-none",
        {"validation": chosen.identity, "metric": metric},
        Evaluation,
        lambda *_: _evaluation(run.checkpoint, run, metric, chosen),
        lambda found: f"{found.value:.1%} {metric} with no gate",
        credible=lambda kept: credible_evaluation(kept, len(chosen.utterances)),
        said="gates: the model as it is",
    ).result


def _evaluation(checkpoint: Checkpoint, run: Run, metric: str, chosen: Selection) -> Evaluation:
    recipe = run.recipe
    clips, limits = chosen.utterances, recipe.validation.durations
    (found,) = evaluate_plans(checkpoint, recipe.task, metric, clips, limits, [()])
    return found
