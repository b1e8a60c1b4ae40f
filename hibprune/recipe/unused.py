"""Settings about units that a recipe gives and that its budget leaves unused."""

from __future__ import annotations

from collections.abc import Iterator

from hibprune.attribution import MethodBase
from hibprune.recipe.settings import METHOD_KEYS, Recipe


def unused_settings(recipe: Recipe) -> tuple[str, ...]:
    """A line for each; none for what would change nothing anyway."""
    budget = recipe.budget
    if budget.one_number is not None:
        return tuple(_beside_one_number(recipe))
    return () if budget.takes_heads else tuple(_without_heads(recipe))


def _beside_one_number(recipe: Recipe) -> Iterator[str]:
    budget = f"budget.{recipe.budget.one_number}"
    for key in dict.fromkeys(METHOD_KEYS.values()):
        if (methods := _unused_method(recipe, key)) is not None:
            given, used = methods
            yield (
                f"{key}: {given.name()} is not used, since {budget} weighs all kinds of units by "
                f"one method: {used.name()}"
            )
    if recipe.schedule.rounds > 1:
        yield (
            f"schedule.rounds: {recipe.schedule.rounds} is not used, since {budget} finds what "
            "goes at once"
        )


def _without_heads(recipe: Recipe) -> Iterator[str]:
    budget = recipe.budget
    if (methods := _unused_method(recipe, "attribution")) is not None:
        given, used = methods
        published = " with paper: true" if getattr(given, "paper", False) else ""
        yield (
            f"attribution: {given.name()}{published} is not used, since budget takes no head of "
            f"the encoder: heads are scored by {used.name()}, for the report alone"
        )
    if recipe.schedule.rounds > 1:
        yield (
            f"schedule.rounds: {recipe.schedule.rounds} is not used, since budget takes no head of "
            "the encoder: there is one round"
        )
    if budget.min_heads_per_layer and not (budget.decoder_heads or budget.cross_heads):
        yield (
            f"budget.min_heads_per_layer: {budget.min_heads_per_layer} is not used, since budget "
            "takes no head"
        )


def _unused_method(recipe: Recipe, key: str) -> tuple[MethodBase, MethodBase] | None:
    """The method that a recipe gives by a key, and another by which all of its pools are scored."""
    given: MethodBase = getattr(recipe, key)
    used = [recipe.method_of(pool) for pool, own in METHOD_KEYS.items() if own == key]
    told = key in recipe.model_fields_set and all(one.name() != given.name() for one in used)
    return (given, used[0]) if told else None
