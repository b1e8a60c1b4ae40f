"""The variants of a run: which there are, where each lies, and how each is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hibprune.compression.quantize.examples import graph_feeds
from hibprune.compression.quantize.fp16 import convert_fp16
from hibprune.compression.quantize.guard import Reading, quantize_guarded, write_guarded
from hibprune.data import Utterance
from hibprune.errors import OutputError, UserError, without_temporary
from hibprune.evaluation.agreement import largest_difference
from hibprune.evaluation.metric import predict_targets
from hibprune.execution.files import link_or_copy, scratch_directory
from hibprune.execution.progress import StepNarration
from hibprune.execution.runtime import ONNX_DIRECTORY
from hibprune.execution.steps import Done, Step
from hibprune.models.families import has_decoder
from hibprune.models.input_cache import InputCache
from hibprune.models.masking import masked_example
from hibprune.models.preprocessing import SoundPreprocessor
from hibprune.recipe import Recipe
from hibprune.records.precision import Int8Guard, Precision, graph_name
from hibprune.records.variants import ORIGINAL, PRUNED, Converted, VariantPlan
from hibprune.stages.credibility import credible_conversion
from hibprune.stages.export import write_graphs
from hibprune.stages.run import Run, once
from hibprune.tasks import OwnMetric, Target

GUARD_CLIPS = 100
"""Calibration clips that int8 is held against fp32 on: a point is one of them."""
EXAMPLES = 4
"""Clips that float16 is tried on, and that outputs are compared on."""


def planned_variants(recipe: Recipe) -> tuple[VariantPlan, ...]:
    """The variants that a recipe asks for, the original first."""
    plans = [VariantPlan(name=ORIGINAL, parent=None, precision="fp32")]
    if recipe.benchmark.rivals:
        plans.append(_lower(ORIGINAL, "int8"))
    plans.append(VariantPlan(name=PRUNED, parent=ORIGINAL, precision="fp32"))
    return (*plans, *(_lower(PRUNED, one) for one in recipe.export.variants if one != "fp32"))


def _lower(parent: str, precision: Precision) -> VariantPlan:
    return VariantPlan(name=f"{parent}-{precision}", parent=parent, precision=precision)


@dataclass
class Workbench:
    """Where every variant lies as a model of its own, made when it is first asked for.

    Graphs have the names of fp32 there whatever their precision, so that all are run by one code.
    """

    run: Run
    scratch: Path
    inputs: InputCache
    converted: dict[str, Converted] = field(default_factory=dict)
    _places: dict[str, Path] = field(default_factory=dict)

    def directory(self, variant: VariantPlan) -> Path:
        """A directory with the variant's graphs, and the settings beside them, in onnx/."""
        if variant.name not in self._places:
            self._places[variant.name] = self._made(variant)
        return self._places[variant.name]

    def _made(self, variant: VariantPlan) -> Path:
        if variant.name == PRUNED:
            return self.run.directory
        place = self.scratch / variant.name
        if variant.name == ORIGINAL:
            write_graphs(self.run, self.run.checkpoint.model, place)
            return place
        onnx, task = place / ONNX_DIRECTORY, self.run.recipe.task
        onnx.mkdir(parents=True)
        if variant.is_rival:
            original = planned_variants(self.run.recipe)[0]
            source = self.directory(original) / ONNX_DIRECTORY
            self._write_rival(variant, source, place)
        else:
            source = self.run.directory / ONNX_DIRECTORY
            for graph in task.graphs:
                link_or_copy(source / graph_name(graph, variant.precision), onnx / graph)
        for name in task.beside_graphs:
            link_or_copy(source / name, onnx / name)
        return place

    def _write_rival(self, variant: VariantPlan, source: Path, place: Path) -> None:
        """Its graphs in `place`/onnx: those of this run's conversion, else converted once more."""
        graphs = self.run.recipe.task.graphs
        made = {graph: source / graph_name(graph, variant.precision) for graph in graphs}
        if all(path.exists() for path in made.values()):
            for graph, path in made.items():
                link_or_copy(path, place / ONNX_DIRECTORY / graph)
            return
        guard, settings = self.converted[variant.name].guard, self.run.recipe.quantize
        in_float = () if guard is None else guard.in_float
        write_guarded(source, place, graphs, settings.full_range, in_float)


@contextmanager
def workbench(run: Run) -> Iterator[Workbench]:
    """A place in the output directory for what is measured and not left there."""
    limits = run.recipe.validation.durations

    def make(clip: Utterance) -> dict[str, Any]:
        return run.checkpoint.inputs(run.checkpoint.read(clip.content, limits))

    with scratch_directory(run.directory) as scratch:
        yield Workbench(run, scratch, InputCache(make, scratch / "inputs"))


