"""From a recipe to a model and data that are known to be good, before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hibprune.attribution.batches import read_unmodified
from hibprune.attribution.session import Sample
from hibprune.compression.plan import check_budget, require_encoder
from hibprune.data import (
    Content,
    Selection,
    Utterance,
    drawing_order,
    require_disjoint,
    usable,
)
from hibprune.errors import UserError, shortened
from hibprune.evaluation.chance import single_label_fault
from hibprune.execution.progress import Narrator
from hibprune.execution.runtime import choose_device
from hibprune.models.architecture import graph_fault
from hibprune.models.attention import frozen, heads_of, positions_fitted
from hibprune.models.checkpoint import Checkpoint, load_checkpoint
from hibprune.models.low_rank import require_whole_projections
from hibprune.models.parts import plain_faults
from hibprune.models.preprocessing import Reading
from hibprune.models.trial import REMEDY
from hibprune.recipe import InputLimits, LoadedRecipe, Recipe
from hibprune.report.checking import passed_over_lines
from hibprune.stages.budget import check_mix, check_shares
from hibprune.stages.graph_inputs import require_graph_inputs, require_lengths
from hibprune.stages.held_out import held_out_of
from hibprune.stages.recovery_clips import (
    held_out_count,
    labels_used,
    recovery_clips,
    require_precision,
)
from hibprune.stages.sources import CALIBRATION, RECOVERY, VALIDATION, require_sources
from hibprune.stages.targets import with_targets
from hibprune.tasks import Encoded, Target

NAMED_WHEN_SKIPPED = 10


@dataclass(frozen=True)
class Material:
    """What a run works on."""

    checkpoint: Checkpoint
    calibration: Selection
    validation: Selection
    repair: Selection
    """Clips that removal is repaired on: the calibration clips first, then others."""
    recovery: Selection
    """Clips that it is recovered on, where it is: those of repair, or others."""
    passed_over: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)
    """Files beside the clips that are taken for none, by the set, each with the reason."""
    held_out: Selection | None = None
    """Calibration clips that are neither, where a budget is a loss of the metric."""
    notes: tuple[str, ...] = ()
    """What is odd about model and labels, a line each."""

    @property
    def references(self) -> list[Target]:
        """What is true of each validation clip."""
        return [clip.target for clip in self.validation.utterances if clip.target is not None]


def load(
    loaded: LoadedRecipe,
    device: torch.device,
    progress: Callable[[int, int], None] = lambda done, total: None,
    exports: bool = True,
) -> Material:
    """Load the model, draw the clips, and find every fault that can be found before the work.

    `exports`: the model is to be written in formats that hold no model of any size.

    Raises:
        UserError: model, data or budget are not what the recipe needs.
    """
    recipe = loaded.recipe
    require_sources(loaded)
    require_precision(recipe, device)
    listings = {
        key.partition(".")[0]: source.listing(recipe.task.fields, loaded.root)
        for key, source in recipe.sources
    }
    calibration, validation = (listings[use].utterances for use in (CALIBRATION, VALIDATION))
    checkpoint = load_checkpoint(recipe.model, recipe.task, loaded.root, device)
    check_model(recipe, checkpoint, exports)
    notes = list(model_notes(recipe, checkpoint))
    if recipe.calibration.labels == "dataset":
        targeted = with_targets(
            CALIBRATION, calibration, recipe.task, checkpoint.vocabulary, measured=False
        )
        calibration = targeted.utterances
        notes += targeted.notes
    targeted = with_targets(
        VALIDATION, validation, recipe.task, checkpoint.vocabulary, measured=True
    )
    validation = targeted.utterances
    notes += targeted.notes
    try_loss(recipe, checkpoint, validation)

    drawn = usable(
        calibration_order(recipe, calibration),
        CALIBRATION,
        reader(checkpoint, recipe.calibration),
        max(recipe.calibration.samples, recipe.calibration.repair_samples or 0),
        recipe.calibration.max_unreadable,
        progress,
    )
    scored = drawn.first(recipe.calibration.samples)
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
    passed_over = {use: listing.passed_over for use, listing in listings.items()}
    references = [one.target for one in measured.utterances if one.target is not None]
    check_mix(recipe, checkpoint, references)
    repaired = drawn.first(recipe.calibration.repair_samples or recipe.calibration.samples)
    held_out = None
    if recipe.budget.one_number == "metric_drop":
        scored, repaired, held_out = held_out_of(drawn, scored, repaired)
    recovery = repaired
    if RECOVERY in listings:
        recovery, more = recovery_clips(
            recipe, checkpoint, listings[RECOVERY].utterances, measured.utterances, progress
        )
        notes += more
    elif recipe.recover is not None:
        labels_used(recipe, repaired.utterances)
    if recipe.recover is not None:
        held_out_count(recipe, len(recovery.utterances))
    return Material(
        checkpoint, scored, measured, repaired, recovery, passed_over, held_out, tuple(notes)
    )


def calibration_inputs(
    recipe: Recipe, checkpoint: Checkpoint, clip: Utterance
) -> dict[str, Tensor]:
    """What heads are scored on: a clip, or its beginning where the recipe crops."""
    settings = recipe.calibration
    reading = checkpoint.read(clip.content, settings.durations)
    if settings.crop_seconds is not None:
        reading = checkpoint.preprocessor.beginning(reading, settings.crop_seconds)
    return checkpoint.calibration_inputs(reading)


def calibration_sample(
    recipe: Recipe, checkpoint: Checkpoint, clip: Utterance, target: Target, whole: bool = False
) -> Sample:
    """A clip as units are scored on it, with what is to be said of it.

    `whole`: in the window that the model fills with silence, where it does.

    Raises:
        UserError: that is no target for it.
    """
    encoded = encoded_target(recipe, checkpoint, clip, target)
    if whole:
        reading = checkpoint.read(clip.content, recipe.calibration.durations)
        return Sample(clip.id, checkpoint.inputs(reading), encoded)
    return Sample(clip.id, calibration_inputs(recipe, checkpoint, clip), encoded)


def encoded_target(
    recipe: Recipe, checkpoint: Checkpoint, clip: Utterance, target: Target
) -> Encoded:
    """What is to be said of a calibration clip, as the task's loss takes it.

    Raises:
        UserError: that is no target for it.
    """
    try:
        return recipe.task.encode(target, checkpoint.vocabulary)
    except ValueError as error:
        # The data set's own targets were seen to when they were loaded.
        raise UserError(
            f"calibration: {clip.id}: what the model says of it is no target for it: {error}: "
            "leave it out or set calibration.labels: dataset"
        ) from error


def check_model(recipe: Recipe, checkpoint: Checkpoint, exports: bool = True) -> None:
    """See that the model has the heads to remove, and takes inputs as long as the recipe wants.

    Raises:
        UserError: it has not, takes other lengths only, or is
            too large for the files it is to be exported to.
    """
    fault = graph_fault(checkpoint.model) if exports else None
    if fault is not None:
        raise UserError(f"{recipe.model.source}: {fault}")
    require_whole_projections(checkpoint.model, recipe.model.source)
    scored = heads_of(checkpoint.model, recipe.method_of("head").scored_stacks())
    if recipe.budget.one_number is None:
        check_budget(recipe.budget, scored)
    else:
        require_encoder(scored)
    check_shares(recipe.budget, checkpoint.model)
    require_lengths(recipe, checkpoint)
    if exports:
        require_graph_inputs(recipe, checkpoint)
    crop = recipe.calibration.crop_seconds
    if crop is not None and crop < checkpoint.preprocessor.shortest:
        raise UserError(
            f"calibration.crop_seconds: {crop:g} s is less than the "
            f"{checkpoint.preprocessor.shortest:g} s that the model needs: raise it"
        )


def try_loss(recipe: Recipe, checkpoint: Checkpoint, labelled: Sequence[Utterance]) -> None:
    """Compute once, on made-up input, the loss that heads are scored by.

    Raises:
        UserError: it cannot be computed, or is no number.
    """
    target = next((clip.target for clip in labelled if clip.target is not None), None)
    if target is None:
        return
    model, task = checkpoint.model, recipe.task
    place = f"{recipe.model.source}: its loss on a trial {task.medium.one} cannot be computed"
    with plain_faults(place, checkpoint.staged, REMEDY), frozen(model), torch.no_grad():
        inputs = checkpoint.trial_inputs()
        sample = Sample("trial", inputs, task.encode(target, checkpoint.vocabulary))
        with positions_fitted(model, inputs):
            loss = task.loss(model, read_unmodified(model, [sample], attention=False).batch)
        if not torch.isfinite(loss).all():
            raise UserError(f"{place}: it is NaN or infinite{REMEDY}")


def model_notes(recipe: Recipe, checkpoint: Checkpoint) -> tuple[str, ...]:
    """What is odd about a model that serves the task all the same, a line each."""
    note = recipe.task.vocabulary_note(checkpoint.vocabulary)
    return () if note is None else (f"{recipe.model.source}: {note}",)


def reader(checkpoint: Checkpoint, limits: InputLimits) -> Callable[[Content], Reading]:
    """Reads what the model is given, or raises ContentFault."""
    return lambda content: checkpoint.read(content, limits.durations)


def calibration_order(recipe: Recipe, clips: Sequence[Utterance]) -> list[Utterance]:
    """The clips in the order they are drawn, balanced over labels; later ones are replacements."""
    return drawing_order(clips, recipe.seed, balanced=recipe.task.fields.kind != "text")


def validation_order(recipe: Recipe, clips: Sequence[Utterance]) -> list[Utterance]:
    """The clips as listed or, where a limit is set, in a seeded order."""
    if recipe.validation.limit is None:
        return list(clips)
    return drawing_order(clips, recipe.seed, balanced=False)


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
    """The clips that cannot be used, a line each; past a handful, how many more there are.

    Then the files that were passed over, a line for each reason.
    """
    medium = material.checkpoint.preprocessor.medium
    skipped = [
        f"skipped {place} {medium.one} {shortened(clip)}: {reason}"
        for place, selection in (
            (CALIBRATION, material.calibration),
            (VALIDATION, material.validation),
            *((RECOVERY, one) for one in (material.recovery,) if one is not material.repair),
        )
        for clip, reason in selection.skipped
    ]
    more = len(skipped) - NAMED_WHEN_SKIPPED
    rest = [f"skipped {more} more, named in manifest.json"] if more > 0 else []
    passed_over = [
        f"{use}: {line}"
        for use, files in material.passed_over.items()
        for line in passed_over_lines(files)
    ]
    return skipped[:NAMED_WHEN_SKIPPED] + rest + passed_over


def load_in_step(
    loaded: LoadedRecipe, narrator: Narrator, exports: bool = True
) -> tuple[Material, torch.device]:
    """Load as the first step that is told of, on the device that the recipe asks for.

    Raises:
        UserError: as `load`, or there is no such device.
    """
    device = choose_device(loaded.recipe.device)
    with narrator.step("load") as narration:
        material = load(loaded, device, narration.advance, exports)
        narration.found(loaded_line(material, device))
    return material, device


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
