"""The typed recipe: everything a run depends on."""

from hibprune.recipe.inputs import Calibration, InputLimits, RecoverSettings, Validation
from hibprune.recipe.load import LoadedRecipe, load_recipe
from hibprune.recipe.settings import METRIC_GATES, Gates, Recipe
from hibprune.recipe.unused import unused_settings

__all__ = [
    "METRIC_GATES",
    "Calibration",
    "Gates",
    "InputLimits",
    "LoadedRecipe",
    "Recipe",
    "RecoverSettings",
    "Validation",
    "load_recipe",
    "unused_settings",
]
