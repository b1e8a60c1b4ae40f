"""Holds the head scores of finished runs against each other: several tasks, or methods."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from hibprune.attribution import METHODS
from hibprune.errors import UserError, shortened
from hibprune.execution.files import digest, plain_disk_errors, write_text
from hibprune.execution.machine import installed_versions
from hibprune.execution.output import check_output, open_output, read_manifest
from hibprune.execution.steps import kept_result
from hibprune.recipe.settings import MAX_NAME, NAME_PATTERN
from hibprune.records.base import Interval
from hibprune.records.comparison import CorrelatedRun, Correlation, CorrelationMatrix, Estimate
from hibprune.records.manifest import FILE_NAME, Manifest
from hibprune.records.ranking import scores_equal
from hibprune.records.statistics import bootstrap_interval, pearson, rank_pearson, spearman
from hibprune.records.units import Head, Scores
from hibprune.report.correlation import correlation_figure, empty_rankings, matrix_figure
from hibprune.stages.credibility import well_formed
from hibprune.stages.score import ATTRIBUTE

STEM = "correlate"
LONGEST_NAME = 120
"""Of a directory that is named after its runs."""
MOST_RUNS = 50
MOST_SCATTERS = 45
"""Pairs of runs drawn head against head; of more there is the matrix alone."""
FEWEST_HEADS = 3
"""Two heads always agree fully or not at all."""


def correlate_runs(first: Path, second: Path, directory: Path) -> Correlation:
    """Correlate the scores of two runs and write number and picture into a directory.

    Raises:
        UserError: one is not a finished run, or their heads are not those of one architecture.
    """
    correlation = correlation_of(first, second)
    check_output(directory)
    with open_output(directory), plain_disk_errors(directory):
        for suffix in ("png", "svg"):
            correlation_figure(correlation, directory / f"{STEM}.{suffix}")
        write_text(directory / f"{STEM}.json", correlation.model_dump_json(indent=1) + "\n")
    return correlation


def correlate_all(
    runs: Sequence[Path], directory: Path
) -> tuple[Correlation | CorrelationMatrix, list[str]]:
    """Correlate the scores of two or more runs; also says the outcome in lines.

    Raises:
        UserError: as `correlate_runs`, or there are too few or too many runs.
    """
    if not 2 <= len(runs) <= MOST_RUNS:
        raise UserError(f"correlate: give 2 to {MOST_RUNS} finished runs, not {len(runs)}")
    if len(runs) == 2:
        correlation = correlate_runs(runs[0], runs[1], directory)
        return correlation, correlation_lines(correlation)
    matrix = correlate_many(runs, directory)
    return matrix, matrix_lines(matrix)


def correlate_many(runs: Sequence[Path], directory: Path) -> CorrelationMatrix:
    """Correlate the scores of each two of several runs; write numbers, matrix and a scatter each.

    Raises:
        UserError: as `correlate_runs`.
    """
    pairs = tuple(correlation_of(one, other) for one, other in combinations(runs, 2))
    matrix = CorrelationMatrix(
        runs=(pairs[0].first, *(pair.second for pair in pairs[: len(runs) - 1])),
        pairs=tuple(combinations(range(len(runs)), 2)),
        correlations=pairs,
    )
    check_output(directory)
    with open_output(directory), plain_disk_errors(directory):
        for suffix in ("png", "svg"):
            matrix_figure(matrix, directory / f"{STEM}.{suffix}")
        drawn = list(zip(matrix.pairs, pairs, strict=True))
        for (one, other), pair in drawn if len(drawn) <= MOST_SCATTERS else ():
            correlation_figure(pair, directory / f"{STEM}-{one + 1}-{other + 1}.png")
        write_text(directory / f"{STEM}.json", matrix.model_dump_json(indent=1) + "\n")
    return matrix


def correlation_of(first: Path, second: Path) -> Correlation:
    """Correlate the scores of two finished runs over the heads that both of them have.

    Raises:
        UserError: one is not a finished run, or their heads are not those of one architecture.
    """
    (manifest, scores), (other, other_scores) = read_run(first), read_run(second)
    shapes = [_shape(one) for one in (scores, other_scores)]
    families = manifest.model.family, other.model.family
    if shapes[0] != shapes[1] or families[0] != families[1]:
        told = [
            f"{family}, {layers} layers of up to {widest} heads"
            for family, (layers, widest) in zip(families, shapes, strict=True)
        ]
        raise UserError(f"{first} has {told[0]}, {second} {told[1]}: give runs of one architecture")
    ours, theirs = scores.values, other_scores.values
    heads = tuple(sorted(ours.keys() & theirs.keys()))
    if len(heads) < FEWEST_HEADS:
        raise UserError(f"{first} and {second} share {len(heads)} heads: too few to correlate")
    a, b = ([values[head] for head in heads] for values in (ours, theirs))
    return Correlation(
        family=families[0],
        heads=heads,
        first=_side(first, manifest, scores, a),
        second=_side(second, other, other_scores, b),
        spearman=_estimate(a, b, rank_pearson),
        pearson=_estimate(a, b, pearson),
        layers={} if _undefined(a, b) else _within_layers(heads, a, b),
        versions=installed_versions(),
    )


def _undefined(a: list[float], b: list[float]) -> bool:
    """Whether all scores of a side are equal but for rounding: then there is no correlation."""
    return scores_equal(a) or scores_equal(b)


def _estimate(a: list[float], b: list[float], statistic: Callable[..., np.ndarray]) -> Estimate:
    """A correlation with its interval; where it is not defined, any could be the true one."""
    if _undefined(a, b):
        return Estimate(value=0.0, interval=Interval(-1.0, 1.0))
    value = float(statistic(np.array(a), np.array(b)))
    return Estimate(value=value, interval=Interval(*bootstrap_interval([a, b], statistic)))


def read_run(directory: Path) -> tuple[Manifest, Scores]:
    """The manifest and the scores of a finished run.

    Raises:
        UserError: the directory does not hold one, or holds what no run can have left.
    """
    manifest = read_manifest(directory)
    if not re.fullmatch(NAME_PATTERN, manifest.recipe) or len(manifest.recipe) > MAX_NAME:
        raise UserError(
            f"{directory / FILE_NAME}: '{shortened(manifest.recipe)}' is no name of a recipe"
        )
    kept = kept_result(directory, ATTRIBUTE, Scores)
    if kept is None:
        there = (directory / f"steps/{ATTRIBUTE}.json").exists()
        happened = "were changed" if there else "are gone"
        raise UserError(
            f"{directory}: its scores (steps/{ATTRIBUTE}.json) {happened}: run it again"
        )
    scores, seconds = kept
    # Of the first round, as the scores are.
    if seconds != manifest.steps.get(ATTRIBUTE):
        raise UserError(
            f"{directory}: its scores are of a later run that did not finish: run it to the end"
        )
    if scores.method not in {method.name() for method in METHODS} or not well_formed(scores):
        raise UserError(
            f"{directory}: steps/{ATTRIBUTE}.json holds no scores that a method of hibprune gives: "
            "run it again"
        )
    return manifest, scores


def _shape(scores: Scores) -> tuple[int, int]:
    """Layers, and heads in the widest of them, by the heads' original places."""
    return (
        max(head.layer for head in scores.heads) + 1,
        max(head.index for head in scores.heads) + 1,
    )


