"""The typed recipe: everything a run depends on."""

from hibprune.recipe.load import LoadedRecipe, load_recipe
from hibprune.recipe.settings import (
    METRIC_GATES,
    Calibration,
    Gates,
    InputLimits,
    Recipe,
    Validation,
)

__all__ = [
    "METRIC_GATES",
    "Calibration",
    "Gates",
    "InputLimits",
    "LoadedRecipe",
    "Recipe",
    "Validation",
    "load_recipe",
]
