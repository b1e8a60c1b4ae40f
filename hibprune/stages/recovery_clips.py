"""The clips of a recipe that recovery learns from: drawn, read once, and told from validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from hibprune.data import Selection, Utterance, drawing_order, require_disjoint, usable
from hibprune.errors import UserError
from hibprune.models.checkpoint import Checkpoint
from hibprune.recipe import Recipe, RecoverSettings
from hibprune.stages.sources import RECOVERY
from hibprune.stages.targets import with_targets


def recovery_clips(
    recipe: Recipe,
    checkpoint: Checkpoint,
    clips: Sequence[Utterance],
    validation: Sequence[Utterance],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Selection, list[str]]:
    """Those of `recover.data` that are used, all of them or the first drawn, and notes on labels.

    Raises:
        UserError: too many cannot be read, the model does not know a label that is needed, or some
            are among the validation clips.
    """
    settings = recipe.recover
    assert settings is not None
    notes: list[str] = []
    if labels_used(recipe, clips) == "dataset":
        targeted = with_targets(RECOVERY, clips, recipe.task, checkpoint.vocabulary, measured=False)
        clips, notes = targeted.utterances, list(targeted.notes)
    chosen = usable(
        recovery_order(recipe, clips),
        RECOVERY,
        lambda content: checkpoint.read(content, settings.durations),
        None if settings.limit is None else min(settings.limit, len(clips)),
        settings.max_unreadable,
        progress,
    )
    require_apart(chosen.utterances, validation)
    return chosen, notes


def recovery_seed(recipe: Recipe) -> int:
    """What decides the order of clips, how they vary, and which are held out."""
    assert recipe.recover is not None
    return recipe.seed if recipe.recover.seed is None else recipe.recover.seed


def held_out_count(recipe: Recipe, clips: int) -> int:
    """How many of the clips are not learned from.

    Raises:
        UserError: there are too few to hold any out.
    """
    assert recipe.recover is not None
    share = recipe.recover.held_out
    number = max(1, round(share * clips)) if share else 0
    if number >= clips:
        raise UserError(
            f"recover: {recipe.task.medium.counted(clips)} to learn from, and {number} of them to "
            "hold out: give more, or set recover.held_out: 0"
        )
    return number


def require_precision(recipe: Recipe, device: torch.device) -> None:
    """Raise UserError where a training is asked for in a precision that the device has not."""
    recover = recipe.recover
    if recover is not None and recover.precision == "fp16" and device.type == "cpu":
        raise UserError("recover.precision: fp16 is for GPUs: set it to fp32 or bf16")


def require_apart(learned: Sequence[Utterance], validation: Sequence[Utterance]) -> None:
    """Raise UserError with examples when clips to learn from are among those to measure on."""
    require_disjoint(learned, validation, "recover.data", "the model is not trained on")


def recovery_order(recipe: Recipe, clips: Sequence[Utterance]) -> list[Utterance]:
    """The clips as listed or, where a limit is set, in a seeded order balanced over labels."""
    assert recipe.recover is not None
    if recipe.recover.limit is None:
        return list(clips)
    labelled = recipe.task.fields.kind != "text" and all(clip.target for clip in clips)
    return drawing_order(clips, recipe.seed, balanced=labelled)


def labels_used(recipe: Recipe, clips: Sequence[Utterance]) -> str | None:
    """Where what is true of the clips comes from: `dataset`, `model`, or nowhere as it is not used.

    Raises:
        UserError: the task's own loss has a weight, and there are no labels.
    """
    settings = recipe.recover
    assert settings is not None
    needed = bool(settings.loss.task) or recipe.task.generation is not None
    if not needed:
        return None
    if settings.labels is not None:
        return settings.labels
    own = settings.data is not None or recipe.calibration.labels == "dataset"
    if own and all(clip.target is not None for clip in clips):
        return "dataset"
    if settings.loss.task:
        raise UserError(
            f"recover.loss.task: {_without_labels(recipe, settings, clips)}: label them, leave "
            "task out, or set recover.labels: model"
        )
    return "model"


def _without_labels(recipe: Recipe, settings: RecoverSettings, clips: Sequence[Utterance]) -> str:
    medium = recipe.task.medium
    if settings.data is None:
        return f"the calibration {medium.many} have no labels"
    missing = next(clip for clip in clips if clip.target is None)
    return f"{medium.one} {missing.id} of recover.data has no {recipe.task.fields.kind}"
