"""What each step of the chain does; every one runs through `Step.once`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from hibprune.compression.remove import remove_heads, save_model
from hibprune.deployment.export import export_onnx, write_metadata
from hibprune.deployment.parity import check_parity
from hibprune.errors import UserError
from hibprune.evaluation.chance import chance_fault
from hibprune.evaluation.footprint import measure_footprint
from hibprune.evaluation.latency import Times, measure_latency
from hibprune.evaluation.metric import evaluate, metric_line, prediction_lines
from hibprune.evaluation.work import window_of
from hibprune.execution.files import (
    move_files,
    scratch_directory,
    write_files_via_temporary,
    write_text,
)
from hibprune.execution.output import PREDICTIONS, graph_bytes
from hibprune.execution.progress import StepNarration
from hibprune.execution.runtime import ONNX_DIRECTORY, PROVIDERS, Predict, Timed
from hibprune.execution.steps import Done, Step
from hibprune.models.checkpoint import Checkpoint, load_checkpoint
from hibprune.models.source import ModelSource
from hibprune.records.measurements import (
    Benchmark,
    Evaluation,
    Latency,
    Parity,
    PartTiming,
    Removal,
)
from hibprune.records.medium import Length
from hibprune.records.units import Plan, heads_by_layer
from hibprune.stages.credibility import (
    credible_benchmark,
    credible_evaluation,
    credible_parity,
    credible_removal,
)
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
        lambda kept: credible_evaluation(kept, len(clips.utterances)),
        version=2,
    )


def prune(run: Run, plan: Done[Plan]) -> Done[Removal]:
    """Remove them from a copy of the model and save it with what feeds it."""
    length = run.recipe.benchmark.lengths(run.recipe.task.medium)[0]
    tokens, window = decoded_tokens(run), window_of(run.checkpoint.preprocessor)

    def prune(_: Step[Removal], narration: StepNarration) -> Removal:
        model = copy.deepcopy(run.checkpoint.model)
        example = run.checkpoint.preprocessor.example(length, 1)
        before = measure_footprint(model, example, length, tokens, window)
        remove_heads(model, plan.result)
        after = measure_footprint(model, example, length, tokens, window)

        def write(place: Path) -> None:
            task, prepared = run.recipe.task, run.checkpoint.preprocessor.part
            save_model(task.deployed(model), place)
            for part in (task.deployed_extractor(prepared), run.checkpoint.vocabulary.tokenizer):
                if part is not None:
                    part.save_pretrained(place)

        files = write_files_via_temporary(run.directory, write)
        return Removal(before=before, after=after, files=tuple(files))

    return once(
        run,
        "prune",
        {"plan": plan.key, length.unit: length.value, "decoded_tokens": tokens},
        Removal,
        prune,
        lambda removal: (
            f"{removal.before.parameters / 1e6:.2f} → "
            f"{removal.after.parameters / 1e6:.2f} M parameters"
        ),
        lambda removal: list(removal.files),
        credible_removal,
        version=2,
    )


def decoded_tokens(run: Run) -> int | None:
    """How many tokens a decoder says for a validation clip of median length."""
    return run.recipe.task.decoded_tokens(run.material.references, run.checkpoint.vocabulary)


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
    """Write the ONNX files and compare them with PyTorch; files that differ are not left."""
    settings, task = run.recipe.export, run.recipe.task

    def export(_: Step[Parity], narration: StepNarration) -> Parity:
        reference = copy.deepcopy(pruned.model).cpu()
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
        with scratch_directory(run.directory) as scratch:
            _write_graphs(run, reference, scratch)
            for graph in task.graphs:
                write_metadata(scratch / ONNX_DIRECTORY / graph, properties)
            parity = check_parity(
                task.torch_outputs(reference),
                task.onnx_outputs(scratch),
                pruned.preprocessor.example,
                settings,
                task.medium,
            )
            move_files(scratch / ONNX_DIRECTORY, run.directory / ONNX_DIRECTORY)
        return parity

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
            f"{sum(graph_bytes(run.directory, task.graphs).values()) / 1e6:.1f} MB, "
            f"at most {parity.worst.relative_diff:.1e} from PyTorch"
        ),
        lambda _: [f"{ONNX_DIRECTORY}/{name}" for name in task.exported_files],
        lambda kept: credible_parity(kept, settings.tolerance),
        version=2,
    )


def _write_graphs(run: Run, model: PreTrainedModel, directory: Path) -> None:
    task = run.recipe.task
    export_onnx(
        task.deployed(model),
        directory / ONNX_DIRECTORY,
        task.export_task,
        run.recipe.export.opset,
        task.exported_files,
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
    tokens, window = decoded_tokens(run), window_of(run.checkpoint.preprocessor)

    def timed(directory: Path) -> Timed:
        return task.onnx_timed(directory, run.device.type, settings.threads, tokens)

    def benchmark(_: Step[Benchmark], narration: StepNarration) -> Benchmark:
        with scratch_directory(run.directory) as scratch:
            _write_graphs(run, run.checkpoint.model, scratch)
            measured = measure_latency(
                {"original": timed(scratch), "pruned": timed(run.directory)},
                run.checkpoint.preprocessor.example,
                settings,
                task.medium,
                lambda share: narration.advance(share, 1.0),
            )
            return Benchmark(
                latencies=tuple(
                    _latency(run, times, length=length, window=window, tokens=tokens)
                    for length, times in measured
                ),
                original_bytes=graph_bytes(scratch, task.graphs),
            )

    return once(
        run,
        "benchmark",
        {"export": export.key, "settings": settings.model_dump(mode="json")},
        Benchmark,
        benchmark,
        lambda done: ", ".join(map(_speed_up, done.latencies)),
        credible=lambda kept: credible_benchmark(kept, settings.repetitions),
        version=2,
    )


def _speed_up(latency: Latency) -> str:
    """`5 s ×1.15 (1.13–1.16)`."""
    low, high = latency.ratio_interval
    return f"{latency.length} ×{latency.ratio:.2f} ({low:.2f}–{high:.2f})"


def _latency(
    run: Run, times: dict[str, Times], length: Length, window: float | None, tokens: int | None
) -> Latency:
    """Times of the whole model and its parts as a record: the original's come before."""
    whole, *parts = times.values()
    return Latency(
        runtime="onnxruntime",
        provider=PROVIDERS[run.device.type],
        threads=run.recipe.benchmark.threads,
        batch=1,
        length=length,
        window_seconds=window,
        decoded_tokens=tokens,
        before_ms=whole["original"],
        after_ms=whole["pruned"],
        parts=tuple(
            PartTiming(part=name, before_ms=part["original"], after_ms=part["pruned"])
            for name, part in zip(list(times)[1:], parts, strict=True)
        ),
    )