def converted(
    run: Run,
    bench: Workbench,
    variant: VariantPlan,
    made_from: str,
    targets: tuple[Mapping[str, Target], str],
) -> Done[Converted]:
    """Make a variant in lower precision from its parent; a fault is a result like any other.

    `made_from` is a key of the parent; `targets` are those of the calibration clips with a key.
    """
    files = [] if variant.is_rival else _files(run, variant)

    def make(_: Step[Converted], narration: StepNarration) -> Converted:
        parent = next(p for p in planned_variants(run.recipe) if p.name == variant.parent)
        try:
            match variant.precision:
                case "fp16":
                    in_float = _to_fp16(run, bench.directory(parent))
                    return Converted(in_float=in_float, files=tuple(files))
                case "int8":
                    guard = _to_int8(run, bench.directory(parent), targets[0], narration.advance)
                    return Converted(guard=guard, files=tuple(files))
                case "fp32":
                    raise ValueError("fp32 is what others are converted from")
        except OutputError:
            raise
        except UserError as error:
            return Converted(fault=fault_of(run, variant, error))

    done = once(
        run,
        f"convert-{variant.name}",
        {
            "parent": made_from,
            "calibration": run.material.calibration.identity,
            "targets": targets[1],
            "quantize": run.recipe.quantize.model_dump(mode="json"),
        },
        Converted,
        make,
        _finding,
        None if variant.is_rival else lambda result: list(result.files),
        lambda kept: (
            credible_conversion(kept, variant.precision, run.recipe.quantize.max_drop)
            and list(kept.files) == (files if kept.fault is None else [])
        ),
        said=variant.name,
    )
    bench.converted[variant.name] = done.result
    return done


def fault_of(run: Run, variant: VariantPlan, error: UserError) -> str:
    """Why a variant cannot be had, with places in the directory alone and a remedy that helps."""
    text = without_temporary(str(error).replace(f"{run.directory}/", ""))
    if variant.is_rival:
        left_out = f"take {variant.precision} out of export.variants"
        text = text.replace(left_out, "set benchmark.rivals: false")
    return text


def _files(run: Run, variant: VariantPlan) -> list[str]:
    graphs = run.recipe.task.graphs
    return [f"{ONNX_DIRECTORY}/{graph_name(graph, variant.precision)}" for graph in graphs]


def _finding(result: Converted) -> str:
    if result.fault is not None:
        return f"not made: {result.fault}"
    if result.guard is not None and result.guard.in_float:
        return f"int8, {len(result.guard.in_float)} groups of layers left in float32"
    if result.in_float:
        return f"fp16, {len(result.in_float)} nodes left in float32"
    return "converted"


def _to_int8(
    run: Run,
    directory: Path,
    targets: Mapping[str, Target],
    progress: Callable[[float, float], None],
) -> Int8Guard:
    task, checkpoint = run.recipe.task, run.checkpoint
    clips = [one for one in run.material.calibration.utterances if one.id in targets][:GUARD_CLIPS]
    references = [targets[clip.id] for clip in clips]
    limits = run.recipe.calibration.durations
    measure = OwnMetric(task, checkpoint.vocabulary)
    examples = [checkpoint.inputs(checkpoint.read(one.content, limits)) for one in clips[:EXAMPLES]]
    states = task.onnx_outputs(directory)
    compared = next(iter(states(examples[0])))

    def metric(place: Path) -> float:
        predict = task.onnx_predict(place, run.device.type)
        said = predict_targets(predict, checkpoint, task, clips, limits)
        return measure.evaluate(said, references).value

    def reading(place: Path) -> Reading:
        for name in task.beside_graphs:
            target = place / ONNX_DIRECTORY / name
            if not target.exists():
                link_or_copy(directory / ONNX_DIRECTORY / name, target)
        outputs = task.onnx_outputs(place)
        difference = largest_difference(
            lambda inputs: states(inputs)[compared],
            lambda inputs: outputs(inputs)[compared],
            examples,
        )
        return Reading(metric(place), difference.relative)

    evaluation = measure.evaluate(
        predict_targets(
            task.onnx_predict(directory, run.device.type), checkpoint, task, clips, limits
        ),
        references,
    )
    return quantize_guarded(
        directory,
        task.graphs,
        run.recipe.quantize,
        evaluation.value,
        evaluation.higher_is_better,
        reading,
        progress,
    )


def _to_fp16(run: Run, directory: Path) -> tuple[str, ...]:
    task, checkpoint = run.recipe.task, run.checkpoint
    limits = run.recipe.calibration.durations
    inputs = [
        checkpoint.inputs(checkpoint.read(clip.content, limits))
        for clip in run.material.calibration.utterances[:EXAMPLES]
    ]
    if run.recipe.export.attention_mask:
        assert isinstance(checkpoint.preprocessor, SoundPreprocessor)
        length = run.recipe.export.lengths(task.medium)[0]
        inputs.append(masked_example(checkpoint.preprocessor, length, 2))
    examples = [{name: value.numpy() for name, value in one.items()} for one in inputs]
    config = checkpoint.model.config
    tokens = (
        (int(config.decoder_start_token_id), int(config.eos_token_id))
        if has_decoder(checkpoint.model)
        else ()
    )
    onnx = directory / ONNX_DIRECTORY
    feeds = graph_feeds(onnx, task.graphs, examples, tokens)
    in_float: list[str] = []
    for graph in task.graphs:
        in_float += convert_fp16(onnx / graph, onnx / graph_name(graph, "fp16"), feeds[graph])
    return tuple(in_float)
