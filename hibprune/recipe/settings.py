"""Everything that a recipe may say, typed."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from hibprune.attribution import HeadInformationBottleneck, Method, MethodBase
from hibprune.attribution.methods import AnyUnitMethod, Reconstruction
from hibprune.compression.plan import Budget, Schedule
from hibprune.compression.quantize.settings import QuantizeSettings
from hibprune.compression.settings import RemovalSettings
from hibprune.data import DataSource
from hibprune.deployment.settings import ExportSettings
from hibprune.evaluation.latency import BenchmarkSettings
from hibprune.models.source import ModelSource
from hibprune.recipe.inputs import Calibration, RecoverSettings, Validation
from hibprune.records.base import Settings
from hibprune.records.medium import Unit
from hibprune.records.units import RANK, MixKind, Pool
from hibprune.records.variants import VariantName, precision_of
from hibprune.tasks import Task

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
MAX_NAME = 100
"""A recipe's name is that of a directory and of a model on the Hub."""

SHORTEST_EXAMPLE: dict[Unit, float] = {"seconds": 0.1, "tokens": 1}
"""The convolutions of models of sound want some hundreds of samples."""

TIMED = ("min_seconds", "max_seconds", "crop_seconds", "batch_seconds", "augment")
"""Keys about data that only sound has."""


METRIC_GATES = {
    "accuracy": "max_accuracy_drop",
    "wer": "max_wer_rise",
    "cer": "max_cer_rise",
}
"""The gate on each metric, named in small letters."""
MAX_REPETITIONS, MAX_THREADS, MAX_BATCH = 100_000, 1024, 1024


class Gates(Settings):
    """Limits that make the run end with exit code 3 when one is broken; drops as shares (0.02).

    They hold the `variant` named: its metric against the original's, its speed-up at every measured
    length, its ONNX files. What has a 95 % interval is held to the limit by it: a gate fails when
    the whole interval is beyond the limit, passes when the whole interval is within, and is
    undecided otherwise, which does not fail the run. `strict` wants the whole interval within: what
    is undecided fails.
    """

    former_names: ClassVar[dict[str, str]] = {
        "largest_accuracy_drop": "max_accuracy_drop",
        "largest_wer_rise": "max_wer_rise",
        "smallest_speedup": "min_speedup",
        "largest_file_mb": "max_file_mb",
    }

    max_accuracy_drop: float | None = Field(default=None, ge=0, le=1)
    max_wer_rise: float | None = Field(default=None, ge=0)
    max_cer_rise: float | None = Field(default=None, ge=0)
    min_speedup: float | None = Field(default=None, gt=0)
    max_file_mb: float | None = Field(default=None, gt=0)
    strict: bool = False
    variant: VariantName = "pruned"


class ReportSettings(Settings):
    """What the page shows beyond figures.

    `audio` puts clips whose answers changed into report.html, as many as 600 kB hold, for whoever
    reads it to play: set it where the licence of the data allows that.
    """

    audio: bool = False


METHOD_KEYS: dict[Pool, str] = {
    "head": "attribution",
    "neuron": "neuron_attribution",
    "channel": "channel_attribution",
    "decoder_neuron": "neuron_attribution",
    "decoder_head": "decoder_head_attribution",
    "cross_head": "decoder_head_attribution",
}
"""The key of a recipe that says how units of a pool are scored."""


