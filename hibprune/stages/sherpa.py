"""Files for sherpa-onnx in a run: made of the pruned model, and held against it."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from hibprune.deployment.own_words import in_graph
from hibprune.deployment.sherpa import (
    CACHES,
    CROSS,
    DECODER,
    DIRECTORY,
    ENCODER,
    TOKENS,
    write_sherpa,
)
from hibprune.deployment.sherpa_decoder import NEVER, self_width
from hibprune.errors import UserError
from hibprune.execution.files import move_files, scratch_directory
from hibprune.execution.progress import StepNarration
from hibprune.execution.runtime import onnx_session, plain_onnx_errors
from hibprune.execution.steps import Done, Step, undo
from hibprune.models.checkpoint import Checkpoint
from hibprune.models.preprocessing import SoundPreprocessor
from hibprune.records.medium import Length
from hibprune.records.sherpa import SherpaFiles
from hibprune.stages.run import Run, once
from hibprune.stages.self_description import input_properties, task_properties
from hibprune.tasks.languages import language_code

STEP = "sherpa"
AT_ONCE, SINGLY = 4, 3
"""Tokens that are compared: fed at once, and then one by one."""


def sherpa_files(run: Run, pruned: Checkpoint, exported: str) -> Done[SherpaFiles] | None:
    """Write the files if the recipe asks for them, else take earlier ones away.

    `exported` is a key of the graphs that are made of the same model.

    Raises:
        UserError: they cannot be made, or are further from PyTorch than the export's tolerance.
    """
    if not run.recipe.export.sherpa:
        undo(run.directory, STEP)
        return None
    settings, generation = run.recipe.export, run.recipe.task.generation
    language = None if generation is None else generation.language
    encoder, decoder, tokens = (f"{DIRECTORY}/{name}" for name in (ENCODER, DECODER, TOKENS))

    def make(_: Step[SherpaFiles], narration: StepNarration) -> SherpaFiles:
        model = copy.deepcopy(pruned.model).cpu().eval()
        with scratch_directory(run.directory) as scratch:
            made = scratch / DIRECTORY
            made.mkdir()
            about = in_graph({**task_properties(run), **input_properties(run)})
            tokenizer = run.checkpoint.vocabulary.tokenizer
            write_sherpa(model, tokenizer, language, made, settings.opset, about)
            prepare = pruned.preprocessor
            assert isinstance(prepare, SoundPreprocessor)
            difference = max(
                _difference(model, prepare, made, length)
                for length in settings.lengths(run.recipe.task.medium)
            )
            # Written so that a difference which is no number fails.
            if not difference <= settings.tolerance:
                raise UserError(
                    f"export.sherpa: logits are {difference:.1e} of the largest from PyTorch's, "
                    f"over export.tolerance {settings.tolerance:g}: leave it out"
                )
            move_files(made, run.directory / DIRECTORY)
        return SherpaFiles(
            encoder=encoder,
            decoder=decoder,
            tokens=tokens,
            language=None if language is None else language_code(language),
            relative_diff=difference,
        )

    return once(
        run,
        STEP,
        {"graphs": exported, "settings": settings.of_graphs},
        SherpaFiles,
        make,
        lambda files: f"at most {files.relative_diff:.1e} from PyTorch",
        lambda files: [encoder, decoder, tokens],
        lambda kept: kept.paths == (encoder, decoder, tokens)
        and kept.relative_diff <= settings.tolerance,
    )  # fmt: skip


@torch.inference_mode()
def _difference(
    model: PreTrainedModel, prepare: SoundPreprocessor, made: Path, length: Length
) -> float:
    """How far logits are from PyTorch's for noise of some length and drawn tokens."""
    drawn = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.vocab_size, (1, AT_ONCE + SINGLY), generator=drawn)
    mel = prepare.example(length, 1)["input_features"]
    wanted = model(input_features=mel, decoder_input_ids=tokens, use_cache=False).logits[0].numpy()
    with plain_onnx_errors("export.sherpa: ONNX Runtime fails"):
        found = _logits(made, model, mel.numpy(), tokens.numpy())
    said = found > NEVER / 2
    return float(np.abs(found - wanted)[said].max(initial=0)) / (float(np.abs(wanted).max()) or 1.0)


def _logits(made: Path, model: PreTrainedModel, mel: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Those of the graphs (tokens, vocabulary), asked as sherpa-onnx does."""
    encoder, decoder = (onnx_session(made / name, "cpu") for name in (ENCODER, DECODER))
    cross = dict(zip(CROSS, encoder.run(list(CROSS), {"mel": mel}), strict=True))
    config, width = model.config, self_width(model)
    shape = (config.decoder_layers, 1, config.max_target_positions, width)
    kept = {name: np.zeros(shape, np.float32) for name in CACHES}
    logits, offset = [], 0
    for some in (tokens[:, :AT_ONCE], *np.split(tokens[:, AT_ONCE:], SINGLY, axis=1)):
        fed = {"tokens": some, **kept, **cross, "offset": np.array([offset])}
        said, *given = decoder.run(None, fed)
        kept = dict(zip(CACHES, given, strict=True))
        logits.append(said[0])
        offset += some.shape[1]
    return np.concatenate(logits)
