"""A recipe's run in a directory that does not stay, and how far models are from its original."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from transformers import PreTrainedModel

from hibprune.execution.output import open_output
from hibprune.execution.progress import Narrator
from hibprune.execution.runtime import choose_device
from hibprune.recipe import load_recipe
from hibprune.stages.load import encoded_target, load
from hibprune.stages.run import Run
from hibprune.tasks.seq2seq import fed_tokens

WITH_CLIPS_KEPT_OUT = ("budget={metric_drop: 0.01}", "removal={}")
"""A budget of a loss keeps a quarter of the clips out of scoring and repair."""


@contextmanager
def passing_run(recipe: Path, changes: Sequence[str] = WITH_CLIPS_KEPT_OUT) -> Iterator[Run]:
    """The run of a changed recipe, loaded; it says nothing."""
    loaded = load_recipe(recipe, list(changes))
    with tempfile.TemporaryDirectory() as directory, open_output(Path(directory)):
        device = choose_device("cpu")
        narrator = Narrator(Console(quiet=True))
        yield Run(loaded, load(loaded, device), Path(directory), device, narrator)


def divergence(run: Run, model: PreTrainedModel) -> float:
    """Mean KL divergence of a model's outputs from the original's, on clips held out.

    A decoder is fed the transcripts.
    """
    held_out, checkpoint, total = run.material.held_out, run.checkpoint, 0.0
    assert held_out is not None
    config = checkpoint.model.config
    for clip in held_out.utterances:
        inputs = checkpoint.inputs(checkpoint.read(clip.content, run.recipe.calibration.durations))
        if config.is_encoder_decoder:
            assert clip.target is not None
            said = encoded_target(run.recipe, checkpoint, clip, clip.target)
            inputs["decoder_input_ids"] = fed_tokens(config, [said], torch.device("cpu"))[0]
        with torch.no_grad():
            before, after = (
                one(**inputs).logits.double().log_softmax(-1) for one in (checkpoint.model, model)
            )
        total += float((before.exp() * (before - after)).sum(-1).mean())
    return total / len(held_out.utterances)
