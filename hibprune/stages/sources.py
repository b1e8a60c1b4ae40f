"""Opening a recipe: it is read, and its model and data are seen to be where it says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hibprune.errors import UserError
from hibprune.recipe import LoadedRecipe, load_recipe

CALIBRATION, VALIDATION, RECOVERY = "calibration", "validation", "recover"


def open_recipe(path: Path, overrides: Sequence[str] = (), offline: bool = False) -> LoadedRecipe:
    """Read a recipe and see that what it names is there, before anything slow is imported.

    Raises:
        UserError: a line for each fault.
    """
    loaded = load_recipe(path, overrides)
    require_sources(loaded, offline)
    return loaded


def require_sources(loaded: LoadedRecipe, offline: bool = False) -> None:
    """See that model and data are where the recipe says, without opening them.

    Raises:
        UserError: one line for each that is not.
    """
    recipe, root = loaded.recipe, loaded.root
    faults = [f"{loaded.path}: model.source: {line}" for line in recipe.model.problems(root)]
    for key, source in recipe.sources:
        faults += [f"{loaded.path}: {key}: {line}" for line in source.problems(root, offline)]
    if faults:
        raise UserError("\n".join(faults))
