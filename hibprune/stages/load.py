"""From a recipe to a model and data that are known to be good, before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hibprune.compression.means import mean_outputs, means_fault, move_means
from hibprune.compression.plan import check_budget
from hibprune.data import (
    Content,
    DataSource,
    Selection,
    Utterance,
    drawing_order,
    require_disjoint,
    usable,
)
from hibprune.errors import UserError
from hibprune.evaluation.chance import single_label_fault
from hibprune.models.attention import heads_of
from hibprune.models.checkpoint import Checkpoint, load_checkpoint
from hibprune.models.preprocessing import Reading
from hibprune.recipe import InputLimits, LoadedRecipe, Recipe
from hibprune.tasks import Target, TaskBase

CALIBRATION, VALIDATION = "calibration", "validation"
NAMED_WHEN_SKIPPED = 10


@dataclass(frozen=True)
class Material:
    """What a run works on."""

    checkpoint: Checkpoint
    calibration: Selection
    validation: Selection

    @property
    def references(self) -> list[Target]:
        """What is true of each validation clip."""
        return [clip.target for clip in self.validation.utterances if clip.target is not None]


def load(
    loaded: LoadedRecipe,
    device: torch.device,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Material:
    """Load the model, draw the clips, and find every fault that can be found before the work.

    Raises:
        UserError: model, data or budget are not what the recipe needs.
    """
    recipe = loaded.recipe
    require_sources(loaded)
    calibration, validation = list_clips(recipe, loaded.root)
    checkpoint = load_checkpoint(recipe.model, recipe.task, loaded.root, device)
    check_model(recipe, checkpoint)
    labelled_calibration = recipe.calibration.labels == "dataset"
    if labelled_calibration:
        check_targets(CALIBRATION, calibration, recipe.task, checkpoint)
    check_targets(VALIDATION, validation, recipe.task, checkpoint)

    drawn = usable(
        calibration_order(recipe, calibration),
        CALIBRATION,
        reader(checkpoint, recipe.calibration),
        recipe.calibration.samples,
        recipe.calibration.max_unreadable,
        progress,
    )
    limit = recipe.validation.limit
    measured = usable(
        validation_order(recipe, validation),
        VALIDATION,
        reader(checkpoint, recipe.validation),
        None if limit is None else min(limit, len(validation)),
        recipe.validation.max_unreadable,
        progress,
    )
    require_disjoint(drawn.utterances, measured.utterances)
    require_distinct_labels(recipe, measured.utterances)
    if recipe.removal.leave == "mean":
        clips = (calibration_inputs(recipe, checkpoint, clip) for clip in drawn.utterances)
        move_means(checkpoint.model, mean_outputs(checkpoint.model, clips))
    return Material(checkpoint, drawn, measured)


def calibration_inputs(
    recipe: Recipe, checkpoint: Checkpoint, clip: Utterance
) -> dict[str, Tensor]:
    """What heads are scored on: a clip, or its beginning where the recipe crops."""
    settings = recipe.calibration
    reading = checkpoint.read(clip.content, settings.durations)
    if settings.crop_seconds is not None:
        reading = checkpoint.preprocessor.beginning(reading, settings.crop_seconds)
    return checkpoint.calibration_inputs(reading)


def check_model(recipe: Recipe, checkpoint: Checkpoint) -> None:
    """See that the model has the heads to remove, and takes inputs as long as the recipe wants.

    Raises:
        UserError: it has not, takes shorter ones only, or cannot keep what heads are to leave.
    """
    check_budget(recipe.budget, heads_of(checkpoint.model, recipe.attribution.scored_stacks()))
    unkept = means_fault(checkpoint.model) if recipe.removal.leave == "mean" else None
    if unkept is not None:
        raise UserError(f"removal.leave: {unkept}")
    medium = recipe.task.medium
    for place, settings in (("benchmark", recipe.benchmark), ("export", recipe.export)):
        for length in settings.lengths(medium):
            fault = checkpoint.preprocessor.length_fault(length)
            if fault:
                raise UserError(f"{place}.{medium.unit}: {fault}: set shorter ones")


def reader(checkpoint: Checkpoint, limits: InputLimits) -> Callable[[Content], Reading]:
    """Reads what the model is given, or raises ContentFault."""
    return lambda content: checkpoint.read(content, limits.durations)


def require_sources(loaded: LoadedRecipe, offline: bool = False) -> None:
    """See that model and data are where the recipe says, without opening them.

    Raises:
        UserError: one line for each that is not.
    """
    recipe, root = loaded.recipe, loaded.root
    faults = [f"{loaded.path}: model.source: {line}" for line in recipe.model.problems(root)]
    for place, source in sources(recipe):
        faults += [
            f"{loaded.path}: {place}.source: {line}" for line in source.problems(root, offline)
        ]
    if faults:
        raise UserError("\n".join(faults))


def calibration_order(recipe: Recipe, clips: Sequence[Utterance]) -> list[Utterance]:
    """The clips in the order they are drawn, balanced over labels; later ones are replacements."""
    return drawing_order(clips, recipe.seed, balanced=recipe.task.fields.kind != "text")


def validation_order(recipe: Recipe, clips: Sequence[Utterance]) -> list[Utterance]:
    """The clips as listed or, where a limit is set, in a seeded order."""
    if recipe.validation.limit is None:
        return list(clips)
    return drawing_order(clips, recipe.seed, balanced=False)


def list_clips(recipe: Recipe, root: Path) -> tuple[list[Utterance], list[Utterance]]:
    """Calibration and validation clips as their sources list them, unread.

    Raises:
        UserError: a source is not there or not in the form it should have.
    """
    return (
        recipe.calibration.source.utterances(recipe.task.fields, root),
        recipe.validation.source.utterances(recipe.task.fields, root),
    )


def check_targets(
    place: str, utterances: Sequence[Utterance], task: TaskBase, checkpoint: Checkpoint
) -> None:
    """See that the model has a number for every target, and that the metric is defined for them.

    Raises:
        UserError: names the first clip without a target, or with one the model does not know; or
            there is nothing in the targets to measure by.
    """
    for utterance in utterances:
        if utterance.target is None:
            remedy = " or set calibration.labels: model" if place == CALIBRATION else ""
            raise UserError(
                f"{place}: {utterance.id} has no {task.fields.kind}: label "
                f"the {task.medium.many}{remedy}"
            )
        try:
            task.encode(utterance.target, checkpoint.vocabulary)
        except ValueError as error:
            # A label may hold line breaks, an error is one line.
            raise UserError(f"{place}: {utterance.id}: {' '.join(str(error).split())}") from error
    if place == VALIDATION:
        references = [clip.target for clip in utterances if clip.target is not None]
        fault = task.references_fault(references, checkpoint.vocabulary)
        if fault is not None:
            raise UserError(f"{place}: {fault}")


def require_distinct_labels(recipe: Recipe, validation: Sequence[Utterance]) -> None:
    """See that accuracy on the validation clips says something of a model.

    Raises:
        UserError: they all have one label, and the recipe does not allow that.
    """
    if recipe.validation.allow_chance_baseline or recipe.task.fields.kind == "text":
        return
    labels = [clip.target for clip in validation if clip.target is not None]
    fault = single_label_fault(labels, recipe.task.medium)
    if fault is not None:
        raise UserError(fault)


def skipped_lines(material: Material) -> list[str]:
    """The clips that cannot be used, a line each; past a handful, how many more there are."""
    medium = material.checkpoint.preprocessor.medium
    skipped = [
        f"skipped {place} {medium.one} {clip}: {reason}"
        for place, selection in (
            (CALIBRATION, material.calibration),
            (VALIDATION, material.validation),
        )
        for clip, reason in selection.skipped
    ]
    more = len(skipped) - NAMED_WHEN_SKIPPED
    rest = [f"skipped {more} more, named in manifest.json"] if more > 0 else []
    return skipped[:NAMED_WHEN_SKIPPED] + rest


def sources(recipe: Recipe) -> tuple[tuple[str, DataSource], ...]:
    return (
        (CALIBRATION, recipe.calibration.source),
        (VALIDATION, recipe.validation.source),
    )


def loaded_line(material: Material, device: torch.device) -> str:
    """What was loaded, in a line."""
    skipped = len(material.calibration.skipped) + len(material.validation.skipped)
    lost = f", {skipped} skipped" if skipped else ""
    return (
        f"{material.checkpoint.family.model_type} on {device.type}, "
        f"{len(material.calibration.utterances)} calibration and "
        f"{len(material.validation.utterances)} validation "
        f"{material.checkpoint.preprocessor.medium.many}{lost}"
    )
