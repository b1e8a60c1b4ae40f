"""`manifest.json`: what happened, for programs; CI jobs gate on it, the report is drawn from it."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from hibprune.records.base import Interval, Record
from hibprune.records.generation import GenerationSettings
from hibprune.records.measurements import AtWork, Gate, Measurement, Percentiles
from hibprune.records.medium import MEDIA, Medium, MediumName, Unit
from hibprune.records.ranking import RankingFault
from hibprune.records.repair import Repair
from hibprune.records.transcripts import TranscriptRules
from hibprune.records.units import HeadShare, Scope

FILE_NAME = "manifest.json"
SPEEDUP = "min_speedup"
"""The gate whose value is a ratio of medians, at the length that keeps to it least."""


ModelName = Literal["baseline", "pruned", "exported"]


class ModelSummary(Record):
    """Which checkpoint was pruned; `identity` is a digest of its weights and configuration.

    `on_hub` tells a Hub id from a directory.
    """

    source: str
    on_hub: bool
    revision: str | None
    family: str
    identity: str


class AttributionSummary(Record):
    """How the heads were scored; `settings` are the method's fields after defaults were filled in.

    `split_half` is the Spearman correlation of scores between halves of the samples, in the first
    round where there were several; `seconds` are those of all rounds. `steps` is how many each
    sample took in that round, where the method had to find that out. `ranking_fault` is why the
    scores of that round say nothing about which heads matter, where they do not.
    """

    method: str
    settings: dict[str, str | int | float | bool | tuple[str, ...] | None]
    samples: int
    seconds: float
    split_half: float | None
    steps: int | None = None
    ranking_fault: RankingFault | None = None


class HeadSummary(Record):
    """`removed` maps a layer to the original indices of the heads that are gone.

    `budget` is the share asked for, None where the recipe gives a number of heads.
    """

    total: int
    budget: HeadShare | None = None
    removed: dict[int, tuple[int, ...]]

    @property
    def removed_count(self) -> int:
        return sum(len(indices) for indices in self.removed.values())


class NeuronSummary(Record):
    """How many of the encoder's neurons went, and by what scores.

    `removed` maps a layer to the original indices of those that are gone, `kept` to how many stay.
    """

    total: int
    share: float
    scope: Scope
    method: str
    settings: dict[str, str | int | float | bool | tuple[str, ...] | None]
    seconds: float
    removed: dict[int, tuple[int, ...]]
    kept: dict[int, int]

    @property
    def removed_count(self) -> int:
        return sum(len(indices) for indices in self.removed.values())


class RoundSummary(Record):
    """The heads that went in one round, and the scoring that chose them."""

    removed: dict[int, tuple[int, ...]]
    seconds: float
    split_half: float | None
    ranking_fault: RankingFault | None = None


class Change(Record):
    """A count before and after removal."""

    before: int
    after: int


class MacsChange(AtWork, Change):
    """Multiply-adds before and after for one input of some length."""

    length_prefix: ClassVar[str] = "at_"


class MetricSummary(Record):
    """The task metric of the original, the pruned and the exported model, all by one code.

    A change is the 95 % interval of the model's value minus the baseline's, taken input by input;
    None where the two were not given the same. What each said of every input, and how much of it
    was wrong, is in `predictions/`. `chance` is the metric of the best answer that does not look at
    the input; `constant` holds, by model, what one said that said the same of every input.
    `transcripts` are the rules by which texts were compared.
    """

    name: str
    higher_is_better: bool
    n: int
    baseline: Measurement
    pruned: Measurement
    exported: Measurement
    pruned_change: Interval | None
    exported_change: Interval | None
    chance: float | None = None
    constant: dict[ModelName, str] = Field(default_factory=dict)
    transcripts: TranscriptRules | None = None


class OutputParity(Record):
    """How far an output of the ONNX files is from PyTorch's where that is furthest from it.

    `relative_diff` is `max_abs_diff` as a share of `scale`, PyTorch's largest absolute value.
    """

    output: str
    max_abs_diff: float
    scale: float
    relative_diff: float


class ParitySummary(Record):
    """How closely every output of the ONNX files follows PyTorch, and where that was looked for.

    `tolerance` limits the relative differences; `lengths` are in `unit`.
    """

    tolerance: float
    outputs: tuple[OutputParity, ...]
    lengths: tuple[int | float, ...]
    unit: Unit = "seconds"
    batches: tuple[int, ...]

    @property
    def max_relative_diff(self) -> float:
        return max(output.relative_diff for output in self.outputs)


class TimingSummary(Record):
    """Latency in milliseconds; `ratio` above 1 means the pruned model is faster."""

    before: Percentiles
    after: Percentiles
    ratio: float
    ratio_interval: Interval


class PartTimingSummary(TimingSummary):
    """Latency of a part of the model alone."""

    part: str


class LatencySummary(AtWork, TimingSummary):
    """Latency at one length, of the whole model and of its parts where it is run in parts."""

    runtime: str
    provider: str
    threads: int
    batch: int
    repetitions: int
    parts: tuple[PartTimingSummary, ...] = ()


class Machine(Record):
    """Where the figures were measured.

    `instruction_set` names what the processor has for int8 and fp16; empty where that is unknown.
    """

    processor: str
    cores: int
    memory_gib: float
    gpu: str | None
    system: str
    instruction_set: tuple[str, ...] = ()


class SkippedClip(Record):
    """A sound file or text that could not be used, and why."""

    id: str
    reason: str


class DataSummary(Record):
    """How many clips or texts were used from where.

    `identity` is a digest of their content and targets.
    """

    kind: str
    n: int
    identity: str
    skipped: tuple[SkippedClip, ...]


class Manifest(Record):
    """Everything a run found out.

    `size_bytes` is that of all ONNX graphs, `graph_bytes` that of each by its file's name. `files`
    maps a path in the directory to its sha256. `generation` is what a model with a decoder is told.
    """

    recipe: str
    model: ModelSummary
    task: str
    input: MediumName = "sound"
    device: str
    seed: int
    calibration: DataSummary
    validation: DataSummary
    attribution: AttributionSummary
    heads: HeadSummary
    neurons: NeuronSummary | None = None
    repair: Repair | None = None
    rounds: tuple[RoundSummary, ...] = ()
    parameters: Change
    macs: MacsChange
    size_bytes: Change
    graph_bytes: dict[str, Change] = Field(default_factory=dict)
    generation: GenerationSettings | None = None
    metric: MetricSummary
    parity: ParitySummary
    latency: tuple[LatencySummary, ...]
    gates: tuple[Gate, ...]
    steps: dict[str, float]
    machine: Machine
    versions: dict[str, str]
    files: dict[str, str]

    @property
    def medium(self) -> Medium:
        """What goes into the model, with the words for it."""
        return MEDIA[self.input]