class Recipe(Settings):
    """Everything a run depends on.

    `neuron_attribution` scores the neurons of a decoder as well; `channel_attribution`, and
    `decoder_head_attribution` for the heads of a decoder, are of its methods.
    """

    former_names: ClassVar[dict[str, str]] = {
        "allow_chance_baseline": "validation.allow_chance_baseline"
    }

    name: str = Field(pattern=NAME_PATTERN, max_length=MAX_NAME)
    model: ModelSource
    task: Task
    calibration: Calibration
    validation: Validation
    attribution: Method = HeadInformationBottleneck(method="hib")
    neuron_attribution: AnyUnitMethod = Reconstruction(method="reconstruction")
    channel_attribution: AnyUnitMethod = Reconstruction(method="reconstruction")
    decoder_head_attribution: AnyUnitMethod = Reconstruction(method="reconstruction")
    budget: Budget
    schedule: Schedule = Schedule()
    removal: RemovalSettings = RemovalSettings()
    recover: RecoverSettings | None = None
    export: ExportSettings = ExportSettings()
    quantize: QuantizeSettings = QuantizeSettings()
    benchmark: BenchmarkSettings = BenchmarkSettings()
    gates: Gates = Gates()
    report: ReportSettings = ReportSettings()
    seed: int = Field(default=0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @property
    def sources(self) -> tuple[tuple[str, DataSource], ...]:
        """Every set of data that is named, by the key that names it."""
        named = [("calibration.source", self.calibration.source)]
        named += [("validation.source", self.validation.source)]
        if self.recover is not None and self.recover.data is not None:
            named += [("recover.data", self.recover.data)]
        return tuple(named)

    @property
    def kinds(self) -> tuple[MixKind, ...] | None:
        """The kinds of units that one number for all kinds may take; None: all that there are."""
        return ("head",) if getattr(self.attribution, "paper", False) else self.budget.kinds

    def method_of(self, pool: Pool) -> MethodBase:
        """How units of a kind are scored.

        Where several kinds share one budget, all by one method, whose scores are errors; so are
        heads where none are to go, which takes forward passes alone.
        """
        chosen: MethodBase = getattr(self, METHOD_KEYS[pool])
        budget = self.budget
        shared = budget.one_number is not None and self.kinds != (pool,)
        if shared or (pool == "head" and not (budget.one_number or budget.takes_heads)):
            same = isinstance(chosen, Reconstruction)
            chosen = chosen if same else Reconstruction(method="reconstruction")
        return chosen.for_task(self.task.kind)

    @model_validator(mode="after")
    def _published_method_takes_heads_alone(self) -> Recipe:
        kinds = self.budget.kinds
        if kinds not in (None, ("head",)) and self.kinds == ("head",):
            raise ValueError(
                f"budget.kinds: {', '.join(kinds or ())}, but attribution.paper takes heads alone: "
                "leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _ranks_are_fitted(self) -> Recipe:
        if RANK in (self.budget.kinds or ()) and self.removal.repair != "least-squares":
            raise ValueError(
                "budget.kinds: rank, which counts on projections that are fitted, but "
                f"removal.repair is {self.removal.repair}: set it to least-squares, or leave rank "
                "out"
            )
        return self

    @model_validator(mode="after")
    def _data_and_lengths_are_of_what_goes_in(self) -> Recipe:
        medium = self.task.medium
        takes = f"{self.task.kind} takes {medium.name}"
        sets = [("calibration", self.calibration), ("validation", self.validation)]
        for key, source in self.sources:
            if medium not in source.media:
                held = " or ".join(one.name for one in source.media)
                raise ValueError(
                    f"{key}: {source.kind} holds {held}, but {takes}: "
                    "choose another data source or task"
                )
        for place, data in (*sets, *([("recover", self.recover)] if self.recover else [])):
            timed = [key for key in TIMED if key in data.model_fields_set]
            if timed and medium.unit != "seconds":
                raise ValueError(f"{place}.{timed[0]}: {takes}, which has no seconds: leave it out")
            if "batch_tokens" in data.model_fields_set and medium.unit != "tokens":
                raise ValueError(f"{place}.batch_tokens: {takes}: give batch_seconds")
        for place, settings in (("benchmark", self.benchmark), ("export", self.export)):
            for unit in settings.model_fields_set & {"seconds", "tokens"} - {medium.unit}:
                raise ValueError(f"{place}.{unit}: {takes}: give {medium.unit}")
        return self

    @model_validator(mode="after")
    def _recovery_has_something_to_go_by(self) -> Recipe:
        recover = self.recover
        if recover is None:
            return self
        if getattr(self.attribution, "paper", False):
            raise ValueError(
                "recover trains what is left, and under attribution.paper nothing is trained: "
                "leave one of them out"
            )
        if recover.data is None and recover.labels == self.calibration.labels == "dataset":
            return self
        if recover.data is None and recover.labels == "dataset":
            raise ValueError(
                "recover.labels: dataset, but the calibration clips that it learns from are taken "
                "to have none (calibration.labels: model): give recover.data or leave it out"
            )
        if recover.train == "repaired" and self.removal.repair == "none":
            raise ValueError(
                "recover.train: repaired, but removal.repair is none, so that nothing is: set "
                "recover.train to all or norms+biases"
            )
        return self

    @model_validator(mode="after")
    def _only_labels_survive_cropping(self) -> Recipe:
        if self.calibration.crop_seconds is not None and self.task.fields.kind == "text":
            raise ValueError("calibration.crop_seconds: a cropped clip no longer holds its text")
        return self

    @model_validator(mode="after")
    def _gates_hold_a_variant_that_is_made(self) -> Recipe:
        precision = precision_of(self.gates.variant)
        if precision not in self.export.variants:
            raise ValueError(
                f"gates.variant: {self.gates.variant} is not made: add {precision} to "
                "export.variants"
            )
        return self

    @model_validator(mode="after")
    def _gates_fit_the_task(self) -> Recipe:
        metric = self.task.metric_name
        right = METRIC_GATES[metric.lower()]
        for gate in METRIC_GATES.values():
            if gate != right and getattr(self.gates, gate) is not None:
                raise ValueError(
                    f"gates.{gate}: the metric of {self.task.kind} is {metric}: use {right}"
                )
        return self

    @model_validator(mode="after")
    def _lengths_are_lengths(self) -> Recipe:
        unit = self.task.medium.unit
        for place, settings in (("benchmark", self.benchmark), ("export", self.export)):
            shortest = min(getattr(settings, unit))
            if shortest < SHORTEST_EXAMPLE[unit]:
                raise ValueError(
                    f"{place}.{unit}: should be at least {SHORTEST_EXAMPLE[unit]:g}, "
                    f"not {shortest:g}"
                )
        return self

    @model_validator(mode="after")
    def _work_comes_to_an_end(self) -> Recipe:
        timed = self.benchmark
        for key, value, most in (
            ("benchmark.repetitions", timed.repetitions, MAX_REPETITIONS),
            ("benchmark.warmup", timed.warmup, MAX_REPETITIONS),
            ("benchmark.threads", timed.threads, MAX_THREADS),
            ("export.batches", max(self.export.batches), MAX_BATCH),
        ):
            if value > most:
                raise ValueError(f"{key}: should be at most {most:,}, not {value:,}")
        return self
