"""From what the steps found to the manifest and the written report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hibprune.data import Selection
from hibprune.evaluation.chance import chance_level
from hibprune.execution.files import write_text
from hibprune.execution.machine import describe_machine, installed_versions
from hibprune.execution.output import RECIPE_FILE, file_digests, graph_bytes
from hibprune.execution.steps import Done
from hibprune.recipe import LoadedRecipe
from hibprune.records.manifest import (
    FILE_NAME,
    AttributionSummary,
    Change,
    DataSummary,
    HeadSummary,
    LatencySummary,
    MacsChange,
    Manifest,
    MetricSummary,
    ModelName,
    ModelSummary,
    NeuronSummary,
    OutputParity,
    ParitySummary,
    PartTimingSummary,
    RoundSummary,
    SkippedClip,
    TimingSummary,
)
from hibprune.records.measurements import (
    Benchmark,
    Evaluation,
    Latency,
    Parity,
    ParityCase,
    Removal,
    Timing,
    paired_change,
)
from hibprune.records.repair import PrunedModel
from hibprune.records.units import Head, heads_by_layer
from hibprune.report import write_report
from hibprune.stages.gates import check_gates
from hibprune.stages.load import Material
from hibprune.stages.rounds import Choice, step_name


@dataclass(frozen=True)
class Outcome:
    """Everything the steps of a run found."""

    loaded: LoadedRecipe
    material: Material
    device: str
    baseline: Done[Evaluation]
    choice: Choice
    removal: Done[Removal]
    saved: Done[PrunedModel]
    pruned: Done[Evaluation]
    parity: Done[Parity]
    exported: Done[Evaluation]
    benchmark: Done[Benchmark]

    @property
    def seconds(self) -> dict[str, float]:
        """What each step took when it ran."""
        steps: dict[str, Done[Any]] = {
            "baseline": self.baseline,
            **{
                step_name(name, number): done
                for number, one in enumerate(self.choice.rounds, start=1)
                for name, done in (("attribute", one.scores), ("plan", one.plan))
            },
            **(
                {}
                if self.choice.neurons is None
                else {
                    "attribute-neurons": self.choice.neurons.scores,
                    "plan-neurons": self.choice.neurons.plan,
                }
            ),
            "prune": self.removal,
            "repair": self.saved,
            "validate": self.pruned,
            "export": self.parity,
            "exported": self.exported,
            "benchmark": self.benchmark,
        }
        return {name: step.seconds for name, step in steps.items()}


def write_outcome(outcome: Outcome, directory: Path) -> Manifest:
    """Write report, model card, recipe and, last of all, the manifest."""
    write_text(directory / RECIPE_FILE, outcome.loaded.text)
    draft = _manifest(outcome, directory)
    choice = outcome.choice
    write_report(draft, choice.scores, choice.plan.result, outcome.loaded.text, directory)
    manifest = draft.model_copy(update={"files": file_digests(directory)})
    write_text(directory / FILE_NAME, manifest.model_dump_json(indent=1) + "\n")
    return manifest


def _manifest(outcome: Outcome, directory: Path) -> Manifest:
    recipe, material = outcome.loaded.recipe, outcome.material
    rounds, plan = outcome.choice.rounds, outcome.choice.plan.result
    # The one of all heads; later rounds score fewer.
    scores = rounds[0].scores.result
    before, after = outcome.removal.result.before, outcome.removal.result.after
    benchmark = outcome.benchmark.result
    own_bytes = graph_bytes(directory, recipe.task.graphs)
    size = Change(before=sum(benchmark.original_bytes.values()), after=sum(own_bytes.values()))
    baseline, pruned = outcome.baseline.result, outcome.pruned.result
    exported = outcome.exported.result
    exported_change = paired_change(baseline, exported)
    models: dict[ModelName, Evaluation] = {
        "baseline": baseline,
        "pruned": pruned,
        "exported": exported,
    }
    method = recipe.attribution.for_task(recipe.task.kind)
    cases = outcome.parity.result.cases
    return Manifest(
        recipe=recipe.name,
        model=model_summary(outcome.loaded, material),
        task=recipe.task.kind,
        input=recipe.task.medium.name,
        device=outcome.device,
        seed=recipe.seed,
        calibration=data_summary(material.calibration, recipe.calibration.source.kind),
        validation=data_summary(material.validation, recipe.validation.source.kind),
        attribution=AttributionSummary(
            method=scores.method,
            settings=method.model_dump(mode="json", exclude={"method"}),
            samples=len(scores.samples),
            seconds=sum(one.scores.seconds for one in rounds),
            split_half=scores.split_half,
            steps=scores.steps,
            ranking_fault=scores.ranking_fault,
        ),
        heads=HeadSummary(
            total=plan.total,
            budget=recipe.budget.share(plan.total),
            removed=_by_layer(plan.removed),
        ),
        neurons=_neurons(outcome),
        repair=outcome.saved.result.repair,
        rounds=tuple(
            RoundSummary(
                removed=_by_layer(one.plan.result.removed),
                seconds=one.scores.seconds,
                split_half=one.scores.result.split_half,
                ranking_fault=one.scores.result.ranking_fault,
            )
            for one in rounds
        ),
        parameters=Change(before=before.parameters, after=after.parameters),
        macs=MacsChange(
            before=before.macs,
            after=after.macs,
            length=before.length,
            window_seconds=before.window_seconds,
            decoded_tokens=before.decoded_tokens,
        ),
        size_bytes=size,
        graph_bytes={
            name: Change(before=benchmark.original_bytes[name], after=after_bytes)
            for name, after_bytes in own_bytes.items()
        },
        generation=recipe.task.generation,
        metric=MetricSummary(
            name=baseline.metric,
            higher_is_better=baseline.higher_is_better,
            n=baseline.n,
            baseline=baseline.measurement,
            pruned=pruned.measurement,
            exported=exported.measurement,
            pruned_change=paired_change(baseline, pruned),
            exported_change=exported_change,
            chance=chance_level(baseline, material.references),
            constant={
                name: evaluation.constant
                for name, evaluation in models.items()
                if evaluation.constant is not None
            },
            transcripts=recipe.task.transcript_rules(material.checkpoint.vocabulary),
        ),
        parity=ParitySummary(
            tolerance=outcome.parity.result.tolerance,
            outputs=tuple(map(_output_parity, outcome.parity.result.worst_by_output)),
            lengths=tuple(sorted({case.length.value for case in cases})),
            unit=recipe.task.medium.unit,
            batches=tuple(sorted({case.batch for case in cases})),
        ),
        latency=tuple(map(_latency, benchmark.latencies)),
        gates=check_gates(
            recipe.gates, baseline, exported, exported_change, benchmark.latencies, size.after
        ),
        steps=outcome.seconds,
        machine=describe_machine(),
        versions=installed_versions(),
        files={},
    )


def _neurons(outcome: Outcome) -> NeuronSummary | None:
    chosen = outcome.choice.neurons
    if chosen is None:
        return None
    recipe, scores = outcome.loaded.recipe, chosen.scores.result
    method = recipe.neuron_attribution.for_task(recipe.task.kind)
    return NeuronSummary(
        total=len(scores.heads),
        share=recipe.budget.neurons,
        scope=recipe.budget.scope,
        method=method.name(),
        settings=method.model_dump(mode="json", exclude={"method"}),
        seconds=chosen.scores.seconds,
        removed=chosen.plan.result.neurons,
        kept={
            layer: count - len(chosen.plan.result.neurons.get(layer, ()))
            for layer, count in sorted(Counter(one.layer for one in scores.heads).items())
        },
    )


def _by_layer(heads: Iterable[Head]) -> dict[int, tuple[int, ...]]:
    return {layer: tuple(indices) for layer, indices in heads_by_layer(heads).items()}


def model_summary(loaded: LoadedRecipe, material: Material) -> ModelSummary:
    """Which checkpoint a run works on."""
    source = loaded.recipe.model
    return ModelSummary(
        source=source.source,
        on_hub=source.local_directory(loaded.root) is None,
        revision=source.revision,
        family=material.checkpoint.family.model_type,
        identity=material.checkpoint.identity,
    )


def data_summary(selection: Selection, kind: str) -> DataSummary:
    """Which clips a run works on, from a source of some kind."""
    return DataSummary(
        kind=kind,
        n=len(selection.utterances),
        identity=selection.identity,
        skipped=tuple(SkippedClip(id=clip, reason=why) for clip, why in selection.skipped),
    )


def _output_parity(case: ParityCase) -> OutputParity:
    return OutputParity(
        output=case.output,
        max_abs_diff=case.max_abs_diff,
        scale=case.scale,
        relative_diff=case.relative_diff,
    )


def _latency(latency: Latency) -> LatencySummary:
    return LatencySummary(
        runtime=latency.runtime,
        provider=latency.provider,
        threads=latency.threads,
        batch=latency.batch,
        length=latency.length,
        window_seconds=latency.window_seconds,
        decoded_tokens=latency.decoded_tokens,
        repetitions=len(latency.before_ms),
        parts=tuple(PartTimingSummary(part=one.part, **_timing(one)) for one in latency.parts),
        **_timing(latency),
    )


def _timing(timing: Timing) -> dict[str, Any]:
    return {name: getattr(timing, name) for name in TimingSummary.model_fields}
