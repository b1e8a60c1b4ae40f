"""What each step of the chain does; every one runs through `Step.once`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel

from hibprune.attribution import MethodBase, Sample, Session
from hibprune.bench import measure_latency
from hibprune.checkpoint import Checkpoint, ModelSource, load_checkpoint
from hibprune.data import Utterance
from hibprune.errors import UserError
from hibprune.evaluation import evaluate, predict_targets, prediction_lines
from hibprune.export import check_parity, export_onnx, write_metadata
from hibprune.files import scratch_directory, write_files_via_temporary, write_text
from hibprune.footprint import measure_footprint
from hibprune.loading import Material
from hibprune.narration import Narrator, StepNarration
from hibprune.output import PREDICTIONS, onnx_bytes
from hibprune.passes import effort_measured
from hibprune.planning import ONLY_ROUND, Round, make_plan
from hibprune.recipe import LoadedRecipe, Recipe
from hibprune.records import (
    Benchmark,
    Evaluation,
    Parity,
    Plan,
    Removal,
    Scores,
    heads_by_layer,
)
from hibprune.rounds import step_name
from hibprune.runtime import ONNX_DIRECTORY, PROVIDERS, Predict
from hibprune.steps import Done, Step
from hibprune.surgery import copy_without, remove_heads, save_configuration, save_model
from hibprune.tasks import Target

Result = TypeVar("Result")

ATTRIBUTE = "attribute"


@dataclass(frozen=True)
class Run:
    """One run of a recipe into a directory."""

    loaded: LoadedRecipe
    material: Material
    directory: Path
    device: torch.device
    narrator: Narrator

    @property
    def recipe(self) -> Recipe:
        return self.loaded.recipe

    @property
    def checkpoint(self) -> Checkpoint:
        return self.material.checkpoint

    @property
    def basis(self) -> dict[str, Any]:
        """What every step's result depends on."""
        return {
            "model": self.checkpoint.identity,
            "task": self.recipe.task.model_dump(mode="json"),
            "device": self.device.type,
        }


def _once(
    run: Run,
    name: str,
    inputs: Mapping[str, Any],
    result_type: type[Result],
    compute: Callable[[Step[Result], StepNarration], Result],
    finding: Callable[[Result], str],
    files: Callable[[Result], list[str]] = lambda result: [],
    version: int = 1,
    said: str | None = None,
) -> Done[Result]:
    step = Step[Result](run.directory, name, version, {**run.basis, **inputs}, result_type)
    with run.narrator.step(said or name) as narration:
        done = step.once(lambda: compute(step, narration), files)
        narration.found(finding(done.result), done.seconds if done.resumed else None)
    return done


def baseline(run: Run) -> Done[Evaluation]:
    """Measure the original model."""
    checkpoint = run.checkpoint
    predict = run.recipe.task.torch_predict
    return _measured(run, "baseline", "baseline", {}, checkpoint, lambda: predict(checkpoint.model))


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

    return _once(
        run,
        step,
        {**inputs, "validation": clips.identity},
        Evaluation,
        measure,
        metric_line,
        lambda _: [predictions_file],
    )


def calibration_targets(run: Run) -> tuple[dict[str, Target], str]:
    """Targets of the calibration clips by id, and a key of where they came from."""
    clips = run.material.calibration.utterances
    if run.recipe.calibration.labels == "dataset":
        return {clip.id: clip.target for clip in clips if clip.target is not None}, "dataset"

    def label(_: Step[dict[str, Target]], narration: StepNarration) -> dict[str, Target]:
        predictions = predict_targets(
            run.recipe.task.torch_predict(run.checkpoint.model),
            run.checkpoint,
            run.recipe.task,
            clips,
            run.recipe.calibration.durations,
            narration.advance,
        )
        return dict(zip((clip.id for clip in clips), predictions, strict=True))

    done = _once(
        run,
        "label",
        {"calibration": run.material.calibration.identity},
        dict[str, Target],
        label,
        lambda targets: (
            f"{len(targets)} calibration {run.recipe.task.medium.many} labelled by the model itself"
        ),
    )
    return done.result, done.key


