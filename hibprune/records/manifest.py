"""`manifest.json`: what happened, for programs; CI jobs gate on it, the report is drawn from it."""

from __future__ import annotations

from typing import ClassVar, Literal

from hibprune.records.base import Interval, Record
from hibprune.records.example import Example
from hibprune.records.generation import GenerationSettings
from hibprune.records.licence import Licence
from hibprune.records.measurements import AtWork, Gate, Measurement
from hibprune.records.medium import MEDIA, Medium, MediumName
from hibprune.records.ranking import RankingFault
from hibprune.records.recovery import Recovery
from hibprune.records.repair import FactoredProjection, Repair, factored_weights
from hibprune.records.sherpa import SherpaFiles
from hibprune.records.speedup import SpeedFound
from hibprune.records.transcripts import TranscriptRules
from hibprune.records.units import POOLS, Currency, HeadShare, MixKind, OneNumber, Pool, Scope
from hibprune.records.variants import ORIGINAL, PRUNED, MissingVariant, Variant
from hibprune.records.waveform import WaveformGraph

FILE_NAME = "manifest.json"
SCHEMA_VERSION: Literal[2] = 2
"""Of the manifest: raised when a key changes its meaning or goes."""
SPEEDUP = "min_speedup"
"""The gate whose value is a ratio of medians, at the length that keeps to it least."""


class ModelSummary(Record):
    """Which checkpoint was pruned; `identity` is a digest of its weights and configuration.

    `on_hub` tells a Hub id from a directory; `licence` is None where nobody states one.
    """

    source: str
    on_hub: bool
    revision: str | None
    family: str
    identity: str
    licence: Licence | None = None


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


class BudgetSummary(Record):
    """One number for all kinds of units: what was `asked` by which `name` of the recipe's budget.

    `reached` is the share that is left of what is `counted_in`; `kinds` are those that could go;
    `speed` tells how the mix was found where a speed was asked for.
    """

    name: OneNumber
    asked: float
    counted_in: Currency
    reached: float
    kinds: tuple[MixKind, ...]
    speed: SpeedFound | None = None


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


class UnitSummary(Record):
    """How many units of a pool beside the encoder's heads went, and by what scores.

    `removed` maps a layer to the original indices of those that are gone, `kept` to how many stay.
    There is no share where one number for all kinds decided.
    """

    total: int
    share: float | None
    scope: Scope
    method: str
    settings: dict[str, str | int | float | bool | tuple[str, ...] | None]
    seconds: float
    removed: dict[int, tuple[int, ...]]
    kept: dict[int, int]

    @property
    def removed_count(self) -> int:
        return sum(len(indices) for indices in self.removed.values())


class RankSummary(Record):
    """The projections of the encoder that became two matrices, of `total`.

    `share` is that of each one's weights which was to go, None where one number for all kinds
    decided.
    """

    total: int
    share: float | None
    factored: tuple[FactoredProjection, ...]

    @property
    def weights(self) -> tuple[int, int]:
        """Of those that became two: before and after."""
        return factored_weights(self.factored)


class RoundSummary(Record):
    """The heads that went in one round, and the scoring that chose them."""

    removed: dict[int, tuple[int, ...]]
    seconds: float
    split_half: float | None
    ranking_fault: RankingFault | None = None


class CountedWork(AtWork):
    """What multiply-adds are counted for: one input of some length."""

    length_prefix: ClassVar[str] = "at_"


class MetricSummary(Record):
    """The task metric that all variants are measured by, over `n` inputs, by one code.

    `chance` is the metric of the best answer that does not look at the input; `transcripts` are the
    rules by which texts were compared.
    """

    name: str
    higher_is_better: bool
    n: int
    chance: float | None = None
    transcripts: TranscriptRules | None = None


class Machine(Record):
    """Where the figures were measured.

    `instruction_set` names what the processor has for int8 and fp16; empty where that is unknown.
    `gpu_driver` is the version of the GPU's driver.
    """

    processor: str
    cores: int
    memory_gib: float
    gpu: str | None
    gpu_driver: str | None = None
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


class RecoverySummary(Record):
    """What recovery came to, on which `data`.

    `repaired` is the metric of the model before it, under PyTorch on the validation data; `change`
    the 95 % interval of what recovery added to it, input by input.
    """

    recovery: Recovery
    seconds: float
    repaired: Measurement
    change: Interval | None
    data: DataSummary


class Manifest(Record):
    """Everything a run found out.

    `variants` are the models that were measured, the original first; `missing` those that could not
    be made. Gates hold the variant `judged`. Multiply-adds of all are for `counted_work`. `files`
    maps a path in the directory to its sha256. `generation` is what a model with a decoder is told.
    `example` is an input with what each variant gives out for it; `waveform` a graph that makes the
    model's input of sound by itself. `attention_mask`: graphs of waveforms take a mask beside them,
    so that clips of different lengths can share a batch. `sherpa` are files for sherpa-onnx.
    """

    schema_version: Literal[2] = SCHEMA_VERSION
    recipe: str
    model: ModelSummary
    task: str
    input: MediumName = "sound"
    device: str
    seed: int
    calibration: DataSummary
    validation: DataSummary
    attribution: AttributionSummary
    budget: BudgetSummary | None = None
    heads: HeadSummary
    neurons: UnitSummary | None = None
    channels: UnitSummary | None = None
    decoder_neurons: UnitSummary | None = None
    decoder_heads: UnitSummary | None = None
    cross_heads: UnitSummary | None = None
    ranks: RankSummary | None = None
    repair: Repair | None = None
    recovery: RecoverySummary | None = None
    rounds: tuple[RoundSummary, ...] = ()
    counted_work: CountedWork
    generation: GenerationSettings | None = None
    metric: MetricSummary
    variants: tuple[Variant, ...]
    missing: tuple[MissingVariant, ...] = ()
    judged: str = PRUNED
    example: Example | None = None
    waveform: WaveformGraph | None = None
    attention_mask: bool = False
    sherpa: SherpaFiles | None = None
    gates: tuple[Gate, ...]
    steps: dict[str, float]
    machine: Machine
    versions: dict[str, str]
    files: dict[str, str]

    @property
    def medium(self) -> Medium:
        """What goes into the model, with the words for it."""
        return MEDIA[self.input]

    @property
    def others(self) -> dict[Pool, UnitSummary]:
        """What went beside heads, where anything was to go."""
        found = {pool: getattr(self, f"{pool}s") for pool in POOLS if pool != "head"}
        return {pool: units for pool, units in found.items() if units is not None}

    def variant(self, name: str) -> Variant:
        """The variant of a name."""
        return next(one for one in self.variants if one.name == name)

    @property
    def original(self) -> Variant:
        """The model before anything was done to it."""
        return self.variant(ORIGINAL)

    @property
    def held(self) -> Variant:
        """The variant that the gates hold; the pruned model in fp32 where that was not made."""
        made = {one.name for one in self.variants}
        return self.variant(self.judged if self.judged in made else PRUNED)
