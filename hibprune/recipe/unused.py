"""Settings about units that a recipe gives and that its budget leaves unused."""

from __future__ import annotations

from collections.abc import Iterator

from hibprune.recipe.settings import Recipe
from hibprune.records.units import Pool

METHODS: dict[str, Pool] = {
    "attribution": "head",
    "neuron_attribution": "neuron",
    "channel_attribution": "channel",
    "decoder_head_attribution": "decoder_head",
}
"""What of a recipe says how units are scored, and a pool that is scored so."""


def unused_settings(recipe: Recipe) -> tuple[str, ...]:
    """A line for each; none for what would change nothing anyway."""
    budget = recipe.budget
    if budget.one_number is not None:
        return tuple(_beside_one_number(recipe))
    return () if budget.takes_heads else tuple(_without_heads(recipe))


def _beside_one_number(recipe: Recipe) -> Iterator[str]:
    budget = f"budget.{recipe.budget.one_number}"
    for key, pool in METHODS.items():
        given, used = getattr(recipe, key), recipe.method_of(pool)
        if key in recipe.model_fields_set and given.name() != used.name():
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
    given, used = recipe.attribution, recipe.method_of("head")
    if "attribution" in recipe.model_fields_set and given.name() != used.name():
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
