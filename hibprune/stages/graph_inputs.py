"""What a recipe wants the graphs to take, held against the model before anything is written."""

from __future__ import annotations

from hibprune.deployment.sherpa import require_sherpa
from hibprune.deployment.waveform import require_waveform
from hibprune.errors import UserError
from hibprune.models.checkpoint import Checkpoint
from hibprune.models.masking import mask_fault
from hibprune.recipe import Recipe
from hibprune.stages.memory_needed import room_fault


def require_lengths(recipe: Recipe, checkpoint: Checkpoint) -> None:
    """See that the model takes inputs as long as those it is to be compared and timed on.

    Raises:
        UserError: it takes others only, or there is not the memory.
    """
    medium = recipe.task.medium
    for place, settings in (("benchmark", recipe.benchmark), ("export", recipe.export)):
        for length in settings.lengths(medium):
            batch = max(recipe.export.batches) if place == "export" else 1
            fault = checkpoint.preprocessor.length_fault(length)
            fault = fault or room_fault(checkpoint, length, batch)
            if fault:
                raise UserError(f"{place}.{medium.unit}: {fault}")


def require_graph_inputs(recipe: Recipe, checkpoint: Checkpoint) -> None:
    """See that the model can have the graphs that take a waveform, a mask, or sherpa-onnx's input.

    Raises:
        UserError: it cannot.
    """
    task = recipe.task
    if recipe.export.waveform:
        require_waveform(checkpoint.preprocessor, task.generation is not None)
    if recipe.export.sherpa:
        require_sherpa(checkpoint.model, checkpoint.preprocessor)
    if recipe.export.attention_mask:
        fault = mask_fault(checkpoint.model, checkpoint.preprocessor, task)
        if fault is not None:
            raise UserError(f"export.attention_mask: {fault}: leave it out")
