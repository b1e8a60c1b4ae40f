"""Plans worked out by hand."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from hibprune.compression.plan import (
    Budget,
    Round,
    Schedule,
    check_budget,
    make_plan,
    plan_line,
)
from hibprune.errors import UserError
from hibprune.records.units import Head, Plan, Scores


def scores(*layers: tuple[float, ...]) -> Scores:
    heads = tuple(Head(i, j) for i, layer in enumerate(layers) for j in range(len(layer)))
    row = tuple(value for layer in layers for value in layer)
    return Scores(method="by hand", heads=heads, samples=("a",), per_sample=(row,))


def removed(plan: Plan) -> list[tuple[int, int]]:
    return [(head.layer, head.index) for head in plan.removed]


THREE_LAYERS = scores((5.0, 1.0, 6.0, 7.0), (2.0, 8.0, 3.0, 9.0), (10.0, 11.0, 12.0, 4.0))


def test_global_takes_the_lowest_anywhere() -> None:
    plan = make_plan(THREE_LAYERS, Budget(heads=4))
    assert removed(plan) == [(0, 1), (1, 0), (1, 2), (2, 3)]
    assert plan.total == 12
    assert set(plan.removed) | set(plan.kept) == set(THREE_LAYERS.heads)
    assert not set(plan.removed) & set(plan.kept)


def test_layerwise_takes_as_many_from_every_layer() -> None:
    plan = make_plan(THREE_LAYERS, Budget(heads=2, scope="layerwise"))
    assert removed(plan) == [(0, 0), (0, 1), (1, 0), (1, 2), (2, 0), (2, 3)]
    same = make_plan(THREE_LAYERS, Budget(fraction=0.5, scope="layerwise"))
    assert same == plan


def test_the_mean_over_samples_decides() -> None:
    twice = Scores(
        method="by hand",
        heads=(Head(0, 0), Head(0, 1)),
        samples=("a", "b"),
        per_sample=((0.0, 1.0), (9.0, 1.0)),
    )
    assert removed(make_plan(twice, Budget(heads=1))) == [(0, 1)]


def test_ties_go_to_the_lower_layer_and_index_first() -> None:
    plan = make_plan(scores((1.0, 1.0), (1.0, 1.0)), Budget(heads=3))
    assert removed(plan) == [(0, 0), (0, 1), (1, 0)]


@pytest.mark.parametrize(
    ("heads", "fraction", "amount"),
    [(10, 0.3, 3), (10, 0.35, 3), (10, 0.399, 3), (100, 0.29, 29), (72, 1 / 3, 24), (3, 0.999, 2)],
)
def test_fractions_round_down_but_not_by_floating_point(
    heads: int, fraction: float, amount: int
) -> None:
    plan = make_plan(scores(tuple(map(float, range(heads)))), Budget(fraction=fraction))
    assert removed(plan) == [(0, index) for index in range(amount)]


def test_a_layer_keeps_its_least_number_of_heads() -> None:
    low_first_layer = scores((0.0, 0.1, 0.2, 0.3), (1.0, 1.1, 1.2, 1.3))
    free = make_plan(low_first_layer, Budget(heads=4))
    assert removed(free) == [(0, 0), (0, 1), (0, 2), (0, 3)]
    held = make_plan(low_first_layer, Budget(heads=4, min_heads_per_layer=2))
    assert removed(held) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_all_heads_may_go() -> None:
    plan = make_plan(THREE_LAYERS, Budget(heads=12))
    assert plan.kept == ()


def test_layers_that_lost_heads_before_count_what_is_left() -> None:
    uneven = scores((1.0, 2.0, 3.0, 4.0), (0.5,))
    assert removed(make_plan(uneven, Budget(heads=3, min_heads_per_layer=1))) == [
        (0, 0), (0, 1), (0, 2)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"heads": 13},
         "budget: 13 heads to remove, but only 12 of 12 can go with min_heads_per_layer 0: "
         "lower the budget"),
        ({"heads": 10, "min_heads_per_layer": 1},
         "budget: 10 heads to remove, but only 9 of 12 can go with min_heads_per_layer 1: "
         "lower the budget"),
        ({"heads": 5, "scope": "layerwise"},
         "budget: 5 heads to remove from layer 0, which has 4 and keeps min_heads_per_layer 0: "
         "lower the budget"),
        ({"fraction": 0.75, "scope": "layerwise", "min_heads_per_layer": 2},
         "budget: 3 heads to remove from layer 0, which has 4 and keeps min_heads_per_layer 2: "
         "lower the budget"),
        ({"fraction": 0.05},
         "budget: fraction 0.05 of 12 heads (global) is less than one head: raise it"),
        ({"fraction": 0.2, "scope": "layerwise"},
         "budget: fraction 0.2 of 12 heads (layerwise) is less than one head: raise it"),
        ({"fraction": 0.05, "min_heads_per_layer": 4},
         "budget: fraction 0.05 of 12 heads (global) is less than one, and min_heads_per_layer 4 "
         "keeps all: lower it or leave the heads out"),
    ],
)  # fmt: skip
def test_impossible_budgets_are_told_before_any_score_is_known(
    budget: dict[str, object], message: str
) -> None:
    for fail in (
        lambda: make_plan(THREE_LAYERS, Budget.model_validate(budget)),
        lambda: check_budget(Budget.model_validate(budget), THREE_LAYERS.heads),
    ):
        with pytest.raises(UserError) as caught:
            fail()
        assert str(caught.value) == message


@pytest.mark.parametrize(
    ("layers", "budget", "message"),
    [
        (1, {"fraction": 0.5},
         "budget: fraction 0.5 of 1 head (global) is less than one, as any is: "
         "give budget.heads: 1 instead, or leave the heads out"),
        (3, {"fraction": 0.99, "scope": "layerwise"},
         "budget: fraction 0.99 of 3 heads (layerwise) is less than one, as any of layers of 1 "
         "head is: set budget.scope to global or give heads: 1"),
        (1, {"fraction": 0.5, "min_heads_per_layer": 1},
         "budget: fraction 0.5 of 1 head (global) is less than one, and min_heads_per_layer 1 "
         "keeps all: lower it or leave the heads out"),
        (1, {"heads": 1, "min_heads_per_layer": 1},
         "budget: 1 head to remove, but only 0 of 1 can go with min_heads_per_layer 1: "
         "lower the budget"),
        (1, {"heads": 1, "scope": "layerwise", "min_heads_per_layer": 1},
         "budget: 1 head to remove from layer 0, which has 1 and keeps min_heads_per_layer 1: "
         "lower the budget"),
    ],
)  # fmt: skip
def test_where_layers_have_one_head_no_fraction_is_called_for(
    layers: int, budget: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        make_plan(scores(*[(1.0,)] * layers), Budget.model_validate(budget))
    assert str(caught.value) == message
    assert make_plan(scores(*[(1.0,)] * layers), Budget(heads=1)).total == layers


def test_scores_that_are_no_numbers_make_no_plan() -> None:
    with pytest.raises(UserError, match="the score of head 1 of layer 0 is nan: "):
        make_plan(scores((1.0, float("nan"))), Budget(heads=1))


def test_a_budget_of_other_units_leaves_all_heads() -> None:
    for budget in (
        Budget(neurons=0.5),
        Budget(heads=0, cross_heads=0.5),
        # Of no layer would so many have to stay that one that loses none is at fault.
        Budget(fraction=0.0, ranks=0.5, scope="layerwise", min_heads_per_layer=9),
    ):
        plan = make_plan(THREE_LAYERS, budget)
        assert (removed(plan), plan.total) == ([], 12)
        assert plan_line(plan, budget) == "none of 12 heads to remove"
        assert Schedule(rounds=3).rounds_for(budget, THREE_LAYERS.heads) == 1


@pytest.mark.parametrize(
    "budget",
    [{"fraction": 0.0}, {"fraction": 1.0}, {"heads": 0}, {}, {"neurons": 0.0}, {"heads": -1},
     {"heads": 0, "fraction": 0.0, "neurons": 0.5}],
)  # fmt: skip
def test_a_budget_is_one_sensible_amount(budget: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Budget.model_validate(budget)


@pytest.mark.parametrize(
    ("budget", "line"),
    [
        (Budget(heads=4), "4 of 12 heads to remove, global"),
        (Budget(fraction=0.5), "6 of 12 heads to remove, global (fraction 0.5)"),
        (Budget(fraction=0.3), "3 of 12 heads to remove, global: 0.3 of 12 is 3.6, rounded down"),
        (Budget(fraction=0.5, scope="layerwise"),
         "6 of 12 heads to remove, layerwise (fraction 0.5)"),
        # 1.6 of the 4 heads of each of 3 layers.
        (Budget(fraction=0.4, scope="layerwise"),
         "3 of 12 heads to remove, layerwise: 0.4 of 12 is 4.8, rounded down in every layer"),
    ],
)  # fmt: skip
def test_what_rounding_takes_from_a_budget_is_told(budget: Budget, line: str) -> None:
    assert plan_line(make_plan(THREE_LAYERS, budget), budget) == line


def test_rounds_tell_of_rounding_when_they_are_over() -> None:
    budget = Budget(fraction=0.3)
    first = make_plan(THREE_LAYERS, budget, Round(1, 2))
    left = scores((5.0, 6.0, 7.0), (2.0, 8.0, 3.0, 9.0), (10.0, 11.0, 12.0))
    second = Round(2, 2, first.removed)
    assert plan_line(first, budget, Round(1, 2)) == (
        "2 of 12 heads to remove, global, round 1 of 2 (fraction 0.3)"
    )
    assert plan_line(make_plan(left, budget, second), budget, second) == (
        "1 of 10 heads to remove, global, round 2 of 2: 0.3 of 12 is 3.6, rounded down"
    )
