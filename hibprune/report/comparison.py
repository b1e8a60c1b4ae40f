"""`compare.md`, `compare.csv` and `compare.json`: a comparison for people and for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from hibprune.execution.files import write_text
from hibprune.execution.output import COMPARISON
from hibprune.records.comparison import Comparison, Curve, Estimate, Point, ScoredMethod
from hibprune.records.statistics import FEW
from hibprune.report.curves import curve_figure
from hibprune.report.markdown import fenced, plain, table
from hibprune.report.numbers import MINUS, duration, listing, metric_decimals, percent, points
from hibprune.report.ranking import ranking_finding
from hibprune.report.transcripts import transcripts_sentence
from hibprune.report.wording import metric_name, percent_interval

COLUMNS = (
    "method", "scope", "metric", "fraction", "removed", "share", "value", "low", "high",
    "lowest_draw", "highest_draw",
)  # fmt: skip
WHERE = {"global": "Over the whole model", "layerwise": "The same share of every layer"}


def write_comparison(comparison: Comparison, directory: Path) -> None:
    """Write pictures, page and table and, last of all, the JSON."""
    for scope in comparison.scopes:
        for suffix in ("png", "svg"):
            curve_figure(comparison, scope, directory / f"{COMPARISON}-{scope}.{suffix}")
    write_text(directory / f"{COMPARISON}.csv", comparison_csv(comparison))
    write_text(directory / f"{COMPARISON}.md", comparison_markdown(comparison))
    write_text(directory / f"{COMPARISON}.json", comparison.model_dump_json(indent=1) + "\n")


def comparison_csv(comparison: Comparison) -> str:
    """A row for every method, scope and fraction; shares and metrics as numbers up to 1."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for curve in (*comparison.curves, *comparison.points):
        for point in curve.points:
            writer.writerow(
                (
                    curve.label, curve.scope, curve.metric, point.fraction, point.removed,
                    point.share, point.value, *point.interval, point.lowest, point.highest,
                )
            )  # fmt: skip
    return text.getvalue()


