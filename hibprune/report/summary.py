"""The closing comparison, original against pruned: one content for terminal, card and report."""

from __future__ import annotations

from typing import NamedTuple

from hibprune.records.base import Interval
from hibprune.records.manifest import Manifest, TimingSummary
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
    three_digits,
)
from hibprune.report.wording import (
    by_setting,
    change_finding,
    metric_name,
    percent_interval,
    ratio_interval,
    speed_changed,
    work,
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
    macs = manifest.macs
    kept = heads.total - heads.removed_count
    return [
        SummaryRow("Heads", str(heads.total), str(kept), change(heads.total, kept)),
        *_neuron_rows(manifest),
        *_metric_rows(manifest),
        SummaryRow(
            "Parameters",
            count(parameters.before),
            count(parameters.after),
            change(parameters.before, parameters.after),
        ),
        SummaryRow(
            # Where every clip is filled up to a window, the length says nothing.
            f"Multiply-adds, {macs.length}" if macs.window_seconds is None else "Multiply-adds",
            count(macs.before),
            count(macs.after),
            change(macs.before, macs.after),
            ", ".join(work(macs)),
        ),
        _size_row(manifest),
        *_latency_rows(manifest),
    ]


def _neuron_rows(manifest: Manifest) -> list[SummaryRow]:
    neurons = manifest.neurons
    if neurons is None:
        return []
    kept = neurons.total - neurons.removed_count
    return [SummaryRow("Neurons", str(neurons.total), str(kept), change(neurons.total, kept))]


def _size_row(manifest: Manifest) -> SummaryRow:
    """The ONNX files together; below, where there are several, which they are."""
    size, graphs = manifest.size_bytes, manifest.graph_bytes
    row = SummaryRow(
        "ONNX file",
        megabytes(size.before),
        megabytes(size.after),
        change(size.before, size.after),
    )
    if len(graphs) < 2:
        return row
    return row._replace(
        label="ONNX files",
        # encoder_model.onnx, decoder_model_merged.onnx
        label_detail=" + ".join(name.partition("_")[0] for name in graphs),
        original_detail=" + ".join(three_digits(one.before / 1e6) for one in graphs.values()),
        pruned_detail=" + ".join(three_digits(one.after / 1e6) for one in graphs.values()),
    )


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
    rows = []
    for setting, group in groups.items():
        detail = setting if len(groups) > 1 else ", ".join(work(group[0]))
        rows += [_timing_row(f"Latency, {one.length.as_input}", one, detail) for one in group]
        longest = group[-1]
        rows += [
            _timing_row(f"Of these, {part.part}", part, f"at {longest.length}")
            for part in longest.parts
        ]
    return rows


def _timing_row(label: str, times: TimingSummary, detail: str) -> SummaryRow:
    return SummaryRow(
        label,
        milliseconds(times.before.p50),
        milliseconds(times.after.p50),
        f"{times.ratio:.2f}× as fast" if speed_changed(times) else "no speed-up",
        detail,
        change_detail=("" if speed_changed(times) else f"{times.ratio:.2f}×, ")
        + ratio_interval(times),
    )