def _side(
    directory: Path, manifest: Manifest, scores: Scores, values: list[float]
) -> CorrelatedRun:
    return CorrelatedRun(
        directory=str(directory),
        recipe=manifest.recipe,
        task=manifest.task,
        model=manifest.model.source,
        method=scores.method,
        samples=len(scores.samples),
        split_half=scores.split_half,
        ranking_fault=scores.ranking_fault,
        scores=tuple(values),
    )


def _within_layers(heads: tuple[Head, ...], a: list[float], b: list[float]) -> dict[int, float]:
    layers: dict[int, float] = {}
    for layer in sorted({head.layer for head in heads}):
        own = [number for number, head in enumerate(heads) if head.layer == layer]
        if len(own) >= FEWEST_HEADS:
            layers[layer] = spearman([a[i] for i in own], [b[i] for i in own])
    return layers


def correlation_name(*runs: Path) -> str:
    """What to call the directory of a correlation: by the names of its runs, links followed."""
    name = "-".join(("correlate", *(Path(os.path.realpath(run)).name for run in runs)))
    return name if len(name) <= LONGEST_NAME else f"correlate-{len(runs)}-{digest(name)[:8]}"


def matrix_lines(matrix: CorrelationMatrix) -> list[str]:
    """The outcome of each pair, and a line for each run whose scores say nothing."""
    return list(
        dict.fromkeys(line for pair in matrix.correlations for line in correlation_lines(pair))
    )


def correlation_lines(correlation: Correlation) -> list[str]:
    """The outcome in a line, and one for each run whose scores say nothing."""

    def shown(estimate: Estimate) -> str:
        low, high = estimate.interval
        return f"{estimate.value:.2f} ({low:.2f} to {high:.2f})"

    outcome = (
        f"{correlation.first.label} and {correlation.second.label}: Spearman "
        f"{shown(correlation.spearman)}, Pearson {shown(correlation.pearson)} over "
        f"{len(correlation.heads)} heads"
    )
    return [outcome, *empty_rankings(correlation)]
