"""What units cost, against models that were really made smaller."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from tiny_models import TINY_MODELS, TinyModel
from transformers import PreTrainedModel

from hibprune.compression.remove import copy_without
from hibprune.compression.unit_costs import counted_cost, groups_of, in_order, kept_of
from hibprune.errors import UserError
from hibprune.evaluation.footprint import measure_footprint
from hibprune.models.units import units_of
from hibprune.records.medium import Length
from hibprune.records.units import Kind, Scores, Unit

KINDS: tuple[Kind, ...] = ("head", "neuron", "channel")


def drawn_scores(model: PreTrainedModel) -> list[Scores]:
    draw = random.Random(3)
    return [
        Scores(
            method="drawn",
            heads=units,
            samples=(),
            per_sample=(tuple(draw.random() for _ in units),),
        )
        for kind in KINDS
        if (units := units_of(model, kind))
    ]


@pytest.mark.parametrize("tiny", TINY_MODELS, ids=lambda tiny: tiny.name)
def test_the_cost_of_a_mix_is_that_of_the_model_without_it(tiny: TinyModel) -> None:
    model, inputs = tiny.build(), tiny.inputs(batch=1)

    def parameters(units: Sequence[Unit]) -> float:
        return sum(weight.numel() for weight in copy_without(model, units).parameters())

    def multiply_adds(units: Sequence[Unit]) -> float:
        length = Length(value=0.25, unit="seconds")
        return measure_footprint(copy_without(model, units), inputs, length).macs

    places = in_order(drawn_scores(model))
    draw = random.Random(1)
    for count in (parameters, multiply_adds):
        cost = counted_cost(places, count)
        assert cost.of([len(units) for units in places.values()]) == pytest.approx(count(()))
        gone = [
            units[: draw.randint(0, len(units) - max(1, kept_of(place, 0)))]
            for place, units in places.items()
        ]
        left = [len(a) - len(b) for a, b in zip(places.values(), gone, strict=True)]
        assert cost.of(left) == count([unit for own in gone for unit in own])


def test_units_of_a_place_go_by_score_and_errors_are_weighed_by_kind() -> None:
    units = (Unit(0, 0), Unit(0, 1), Unit(1, 0), Unit(0, 0, kind="neuron"))
    scores = Scores(method="m", heads=units, samples=(), per_sample=((3.0, 1.0, 2.0, 5.0),))
    assert in_order([scores]) == {
        ("head", "encoder", 0): (Unit(0, 1), Unit(0, 0)),
        ("head", "encoder", 1): (Unit(1, 0),),
        ("neuron", "encoder", 0): (Unit(0, 0, kind="neuron"),),
    }
    groups = groups_of([scores], {"head": 1.0, "neuron": 0.5, "channel": 1.0}, min_heads=1)
    assert [group.errors for group in groups] == [(1.0, 3.0), (2.0,), (2.5,)]
    assert [group.keep for group in groups] == [1, 1, 0]


def test_scores_that_are_no_errors_count_from_the_lowest_of_their_kind() -> None:
    scores = Scores(method="m", heads=(Unit(0, 0), Unit(1, 0)), samples=(), per_sample=((-2, 1.0),))
    groups = groups_of([scores], {"head": 1.0, "neuron": 1.0, "channel": 1.0})
    assert [group.errors for group in groups] == [(0.0,), (3.0,)]


def test_a_score_that_is_not_finite_is_told_of() -> None:
    scores = Scores(method="m", heads=(Unit(0, 0),), samples=(), per_sample=((torch.inf,),))
    with pytest.raises(UserError, match="attribution of heads: a score is not finite"):
        in_order([scores])
