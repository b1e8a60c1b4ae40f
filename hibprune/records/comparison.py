"""`compare.json`: how the methods' rankings fared, for programs; page and pictures come from it."""

from __future__ import annotations

from hibprune.records.base import Interval, Record
from hibprune.records.manifest import DataSummary, Machine, ModelSummary
from hibprune.records.measurements import Evaluation
from hibprune.records.ranking import RankingFault
from hibprune.records.transcripts import TranscriptRules
from hibprune.records.units import Head

NO_REPAIR = "none"
"""The weights that stay are as they were, so that silencing heads gives what removing them does."""


class Estimate(Record):
    """A value with its 95 % interval over resampled validation clips."""

    value: float
    interval: Interval


class ScoredMethod(Record):
    """One method with its settings, its scores and what they took.

    `scores` are aligned with the comparison's `heads`. A method whose scores are `drawn` by chance
    has several `seeds`, and its scores are those of the first. Passes are counted in clips through
    the encoder, per calibration sample. `interrupted`: seconds are projected from the samples that
    were scored in one go. `ranking_fault` is why the scores say nothing about which heads matter,
    where they do not.
    """

    label: str
    method: str
    settings: dict[str, str | int | float | bool | tuple[str, ...] | None]
    drawn: bool
    seeds: tuple[int, ...]
    seconds: float
    interrupted: bool
    forwards_per_sample: float | None
    backwards_per_sample: float | None
    split_half: float | None
    ranking_fault: RankingFault | None = None
    scores: tuple[float, ...]


class TriedRepair(Record):
    """What was done, in a comparison, with the weights that stay once heads are gone.

    `clips` are those it was fitted on or judged by, `refine_steps` gradient steps a layer behind
    the fit, `seconds` the median that it took for one model; None where nothing was repaired.
    """

    kind: str
    clips: int | None = None
    refine_steps: int = 0
    seconds: float | None = None


class RepairedEvaluation(Record):
    """The metric of a model that heads were removed from and that was repaired in `seconds`."""

    evaluation: Evaluation
    seconds: float


class Point(Record):
    """The metric with `removed` heads gone, which is the `share` of all heads.

    `fraction` is what was asked for. Over several draws: their mean, its interval over clips, the
    lowest and the highest draw. `heads` maps a layer to the heads that are gone, of the first draw.
    """

    fraction: float
    removed: int
    share: float
    value: float
    interval: Interval
    lowest: float
    highest: float
    heads: dict[int, tuple[int, ...]]


class Curve(Record):
    """A method's points in one scope and with one repair, by rising share.

    `area` is that under the curve from the whole model to the largest share, divided by that share:
    the mean of the metric on the way. `to_reference` is the area less the reference's, over the
    same resampled clips and with the same repair; None for the reference itself. `to_unrepaired` is
    the area less that of the same method without repair, where that was measured too.
    """

    label: str
    scope: str
    repair: str = NO_REPAIR
    metric: str
    points: tuple[Point, ...]
    area: Estimate | None
    to_reference: Estimate | None
    to_unrepaired: Estimate | None = None


class Comparison(Record):
    """Everything a comparison found out.

    `points` are the task's own metric at a few shares, where the curves show a cheaper one.
    `rank_correlations[i][j]` is Spearman's, of the scores of methods i and j. By the metrics of
    `guessing` the whole model is no better than chance. `transcripts` are the rules by which texts
    were compared.
    """

    recipe: str
    command: str
    model: ModelSummary
    task: str
    device: str
    seed: int
    calibration: DataSummary
    validation: DataSummary
    metric: str
    higher_is_better: bool
    whole: dict[str, Estimate]
    guessing: tuple[str, ...] = ()
    resamples: int
    heads: tuple[Head, ...]
    methods: tuple[ScoredMethod, ...]
    reference: str
    scopes: tuple[str, ...]
    repairs: tuple[TriedRepair, ...] = (TriedRepair(kind=NO_REPAIR),)
    curves: tuple[Curve, ...]
    points: tuple[Curve, ...]
    rank_correlations: tuple[tuple[float, ...], ...]
    evaluations: int
    transcripts: TranscriptRules | None = None
    machine: Machine
    versions: dict[str, str]

    @property
    def repaired(self) -> bool:
        """Whether anything was done with the weights that stay, in any curve."""
        return any(repair.kind != NO_REPAIR for repair in self.repairs)

    def of_scope(self, scope: str) -> tuple[Curve, ...]:
        """The curves of one scope, repair by repair in the order of the methods."""
        return tuple(curve for curve in self.curves if curve.scope == scope)


class CorrelatedRun(Record):
    """One side of a correlation; `scores` are aligned with the correlation's `heads`."""

    directory: str
    recipe: str
    task: str
    model: str
    method: str
    samples: int
    split_half: float | None
    ranking_fault: RankingFault | None = None
    scores: tuple[float, ...]

    @property
    def label(self) -> str:
        """How a picture calls it."""
        return f"{self.recipe}, {self.method}"


class Correlation(Record):
    """How far two runs agree on their heads; intervals over resampled heads.

    `layers` holds Spearman's correlation within each layer of at least three heads.
    """

    family: str
    heads: tuple[Head, ...]
    first: CorrelatedRun
    second: CorrelatedRun
    spearman: Estimate
    pearson: Estimate
    layers: dict[int, float]
    versions: dict[str, str]


class CorrelationMatrix(Record):
    """How far each two of several runs agree: `pairs` of places among `runs`, and each one's."""

    runs: tuple[CorrelatedRun, ...]
    pairs: tuple[tuple[int, int], ...]
    correlations: tuple[Correlation, ...]
