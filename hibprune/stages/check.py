"""`hibprune check`: what can be known of a recipe without running it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hibprune.data import require_disjoint
from hibprune.data.paths import legible
from hibprune.errors import UserError
from hibprune.models.checkpoint import Checkpoint, load_checkpoint
from hibprune.recipe import LoadedRecipe, unused_settings
from hibprune.records.check import CheckReport
from hibprune.stages.budget import check_mix
from hibprune.stages.check_data import Progress, check_data
from hibprune.stages.hub import require_on_hub
from hibprune.stages.load import check_model, model_notes, require_distinct_labels, try_loss
from hibprune.stages.recovery_clips import labels_used, require_apart
from hibprune.stages.score_others import units_to_go
from hibprune.stages.sources import CALIBRATION, RECOVERY, VALIDATION, require_sources


def check_recipe(
    loaded: LoadedRecipe, offline: bool, progress: Progress = lambda use, done, total: None
) -> CheckReport:
    """Check what can be checked without running; faults are in the report, not raised.

    What is on this machine is opened: the model is loaded, clips are listed, their headers read and
    the first drawn decoded. `offline` leaves out what only the Hub could tell.
    """
    recipe, name = loaded.recipe, legible(str(loaded.path))
    faults: list[str] = []
    with _gathered(faults):
        require_sources(loaded, offline)
    if faults:
        return CheckReport(recipe=name, ok=False, faults=tuple(map(legible, faults)))
    not_checked: list[str] = []
    notes = [*unused_settings(recipe)]
    removes: tuple[str, ...] = ()
    checkpoint: Checkpoint | None = None
    with _gathered(faults):
        if recipe.model.local_directory(loaded.root) is not None:
            checkpoint = load_checkpoint(
                recipe.model, recipe.task, loaded.root, torch.device("cpu")
            )
            check_model(recipe, checkpoint)
            notes += model_notes(recipe, checkpoint)
            removes = units_to_go(recipe, checkpoint.model)
        else:
            not_checked.append(f"model {recipe.model.source}: on the Hub")
            if not offline:
                require_on_hub("model", recipe.model.source, recipe.model.revision)

    uses = [key.partition(".")[0] for key, _ in recipe.sources]
    checks = [check_data(loaded, use, checkpoint, offline, progress) for use in uses]
    for check in checks:
        faults += check.faults
        not_checked += check.not_checked
        notes += check.notes
    calibration, validation = checks[uses.index(CALIBRATION)], checks[uses.index(VALIDATION)]
    measured = validation.taken
    if checkpoint is not None and validation.targeted:
        with _gathered(faults):
            try_loss(recipe, checkpoint, validation.listed)
    if checkpoint is not None:
        with _gathered(faults):
            known = measured if validation.targeted else []
            references = [one.target for one in known if one.target is not None]
            mix = check_mix(recipe, checkpoint, references)
            removes += () if mix is None else (mix,)
    if measured:
        with _gathered(faults):
            require_distinct_labels(recipe, measured)
    if calibration.taken and measured:
        with _gathered(faults):
            require_disjoint(calibration.taken, measured)
    if recipe.recover is not None and RECOVERY in uses:
        learned = checks[uses.index(RECOVERY)].taken
        with _gathered(faults):
            if learned and measured:
                require_apart(learned, measured)
    elif recipe.recover is not None and calibration.listed:
        with _gathered(faults):
            labels_used(recipe, calibration.listed)
    return CheckReport(
        recipe=name,
        ok=not faults,
        faults=tuple(legible(line) for fault in faults for line in fault.splitlines()),
        not_checked=tuple(map(legible, not_checked)),
        notes=tuple(map(legible, notes)),
        removes=removes,
        data=tuple(check.about for check in checks),
    )


@contextmanager
def _gathered(faults: list[str]) -> Iterator[None]:
    """Note a fault and go on, so that a check finds all of them."""
    try:
        yield
    except UserError as error:
        faults += str(error).splitlines()
