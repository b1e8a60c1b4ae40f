"""The chain of a comparison: load, score by every method, plan, repair, evaluate, write."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from hibprune.comparing.curves import Track, curves_of, points_of
from hibprune.comparing.measuring import Silent, batches_of_one_length, evaluate_silenced
from hibprune.comparing.repairing import evaluations_repaired, with_repair
from hibprune.comparing.request import Choice, Entry, Request, choose, servable
from hibprune.compression.plan import Budget, lowest_heads
from hibprune.compression.ranking import most_together
from hibprune.errors import UserError
from hibprune.evaluation.chance import chance_level
from hibprune.evaluation.metric import metric_line
from hibprune.execution.files import digest, plain_disk_errors, require_own
from hibprune.execution.machine import describe_machine, installed_versions
from hibprune.execution.output import COMPARISON, LOG_FILE, check_output, open_output
from hibprune.execution.progress import Narrator
from hibprune.execution.steps import Done, Step
from hibprune.models.attention import heads_of
from hibprune.recipe import LoadedRecipe
from hibprune.records.comparison import NO_REPAIR, Comparison, Estimate, ScoredMethod, TriedRepair
from hibprune.records.measurements import Evaluation
from hibprune.records.statistics import BOOTSTRAP_RESAMPLES, spearman
from hibprune.records.units import Head, Scores, heads_by_layer
from hibprune.report.comparison import write_comparison
from hibprune.report.numbers import listing
from hibprune.stages.credibility import credible_evaluation
from hibprune.stages.load import Material, load_in_step, skipped_lines
from hibprune.stages.measure import baseline
from hibprune.stages.provenance import data_summary, model_summary
from hibprune.stages.run import Run
from hibprune.stages.score import attribute, calibration_targets

PLANS_AT_ONCE = 16
"""Evaluated in one go through the clips; what a killed comparison loses at most."""

Scored = tuple[tuple[Entry, tuple[Done[Scores], ...]], ...]
"""Every method with the scores of each of its draws."""


def compare_recipe(
    loaded: LoadedRecipe,
    overrides: Sequence[str],
    request: Request,
    directory: Path,
    narrator: Narrator,
    command: Sequence[str] = (),
) -> Comparison:
    """Compare methods on a recipe's model and data, taking up what is done in the directory.

    Raises:
        UserError: request, recipe, model or data are at fault; nothing is written before they have
            been checked. Or the whole model is no better than chance.
    """
    choice = choose(loaded, overrides, request)
    check_output(directory)
    material, device = load_in_step(loaded, narrator, exports=False)
    choice, left_out = servable(choice, material.checkpoint.family)
    heads = heads_of(material.checkpoint.model)
    too_small = _check_amounts(choice, heads, loaded.recipe.budget)
    for line in (*material.notes, *skipped_lines(material), *left_out, *too_small):
        narrator.say(line)
    log = narrator.log_to(directory / LOG_FILE)
    with open_output(directory), plain_disk_errors(directory), log:
        run = Run(loaded, material, directory, device, narrator)
        if not loaded.recipe.validation.allow_chance_baseline:
            baseline(run)
        scored = _score(run, choice)
        comparison = _compare(run, choice, scored, heads, shlex.join(command))
        with narrator.step("report") as narration:
            require_own(directory)
            write_comparison(comparison, directory)
            narration.found(f"{directory / f'{COMPARISON}.md'}")
    return comparison


def _check_amounts(choice: Choice, heads: tuple[Head, ...], budget: Budget) -> list[str]:
    """See that every fraction can be had, whatever the scores; a line for those that are none."""
    flat = Scores(method="none", heads=heads, samples=(), per_sample=((0.0,) * len(heads),))
    lines = []
    for scope, (option, fractions) in product(choice.scopes, choice.amounts):
        default = " (its default)" if option in choice.left_open else ""
        none = []
        for fraction in fractions:
            try:
                removed = lowest_heads(flat, at_fraction(budget, fraction, scope))
            except UserError as error:
                # The recipe's budget is not what asks for so many.
                fault = str(error).removeprefix("budget: ").removesuffix(": lower the budget")
                raise UserError(
                    f"{option} {fraction:g}{default}, {scope}: {fault}: "
                    f"{'give' if default else 'lower'} {option}"
                ) from error
            if not removed:
                none.append(f"{fraction:g}")
        if option == "--fractions" and len(none) == len(fractions):
            helps = most_together(heads, scope) > 1
            remedy = "raise them" if helps else "take another --scope or a model with more heads"
            raise UserError(f"--fractions: all are less than one head ({scope}): {remedy}")
        if none:
            less = f"{'is' if len(none) == 1 else 'are'} less than one head"
            lines.append(f"{scope}: {option} {listing(none)}{default} {less}: left out")
    return lines


def at_fraction(budget: Budget, fraction: float, scope: str) -> Budget:
    """A recipe's budget with another amount and scope."""
    return Budget.model_validate(
        {
            "fraction": fraction,
            "scope": scope,
            "min_heads_per_layer": budget.min_heads_per_layer,
        }
    )


