"""The waveform graph in a run: made of the exported one, and held against the extractor."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hibprune.deployment.waveform import (
    INPUT,
    graph_difference,
    waveform_graph_name,
    write_waveform_graph,
)
from hibprune.errors import UserError
from hibprune.execution.files import scratch_directory
from hibprune.execution.progress import StepNarration
from hibprune.execution.runtime import ONNX_DIRECTORY
from hibprune.execution.steps import Done, Step, undo
from hibprune.models.masking import padded, shortened_noise
from hibprune.models.preprocessing import SoundPreprocessor
from hibprune.records.medium import Length
from hibprune.records.waveform import WaveformGraph
from hibprune.stages.run import Run, once

STEP = "waveform"


def waveform_graph(run: Run, exported: str) -> Done[WaveformGraph] | None:
    """Write the graph if the recipe asks for it, else take an earlier one away.

    `exported` is a key of the graphs.

    Raises:
        UserError: it cannot be made, or is further from the extractor than the export's tolerance.
    """
    if not run.recipe.export.waveform:
        undo(run.directory, STEP)
        return None
    first = run.recipe.task.graphs[0]
    source, made = (f"{ONNX_DIRECTORY}/{name}" for name in (first, waveform_graph_name(first)))
    tolerance = run.recipe.export.tolerance

    def make(_: Step[WaveformGraph], narration: StepNarration) -> WaveformGraph:
        preprocessor = run.checkpoint.preprocessor
        assert isinstance(preprocessor, SoundPreprocessor)
        with scratch_directory(run.directory) as scratch:
            joined = scratch / "joined.onnx"
            extractor, opset = preprocessor.feature_extractor, run.recipe.export.opset
            write_waveform_graph(extractor, run.directory / source, joined, opset)
            difference = max(
                graph_difference(run.directory / source, features, joined, sound)
                for length in run.recipe.export.lengths(run.recipe.task.medium)
                for batch in run.recipe.export.batches
                for features, sound in [_example(run, preprocessor, length, batch)]
            )
            # Written so that a difference which is no number fails.
            if not difference <= tolerance:
                raise UserError(
                    f"export.waveform: the graph is {difference:.1e} of the largest value from the "
                    f"feature extractor, over export.tolerance {tolerance:g}: leave it out"
                )
            joined.replace(run.directory / made)
        return WaveformGraph(path=made, made_from=source, relative_diff=difference)

    return once(
        run,
        STEP,
        {"graphs": exported, "settings": run.recipe.export.of_graphs},
        WaveformGraph,
        make,
        lambda graph: f"at most {graph.relative_diff:.1e} from the feature extractor",
        lambda graph: [made],
        lambda kept: kept.path == made and kept.made_from == source
        and kept.relative_diff <= tolerance,
    )  # fmt: skip


def _example(
    run: Run, preprocessor: SoundPreprocessor, length: Length, batch: int
) -> tuple[dict[str, Tensor], np.ndarray]:
    """Clips as features and as they are (batch, samples), of several lengths where masks tell."""
    if not run.recipe.export.attention_mask:
        noise = preprocessor.noise(length, batch)
        return preprocessor.inputs(noise), noise
    clips = shortened_noise(preprocessor, length, batch)
    sound = padded([{INPUT: torch.from_numpy(clip)[None]} for clip in clips])[INPUT]
    return padded([preprocessor.inputs(clip) for clip in clips]), sound.numpy()
