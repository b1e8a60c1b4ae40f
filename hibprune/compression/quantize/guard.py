"""Makes an exported model int8 and leaves in float32 what costs too much of the metric.

Each group of layers is tried in int8 alone, since two that each ruin the model would hide each
other were they left out one at a time; then the fewest of the costliest are left in float32 that
keep the metric within its limit.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from hibprune.compression.quantize.graphs import layer_groups, read_graph
from hibprune.compression.quantize.int8 import growth_of, require_smaller, write_int8
from hibprune.compression.quantize.settings import QuantizeSettings
from hibprune.errors import UserError, shortened
from hibprune.execution.files import scratch_directory
from hibprune.execution.runtime import ONNX_DIRECTORY
from hibprune.records.precision import Int8Guard, graph_name


class Reading(NamedTuple):
    """A metric, and how far outputs are from those in fp32, which tells equal metrics apart."""

    metric: float
    distance: float = 0.0


def quantize_guarded(
    directory: Path,
    graphs: Sequence[str],
    settings: QuantizeSettings,
    reference: float,
    higher_is_better: bool,
    measure: Callable[[Path], Reading],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Int8Guard:
    """Write the int8 files of `graphs`, which lie in `directory`/onnx, beside them.

    `reference` is the metric of the graphs as they are, on the data that `measure` looks at.
    `measure` is given a directory whose onnx/ holds int8 graphs under the names of `graphs`, so
    that they load as any model; nothing else is in it. It is called once where int8 is good
    enough, else at most 2 + n + log2(n) times for n groups of layers.

    Raises:
        UserError: the graphs cannot be quantized, would not become smaller, or lose more than
            `settings.max_drop` with even one group in int8.
    """
    source = directory / ONNX_DIRECTORY
    groups = layer_groups((graph, read_graph(source / graph)) for graph in graphs)
    with scratch_directory(source) as scratch:
        files = _Int8Files(source, scratch, graphs, groups, settings.full_range)

        def drop(in_float: Collection[str]) -> _Drop:
            files.write(in_float)
            reading = measure(scratch)
            worse = (reference - reading.metric) * (1 if higher_is_better else -1)
            # No number is worse than any.
            worse = math.inf if math.isnan(worse) else worse
            return _Drop(worse, reading.distance, reading.metric)

        guard = _search(list(groups), settings.max_drop, reference, drop, progress)
        _write_smaller(files, guard)
        for path in files.paths:
            path.replace(source / graph_name(path.name, "int8"))
    return guard


def write_guarded(
    source: Path,
    directory: Path,
    graphs: Sequence[str],
    full_range: bool,
    in_float: Collection[str],
) -> None:
    """Write int8 files of `graphs` in `source` to `directory`/onnx, under the same names.

    `in_float` are the groups that a guard found to be left in float32.

    Raises:
        UserError: the graphs have no such groups, so that a guard of others has found them.
    """
    groups = layer_groups((graph, read_graph(source / graph)) for graph in graphs)
    strangers = sorted(set(in_float) - groups.keys())
    if strangers:
        raise UserError(
            f"int8: an earlier run left '{shortened(strangers[0])}' in float32, and the model has "
            "no such layers: remove steps/ in the output directory and run again"
        )
    _Int8Files(source, directory, graphs, groups, full_range).write(in_float)


def _write_smaller(files: _Int8Files, guard: Int8Guard) -> None:
    """Write what a guard found, which leaves less to gain the more of it stays in float32.

    Raises:
        UserError: it is no smaller than float32; names the limit where that is why.
    """
    sources = [files.source / graph for graph in files.graphs]
    files.write(guard.in_float)
    growth = growth_of(sources, files.paths)
    if growth is None:
        return
    files.write(())
    require_smaller(sources, files.paths)
    raise UserError(
        f"{sources[0]}: it would {growth}, as {len(guard.in_float)} of {len(files.groups)} groups "
        f"of layers had to stay in float32 to lose no more than quantize.max_drop "
        f"({guard.max_drop:g}): raise quantize.max_drop or take int8 out of "
        "export.variants"
    )


class _Drop(NamedTuple):
    """By how much int8 is worse than fp32, the worst last when sorted; and what was read."""

    drop: float
    distance: float
    metric: float


def _search(
    groups: list[str],
    max_drop: float,
    reference: float,
    drop: Callable[[Collection[str]], _Drop],
    progress: Callable[[int, int], None],
) -> Int8Guard:
    """Find the groups to leave in float32; `drop` measures with some left there."""
    total = 1 + len(groups) + (len(groups) - 1).bit_length()
    # A drop of exactly the limit passes, also where floats make it a hair more.
    limit = max_drop + 1e-12
    whole = found = drop(())
    alone: dict[str, _Drop] = {}
    in_float: list[str] = []
    measurements = 1
    if whole.drop > limit:
        for group in groups:
            progress(measurements, total)
            alone[group] = drop([other for other in groups if other != group])
            measurements += 1
    ranked = sorted(alone, key=lambda group: alone[group], reverse=True)
    fewest, most = 1, len(ranked) - 1
    while fewest <= most:
        progress(measurements, total)
        middle = (fewest + most) // 2
        reading = drop(ranked[:middle])
        measurements += 1
        if reading.drop <= limit:
            found, in_float, most = reading, ranked[:middle], middle - 1
        else:
            fewest = middle + 1
    if found.drop > limit:
        raise UserError(
            f"int8 costs {100 * whole.drop:.1f} points of the metric on calibration data, and more "
            f"than quantize.max_drop ({max_drop:g}) whatever stays in float32: take "
            "int8 out of export.variants or raise quantize.max_drop"
        )
    return Int8Guard(
        reference=reference,
        quantized=whole.metric,
        guarded=found.metric,
        max_drop=max_drop,
        in_float=tuple(in_float),
        drops={group: alone[group].drop for group in ranked},
        measurements=measurements,
    )


@dataclass
class _Int8Files:
    """Int8 files of some graphs, written anew where what stays in float32 changes."""

    source: Path
    directory: Path
    graphs: Sequence[str]
    groups: dict[str, dict[str, list[str]]]
    full_range: bool
    _written: dict[str, set[str]] = field(default_factory=dict)

    @property
    def paths(self) -> list[Path]:
        return [self.directory / ONNX_DIRECTORY / graph for graph in self.graphs]

    def write(self, in_float: Collection[str]) -> None:
        """Let the files have these groups in float32 and all others in int8."""
        for graph, path in zip(self.graphs, self.paths, strict=True):
            kept = {node for group in in_float for node in self.groups[group].get(graph, ())}
            if self._written.get(graph) == kept:
                continue
            self._written.pop(graph, None)
            path.parent.mkdir(exist_ok=True)
            everything = {node for group in self.groups.values() for node in group.get(graph, ())}
            if kept and kept == everything:
                shutil.copyfile(self.source / graph, path)
            else:
                write_int8(self.source / graph, path, self.full_range, kept)
            self._written[graph] = kept
