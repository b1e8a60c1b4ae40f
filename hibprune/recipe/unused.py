"""Settings about heads that a recipe gives and that its budget leaves unused."""

from __future__ import annotations

from hibprune.recipe.settings import Recipe


def unused_settings(recipe: Recipe) -> tuple[str, ...]:
    """A line for each, where no head of the encoder is to go.

    None for what would change nothing anyway, and none where one number is for all kinds.
    """
    budget = recipe.budget
    if budget.takes_heads or budget.one_number is not None:
        return ()
    lines = []
    given, used = recipe.attribution, recipe.method_of("head")
    if "attribution" in recipe.model_fields_set and given.name() != used.name():
        published = " with paper: true" if getattr(given, "paper", False) else ""
        lines.append(
            f"attribution: {given.name()}{published} is not used, since budget takes no head of "
            f"the encoder: heads are scored by {used.name()}, for the report alone"
        )
    if recipe.schedule.rounds > 1:
        lines.append(
            f"schedule.rounds: {recipe.schedule.rounds} is not used, since budget takes no head of "
            "the encoder: there is one round"
        )
    if budget.min_heads_per_layer and not (budget.decoder_heads or budget.cross_heads):
        lines.append(
            f"budget.min_heads_per_layer: {budget.min_heads_per_layer} is not used, since budget "
            "takes no head"
        )
    return tuple(lines)