def _score(run: Run, choice: Choice) -> Scored:
    targets = calibration_targets(run)
    return tuple(
        (
            entry,
            tuple(
                attribute(replace(run, loaded=variant), targets, name=name, label=entry.label)
                for variant, name in zip(entry.variants, entry.step_names, strict=True)
            ),
        )
        for entry in choice.entries
    )


def _tracks(
    scored: Scored, scopes: Sequence[str], fractions: Sequence[float], budget: Budget
) -> list[Track]:
    tracks = []
    for scope in scopes:
        for entry, draws in scored:
            silent = {
                fraction: tuple(
                    lowest_heads(draw.result, at_fraction(budget, fraction, scope))
                    for draw in draws
                )
                for fraction in fractions
            }
            silent = {fraction: sets for fraction, sets in silent.items() if sets[0]}
            tracks.append(Track(entry.label, scope, tuple(silent), tuple(silent.values())))
    return tracks


def _compare(
    run: Run,
    choice: Choice,
    scored: Scored,
    heads: tuple[Head, ...],
    command: str,
) -> Comparison:
    recipe, material = run.recipe, run.material
    tracks = _tracks(scored, choice.scopes, choice.fractions, recipe.budget)
    checks = _tracks(scored, choice.scopes, choice.points, recipe.budget)
    own_metric, metric = recipe.task.metric_name, choice.metric
    wanted = {metric: tracks} | ({own_metric: checks} if choice.points else {})
    evaluated = _evaluated(run, choice, wanted)
    whole = {name: evaluated[NO_REPAIR].by_metric[name][()] for name in wanted}
    bare = evaluated[NO_REPAIR].by_metric[metric] if NO_REPAIR in choice.repairs else None
    means = [list(draws[0].result.values.values()) for _, draws in scored]
    return Comparison(
        recipe=recipe.name,
        command=command,
        model=model_summary(run.loaded, material),
        task=recipe.task.kind,
        device=run.device.type,
        seed=recipe.seed,
        calibration=data_summary(material.calibration, recipe.calibration.source.kind),
        validation=data_summary(material.validation, recipe.validation.source.kind),
        metric=metric,
        higher_is_better=whole[metric].higher_is_better,
        whole={
            name: Estimate(value=one.value, interval=one.interval) for name, one in whole.items()
        },
        guessing=tuple(
            name
            for name, one in whole.items()
            if (level := chance_level(one, material.references)) is not None
            and not one.beats(level)
        ),
        resamples=BOOTSTRAP_RESAMPLES,
        heads=heads,
        methods=tuple(_method(entry, draws, material) for entry, draws in scored),
        reference=choice.reference,
        scopes=choice.scopes,
        repairs=tuple(evaluated[repair].repair for repair in choice.repairs),
        curves=tuple(
            curve
            for repair in choice.repairs
            for curve in curves_of(
                tracks,
                evaluated[repair].by_metric[metric],
                len(heads),
                choice.reference,
                repair,
                None if repair == NO_REPAIR else bare,
            )
        ),
        points=tuple(
            curve
            for repair in choice.repairs
            if choice.points
            for curve in points_of(
                checks, evaluated[repair].by_metric[own_metric], len(heads), repair
            )
        ),
        rank_correlations=tuple(tuple(spearman(a, b) for b in means) for a in means),
        # The whole model is evaluated once, whatever would be done with weights that stay.
        evaluations=len(whole)
        + sum(len(plans) - 1 for one in evaluated.values() for plans in one.by_metric.values()),
        transcripts=recipe.task.transcript_rules(material.checkpoint.vocabulary),
        machine=describe_machine(),
        versions=installed_versions(),
    )


