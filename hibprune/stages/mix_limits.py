"""Mixes for limits that cannot be counted: the size of exported files, and a loss of the metric."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hibprune.compression.projection_ranks import layered
from hibprune.compression.rank_mixture import Mix, RankMixture
from hibprune.errors import UserError
from hibprune.evaluation.metric import evaluate
from hibprune.execution.files import scratch_directory
from hibprune.execution.processes import ALONE
from hibprune.execution.runtime import ONNX_DIRECTORY
from hibprune.records.measurements import Evaluation
from hibprune.records.units import Plan
from hibprune.stages.repair import calibration_clips, finished_copy
from hibprune.stages.run import Run
from hibprune.stages.trial_exports import export_without

NOTHING = Mix((), {})
EXPORTS = 6
"""Tries of a mix whose files take no more than asked."""
SLACK = 0.01
"""Of a size: files so much smaller than asked will do."""
HALVINGS = 6
"""Of the range of shares that are left, when the largest removal within a loss is looked for."""


def within_size(run: Run, mixture: RankMixture) -> Mix:
    """The mix whose exported files take up no more than `budget.size_mb`.

    Weights are counted in bytes, and what the files take beside them is measured on an export of
    every try. Int8 is as it comes, without what a guard may leave in float32.

    Raises:
        UserError: the whole model takes no more, or no removal gets there.
    """
    wanted = run.recipe.budget.amount * 1e6
    beside = file_bytes(run, NOTHING) - mixture.whole
    if mixture.whole + beside <= wanted:
        raise UserError(
            f"budget.size_mb: the files of {run.recipe.gates.variant} take "
            f"{(mixture.whole + beside) / 1e6:.2f} MB with nothing removed: lower it"
        )
    best: Mix | None = None
    for _ in range(EXPORTS):
        try:
            mix = mixture.within(wanted - beside)
        except ValueError as error:
            raise UserError(
                f"budget.size_mb: {wanted / 1e6:g} MB cannot be reached: what may not go takes "
                "more: raise it"
            ) from error
        size = file_bytes(run, mix)
        if size <= wanted:
            best = mix
            if size >= (1 - SLACK) * wanted:
                break
        beside = size - mixture.count(mix.units, mix.ranks)
    if best is None:
        raise UserError(
            f"budget.size_mb: {wanted / 1e6:g} MB cannot be reached: {size / 1e6:.2f} MB came of "
            "it: raise it"
        )
    return best


def file_bytes(run: Run, mix: Mix) -> int:
    """What the ONNX files of the variant that gates hold take up without what a mix takes."""
    with scratch_directory(run.directory) as scratch:
        export_without(run, mix.units, scratch, mix.ranks)
        graphs = run.recipe.task.graphs
        return sum((scratch / ONNX_DIRECTORY / graph).stat().st_size for graph in graphs)


def without_steps(run: Run) -> Run:
    """The run with the repair it has, but no gradient steps behind it."""
    removal = run.recipe.removal.model_copy(update={"refine": None})
    recipe = run.recipe.model_copy(update={"removal": removal})
    return replace(run, loaded=replace(run.loaded, recipe=recipe), processes=ALONE)


def within_drop(run: Run, mixture: RankMixture, progress: Callable[[int, int], None]) -> Mix:
    """The largest removal, in parameters, after which the metric has not fallen further than asked.

    By halving what is between a share that is within the limit and one that is not. Each try is
    repaired, without gradient steps, and measured on the clips held out.

    Raises:
        UserError: the first try loses more already, and so does every smaller one.
    """
    limit = run.recipe.budget.amount
    own = without_steps(run)
    clips = calibration_clips(run, [u for units in mixture.units.places.values() for u in units])
    whole = _measured(run, run.checkpoint.model)
    within: Mix | None = None
    low, high = mixture.least / mixture.whole, 1.0
    for number in range(HALVINGS):
        share = (low + high) / 2
        mix = mixture.within(share * mixture.whole)
        plan = Plan.of(mix.units, (), layered(mix.ranks))
        model, _, _ = finished_copy(own, plan, clips=clips)
        found = _measured(run, model)
        lost = whole.value - found.value if whole.higher_is_better else found.value - whole.value
        # Shares of whole clips, in floats.
        if lost <= limit + 1e-9:
            within, high = mix, share
        else:
            low = share
        progress(number + 1, HALVINGS)
    if within is None:
        raise UserError(
            f"budget.metric_drop: {whole.metric} falls by {lost:.3f} on the {whole.n} clips held "
            f"out with {share:.0%} of the parameters left: raise it to more than that"
        )
    return within


def _measured(run: Run, model: object) -> Evaluation:
    task, held_out = run.recipe.task, run.material.held_out
    assert held_out is not None
    evaluation, _ = evaluate(
        task.torch_predict(model),
        run.checkpoint,
        task,
        held_out.utterances,
        run.recipe.calibration.durations,
    )
    return evaluation