def comparison_markdown(comparison: Comparison) -> str:
    """Write the page; pictures are referenced beside it."""
    sections = [
        f"# Attribution methods compared: {plain(comparison.recipe)}",
        _what(comparison),
        *(_scope(comparison, scope) for scope in comparison.scopes),
        _own_metric(comparison),
        _cost(comparison),
        _agreement(comparison),
        _reading(comparison),
        _reproduction(comparison),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _what(comparison: Comparison) -> str:
    model = comparison.model
    whole = comparison.whole[comparison.metric]
    n = comparison.validation.n
    sentence = transcripts_sentence(comparison.transcripts)
    rules = f" {sentence}" if sentence else ""
    return (
        f"Every method scored the {len(comparison.heads)} heads of {plain(model.source)} "
        f"({model.family}) on {comparison.calibration.n} calibration clips; then the heads with "
        f"the lowest scores were silenced, which gives what removing them gives, and the "
        f"{metric_name(comparison.metric)} was measured on {n} validation clips. Nothing was "
        f"retrained. With no head removed it is {_estimate(whole, n)}. "
        f"Ranges in parentheses are 95 % intervals.{rules}"
        + "".join(f"\n\n**{plain(caveat)}**" for caveat in caveats(comparison))
    )


def caveats(comparison: Comparison) -> list[str]:
    """A sentence for each reason why the comparison says less than it seems to."""
    sentences = []
    if comparison.guessing:
        metrics = listing([metric_name(metric) for metric in comparison.guessing])
        sentences.append(
            f"By {metrics} the model is no better than chance with no head removed: "
            "no difference between the methods says which is better."
        )
    sentences += [
        f"{method.label}: {ranking_finding(method.ranking_fault)}."
        for method in comparison.methods
        if method.ranking_fault is not None
    ]
    if comparison.validation.n < FEW:
        sentences.append(
            f"{comparison.validation.n} validation clips are few: all intervals are wide and rough."
        )
    return sentences


def _scope(comparison: Comparison, scope: str) -> str:
    curves = comparison.of_scope(scope)
    heading = f"## {WHERE[scope]} ({scope})"
    picture = (
        f"![{plain(WHERE[scope])}: the metric over the share removed]({COMPARISON}-{scope}.png)"
    )
    return "\n\n".join([heading, picture, _areas(comparison, curves), _values(comparison, curves)])


def _areas(comparison: Comparison, curves: Sequence[Curve]) -> str:
    n, sign = comparison.validation.n, -1 if comparison.higher_is_better else 1
    reference = plain(comparison.reference)
    rows = []
    ranked = sorted(curves, key=lambda curve: sign * _area(curve).value)
    for curve in ranked:
        difference = curve.to_reference
        against = "" if difference is None else _difference(difference, n)
        rows.append([curve.label, _estimate(_area(curve), n), against, finding(comparison, curve)])
    header = ["method", "area under the curve", f"against {reference}", "finding"]
    return table("lrrl", header, rows)


def finding(comparison: Comparison, curve: Curve) -> str:
    """Whether a method's area differs from the reference's by more than chance of the clips."""
    difference = curve.to_reference
    if difference is None:
        return "the reference"
    low, high = difference.interval
    if low == high == 0:
        return "the same"
    if low <= 0 <= high:
        return "within the noise"
    return "better" if (low > 0) == comparison.higher_is_better else "worse"


def _values(comparison: Comparison, curves: Sequence[Curve]) -> str:
    """The curves as a table, a column for each share; several draws with their range."""
    n = comparison.validation.n
    columns = {point.removed: point.share for curve in curves for point in curve.points}
    header = ["share removed", *(percent(columns[removed], 0) for removed in sorted(columns))]
    heads = ["heads removed", *map(str, sorted(columns))]
    rows: list[Sequence[object]] = [heads]
    for curve in curves:
        at = {point.removed: point for point in curve.points}
        rows.append([curve.label, *(_height(at[removed], n) for removed in sorted(columns))])
    return table("l" + "r" * len(columns), header, rows)


def _height(point: Point, n: int) -> str:
    value = percent(point.value, metric_decimals(n))
    if point.lowest == point.highest:
        return value
    decimals = metric_decimals(n)
    return f"{value} [{100 * point.lowest:.{decimals}f} to {100 * point.highest:.{decimals}f}]"


def _own_metric(comparison: Comparison) -> str:
    if not comparison.points:
        return ""
    n, metric = comparison.validation.n, comparison.points[0].metric
    shown = metric_name(metric)
    whole = _estimate(comparison.whole[metric], n)
    parts = [f"## {shown}", f"With no head removed: {whole}."]
    for scope in comparison.scopes:
        curves = [curve for curve in comparison.points if curve.scope == scope]
        if any(curve.points for curve in curves):
            parts += [f"{WHERE[scope]}:", _values(comparison, curves)]
    return "\n\n".join(parts)


def _cost(comparison: Comparison) -> str:
    rows = []
    for method in comparison.methods:
        halves = "–" if method.split_half is None else f"{method.split_half:.2f}"
        rows.append(
            [
                method.label,
                f"{'≈ ' if method.interrupted else ''}{duration(method.seconds)}",
                _passes(method.forwards_per_sample),
                _passes(method.backwards_per_sample),
                halves,
            ]
        )
    header = ["method", "time", "forward passes", "backward passes", "split-half"]
    samples = comparison.calibration.n
    device = comparison.machine.gpu if comparison.device == "cuda" else comparison.machine.processor
    interrupted = any(method.interrupted for method in comparison.methods)
    approximate = (
        " ≈: the scoring was interrupted, and its time is projected from the rest."
        if interrupted
        else ""
    )
    return (
        f"## What scoring took\n\n{table('lrrrr', header, rows)}\n\n"
        f"Time for all {samples} clips on {plain(device)}; passes are counted in clips through the "
        "encoder, per calibration clip. Split-half: rank correlation of the scores between random "
        f"halves of the clips; near 1, {samples} were enough to fix the ranking, and another draw "
        f"of them would give nearly the same. A dash: no clips are used.{approximate}"
    )


def _passes(number: float | None) -> str:
    return "–" if number is None else f"{number:.4g}"


def _agreement(comparison: Comparison) -> str:
    ranked = [number for number, method in enumerate(comparison.methods) if not method.drawn]
    if len(ranked) < 2:
        return ""
    labels = [comparison.methods[i].label for i in ranked]
    rows = []
    for place, i in enumerate(ranked):
        row = [_correlation(comparison, i, j) for j in ranked]
        rows.append([f"{place + 1} {labels[place]}", *row])
    header = ["", *(str(place + 1) for place in range(len(ranked)))]
    return (
        "## How far the rankings agree\n\nSpearman's rank correlation of the mean scores over the "
        f"{len(comparison.heads)} heads.\n\n{table('l' + 'r' * len(ranked), header, rows)}"
    )


def _correlation(comparison: Comparison, i: int, j: int) -> str:
    """Of two methods' scores; a dash where those of one are equal, so that there is none."""
    if any(comparison.methods[place].ranking_fault == "equal" for place in (i, j)):
        return "–"
    return f"{comparison.rank_correlations[i][j]:.2f}".replace("-", MINUS)


def _reading(comparison: Comparison) -> str:
    drawn = [method for method in comparison.methods if method.drawn]
    band = "".join(
        f" {method.label} is the mean of {len(method.seeds)} draws, the band and the range in "
        "brackets go from the lowest to the highest draw."
        for method in drawn
    )
    minimum = "higher" if comparison.higher_is_better else "lower"
    return (
        "## How to read it\n\nThe area under a curve, from no head to the largest share and "
        f"divided by that share, is the mean of the metric on the way: {minimum} is better. Its "
        f"interval comes from {comparison.resamples} resamples of the validation clips. "
        "Differences are taken on the same resamples, so that they can be told from chance even if "
        "the intervals of two areas overlap; where their interval holds 0, the finding is “within "
        "the noise”. The intervals know nothing of the choice of calibration clips: that is what "
        f"split-half speaks of.{band} Shares are those really removed: a fraction is rounded down "
        "to whole heads."
    )


def _reproduction(comparison: Comparison) -> str:
    settings = [
        [method.label, _settings(method)] for method in comparison.methods if method.settings
    ]
    versions = ", ".join(f"{name} {version}" for name, version in comparison.versions.items())
    parts = ["## To do it again", fenced(comparison.command, "bash")]
    if settings:
        parts.append(table("ll", ["method", "settings"], settings))
    parts.append(
        f"{comparison.evaluations} evaluations on {plain(comparison.device)}, seed "
        f"{comparison.seed}; {plain(versions)}."
    )
    return "\n\n".join(parts)


def _settings(method: ScoredMethod) -> str:
    def shown(value: object) -> str:
        return listing([str(v) for v in value]) if isinstance(value, tuple) else str(value)

    return ", ".join(f"{name} {shown(value)}" for name, value in method.settings.items())


def _area(curve: Curve) -> Estimate:
    assert curve.area is not None
    return curve.area


def _estimate(estimate: Estimate, n: int) -> str:
    value = percent(estimate.value, metric_decimals(n))
    return f"{value} ({percent_interval(estimate.interval, n)})"


def _difference(difference: Estimate, n: int) -> str:
    low, high = (points(side, n).removesuffix(" points") for side in difference.interval)
    return f"{points(difference.value, n)} ({low} to {high})"


def summary_lines(comparison: Comparison) -> Iterator[str]:
    """The outcome in a few lines: a line per method, the largest areas first."""
    n = comparison.validation.n
    sign = -1 if comparison.higher_is_better else 1
    width = max(len(method.label) for method in comparison.methods)
    for scope in comparison.scopes:
        yield f"{scope}: mean {metric_name(comparison.metric)} up to the largest share removed"
        for curve in sorted(comparison.of_scope(scope), key=lambda c: sign * _area(c).value):
            area = _estimate(_area(curve), n)
            yield f"  {curve.label:<{width}}  {area}  {finding(comparison, curve)}"
    yield from caveats(comparison)
