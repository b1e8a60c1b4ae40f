"""The closing comparison, original against pruned: one content for terminal, card and report."""

from __future__ import annotations

from typing import NamedTuple

from hibprune.records.base import Interval
from hibprune.records.manifest import Manifest
from hibprune.records.measurements import Measurement
from hibprune.report.numbers import (
    capitalised,
    change,
    count,
    megabytes,
    metric_decimals,
    milliseconds,
    percent,
    points,
)
from hibprune.report.wording import (
    by_setting,
    change_finding,
    metric_name,
    percent_interval,
    ratio_interval,
    speed_changed,
)


class SummaryRow(NamedTuple):
    """One quantity before and after; `detail` is the interval or remark below each figure."""

    label: str
    original: str
    pruned: str
    change: str
    label_detail: str = ""
    original_detail: str = ""
    pruned_detail: str = ""
    change_detail: str = ""


def summary_rows(manifest: Manifest) -> list[SummaryRow]:
    """What a person wants to know first, in the order of asking."""
    heads, parameters = manifest.heads, manifest.parameters
    macs, size = manifest.macs, manifest.size_bytes
    kept = heads.total - heads.removed_count
    return [
        SummaryRow("Heads", str(heads.total), str(kept), change(heads.total, kept)),
        *_metric_rows(manifest),
        SummaryRow(
            "Parameters",
            count(parameters.before),
            count(parameters.after),
            change(parameters.before, parameters.after),
        ),
        SummaryRow(
            f"Multiply-adds, {macs.length}",
            count(macs.before),
            count(macs.after),
            change(macs.before, macs.after),
        ),
        SummaryRow(
            "ONNX file",
            megabytes(size.before),
            megabytes(size.after),
            change(size.before, size.after),
        ),
        *_latency_rows(manifest),
    ]


def _metric_rows(manifest: Manifest) -> list[SummaryRow]:
    metric = manifest.metric
    name = metric_name(metric.name)
    name = capitalised(name)
    return [
        _metric_row(
            name,
            "higher is better" if metric.higher_is_better else "lower is better",
            metric.baseline,
            metric.pruned,
            metric.pruned_change,
        ),
        _metric_row(f"{name}, ONNX", "", metric.baseline, metric.exported, metric.exported_change),
    ]


def _metric_row(
    label: str, detail: str, before: Measurement, after: Measurement, paired: Interval | None
) -> SummaryRow:
    decimals = metric_decimals(after.n)
    return SummaryRow(
        label,
        percent(before.value, decimals),
        percent(after.value, decimals),
        points(after.value - before.value, after.n),
        detail,
        percent_interval(before.interval, before.n),
        percent_interval(after.interval, after.n),
        change_finding(before, after, paired),
    )


def _latency_rows(manifest: Manifest) -> list[SummaryRow]:
    groups = by_setting(manifest.latency)
    return [
        SummaryRow(
            f"Latency, {one.length.as_input}",
            milliseconds(one.before.p50),
            milliseconds(one.after.p50),
            f"{one.ratio:.2f}× as fast" if speed_changed(one) else "no speed-up",
            setting if len(groups) > 1 else "",
            change_detail=("" if speed_changed(one) else f"{one.ratio:.2f}×, ")
            + ratio_interval(one),
        )
        for setting, group in groups.items()
        for one in group
    ]
