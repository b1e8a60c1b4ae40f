"""What units of every kind cost in time, read off a latency table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import nnls

from hibprune.compression.solver import Cost
from hibprune.compression.unit_costs import Place
from hibprune.records.latency_table import LatencyTable, LevelTimes
from hibprune.records.units import Unit

MIN_SHARE = 0.05
"""Of the time, what stays at least when all is gone."""


def latency_cost(
    table: LatencyTable, places: Mapping[Place, Sequence[Unit]], counted: Cost
) -> Cost:
    """Milliseconds by how many units are left in each place, in the order of `places`.

    Heads and neurons: straight lines between the levels, each level's saving shared by the layers
    by how many units it took of them. Channels: part of the time goes with the channels of each
    convolution and part with the products of neighbours, as `counted`, their multiply-adds, do; how
    large each part is follows from the levels by least squares.
    """
    single = [0.0] * len(places)
    pairs: dict[tuple[int, int], float] = {}
    tables: dict[int, tuple[float, ...]] = {}
    constant = table.whole_milliseconds
    stacks: dict[tuple[str, str], list[LevelTimes]] = {}
    for level in table.levels:
        stacks.setdefault((level.kind, level.stack), []).append(level)
    for (kind, stack), levels in stacks.items():
        own = {
            place[2]: number for number, place in enumerate(places) if place[:2] == (kind, stack)
        }
        sizes = {layer: len(places[kind, stack, layer]) for layer in own}  # type: ignore[index]
        if kind == "channel":
            part = _channels(table, levels, own, sizes, counted)
            constant += part.constant
            single = [a + b for a, b in zip(single, part.single, strict=True)]
            pairs.update(part.pairs)
            continue
        for layer, number in own.items():
            tables[number] = _line(table, levels, layer, sizes)
    found = Cost(constant, tuple(single), pairs, tables)
    return _at_least(MIN_SHARE * table.whole_milliseconds, found, places)


def _at_least(least: float, cost: Cost, places: Mapping[Place, Sequence[Unit]]) -> Cost:
    """The cost with all savings smaller in proportion where noise makes them more than there is."""
    nothing, whole = cost.of([0] * len(places)), cost.of([len(own) for own in places.values()])
    if nothing >= least:
        return cost
    scale = (whole - least) / (whole - nothing)
    return Cost(
        whole - scale * (whole - cost.constant),
        tuple(scale * one for one in cost.single),
        {pair: scale * one for pair, one in cost.pairs.items()},
        {place: tuple(scale * one for one in own) for place, own in cost.tables.items()},
    )


def _line(
    table: LatencyTable, levels: Sequence[LevelTimes], layer: int, sizes: Mapping[int, int]
) -> tuple[float, ...]:
    """Milliseconds with 0, 1, … units left in a layer, less those with all of them."""
    knots = {sizes[layer]: 0.0}
    for level in levels:
        taken = {one: size - level.left[one] for one, size in sizes.items()}
        knots[level.left[layer]] = -table.saved(level) * taken[layer] / sum(taken.values())
    left = sorted(knots)
    # Where noise says that fewer units take longer, they save as much as more of them do.
    times = np.minimum.accumulate([knots[one] for one in reversed(left)])[::-1]
    return tuple(np.interp(np.arange(sizes[layer] + 1), left, times).tolist())


def _channels(
    table: LatencyTable,
    levels: Sequence[LevelTimes],
    own: Mapping[int, int],
    sizes: Mapping[int, int],
    counted: Cost,
) -> Cost:
    """The share of the front end, as what is to be added to the cost of the rest."""

    numbers = {number: layer for layer, number in own.items()}
    inside = {
        (i, j): shared for (i, j), shared in counted.pairs.items() if i in numbers and j in numbers
    }
    # Of one output channel from one input channel: its length, times the width of the kernel.
    lengths = {number: counted.single[number] for number in numbers}
    lengths.update({behind: shared for (_, behind), shared in inside.items()})

    def work(left: Mapping[int, int]) -> tuple[float, float]:
        counts = {number: left[layer] for number, layer in numbers.items()}
        outputs = sum(lengths[number] * count for number, count in counts.items())
        macs = sum(counted.single[number] * count for number, count in counts.items())
        macs += sum(shared * counts[i] * counts[j] for (i, j), shared in inside.items())
        return outputs, macs

    whole = np.array(work(sizes))
    gone = np.array([whole - work(level.left) for level in levels])
    (per_output, per_mac), _ = nnls(gone, np.array([table.saved(level) for level in levels]))
    single = [0.0] * len(counted.single)
    for number in numbers:
        single[number] = per_output * lengths[number] + per_mac * counted.single[number]
    pairs = {pair: float(per_mac * shared) for pair, shared in inside.items()}
    return Cost(-float(whole @ (per_output, per_mac)), tuple(single), pairs)
