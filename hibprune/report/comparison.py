"""`compare.html`, `.md`, `.csv` and `.json`: a comparison for people and for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from hibprune.execution.files import write_text
from hibprune.execution.output import COMPARISON
from hibprune.records.comparison import NO_REPAIR, Comparison, Curve, ScoredMethod
from hibprune.records.statistics import FEW
from hibprune.report.comparison_tables import area, areas_table, estimate, finding, values_table
from hibprune.report.curves import curve_figure
from hibprune.report.html import markdown_page
from hibprune.report.markdown import fenced, plain, table
from hibprune.report.numbers import MINUS, duration, listing, percent
from hibprune.report.ranking import ranking_finding
from hibprune.report.repair import repair_name
from hibprune.report.transcripts import transcripts_sentence
from hibprune.report.wording import metric_name

COLUMNS = (
    "method", "repair", "scope", "metric", "fraction", "removed", "share", "value", "low", "high",
    "lowest_draw", "highest_draw",
)  # fmt: skip
WHERE = {"global": "Over the whole model", "layerwise": "The same share of every layer"}


def write_comparison(comparison: Comparison, directory: Path) -> None:
    """Write pictures, page and table and, last of all, the JSON."""
    for scope in comparison.scopes:
        for suffix in ("png", "svg"):
            curve_figure(comparison, scope, directory / f"{COMPARISON}-{scope}.{suffix}")
    write_text(directory / f"{COMPARISON}.csv", comparison_csv(comparison))
    markdown = comparison_markdown(comparison)
    write_text(directory / f"{COMPARISON}.md", markdown)
    title = f"methods compared, {comparison.recipe}"
    write_text(directory / f"{COMPARISON}.html", markdown_page(title, markdown, directory))
    write_text(directory / f"{COMPARISON}.json", comparison.model_dump_json(indent=1) + "\n")


def comparison_csv(comparison: Comparison) -> str:
    """A row for every method, repair, scope and fraction; shares and metrics as numbers up to 1."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for curve in (*comparison.curves, *comparison.points):
        for point in curve.points:
            writer.writerow(
                (
                    curve.label, curve.repair, curve.scope, curve.metric, point.fraction,
                    point.removed, point.share, point.value, *point.interval, point.lowest,
                    point.highest,
                )
            )  # fmt: skip
    return text.getvalue()


def comparison_markdown(comparison: Comparison) -> str:
    """Write the page; pictures are referenced beside it."""
    sections = [
        f"# Attribution methods compared: {plain(comparison.recipe)}",
        comparison_verdict(comparison),
        _what(comparison),
        *(_scope(comparison, scope) for scope in comparison.scopes),
        _own_metric(comparison),
        _cost(comparison),
        _agreement(comparison),
        _reading(comparison),
        _data(comparison),
        _reproduction(comparison),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def comparison_verdict(comparison: Comparison) -> str:
    """Which method came out first in each scope, and whether that is more than chance."""
    if comparison.guessing:
        return ""
    return " ".join(_verdict(comparison, scope) for scope in comparison.scopes)


def _verdict(comparison: Comparison, scope: str) -> str:
    curves, n = comparison.of_scope(scope), comparison.validation.n
    sign = -1 if comparison.higher_is_better else 1
    best = min(curves, key=lambda curve: sign * area(curve).value)
    ranked = "highest" if comparison.higher_is_better else "lowest"
    shares = [point.share for curve in curves for point in curve.points]
    found: dict[str, list[str]] = {}
    for curve in curves:
        found.setdefault(finding(comparison, curve), []).append(_named(comparison, curve))
    against = "; ".join(
        f"{said} {listing(found[said])}"
        for said in ("better", "within the noise", "worse")
        if said in found
    )
    return (
        f"**{WHERE[scope]}, {_named(comparison, best)} comes out first: the {ranked} mean "
        f"{metric_name(comparison.metric)} up to {percent(max(shares), 0)} of the heads removed, "
        f"{estimate(area(best), n)}.** Against {plain(comparison.reference)}: {against}."
    )


def _named(comparison: Comparison, curve: Curve) -> str:
    """A curve in a sentence: its method and, where several were tried, its repair."""
    repaired = f" with repair {curve.repair}" if len(comparison.repairs) > 1 else ""
    return plain(f"{curve.label}{repaired}")


def _what(comparison: Comparison) -> str:
    model = comparison.model
    whole = comparison.whole[comparison.metric]
    n = comparison.validation.n
    sentence = transcripts_sentence(comparison.transcripts)
    rules = f" {sentence}" if sentence else ""
    return (
        f"Every method scored the {len(comparison.heads)} heads of {plain(model.source)} "
        f"({model.family}) on {comparison.calibration.n} calibration clips; then the heads with "
        f"the lowest scores {_removal(comparison)}, and the "
        f"{metric_name(comparison.metric)} was measured on {n} validation clips. "
        f"{_training(comparison)} With no head removed it is {estimate(whole, n)}. "
        f"Ranges in parentheses are 95 % intervals.{rules}"
        + "".join(f"\n\n**{plain(caveat)}**" for caveat in caveats(comparison))
    )


def _removal(comparison: Comparison) -> str:
    """What was done with the heads that went, and with the weights that stay."""
    silenced = "were silenced, which gives what removing them gives"
    tried = [repair for repair in comparison.repairs if repair.kind != NO_REPAIR]
    if not tried:
        return silenced
    ways = listing([repair_name(repair).removeprefix("repair ") for repair in tried])
    alone = "" if len(tried) == len(comparison.repairs) else f"{silenced} (no repair); or they "
    return (
        f"{alone}were removed and the weights that stay repaired on {tried[0].clips} calibration "
        f"clips, without labels ({ways})"
    )


def _training(comparison: Comparison) -> str:
    if any(repair.refine_steps for repair in comparison.repairs):
        return "Nothing was trained on labels."
    return "Nothing was retrained."


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
    return "\n\n".join(
        [heading, picture, areas_table(comparison, curves), values_table(comparison, curves)]
    )


def _own_metric(comparison: Comparison) -> str:
    if not comparison.points:
        return ""
    n, metric = comparison.validation.n, comparison.points[0].metric
    shown = metric_name(metric)
    whole = estimate(comparison.whole[metric], n)
    parts = [f"## {shown}", f"With no head removed: {whole}."]
    for scope in comparison.scopes:
        curves = [curve for curve in comparison.points if curve.scope == scope]
        if any(curve.points for curve in curves):
            parts += [f"{WHERE[scope]}:", values_table(comparison, curves)]
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
        f"{_repair_seconds(comparison)}"
    )