def _method(entry: Entry, draws: tuple[Done[Scores], ...], material: Material) -> ScoredMethod:
    scores, effort = draws[0].result, draws[0].result.effort
    samples = len(material.calibration.utterances)
    interrupted = effort is not None and 0 < effort.samples < samples
    per_sample: tuple[float, float] | None = None
    seconds = draws[0].seconds
    if effort is not None and effort.samples:
        per_sample = (effort.forwards / effort.samples, effort.backwards / effort.samples)
        seconds = effort.seconds * samples / effort.samples
    return ScoredMethod(
        label=entry.label,
        method=entry.method.name(),
        settings=entry.method.model_dump(mode="json", exclude={"method"}),
        drawn=entry.drawn,
        seeds=tuple(variant.recipe.seed for variant in entry.variants),
        seconds=seconds,
        interrupted=interrupted,
        forwards_per_sample=None if per_sample is None else per_sample[0],
        backwards_per_sample=None if per_sample is None else per_sample[1],
        split_half=scores.split_half,
        ranking_fault=scores.ranking_fault,
        scores=tuple(scores.values.values()),
    )


@dataclass(frozen=True)
class Evaluated:
    """All plans measured with one repair, by metric."""

    repair: TriedRepair
    by_metric: Mapping[str, Mapping[Silent, Evaluation]]


def _evaluated(
    run: Run, choice: Choice, wanted: Mapping[str, Sequence[Track]]
) -> dict[str, Evaluated]:
    """Each metric of the tracks with every repair; without repair, of the whole model at least."""
    bare = NO_REPAIR in choice.repairs
    silenced = {
        metric: evaluations(run, metric, tracks if bare else ())
        for metric, tracks in wanted.items()
    }
    found = {NO_REPAIR: Evaluated(TriedRepair(kind=NO_REPAIR), silenced)}
    plans = {
        metric: list(dict.fromkeys(plan for track in tracks for plan in track.plans))
        for metric, tracks in wanted.items()
    }
    for kind in choice.repairs:
        if kind != NO_REPAIR:
            repair, measured = evaluations_repaired(with_repair(run, kind), plans)
            found[kind] = Evaluated(
                repair, {name: {(): silenced[name][()], **own} for name, own in measured.items()}
            )
    return found


def evaluations(run: Run, metric: str, tracks: Sequence[Track]) -> dict[Silent, Evaluation]:
    """The metric for every set of heads in the tracks and for the whole model, each set once.

    Kept in the directory set by set, so that another method or fraction costs its own sets alone.
    """
    plans: list[Silent] = list(dict.fromkeys([(), *(p for track in tracks for p in track.plans)]))
    steps = {plan: _evaluation_step(run, metric, plan) for plan in plans}
    with run.narrator.step("evaluate") as narration:
        clips = len(run.material.validation.utterances)
        kept = {
            plan: step.kept(credible=lambda one: credible_evaluation(one, clips))
            for plan, step in steps.items()
        }
        missing = [plan for plan in plans if kept[plan] is None]
        evaluated = {plan: done.result for plan, done in kept.items() if done is not None}
        if missing:
            evaluated |= _evaluate(run, metric, missing, steps, narration.advance)
        value = metric_line(evaluated[()])
        before = len(plans) - len(missing)
        known = f", {before} of them before" if before else ""
        sets = f"{len(plans)} sets of heads silenced{known}; " if tracks else ""
        narration.found(f"{sets}none silenced: {value}")
    return {plan: evaluated[plan] for plan in plans}


def _evaluation_step(run: Run, metric: str, plan: Silent) -> Step[Evaluation]:
    heads = heads_by_layer(plan)
    inputs = {
        **run.basis,
        "validation": run.material.validation.identity,
        "metric": metric,
        "silent": {str(layer): own for layer, own in heads.items()},
    }
    name = f"evaluate/{digest(metric, str(heads))[:16]}"
    return Step[Evaluation](run.directory, name, 1, inputs, Evaluation)


def _evaluate(
    run: Run,
    metric: str,
    plans: Sequence[Silent],
    steps: Mapping[Silent, Step[Evaluation]],
    progress: Callable[[float, float], None],
) -> dict[Silent, Evaluation]:
    measure = run.recipe.task.measure(metric, run.checkpoint.vocabulary)
    limits = run.recipe.validation.durations
    clips = run.material.validation.utterances
    batches = batches_of_one_length(run.checkpoint, clips, limits)
    evaluated: dict[Silent, Evaluation] = {}
    for start in range(0, len(plans), PLANS_AT_ONCE):
        chosen = plans[start : start + PLANS_AT_ONCE]

        def advance(done: int, total: int, start: int = start, size: int = len(chosen)) -> None:
            progress(start + size * done / total, len(plans))

        results = evaluate_silenced(
            run.checkpoint, measure, clips, limits, batches, chosen, advance
        )
        for plan, result in zip(chosen, results, strict=True):
            evaluated[plan] = steps[plan].once(functools.partial(_same, result)).result
    return evaluated


def _same(result: Evaluation) -> Evaluation:
    return result
