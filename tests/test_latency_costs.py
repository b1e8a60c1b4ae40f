"""What units cost in time, by tables made up from times that are known."""

from __future__ import annotations

import random

import pytest

from hibprune.compression.latency_costs import latency_cost
from hibprune.compression.solver import Cost
from hibprune.compression.unit_costs import Place
from hibprune.records.latency_table import LatencyTable, LevelTimes
from hibprune.records.manifest import Machine
from hibprune.records.medium import Length
from hibprune.records.units import Kind, Unit

MACHINE = Machine(processor="p", cores=1, memory_gib=1.0, gpu=None, system="s")
LAYERS = (0, 1)
HEADS, NEURONS = 4, 8
CHANNELS = (6, 10)
FRAMES = (100, 50)


def places() -> dict[Place, tuple[Unit, ...]]:
    sizes = {
        ("channel", "front_end"): CHANNELS,
        ("head", "encoder"): (HEADS, HEADS),
        ("neuron", "encoder"): (NEURONS, NEURONS),
    }
    return {
        (kind, stack, layer): tuple(
            Unit(layer, index, stack, kind) for index in range(sizes[layer])
        )
        for (kind, stack), sizes in sizes.items()
        for layer in LAYERS
    }  # type: ignore[misc]


def counted() -> Cost:
    """Multiply-adds of two convolutions of kernel 3, what reads the second, heads and neurons."""
    return Cost(
        1000.0,
        (3.0 * FRAMES[0], 7.0 * FRAMES[1], 20.0, 20.0, 5.0, 5.0),
        {(0, 1): 3.0 * FRAMES[1]},
    )


def milliseconds(left: dict[str, tuple[int, int]]) -> float:
    """Times by a formula: heads and neurons in straight lines, channels by outputs and products."""
    one, two = left["channel"]
    outputs = 3 * FRAMES[0] * one + 3 * FRAMES[1] * two
    products = 3 * FRAMES[0] * one + 3 * FRAMES[1] * one * two + 7 * FRAMES[1] * two
    return (
        30 + 2.0 * sum(left["head"]) + 0.5 * sum(left["neuron"]) + 0.01 * outputs + 0.002 * products
    )


def table(noise: float = 0.0) -> LatencyTable:
    whole = {"channel": CHANNELS, "head": (HEADS,) * 2, "neuron": (NEURONS,) * 2}
    cut: list[tuple[Kind, tuple[int, int]]] = [
        ("head", (2, 2)), ("head", (0, 0)), ("neuron", (4, 4)), ("neuron", (0, 0)),
        ("channel", (3, 5)), ("channel", (2, 2)),
    ]  # fmt: skip
    base = milliseconds(whole)
    levels = [
        LevelTimes(
            kind=kind,
            stack="front_end" if kind == "channel" else "encoder",
            left=dict(enumerate(left)),
            # A machine that is twice as slow in one round is so for both.
            times=tuple(
                slow * milliseconds({**whole, kind: left}) * (1 - noise) for slow in (1, 2, 1)
            ),
            whole=tuple(slow * base for slow in (1, 2, 1)),
        )
        for kind, left in cut
    ]
    return LatencyTable(
        variant="pruned",
        at=Length(value=5, unit="seconds"),
        threads=1,
        machine=MACHINE,
        original=(base,) * 3,
        whole=(base,) * 3,
        levels=tuple(levels),
    )


def test_any_mix_takes_what_the_formula_says() -> None:
    cost, draw = latency_cost(table(), places(), counted()), random.Random(2)
    for _ in range(50):
        left = {
            "channel": (draw.randint(1, CHANNELS[0]), draw.randint(1, CHANNELS[1])),
            "head": (draw.randint(0, HEADS), draw.randint(0, HEADS)),
            "neuron": (draw.randint(0, NEURONS), draw.randint(0, NEURONS)),
        }
        counts = [*left["channel"], *left["head"], *left["neuron"]]
        assert cost.of(counts) == pytest.approx(milliseconds(left), rel=1e-6)


def test_levels_that_save_more_than_there_is_are_taken_in_proportion() -> None:
    noisy, sizes = table(noise=0.4), [len(own) for own in places().values()]
    cost = latency_cost(noisy, places(), counted())
    assert cost.of(sizes) == pytest.approx(noisy.whole_milliseconds)
    assert cost.of([0] * len(sizes)) == pytest.approx(0.05 * noisy.whole_milliseconds)
    fewer = [cost.of([*sizes[:2], number, *sizes[3:]]) for number in range(HEADS + 1)]
    assert fewer == sorted(fewer)


def test_a_level_that_takes_longer_saves_nothing() -> None:
    slow = table()
    levels = [
        level.model_copy(update={"times": tuple(2 * one for one in level.whole)})
        for level in slow.levels
    ]
    cost = latency_cost(slow.model_copy(update={"levels": tuple(levels)}), places(), counted())
    assert cost.of([1, 1, 0, 0, 0, 0]) == pytest.approx(slow.whole_milliseconds)
