"""`manifest.json`: what happened, for programs; CI jobs gate on it, the report is drawn from it."""

from __future__ import annotations

from typing import ClassVar, Literal

from hibprune.records.base import Interval, Record
from hibprune.records.measurements import AtLength, Gate, Measurement, Percentiles
from hibprune.records.medium import MEDIA, Medium, MediumName, Unit
from hibprune.records.units import HeadShare

FILE_NAME = "manifest.json"
SPEEDUP = "smallest_speedup"
"""The gate whose value is a ratio of medians, at the length where that is smallest."""


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
    sample took in that round, where the method had to find that out.
    """

    method: str
    settings: dict[str, str | int | float | bool | tuple[str, ...] | None]
    samples: int
    seconds: float
    split_half: float | None
    steps: int | None = None


class HeadSummary(Record):
    """`removed` maps a layer to the original indices of the heads that are gone.

    `budget` is the share asked for, None where the recipe gives a number of heads. `left` is what
    they left behind in their layers.
    """

    total: int
    budget: HeadShare | None = None
    left: Literal["nothing", "mean"] = "nothing"
    removed: dict[int, tuple[int, ...]]

    @property
    def removed_count(self) -> int:
        return sum(len(indices) for indices in self.removed.values())


class RoundSummary(Record):
    """The heads that went in one round, and the scoring that chose them."""

    removed: dict[int, tuple[int, ...]]
    seconds: float
    split_half: float | None


class Change(Record):
    """A count before and after removal."""

    before: int
    after: int


class MacsChange(AtLength, Change):
    """Multiply-adds before and after for one input of some length."""

    length_prefix: ClassVar[str] = "at_"


class MetricSummary(Record):
    """The task metric of the original, the pruned and the exported model, all by one code.

    A change is the 95 % interval of the model's value minus the baseline's, taken input by input;
    None where the two were not given the same. What each said of every input, and how much of it
    was wrong, is in `predictions/`.
    """

    name: str
    higher_is_better: bool
    n: int
    baseline: Measurement
    pruned: Measurement
    exported: Measurement
    pruned_change: Interval | None
    exported_change: Interval | None


class ParitySummary(Record):
    """Largest difference of logits between PyTorch and the ONNX file, and where it was sought.

    `lengths` are in `unit`.
    """

    max_abs_diff: float
    tolerance: float
    lengths: tuple[int | float, ...]
    unit: Unit = "seconds"
    batches: tuple[int, ...]


class LatencySummary(AtLength):
    """Latency at one length, in milliseconds; `ratio` above 1 means the pruned model is faster."""

    runtime: str
    provider: str
    threads: int
    batch: int
    repetitions: int
    before: Percentiles
    after: Percentiles
    ratio: float
    ratio_interval: Interval


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
    """Everything a run found out. `files` maps a path in the directory to its sha256."""

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
    rounds: tuple[RoundSummary, ...] = ()
    parameters: Change
    macs: MacsChange
    size_bytes: Change
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
