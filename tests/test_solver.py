"""The mix of least error within a cost, held against every other mix."""

from __future__ import annotations

import itertools
import random

import pytest

from hibprune.compression.solver import Cost, Group, added_error, cheapest_mix, least_cost


def problem(seed: int) -> tuple[list[Group], Cost, float]:
    """A few groups of rising errors, some with weights between neighbours, and a limit in reach."""
    draw = random.Random(seed)
    groups = [
        Group(
            tuple(sorted(draw.random() ** 2 for _ in range(draw.randint(1, 5)))),
            keep=draw.randint(0, 1),
        )
        for _ in range(draw.randint(2, 4))
    ]
    single = tuple(draw.choice([1, 2, 5, 10]) * draw.random() for _ in groups)
    pairs = {(i, i + 1): draw.random() for i in range(len(groups) - 1) if draw.random() < 0.5}
    tables = {
        i: tuple(sorted(3 * draw.random() for _ in range(len(group.errors) + 1)))
        for i, group in enumerate(groups)
        if draw.random() < 0.3
    }
    cost = Cost(3.0, single, pairs, tables)
    whole, least = cost.of([len(one.errors) for one in groups]), least_cost(groups, cost)
    return groups, cost, least + (whole - least) * draw.random()


def left(groups: list[Group], gone: tuple[int, ...]) -> list[int]:
    return [len(group.errors) - number for group, number in zip(groups, gone, strict=True)]


def test_hardly_any_mix_is_better_than_the_one_found() -> None:
    missed = 0
    for seed in range(200):
        groups, cost, limit = problem(seed)
        found = cheapest_mix(groups, cost, limit)
        assert cost.of(left(groups, found)) <= limit
        assert all(n <= group.removable for n, group in zip(found, groups, strict=True))
        every = itertools.product(*(range(group.removable + 1) for group in groups))
        best = min(
            added_error(groups, gone) for gone in every if cost.of(left(groups, gone)) <= limit
        )
        missed += added_error(groups, found) > best + 1e-12
    assert missed <= 4


def test_what_saves_most_for_its_error_goes_first() -> None:
    dear, cheap = Group((1.0, 1.0, 1.0)), Group((0.3, 0.3, 0.3))
    cost = Cost(0.0, (10.0, 1.0))
    assert cheapest_mix([dear, cheap], cost, 23.0) == (1, 0)
    # The last bit is had for less from what saves little.
    assert cheapest_mix([dear, cheap], cost, 32.0) == (0, 1)


def test_weights_between_two_groups_are_saved_once() -> None:
    groups, cost = [Group((1.0,) * 4), Group((1.0,) * 4)], Cost(0.0, (0.0, 0.0), {(0, 1): 1.0})
    assert cost.of([4, 4]) == 16
    found = cheapest_mix(groups, cost, 4.0)
    # 2 × 2 costs 4 for four units; 1 × 4 takes three.
    assert sorted(found) == [0, 3]


def test_nothing_goes_where_the_cost_is_low_enough_and_all_that_may_where_it_has_to() -> None:
    groups, cost = [Group((0.0, 1.0), keep=1), Group((5.0,))], Cost(1.0, (2.0, 3.0))
    assert cheapest_mix(groups, cost, 8.0) == (0, 0)
    assert cheapest_mix(groups, cost, 3.0) == (1, 1)
    with pytest.raises(ValueError, match="the least is 3"):
        cheapest_mix(groups, cost, 2.9)
