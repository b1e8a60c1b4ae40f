"""Export in a run: graphs that agree with PyTorch, or none."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path

from transformers import PreTrainedModel

from hibprune.deployment.export import TASK_SETTINGS, export_onnx, write_metadata
from hibprune.deployment.parity import check_parity
from hibprune.execution.files import move_files, scratch_directory
from hibprune.execution.output import graph_bytes
from hibprune.execution.progress import StepNarration
from hibprune.execution.runtime import ONNX_DIRECTORY
from hibprune.execution.steps import Done, Step
from hibprune.models.checkpoint import Checkpoint
from hibprune.models.low_rank import ranks_by_layer
from hibprune.models.preprocessing import SoundPreprocessor
from hibprune.records.measurements import Evaluation, Parity
from hibprune.records.units import POOLS, Plan, heads_by_layer
from hibprune.stages.credibility import credible_parity
from hibprune.stages.run import Run, once


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
        properties = graph_properties(run, plan.result, original.metric, original.value)
        properties |= input_properties(run)
        if ranks := ranks_by_layer(pruned.model):
            properties["hibprune.projection_ranks"] = ranks
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
        version=5,
    )


def graph_properties(run: Run, plan: Plan, metric: str, original: float) -> dict[str, object]:
    """What the graphs of a pruned model say about themselves."""
    return {
        "hibprune.recipe": run.recipe.name,
        "hibprune.task": run.recipe.task.kind,
        TASK_SETTINGS: run.recipe.task.model_dump(mode="json"),
        "hibprune.removed_heads": heads_by_layer(plan.removed),
        **{
            f"hibprune.removed_{pool}s": {
                layer: len(indices) for layer, indices in plan.by_layer(pool).items()
            }
            for pool in POOLS
            if pool != "head"
        },
        "hibprune.metric": {"name": metric, "original": original},
    }


def input_properties(run: Run) -> dict[str, object]:
    """What whoever runs the graphs elsewhere has to know of them, of what goes in and comes out.

    `normalised` sound has mean 0 and variance 1 clip by clip; limits are None where there are none.
    """
    task, prepare = run.recipe.task, run.checkpoint.preprocessor
    longest = prepare.longest if math.isfinite(prepare.longest) else None
    properties: dict[str, object] = {
        f"hibprune.min_{task.medium.unit}": prepare.shortest,
        f"hibprune.max_{task.medium.unit}": longest,
    }
    if isinstance(prepare, SoundPreprocessor):
        extractor = prepare.feature_extractor
        properties["hibprune.sampling_rate"] = prepare.sampling_rate
        properties["hibprune.normalised"] = bool(getattr(extractor, "do_normalize", False))
        waveform = run.checkpoint.model.main_input_name == "input_values"
        properties["hibprune.padding"] = (
            "none: clips in a batch are of equal length"
            if waveform
            else "silence, up to the length that the feature extractor fills"
        )
    if task.fields.kind != "text":
        properties["hibprune.labels"] = run.checkpoint.vocabulary.labels
    removal, recover = run.recipe.removal, run.recipe.recover
    properties["hibprune.repair"] = {
        "kind": removal.repair,
        "refined": removal.refine is not None,
        "recovered": recover is not None,
    }
    if task.generation is not None:
        properties["hibprune.generation"] = task.generation.model_dump(mode="json")
    return properties


def write_graphs(
    run: Run,
    model: PreTrainedModel,
    directory: Path,
    properties: Mapping[str, object] | None = None,
) -> None:
    """Export a model to `directory`/onnx; the graphs say about themselves what `properties` say."""
    task = run.recipe.task
    export_onnx(
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
    return check_parity(
        task.torch_outputs(on_processor),
        task.onnx_outputs(directory),
        checkpoint.preprocessor.example,
        run.recipe.export,
        task.medium,
    )
