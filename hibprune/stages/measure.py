"""Measuring in a run: every variant's metric and latency, by one code."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hibprune.errors import OutputError, UserError
from hibprune.evaluation.agreement import agreement, largest_difference
from hibprune.evaluation.chance import chance_fault
from hibprune.evaluation.latency import Times, measure_latency
from hibprune.evaluation.metric import evaluate, metric_line, prediction_lines
from hibprune.evaluation.work import window_of
from hibprune.execution.files import read_text_bounded, sha256_of, write_text
from hibprune.execution.output import PREDICTIONS, STEPS, withdraw
from hibprune.execution.progress import StepNarration
from hibprune.execution.runtime import ONNX_DIRECTORY, PROVIDERS
from hibprune.execution.steps import Done, Step, undo
from hibprune.records.measurements import Benchmark, Evaluation, Latency, Parity
from hibprune.records.medium import Length
from hibprune.records.precision import Agreement, graph_name
from hibprune.records.variants import ORIGINAL, PRUNED, GraphFile, Measured, VariantPlan
from hibprune.stages.credibility import credible_benchmark, credible_evaluation, credible_parity
from hibprune.stages.export import original_parity
from hibprune.stages.findings import Findings
from hibprune.stages.padding import padding_effect
from hibprune.stages.remove import decoded_tokens
from hibprune.stages.run import Run, once
from hibprune.stages.variants import EXAMPLES, Workbench, fault_of
from hibprune.tasks import Target


def exported_original(run: Run, bench: Workbench, original: VariantPlan) -> Done[Parity]:
    """Export the original, to be measured and not left, and compare it with PyTorch."""
    settings = run.recipe.export

    def export(_: Step[Parity], narration: StepNarration) -> Parity:
        return original_parity(run, bench.directory(original))

    return once(
        run,
        "export-original",
        {"settings": settings.of_graphs},
        Parity,
        export,
        lambda parity: f"at most {parity.worst.relative_diff:.1e} from PyTorch",
        credible=lambda kept: credible_parity(kept, settings.tolerance),
    )


def measured_original(
    run: Run, bench: Workbench, original: VariantPlan, exported: Done[Parity]
) -> Done[Measured]:
    """Measure the original.

    Raises:
        UserError: it is no better than chance, and the recipe does not allow that: what follows
            would compare guesses.
    """
    found = measured(run, bench, original, exported.key)
    _require_better_than_chance(run, found.result.evaluation)
    return found


def baseline(run: Run) -> Done[Evaluation]:
    """Measure the original under PyTorch, for a comparison, which exports nothing.

    Raises:
        UserError: as `measured_original`.
    """
    clips, task = run.material.validation, run.recipe.task

    def measure(_: Step[Evaluation], narration: StepNarration) -> Evaluation:
        evaluation, _predictions = evaluate(
            task.torch_predict(run.checkpoint.model),
            run.checkpoint,
            task,
            clips.utterances,
            run.recipe.validation.durations,
            narration.advance,
        )
        return evaluation

    found = once(
        run,
        "baseline",
        {"validation": clips.identity},
        Evaluation,
        measure,
        metric_line,
        credible=lambda kept: credible_evaluation(kept, len(clips.utterances)),
        version=3,
    )
    _require_better_than_chance(run, found.result)
    return found


def _require_better_than_chance(run: Run, evaluation: Evaluation) -> None:
    fault = chance_fault(evaluation, run.material.references, run.recipe.task.medium)
    if fault is not None and not run.recipe.validation.allow_chance_baseline:
        raise UserError(fault)


def measure_others(run: Run, bench: Workbench, found: Findings) -> None:
    """Measure all variants but the original, and remove what earlier runs left of any others.

    One in lower precision that fails on a validation clip is told of, and not left.
    """
    for name, made in found.made.items():
        if name == ORIGINAL or made.fault is not None:
            continue
        try:
            found.measured[name] = measured(run, bench, made.plan, made.key, found.parent(made))
        except OutputError:
            raise
        except UserError as error:
            if made.plan.precision == "fp32":
                raise
            found.failed[name] = fault_of(run, made.plan, error)
            run.narrator.say(f"{name}: not left: {found.failed[name]}")
    _remove_others(run, found)


def _remove_others(run: Run, found: Findings) -> None:
    kept = {f"convert-{name}" for name in found.made.keys() - found.failed.keys()}
    kept |= {f"measure-{name}" for name in found.measured}
    records = (
        path.stem
        for step in ("convert", "measure")
        for path in (run.directory / STEPS).glob(f"{step}-*.json")
    )
    others = sorted(set(records) - kept)
    if others:
        withdraw(run.directory)
    for name in others:
        undo(run.directory, name)


def measured(
    run: Run,
    bench: Workbench,
    variant: VariantPlan,
    made: str,
    parent: tuple[VariantPlan, str] | None = None,
) -> Done[Measured]:
    """Measure a variant on the validation clips, and write what it said of each.

    `made` is a key of what it came from; `parent` what it is made of where it is in a lower
    precision, with the key of its measurement.
    """
    clips, task = run.material.validation, run.recipe.task
    predictions_file = f"{PREDICTIONS}/{variant.name}.jsonl"

    def measure(_: Step[Measured], narration: StepNarration) -> Measured:
        directory = bench.directory(variant)
        predict = task.onnx_predict(directory, run.device.type)
        evaluation, predictions = evaluate(
            predict,
            run.checkpoint,
            task,
            clips.utterances,
            run.recipe.validation.durations,
            narration.advance,
            bench.inputs,
        )
        lines = prediction_lines(clips.utterances, predictions, evaluation)
        write_text(run.directory / predictions_file, lines)
        return Measured(
            evaluation=evaluation,
            graphs=_graphs(run, variant, directory),
            agreement=None
            if parent is None
            else _agreement(run, bench, parent[0], directory, predictions),
            padding=padding_effect(
                predict,
                run.checkpoint,
                task,
                clips.utterances,
                run.recipe.validation.durations,
                predictions,
                run.recipe.export.attention_mask,
            )
            if variant.name == PRUNED
            else None,
        )

    return once(
        run,
        f"measure-{variant.name}",
        {
            "made": made,
            "validation": clips.identity,
            **({} if parent is None else {"parent": parent[1]}),
        },
        Measured,
        measure,
        lambda found: metric_line(found.evaluation),
        lambda _: [predictions_file],
        lambda kept: (
            credible_evaluation(kept.evaluation, len(clips.utterances))
            and [one.name for one in kept.graphs] == list(task.graphs)
            and all(one.size_bytes > 0 for one in kept.graphs)
        ),
        version=3,
        said=variant.name,
    )


def _graphs(run: Run, variant: VariantPlan, directory: Path) -> tuple[GraphFile, ...]:
    found = []
    for graph in run.recipe.task.graphs:
        path = directory / ONNX_DIRECTORY / graph
        left = f"{ONNX_DIRECTORY}/{graph_name(graph, variant.precision)}"
        found.append(
            GraphFile(
                name=graph,
                path=None if variant.is_rival else left,
                size_bytes=path.stat().st_size,
                sha256=sha256_of(path),
            )
        )
    return tuple(found)


def _agreement(
    run: Run,
    bench: Workbench,
    parent: VariantPlan,
    directory: Path,
    predictions: Sequence[Target],
) -> Agreement:
    """How far a lower precision is from fp32, in predictions and in what the first graph gives."""
    lines = read_text_bounded(run.directory / f"{PREDICTIONS}/{parent.name}.jsonl").splitlines()
    references = [json.loads(line)["prediction"] for line in lines]
    task = run.recipe.task
    whole, lower = task.onnx_outputs(bench.directory(parent)), task.onnx_outputs(directory)
    examples = [bench.inputs(clip) for clip in run.material.validation.utterances[:EXAMPLES]]
    compared = next(iter(whole(examples[0])))
    difference = largest_difference(
        lambda inputs: whole(inputs)[compared], lambda inputs: lower(inputs)[compared], examples
    )
    return agreement(references, list(predictions), difference)


def benchmarked(
    run: Run, variants: Mapping[str, tuple[Callable[[], Path], str]]
) -> Done[Benchmark]:
    """Time all variants, in turn in one process; each is where it lies, and a key of what it is."""
    settings, task = run.recipe.benchmark, run.recipe.task
    tokens, window = decoded_tokens(run), window_of(run.checkpoint.preprocessor)

    def benchmark(_: Step[Benchmark], narration: StepNarration) -> Benchmark:
        timed = {
            name: task.onnx_timed(place(), run.device.type, settings.threads, tokens)
            for name, (place, _key) in variants.items()
        }
        measured = measure_latency(
            timed,
            run.checkpoint.preprocessor.example,
            settings,
            task.medium,
            lambda share: narration.advance(share, 1.0),
        )
        return Benchmark(
            latencies=tuple(
                _latency(run, times, length, window, tokens) for length, times in measured
            )
        )

    return once(
        run,
        "benchmark",
        {
            "variants": {name: key for name, (_place, key) in variants.items()},
            "settings": settings.model_dump(mode="json"),
        },
        Benchmark,
        benchmark,
        lambda done: (
            f"{len(variants)} variants at {len(done.latencies)} "
            f"{'length' if len(done.latencies) == 1 else 'lengths'}"
        ),
        credible=lambda kept: credible_benchmark(kept, list(variants), settings.repetitions),
        version=3,
    )


def _latency(
    run: Run, times: dict[str, Times], length: Length, window: float | None, tokens: int | None
) -> Latency:
    return Latency(
        runtime="onnxruntime",
        provider=PROVIDERS[run.device.type],
        threads=run.recipe.benchmark.threads,
        batch=1,
        length=length,
        window_seconds=window,
        decoded_tokens=tokens,
        times=times,
    )
