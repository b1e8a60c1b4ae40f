"""Export in a run: graphs that agree with PyTorch, or none."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from transformers import PreTrainedModel

from hibprune.deployment.export import (
    export_masked_onnx,
    export_onnx,
    write_metadata,
)
from hibprune.deployment.own_words import in_graph
from hibprune.deployment.parity import check_parity
from hibprune.execution.files import move_files, scratch_directory
from hibprune.execution.output import graph_bytes
from hibprune.execution.progress import StepNarration
from hibprune.execution.runtime import ONNX_DIRECTORY
from hibprune.execution.steps import Done, Step
from hibprune.models.checkpoint import Checkpoint
from hibprune.models.masking import masked_example
from hibprune.models.preprocessing import SoundPreprocessor
from hibprune.records.measurements import Evaluation, Parity
from hibprune.records.units import Plan
from hibprune.stages.credibility import credible_parity
from hibprune.stages.run import Run, once
from hibprune.stages.self_description import (
    graph_properties,
    input_properties,
    made_properties,
)


def original_parity(run: Run, directory: Path) -> Parity:
    """How closely graphs of the original, in `directory`/onnx, follow PyTorch.

    Raises:
        UserError: by less than the recipe wants.
    """
    return _parity(run, run.checkpoint, directory)


def export(
    run: Run, plan: Done[Plan], made: str, pruned: Checkpoint, original: Evaluation
) -> Done[Parity]:
    """Write the ONNX files of the pruned model and compare them with PyTorch.

    `made` is a key of its weights. Files that differ are not left.
    """
    settings, task = run.recipe.export, run.recipe.task

    def export(_: Step[Parity], narration: StepNarration) -> Parity:
        properties = graph_properties(run, plan.result.units, original.metric, original.value)
        properties |= in_graph(input_properties(run) | made_properties(run, pruned.model))
        with scratch_directory(run.directory) as scratch:
            write_graphs(run, pruned.model, scratch, properties)
            parity = _parity(run, pruned, scratch)
            move_files(scratch / ONNX_DIRECTORY, run.directory / ONNX_DIRECTORY)
        return parity

    return once(
        run,
        "export",
        {
            "name": run.recipe.name,
            "original": [original.metric, original.value],
            "model": made,
            "settings": settings.of_graphs,
        },
        Parity,
        export,
        lambda parity: (
            f"{sum(graph_bytes(run.directory, task.graphs).values()) / 1e6:.1f} MB, "
            f"at most {parity.worst.relative_diff:.1e} from PyTorch"
        ),
        lambda _: [f"{ONNX_DIRECTORY}/{name}" for name in task.exported_files],
        lambda kept: credible_parity(kept, settings.tolerance),
        version=6,
    )


def write_graphs(
    run: Run,
    model: PreTrainedModel,
    directory: Path,
    properties: Mapping[str, object] | None = None,
) -> None:
    """Export a model to `directory`/onnx; the graphs say about themselves what `properties` say."""
    task = run.recipe.task
    write = export_masked_onnx if run.recipe.export.attention_mask else export_onnx
    write(
        task.deployed(model),
        directory / ONNX_DIRECTORY,
        task.export_task,
        run.recipe.export.opset,
        task.exported_files,
    )
    for graph in task.graphs if properties is not None else ():
        write_metadata(directory / ONNX_DIRECTORY / graph, properties or {})


def _parity(run: Run, checkpoint: Checkpoint, directory: Path) -> Parity:
    task, model = run.recipe.task, checkpoint.model
    on_processor = model if model.device.type == "cpu" else copy.deepcopy(model).cpu()
    prepare, example = checkpoint.preprocessor, checkpoint.preprocessor.example
    settings = run.recipe.export
    if settings.attention_mask:
        assert isinstance(prepare, SoundPreprocessor)
        example = partial(masked_example, prepare)
        # A mask has something to say where there are two clips.
        pair = () if max(settings.batches) > 1 else (2,)
        settings = settings.model_copy(update={"batches": (*settings.batches, *pair)})
    return check_parity(
        task.torch_outputs(on_processor),
        task.onnx_outputs(directory),
        example,
        settings,
        task.medium,
    )
