"""What each step of the chain does; every one runs through `Step.once`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from hibprune.compression.remove import remove_heads, save_configuration, save_model
from hibprune.deployment.export import check_parity, export_onnx, write_metadata
from hibprune.errors import UserError
from hibprune.evaluation.chance import chance_fault
from hibprune.evaluation.footprint import measure_footprint
from hibprune.evaluation.latency import measure_latency
from hibprune.evaluation.metric import evaluate, metric_line, prediction_lines
from hibprune.execution.files import scratch_directory, write_files_via_temporary, write_text
from hibprune.execution.output import PREDICTIONS, onnx_bytes
from hibprune.execution.progress import StepNarration
from hibprune.execution.runtime import ONNX_DIRECTORY, PROVIDERS, Predict
from hibprune.execution.steps import Done, Step
from hibprune.models.checkpoint import Checkpoint, ModelSource, load_checkpoint
from hibprune.records.measurements import Benchmark, Evaluation, Parity, Removal
from hibprune.records.units import Plan, heads_by_layer
from hibprune.stages.run import Run, once


def baseline(run: Run) -> Done[Evaluation]:
    """Measure the original model.

    Raises:
        UserError: it is no better than chance, and the recipe does not allow that: what follows
            would compare guesses.
    """
    checkpoint, recipe = run.checkpoint, run.recipe
    predict = recipe.task.torch_predict
    measured = _measured(
        run, "baseline", "baseline", {}, checkpoint, lambda: predict(checkpoint.model)
    )
    fault = chance_fault(measured.result, run.material.references, recipe.task.medium)
    if fault is not None and not recipe.validation.allow_chance_baseline:
        raise UserError(fault)
    return measured


def _measured(
    run: Run,
    step: str,
    model: str,
    inputs: Mapping[str, Any],
    checkpoint: Checkpoint,
    predict: Callable[[], Predict],
) -> Done[Evaluation]:
    """Measure a model on the validation clips, and write what it said of each."""
    clips = run.material.validation
    predictions_file = f"{PREDICTIONS}/{model}.jsonl"

    def measure(_: Step[Evaluation], narration: StepNarration) -> Evaluation:
        evaluation, predictions = evaluate(
            predict(),
            checkpoint,
            run.recipe.task,
            clips.utterances,
            run.recipe.validation.durations,
            narration.advance,
        )
        lines = prediction_lines(clips.utterances, predictions, evaluation)
        write_text(run.directory / predictions_file, lines)
        return evaluation

    return once(
        run,
        step,
        {**inputs, "validation": clips.identity},
        Evaluation,
        measure,
        metric_line,
        lambda _: [predictions_file],
        version=2,
    )


def prune(run: Run, plan: Done[Plan]) -> Done[Removal]:
    """Remove them from a copy of the model and save it with what feeds it."""
    length = run.recipe.benchmark.lengths(run.recipe.task.medium)[0]

    def prune(_: Step[Removal], narration: StepNarration) -> Removal:
        model = copy.deepcopy(run.checkpoint.model)
        example = run.checkpoint.preprocessor.example(length, 1)
        before = measure_footprint(model, example, length)
        remove_heads(model, plan.result)
        after = measure_footprint(model, example, length)

        def write(place: Path) -> None:
            save_model(model, place)
            for part in (run.checkpoint.preprocessor.part, run.checkpoint.vocabulary.tokenizer):
                if part is not None:
                    part.save_pretrained(place)

        files = write_files_via_temporary(run.directory, write)
        return Removal(before=before, after=after, files=tuple(files))

    return once(
        run,
        "prune",
        {"plan": plan.key, length.unit: length.value},
        Removal,
        prune,
        lambda removal: (
            f"{removal.before.parameters / 1e6:.2f} → "
            f"{removal.after.parameters / 1e6:.2f} M parameters"
        ),
        lambda removal: list(removal.files),
    )


def reload(run: Run) -> Checkpoint:
    """Load the pruned model from the directory, as its users will."""
    own = ModelSource(source=str(run.directory.resolve()))
    return load_checkpoint(own, run.recipe.task, run.loaded.root, run.device)


def validate(run: Run, removal: Done[Removal], pruned: Checkpoint) -> Done[Evaluation]:
    """Measure the pruned model, as reloaded from the directory."""
    predict = run.recipe.task.torch_predict
    return _measured(
        run, "validate", "pruned", {"prune": removal.key}, pruned, lambda: predict(pruned.model)
    )


def export(
    run: Run,
    plan: Done[Plan],
    baseline: Done[Evaluation],
    validated: Done[Evaluation],
    pruned: Checkpoint,
) -> Done[Parity]:
    """Write the ONNX file and compare it with PyTorch."""
    settings, task = run.recipe.export, run.recipe.task

    def export(_: Step[Parity], narration: StepNarration) -> Parity:
        reference = copy.deepcopy(pruned.model).cpu()
        _write_graphs(run, reference, run.directory)
        properties = {
            "hibprune.recipe": run.recipe.name,
            "hibprune.task": task.kind,
            "hibprune.removed_heads": heads_by_layer(plan.result.removed),
            "hibprune.metric": {
                "name": baseline.result.metric,
                "baseline": baseline.result.value,
                "pruned": validated.result.value,
            },
        }
        for graph in task.graphs:
            write_metadata(run.directory / ONNX_DIRECTORY / graph, properties)
        return check_parity(
            task.torch_states(reference),
            task.onnx_states(run.directory),
            pruned.preprocessor.example,
            settings,
            task.medium,
        )

    return once(
        run,
        "export",
        {
            "name": run.recipe.name,
            "baseline": baseline.key,
            "validate": validated.key,
            "settings": settings.model_dump(mode="json"),
        },
        Parity,
        export,
        lambda parity: (
            f"{onnx_bytes(run.directory, task.graphs) / 1e6:.1f} MB, at most "
            f"{parity.max_abs_diff:.1e} from PyTorch"
        ),
        lambda _: [f"{ONNX_DIRECTORY}/{graph}" for graph in task.graphs],
    )


def _write_graphs(run: Run, model: PreTrainedModel, directory: Path) -> None:
    task = run.recipe.task
    export_onnx(
        model, directory / ONNX_DIRECTORY, task.export_task, run.recipe.export.opset, task.graphs
    )


def validate_exported(run: Run, export: Done[Parity], pruned: Checkpoint) -> Done[Evaluation]:
    """Measure the ONNX file under ONNX Runtime."""
    predict = run.recipe.task.onnx_predict
    return _measured(
        run,
        "exported",
        "exported",
        {"export": export.key},
        pruned,
        lambda: predict(run.directory, run.device.type),
    )


def benchmark(run: Run, export: Done[Parity]) -> Done[Benchmark]:
    """Time the original against the pruned model, both exported."""
    settings, task = run.recipe.benchmark, run.recipe.task

    def benchmark(_: Step[Benchmark], narration: StepNarration) -> Benchmark:
        with scratch_directory(run.directory) as scratch:
            _write_graphs(run, run.checkpoint.model, scratch)
            save_configuration(run.checkpoint.model, scratch)
            latencies = measure_latency(
                task.onnx_timed(scratch, run.device.type, settings.threads),
                task.onnx_timed(run.directory, run.device.type, settings.threads),
                PROVIDERS[run.device.type],
                run.checkpoint.preprocessor.example,
                settings,
                task.medium,
                lambda share: narration.advance(share, 1.0),
            )
            return Benchmark(latencies=latencies, original_bytes=onnx_bytes(scratch, task.graphs))

    return once(
        run,
        "benchmark",
        {"export": export.key, "settings": settings.model_dump(mode="json")},
        Benchmark,
        benchmark,
        lambda done: ", ".join(f"{x.length} ×{x.ratio:.2f}" for x in done.latencies),
    )
