"""The mix of least error within a cost, held against every other mix."""

from __future__ import annotations

import itertools
import random

import pytest

from hibprune.compression.solver import (
    Cost,
    Group,
    Option,
    added_error,
    cheapest_mix,
    cheapest_options,
    least_cost,
)


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


def choices_drawn(seed: int) -> tuple[list[list[Option]], float]:
    """Choices whose options are no convex curve: a dear one without error, and cheaper ones."""
    draw = random.Random(seed)
    choices = []
    for _ in range(draw.randint(1, 4)):
        size = draw.choice([2, 5, 10])
        whole = Option(size * (4 + draw.random()), 0.0)
        errors = sorted((draw.random() ** 2 for _ in range(draw.randint(0, 5))), reverse=True)
        choices.append([whole, *(Option(size * (n + 1), e) for n, e in enumerate(errors))])
        draw.shuffle(choices[-1])
    dearest, least = (sum(kind(one.cost for one in own) for own in choices) for kind in (max, min))  # type: ignore[operator]
    return choices, least + (dearest - least) * draw.random()


def test_hardly_any_options_are_better_than_those_found() -> None:
    missed, over = 0, 0.0
    for seed in range(300):
        choices, limit = choices_drawn(seed)
        taken = cheapest_options(choices, limit)
        chosen = [own[place] for own, place in zip(choices, taken, strict=True)]
        assert sum(one.cost for one in chosen) <= limit
        best = min(
            sum(one.error for one in every)
            for every in itertools.product(*choices)
            if sum(one.cost for one in every) <= limit
        )
        found = sum(one.error for one in chosen)
        missed += found > best + 1e-12
        over = max(over, found - best)
    assert missed <= 6
    assert over < 0.2


def test_an_option_that_costs_and_errs_more_than_another_is_never_taken() -> None:
    choice = [Option(9.0, 0.5), Option(10.0, 0.0), Option(6.0, 0.4), Option(5.0, 0.1)]
    assert cheapest_options([choice], 10.0) == (1,)
    assert cheapest_options([choice], 9.5) == (3,)
    with pytest.raises(ValueError, match="the least is 5"):
        cheapest_options([choice], 4.9)


def test_a_long_step_may_be_worth_it_for_one_of_two() -> None:
    """Half of what two whole ones cost is one whole and one at the least, or both in the middle."""
    whole, half, least = Option(10.0, 0.0), Option(5.0, 0.3), Option(1.0, 1.0)
    assert sorted(cheapest_options([[whole, half, least]] * 2, 11.0)) == [1, 1]
    steep = [whole, Option(5.0, 0.7), least]
    assert sorted(cheapest_options([steep] * 2, 11.0)) == [0, 2]
