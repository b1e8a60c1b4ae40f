"""From what the steps found to the manifest, the gates and the written report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hibprune.data import Selection
from hibprune.files import write_text
from hibprune.loading import Material
from hibprune.machine import describe_machine, installed_versions
from hibprune.manifest import (
    FILE_NAME,
    AttributionSummary,
    Change,
    DataSummary,
    HeadSummary,
    LatencySummary,
    MacsChange,
    Manifest,
    MetricSummary,
    ModelSummary,
    ParitySummary,
    SkippedClip,
)
from hibprune.output import RECIPE_FILE, file_digests, onnx_bytes
from hibprune.recipe import Gates, LoadedRecipe
from hibprune.records import (
    Benchmark,
    Evaluation,
    Gate,
    Latency,
    Parity,
    Plan,
    Removal,
    Scores,
    heads_by_layer,
)
from hibprune.report import write_report
from hibprune.steps import Done


@dataclass(frozen=True)
class Outcome:
    """Everything the steps of a run found."""

    loaded: LoadedRecipe
    material: Material
    device: str
    baseline: Done[Evaluation]
    scores: Done[Scores]
    plan: Done[Plan]
    removal: Done[Removal]
    pruned: Done[Evaluation]
    parity: Done[Parity]
    exported: Done[Evaluation]
    benchmark: Done[Benchmark]

    @property
    def seconds(self) -> dict[str, float]:
        """What each step took when it ran."""
        steps: dict[str, Done[Any]] = {
            "baseline": self.baseline,
            "attribute": self.scores,
            "plan": self.plan,
            "prune": self.removal,
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
    write_report(draft, outcome.scores.result, outcome.plan.result, outcome.loaded.text, directory)
    manifest = draft.model_copy(update={"files": file_digests(directory)})
    write_text(directory / FILE_NAME, manifest.model_dump_json(indent=1) + "\n")
    return manifest


def _manifest(outcome: Outcome, directory: Path) -> Manifest:
    recipe, material = outcome.loaded.recipe, outcome.material
    scores, plan = outcome.scores.result, outcome.plan.result
    before, after = outcome.removal.result.before, outcome.removal.result.after
    benchmark = outcome.benchmark.result
    file_bytes = onnx_bytes(directory, recipe.task.graphs)
    baseline, exported = outcome.baseline.result, outcome.exported.result
    method = recipe.attribution.for_task(recipe.task.kind)
    cases = outcome.parity.result.cases
    return Manifest(
        recipe=recipe.name,
        model=ModelSummary(
            source=recipe.model.source,
            on_hub=recipe.model.local_directory(outcome.loaded.root) is None,
            revision=recipe.model.revision,
            family=material.checkpoint.family.model_type,
            identity=material.checkpoint.identity,
        ),
        task=recipe.task.kind,
        input=recipe.task.medium.name,
        device=outcome.device,
        seed=recipe.seed,
        calibration=_data(material.calibration, recipe.calibration.source.kind),
        validation=_data(material.validation, recipe.validation.source.kind),
        attribution=AttributionSummary(
            method=scores.method,
            settings=method.model_dump(mode="json", exclude={"method"}),
            samples=len(scores.samples),
            seconds=outcome.scores.seconds,
            split_half=scores.split_half,
        ),
        heads=HeadSummary(
            total=plan.total,
            removed={layer: tuple(h) for layer, h in heads_by_layer(plan.removed).items()},
        ),
        parameters=Change(before=before.parameters, after=after.parameters),
        macs=MacsChange(before=before.macs, after=after.macs, length=before.length),
        size_bytes=Change(before=benchmark.original_bytes, after=file_bytes),
        metric=MetricSummary(
            name=baseline.metric,
            higher_is_better=baseline.higher_is_better,
            n=baseline.n,
            baseline=baseline,
            pruned=outcome.pruned.result,
            exported=exported,
        ),
        parity=ParitySummary(
            max_abs_diff=outcome.parity.result.max_abs_diff,
            tolerance=outcome.parity.result.tolerance,
            lengths=tuple(sorted({case.length.value for case in cases})),
            unit=recipe.task.medium.unit,
            batches=tuple(sorted({case.batch for case in cases})),
        ),
        latency=tuple(map(_latency, benchmark.latencies)),
        gates=check_gates(recipe.gates, baseline, exported, benchmark.latencies, file_bytes),
        steps=outcome.seconds,
        machine=describe_machine(),
        versions=installed_versions(),
        files={},
    )


def check_gates(
    gates: Gates,
    baseline: Evaluation,
    exported: Evaluation,
    latencies: tuple[Latency, ...],
    file_bytes: int,
) -> tuple[Gate, ...]:
    """Hold what was measured against the recipe's limits; gates that are not set stay out."""
    worsening = (baseline.value - exported.value) * (1 if baseline.higher_is_better else -1)
    checks = [
        ("largest_accuracy_drop", gates.largest_accuracy_drop, worsening, True),
        ("largest_wer_rise", gates.largest_wer_rise, worsening, True),
        ("smallest_speedup", gates.smallest_speedup, min(x.ratio for x in latencies), False),
        ("largest_file_mb", gates.largest_file_mb, file_bytes / 1e6, True),
    ]
    return tuple(
        Gate(
            name=name,
            limit=limit,
            value=value,
            # A drop of exactly the limit passes, also where floats make it a hair more.
            passed=value <= limit + 1e-12 if at_most else value >= limit,
        )
        for name, limit, value, at_most in checks
        if limit is not None
    )


def _data(selection: Selection, kind: str) -> DataSummary:
    return DataSummary(
        kind=kind,
        n=len(selection.utterances),
        identity=selection.identity,
        skipped=tuple(SkippedClip(id=clip, reason=why) for clip, why in selection.skipped),
    )


def _latency(latency: Latency) -> LatencySummary:
    return LatencySummary(
        runtime=latency.runtime,
        provider=latency.provider,
        threads=latency.threads,
        batch=latency.batch,
        length=latency.length,
        repetitions=len(latency.before_ms),
        before=latency.before,
        after=latency.after,
        ratio=latency.ratio,
        ratio_interval=latency.ratio_interval,
    )
