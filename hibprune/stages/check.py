"""`hibprune check`: what can be known of a recipe without running it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hibprune.data import Utterance, missing_audio, require_disjoint
from hibprune.errors import UserError
from hibprune.models.checkpoint import Checkpoint, load_checkpoint
from hibprune.recipe import LoadedRecipe
from hibprune.stages.load import (
    CALIBRATION,
    VALIDATION,
    calibration_order,
    check_model,
    check_targets,
    require_distinct_labels,
    require_sources,
    sources,
    validation_order,
)


def check_recipe(loaded: LoadedRecipe, offline: bool) -> list[str]:
    """Check what can be checked without running; returns what could not be, a line each.

    What is on this machine is opened: the model is loaded, the clips are listed but not decoded.

    Raises:
        UserError: one line per fault found.
    """
    recipe, root = loaded.recipe, loaded.root
    require_sources(loaded, offline)
    faults: list[str] = []
    unchecked: list[str] = []
    checkpoint: Checkpoint | None = None
    with _gathered(faults):
        if recipe.model.local_directory(root) is not None:
            checkpoint = load_checkpoint(recipe.model, recipe.task, root, torch.device("cpu"))
            check_model(recipe, checkpoint)
        elif offline:
            unchecked.append(f"model {recipe.model.source}: on the Hub")
        else:
            _require_on_hub(recipe.model.source, recipe.model.revision)

    clips: dict[str, list[Utterance]] = {}
    for place, source in sources(recipe):
        with _gathered(faults):
            if not source.at_hand(root):
                unchecked.append(f"{place}: its data are not on this machine")
                continue
            clips[place] = source.utterances(recipe.task.fields, root)
            if checkpoint and (place == VALIDATION or recipe.calibration.labels == "dataset"):
                check_targets(place, clips[place], recipe.task, checkpoint)
    for place, listed in clips.items():
        missing = missing_audio(listed)
        if missing:
            faults.append(
                f"{loaded.path}: {place}.source: {len(missing)} audio files are missing, "
                f"the first {missing[0]}"
            )
    available = len(clips.get(CALIBRATION, ()))
    if CALIBRATION in clips and recipe.calibration.samples > available:
        faults.append(
            f"{loaded.path}: calibration.samples: {recipe.calibration.samples} asked for, "
            f"but there are {recipe.task.medium.counted(available)}"
        )
    measured = validation_order(recipe, clips.get(VALIDATION, ()))[: recipe.validation.limit]
    if measured:
        with _gathered(faults):
            require_distinct_labels(recipe, measured)
    if len(clips) == 2:
        with _gathered(faults):
            require_disjoint(
                calibration_order(recipe, clips[CALIBRATION])[: recipe.calibration.samples],
                measured,
            )
    if faults:
        raise UserError("\n".join(faults))
    return unchecked


@contextmanager
def _gathered(faults: list[str]) -> Iterator[None]:
    """Note a fault and go on, so that a check finds all of them."""
    try:
        yield
    except UserError as error:
        faults.append(str(error))


def _require_on_hub(source: str, revision: str | None) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from requests.exceptions import RequestException

    try:
        HfApi().model_info(source, revision=revision, timeout=20)
    except (HfHubHTTPError, RequestException, OSError) as error:
        raise UserError(
            f"{source}: not found on the Hub ({type(error).__name__}): check the name and the "
            "network, or pass --offline"
        ) from error