def _repair_seconds(comparison: Comparison) -> str:
    took = [
        f"{repair.kind} {duration(repair.seconds)}"
        for repair in comparison.repairs
        if repair.seconds is not None
    ]
    return f" Removal and repair of one model, median: {listing(took)}." if took else ""


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
    repaired = (
        " Differences to "
        f"{comparison.reference} are to {comparison.reference} with the same repair."
        if len(comparison.repairs) > 1
        else ""
    )
    minimum = "higher" if comparison.higher_is_better else "lower"
    return (
        "## How to read it\n\nThe area under a curve, from no head to the largest share and "
        f"divided by that share, is the mean of the metric on the way: {minimum} is better. Its "
        f"interval comes from {comparison.resamples} resamples of the validation clips. "
        "Differences are taken on the same resamples, so that they can be told from chance even if "
        "the intervals of two areas overlap; where their interval holds 0, the finding is “within "
        "the noise”. The intervals know nothing of the choice of calibration clips: that is what "
        f"split-half speaks of.{band}{repaired} Shares are those really removed: a fraction is "
        "rounded down to whole heads."
    )


def _data(comparison: Comparison) -> str:
    rows = [
        (use, data.kind, data.n, len(data.skipped), data.identity[:12])
        for use, data in (
            ("calibration", comparison.calibration), ("validation", comparison.validation),
        )
    ]  # fmt: skip
    return f"## Data\n\n{table('llrrl', ['use', 'kind', 'clips', 'skipped', 'digest'], rows)}"


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


def summary_lines(comparison: Comparison) -> Iterator[str]:
    """The outcome in a few lines: one per method and repair, the largest areas first."""
    n = comparison.validation.n
    sign = -1 if comparison.higher_is_better else 1
    width = max(len(method.label) for method in comparison.methods)
    widest = max(len(repair.kind) for repair in comparison.repairs)
    for scope in comparison.scopes:
        yield f"{scope}: mean {metric_name(comparison.metric)} up to the largest share removed"
        for curve in sorted(comparison.of_scope(scope), key=lambda c: sign * area(c).value):
            repair = f"{curve.repair:<{widest}}  " if comparison.repaired else ""
            value = estimate(area(curve), n)
            yield f"  {curve.label:<{width}}  {repair}{value}  {finding(comparison, curve)}"
    yield from caveats(comparison)