def attribute(
    run: Run,
    targets: tuple[dict[str, Target], str],
    part: Round = ONLY_ROUND,
    name: str = ATTRIBUTE,
    label: str = "",
) -> Done[Scores]:
    """Score the heads that are left on the calibration clips.

    `name` keeps the scores of several methods apart in one directory; `label` is how to call them.
    """
    method: MethodBase = run.recipe.attribution.for_task(run.recipe.task.kind)
    said = step_name(ATTRIBUTE, part.number)

    def attribute(step: Step[Scores], narration: StepNarration) -> Scores:
        def progress(done: float, total: int, loss: float | None) -> None:
            shown = "" if loss is None else f", loss {loss:.3f}"
            narration.advance(done, total, f"{done:.0f} of {total} samples{shown}")

        done = step.partial()
        if done:
            run.narrator.say(f"{said}: going on after {len(done)} samples scored before")
        session = Session(
            seed=run.recipe.seed,
            done=done,
            save=step.save_partial,
            progress=progress,
            notice=run.narrator.say,
        )
        samples = [
            _sample(run, clip, targets[0][clip.id]) for clip in run.material.calibration.utterances
        ]
        model = run.checkpoint.model
        if part.gone:
            model = copy_without(model, part.gone)
        with effort_measured(model, len(samples) - len(done)) as effort:
            scores = method.attribute(model, samples, run.recipe.task.loss, session)
        return scores.model_copy(update={"effort": effort()})

    def finding(scores: Scores) -> str:
        split_half = scores.split_half
        stability = "" if split_half is None else f", split-half rank correlation {split_half:.2f}"
        return f"{len(scores.heads)} heads by {label or scores.method}{stability}"

    return _once(
        run,
        step_name(name, part.number),
        {
            "calibration": run.material.calibration.identity,
            "crop_seconds": run.recipe.calibration.crop_seconds,
            "targets": targets[1],
            "method": method.model_dump(mode="json", exclude=set(method.resources)),
            "seed": run.recipe.seed,
            **({"gone": heads_by_layer(part.gone)} if part.gone else {}),
        },
        Scores,
        attribute,
        finding,
        said=said,
    )


def _sample(run: Run, clip: Utterance, target: Target) -> Sample:
    settings = run.recipe.calibration
    reading = run.checkpoint.read(clip.content, settings.durations)
    if settings.crop_seconds is not None:
        reading = run.checkpoint.preprocessor.beginning(reading, settings.crop_seconds)
    try:
        encoded = run.recipe.task.encode(target, run.checkpoint.vocabulary)
    except ValueError as error:
        # The data set's own targets were seen to when they were loaded.
        raise UserError(
            f"calibration: {clip.id}: what the model says of it is no target for it: {error}: "
            "leave it out or set calibration.labels: dataset"
        ) from error
    return Sample(clip.id, run.checkpoint.calibration_inputs(reading), encoded)


def plan(run: Run, scores: Done[Scores], part: Round) -> Done[Plan]:
    """Choose the heads to remove, or those of one round."""
    budget = run.recipe.budget
    share = f", round {part.number} of {part.rounds}" if part.rounds > 1 else ""
    return _once(
        run,
        step_name("plan", part.number),
        {
            "scores": scores.key,
            "budget": budget.model_dump(mode="json"),
            **({"round": [part.number, part.rounds]} if part.rounds > 1 else {}),
        },
        Plan,
        lambda *_: make_plan(scores.result, budget, part),
        lambda plan: f"{len(plan.removed)} of {plan.total} heads to remove, {budget.scope}{share}",
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

    return _once(
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

    return _once(
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

    return _once(
        run,
        "benchmark",
        {"export": export.key, "settings": settings.model_dump(mode="json")},
        Benchmark,
        benchmark,
        lambda done: ", ".join(f"{x.length} ×{x.ratio:.2f}" for x in done.latencies),
    )


def metric_line(evaluation: Evaluation) -> str:
    """A metric with its interval, in percent."""
    low, high = evaluation.interval
    return (
        f"{evaluation.metric} {evaluation.value:.2%} ({low:.2%} to {high:.2%}, n = {evaluation.n})"
    )
