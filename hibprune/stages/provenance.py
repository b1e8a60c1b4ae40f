"""What a run was made from: the checkpoint, and the clips or texts of a set of data."""

from __future__ import annotations

from hibprune.data import Selection
from hibprune.recipe import LoadedRecipe
from hibprune.records.licence import Licence
from hibprune.records.manifest import DataSummary, ModelSummary, SkippedClip
from hibprune.stages.load import Material


def model_summary(loaded: LoadedRecipe, material: Material) -> ModelSummary:
    """Which checkpoint a run works on."""
    source = loaded.recipe.model
    return ModelSummary(
        source=source.source,
        on_hub=source.local_directory(loaded.root) is None,
        revision=source.revision,
        family=material.checkpoint.family.model_type,
        identity=material.checkpoint.identity,
        licence=_licence(loaded, material),
    )


def _licence(loaded: LoadedRecipe, material: Material) -> Licence | None:
    """That of the recipe before that which the checkpoint's own card states."""
    told = loaded.recipe.export.license
    if told is not None:
        return Licence(id=told, taken_from="recipe")
    return material.checkpoint.licence


def data_summary(selection: Selection, kind: str) -> DataSummary:
    """Which clips a run works on, from a source of some kind."""
    return DataSummary(
        kind=kind,
        n=len(selection.utterances),
        identity=selection.identity,
        skipped=tuple(SkippedClip(id=clip, reason=why) for clip, why in selection.skipped),
    )
