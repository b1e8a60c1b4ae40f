"""From what the steps found to the manifest and the written report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hibprune.evaluation.chance import chance_level
from hibprune.execution.files import write_text
from hibprune.execution.machine import describe_machine, installed_versions
from hibprune.execution.output import RECIPE_FILE, file_digests
from hibprune.execution.steps import Done
from hibprune.models.low_rank import projections_of
from hibprune.recipe import LoadedRecipe
from hibprune.records.example import Example
from hibprune.records.manifest import (
    FILE_NAME,
    AttributionSummary,
    BudgetSummary,
    CountedWork,
    HeadSummary,
    Manifest,
    MetricSummary,
    RankSummary,
    RecoverySummary,
    RoundSummary,
    UnitSummary,
)
from hibprune.records.measurements import (
    Benchmark,
    Evaluation,
    Measurement,
    Removal,
    paired_change,
)
from hibprune.records.recovery import RecoveredModel
from hibprune.records.repair import PrunedModel
from hibprune.records.sherpa import SherpaFiles
from hibprune.records.units import POOLS, RANK, Head, Pool, heads_by_layer, pool_words
from hibprune.records.variants import (
    ORIGINAL,
    PRUNED,
    MissingVariant,
    ParitySummary,
    Variant,
    VariantLatency,
)
from hibprune.records.waveform import WaveformGraph
from hibprune.report.files import write_report
from hibprune.report.numbers import counted
from hibprune.report.wording import factored_words
from hibprune.stages.budget import mixed_kinds, takes_ranks
from hibprune.stages.findings import Findings, Made
from hibprune.stages.gates import check_gates
from hibprune.stages.load import Material
from hibprune.stages.playable_clips import playable_clips
from hibprune.stages.provenance import data_summary, model_summary
from hibprune.stages.rounds import Choice, step_name
from hibprune.stages.score_others import wanted


@dataclass(frozen=True)
class Training:
    """The recovered model, and the metric of the repaired one it was made of."""

    recovered: Done[RecoveredModel]
    before: Done[Evaluation]


@dataclass(frozen=True)
class Outcome:
    """Everything the steps of a run found."""

    loaded: LoadedRecipe
    material: Material
    device: str
    choice: Choice
    removal: Done[Removal]
    saved: Done[PrunedModel]
    training: Training | None
    found: Findings
    benchmark: Done[Benchmark]
    example: Done[Example]
    waveform: Done[WaveformGraph] | None = None
    sherpa: Done[SherpaFiles] | None = None

    @property
    def seconds(self) -> dict[str, float]:
        """What each step took when it ran."""
        choice, made = self.choice, self.found.made
        steps: dict[str, Done[Any] | None] = {
            "export-original": made[ORIGINAL].parity,
            f"measure-{ORIGINAL}": self.found.measured[ORIGINAL],
            **{
                step_name(name, number): done
                for number, one in enumerate(choice.rounds, start=1)
                for name, done in (
                    ("attribute", one.scores),
                    ("plan", one.plan),
                    ("recover-round", one.recovered),
                )
            },
            **{
                f"{step}-{pool_words(pool).replace(' ', '-')}": done
                for pool, one in choice.others.items()
                for step, done in (("attribute", one.scores), ("plan", one.plan))
            },
            "prune": self.removal,
            "repair": self.saved,
            "evaluate-repaired": None if self.training is None else self.training.before,
            "recover": None if self.training is None else self.training.recovered,
            "export": next(
                (one.parity for name, one in made.items() if one.parity and name != ORIGINAL), None
            ),
            **{f"convert-{name}": one.converted for name, one in made.items()},
            **{f"measure-{name}": done for name, done in self.found.measured.items()},
            "benchmark": self.benchmark,
            "example": self.example,
            "waveform": self.waveform,
            "sherpa": self.sherpa,
        }
        return {name: step.seconds for name, step in steps.items() if step is not None}


def write_outcome(outcome: Outcome, directory: Path) -> Manifest:
    """Write report, model card, recipe and, last of all, the manifest."""
    write_text(directory / RECIPE_FILE, outcome.loaded.text)
    draft = _manifest(outcome)
    choice, recipe = outcome.choice, outcome.loaded.recipe
    plays = recipe.report.audio
    sound_of = playable_clips(outcome.material, recipe.validation.durations) if plays else None
    write_report(draft, choice.scores, choice.plan.result, outcome.loaded.text, directory, sound_of)
    manifest = draft.model_copy(update={"files": file_digests(directory)})
    write_text(directory / FILE_NAME, manifest.model_dump_json(indent=1) + "\n")
    return manifest


def _manifest(outcome: Outcome) -> Manifest:
    recipe, material = outcome.loaded.recipe, outcome.material
    rounds, plan = outcome.choice.rounds, outcome.choice.plan.result
    # The one of all heads; later rounds score fewer.
    scores = rounds[0].scores.result
    original = outcome.found.measured[ORIGINAL].result.evaluation
    footprint = outcome.removal.result.before
    method = recipe.method_of("head")
    variants = tuple(_variant(outcome, outcome.found.made[name]) for name in outcome.found.measured)
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
        budget=_budget(outcome),
        heads=HeadSummary(
            total=plan.total,
            budget=recipe.budget.share(plan.total),
            removed=_by_layer(plan.removed),
        ),
        neurons=_others(outcome, "neuron"),
        channels=_others(outcome, "channel"),
        decoder_neurons=_others(outcome, "decoder_neuron"),
        decoder_heads=_others(outcome, "decoder_head"),
        cross_heads=_others(outcome, "cross_head"),
        ranks=_ranks(outcome),
        repair=outcome.saved.result.repair,
        recovery=_recovery(outcome),
        rounds=tuple(
            RoundSummary(
                removed=_by_layer(one.plan.result.removed),
                seconds=one.scores.seconds,
                split_half=one.scores.result.split_half,
                ranking_fault=one.scores.result.ranking_fault,
            )
            for one in rounds
        ),
        counted_work=CountedWork(
            length=footprint.length,
            window_seconds=footprint.window_seconds,
            decoded_tokens=footprint.decoded_tokens,
        ),
        generation=recipe.task.generation,
        metric=MetricSummary(
            name=original.metric,
            higher_is_better=original.higher_is_better,
            n=original.n,
            chance=chance_level(original, material.references),
            transcripts=recipe.task.transcript_rules(material.checkpoint.vocabulary),
        ),
        variants=variants,
        missing=tuple(
            MissingVariant(
                name=name, precision=outcome.found.made[name].plan.precision, reason=reason
            )
            for name, reason in outcome.found.faults.items()
        ),
        judged=recipe.gates.variant,
        example=outcome.example.result,
        waveform=None if outcome.waveform is None else outcome.waveform.result,
        attention_mask=recipe.export.attention_mask,
        sherpa=None if outcome.sherpa is None else outcome.sherpa.result,
        gates=check_gates(recipe.gates, {one.name: one for one in variants}),
        steps=outcome.seconds,
        machine=describe_machine(),
        versions=installed_versions(),
        files={},
    )


def _variant(outcome: Outcome, made: Made) -> Variant:
    plan, removal = made.plan, outcome.removal.result
    found = outcome.found.measured[plan.name].result
    original = outcome.found.measured[ORIGINAL].result
    lower = None if made.converted is None else made.converted.result
    counts = removal.before if plan.is_rival else removal.after
    return Variant(
        name=plan.name,
        parent=plan.parent,
        precision=plan.precision,
        done=_done(outcome, plan.is_rival, plan.precision),
        files=found.graphs,
        size_bytes=sum(one.size_bytes for one in found.graphs),
        parameters=counts.parameters,
        macs=counts.macs,
        metric=found.evaluation.measurement,
        change=None
        if plan.name == ORIGINAL
        else paired_change(original.evaluation, found.evaluation),
        constant=found.evaluation.constant,
        faults=found.evaluation.faults,
        parity=None
        if made.parity is None
        else ParitySummary.of(made.parity.result, outcome.loaded.recipe.task.medium.unit),
        agreement=found.agreement,
        padding=found.padding,
        guard=None if lower is None else lower.guard,
        in_float=() if lower is None else lower.in_float,
        latency=tuple(
            VariantLatency.of(latency, plan.name) for latency in outcome.benchmark.result.latencies
        ),
    )


def _done(outcome: Outcome, is_rival: bool, precision: str) -> tuple[str, ...]:
    plan, repair = outcome.choice.plan.result, outcome.saved.result.repair
    done = []
    if not is_rival:
        for pool in POOLS:
            number = sum(unit.is_of(pool) for unit in plan.units)
            if number:
                done.append(f"{number} {pool_words(pool, number)} removed")
        if factored := len(outcome.saved.result.factored):
            done.append(factored_words(factored))
        done = done or ["nothing removed"]
        if repair is not None and repair.sublayers:
            done.append(f"repaired ({repair.kind}{', refined' if repair.refined else ''})")
        training = outcome.training
        if training is not None and (steps := training.recovered.result.recovery.best_step):
            done.append(f"recovered ({counted(steps, 'step')})")
    if precision != "fp32":
        done.append(f"converted to {precision}")
    return tuple(done)


def _recovery(outcome: Outcome) -> RecoverySummary | None:
    training, settings = outcome.training, outcome.loaded.recipe.recover
    if training is None or settings is None:
        return None
    before, after = training.before.result, outcome.found.measured[PRUNED].result.evaluation
    source = settings.data or outcome.loaded.recipe.calibration.source
    return RecoverySummary(
        recovery=training.recovered.result.recovery,
        seconds=training.recovered.result.seconds,
        repaired=Measurement(**{name: getattr(before, name) for name in Measurement.model_fields}),
        change=paired_change(before, after),
        data=data_summary(outcome.material.recovery, source.kind),
    )


def _budget(outcome: Outcome) -> BudgetSummary | None:
    recipe, removal = outcome.loaded.recipe, outcome.removal.result
    name, currency = recipe.budget.one_number, recipe.budget.currency
    if name is None:
        return None
    counts = [
        one.parameters if currency == "parameters" else one.macs
        for one in (removal.before, removal.after)
    ]
    return BudgetSummary(
        name=name,
        asked=recipe.budget.amount,
        counted_in=currency,
        reached=counts[1] / counts[0],
        kinds=(
            *mixed_kinds(recipe, outcome.material.checkpoint.model),
            *((RANK,) if takes_ranks(recipe) else ()),
        ),
        speed=None if outcome.choice.speed is None else outcome.choice.speed.result.found,
    )


def _others(outcome: Outcome, pool: Pool) -> UnitSummary | None:
    chosen = outcome.choice.others.get(pool)
    if chosen is None:
        return None
    recipe, model = outcome.loaded.recipe, outcome.material.checkpoint.model
    scores, want = chosen.scores.result, wanted(recipe, model)[pool]
    removed = chosen.plan.result.by_layer(pool)
    return UnitSummary(
        total=len(scores.heads),
        share=want.share,
        scope=want.scope,
        method=want.method.name(),
        settings=want.method.model_dump(mode="json", exclude={"method"}),
        seconds=chosen.scores.seconds,
        removed=removed,
        kept={
            layer: count - len(removed.get(layer, ()))
            for layer, count in sorted(Counter(one.layer for one in scores.heads).items())
        },
    )


def _ranks(outcome: Outcome) -> RankSummary | None:
    recipe, model = outcome.loaded.recipe, outcome.material.checkpoint.model
    if not recipe.budget.ranks and not outcome.choice.plan.result.ranks:
        return None
    return RankSummary(
        total=len(projections_of(model)),
        share=recipe.budget.ranks or None,
        factored=outcome.saved.result.factored,
    )


def _by_layer(heads: Iterable[Head]) -> dict[int, tuple[int, ...]]:
    return {layer: tuple(indices) for layer, indices in heads_by_layer(heads).items()}
