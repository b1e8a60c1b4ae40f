"""Everything that a recipe may say, typed."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from hibprune.attribution import HeadInformationBottleneck, Method, MethodBase
from hibprune.attribution.methods import AnyUnitMethod, Reconstruction
from hibprune.compression.plan import Budget, Schedule
from hibprune.compression.quantize.settings import QuantizeSettings
from hibprune.compression.settings import RemovalSettings
from hibprune.data import DataSource, DurationLimits
from hibprune.deployment.settings import ExportSettings
from hibprune.evaluation.latency import BenchmarkSettings
from hibprune.models.source import ModelSource
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

TIMED = ("min_seconds", "max_seconds", "crop_seconds")
"""Keys about data that only sound has."""


METRIC_GATES = {
    "accuracy": "max_accuracy_drop",
    "wer": "max_wer_rise",
    "cer": "max_cer_rise",
}
"""The gate on each metric, named in small letters."""
MAX_REPETITIONS, MAX_THREADS, MAX_BATCH = 100_000, 1024, 1024


class InputLimits(Settings):
    """Which clips can be used, and what share of them may be unusable before the run stops.

    Texts have no seconds: the longest that can be used is the model's to say.
    """

    min_seconds: float = Field(default=0.1, gt=0)
    max_seconds: float = Field(default=40.0, gt=0)
    max_unreadable: float = Field(default=0.01, ge=0, lt=1)

    @model_validator(mode="after")
    def _some_clip_fits(self) -> InputLimits:
        if self.min_seconds > self.max_seconds:
            raise ValueError(
                f"min_seconds {self.min_seconds:g} is more than max_seconds {self.max_seconds:g}"
            )
        return self

    @property
    def durations(self) -> DurationLimits:
        return DurationLimits(min_seconds=self.min_seconds, max_seconds=self.max_seconds)


class Calibration(InputLimits):
    """What units are scored on, drawn by the recipe's seed and balanced over classes.

    Removal is repaired on `repair_samples`: those and, where it is more, others behind them; left
    open, on those alone. `labels: model` takes the model's own predictions for the truth, for data
    without labels. `crop_seconds` scores on the beginning of each clip, for tasks with labels: the
    memory of attribution grows with the square of the length.
    """

    source: DataSource
    samples: int = Field(default=200, ge=1)
    repair_samples: int | None = Field(default=None, ge=1)
    labels: Literal["dataset", "model"] = "dataset"
    crop_seconds: float | None = Field(default=None, gt=0)


class Validation(InputLimits):
    """What the metric is measured on: all of it, or `limit` drawn by the recipe's seed.

    A run stops where the original model is no better than chance, since all that follows would
    compare guesses; `allow_chance_baseline` lets it go on, and the report say so.
    """

    source: DataSource
    limit: int | None = Field(default=None, ge=1)
    allow_chance_baseline: bool = False


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
    export: ExportSettings = ExportSettings()
    quantize: QuantizeSettings = QuantizeSettings()
    benchmark: BenchmarkSettings = BenchmarkSettings()
    gates: Gates = Gates()
    seed: int = Field(default=0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @property
    def kinds(self) -> tuple[MixKind, ...] | None:
        """The kinds of units that one number for all kinds may take; None: all that there are."""
        return ("head",) if getattr(self.attribution, "paper", False) else self.budget.kinds

    def method_of(self, pool: Pool) -> MethodBase:
        """How units of a kind are scored.

        Where several kinds share one budget, all by one method, whose scores are errors; so are
        heads where none are to go.
        """
        own: dict[Pool, MethodBase] = {
            "head": self.attribution,
            "neuron": self.neuron_attribution,
            "channel": self.channel_attribution,
            "decoder_neuron": self.neuron_attribution,
            "decoder_head": self.decoder_head_attribution,
            "cross_head": self.decoder_head_attribution,
        }
        chosen = own[pool]
        if self.budget.one_number is not None and self.kinds != (pool,):
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
        for place, data in (("calibration", self.calibration), ("validation", self.validation)):
            if medium not in data.source.media:
                held = " or ".join(one.name for one in data.source.media)
                raise ValueError(
                    f"{place}.source: {data.source.kind} holds {held}, but {takes}: "
                    "choose another data source or task"
                )
            timed = [key for key in TIMED if key in data.model_fields_set]
            if timed and medium.unit != "seconds":
                raise ValueError(f"{place}.{timed[0]}: {takes}, which has no seconds: leave it out")
        for place, settings in (("benchmark", self.benchmark), ("export", self.export)):
            for unit in settings.model_fields_set & {"seconds", "tokens"} - {medium.unit}:
                raise ValueError(f"{place}.{unit}: {takes}: give {medium.unit}")
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
