"""What units of every kind cost in a model, counted on copies of it that lack some."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from hibprune.compression.solver import Cost, Group
from hibprune.errors import UserError
from hibprune.records.units import FRONT_END, Kind, Scores, Unit, min_kept

Place = tuple[Kind, str, int]
"""Kind, stack and layer: units of one place cost the same and are told apart by their scores."""


def in_order(scores: Sequence[Scores]) -> dict[Place, tuple[Unit, ...]]:
    """The units of every place in the order in which they go: the lowest score first.

    Raises:
        UserError: a score is not finite.
    """
    places: dict[Place, list[Unit]] = {}
    for one in scores:
        values = one.values
        for unit in sorted(values, key=lambda unit: (values[unit], unit)):
            if not abs(values[unit]) < float("inf"):
                raise UserError(
                    f"attribution of {unit.kind}s: a score is not finite: see the model's outputs"
                )
            places.setdefault((unit.kind, unit.stack, unit.layer), []).append(unit)
    return {place: tuple(units) for place, units in sorted(places.items())}


def kept_of(place: Place, min_heads: int) -> int:
    """How many units of a place have to stay."""
    return min_kept(place[0], place[1], min_heads)


def groups_of(
    scores: Sequence[Scores], weights: Mapping[Kind, float], min_heads: int = 0
) -> tuple[Group, ...]:
    """The units of every place with the errors they add, as the solver takes them.

    Scores below 0, which are no errors, are counted from the lowest of their kind.
    """
    values = {unit: value for one in scores for unit, value in one.values.items()}
    lowest: dict[Kind, float] = {}
    for unit, value in values.items():
        lowest[unit.kind] = min(lowest.get(unit.kind, 0.0), value)
    return tuple(
        Group(
            tuple(weights[place[0]] * (values[unit] - lowest[place[0]]) for unit in units),
            min(len(units), kept_of(place, min_heads)),
        )
        for place, units in in_order(scores).items()
    )


def counted_cost(
    places: Mapping[Place, Sequence[Unit]], count: Callable[[Sequence[Unit]], float]
) -> Cost:
    """The cost of a model by how many units are left in each place.

    `count` is what the model costs without some units. Heads are alike in all layers, and so are
    neurons; of channels each layer is counted, and each pair of neighbours, between which weights
    lie.
    """
    names, whole = list(places), count(())
    slopes: dict[object, float] = {}
    pairs: dict[tuple[int, int], float] = {}
    single: list[float] = []
    for place in names:
        alike: object = place if place[0] == "channel" else place[:2]
        if alike not in slopes:
            # A convolution's last channel stays, whatever it would save.
            slopes[alike] = whole - count(places[place][:1]) if _can_go(places, place) else 0.0
        single.append(slopes[alike])
    for number, (kind, stack, layer) in enumerate(names):
        behind = (kind, stack, layer + 1)
        between = kind == "channel" and stack == FRONT_END and behind in places
        if not between or not all(_can_go(places, one) for one in (names[number], behind)):
            continue
        both = count((places[names[number]][0], places[behind][0]))
        other = names.index(behind)
        pairs[number, other] = both - whole + single[number] + single[other]
    # What a unit saves of the whole model is its own part and that shared with what lies beside.
    alone = list(single)
    for (i, j), shared in pairs.items():
        alone[i] -= shared * len(places[names[j]])
        alone[j] -= shared * len(places[names[i]])
    left = [len(places[name]) for name in names]
    constant = whole - Cost(0.0, tuple(alone), pairs).of(left)
    return Cost(constant, tuple(alone), pairs)


def _can_go(places: Mapping[Place, Sequence[Unit]], place: Place) -> bool:
    return len(places[place]) > kept_of(place, 0)
