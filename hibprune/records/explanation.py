"""`explain.json`: what heads do on clips and over a data set, for programs."""

from __future__ import annotations

from typing import Literal

from hibprune.records.base import Interval, Record
from hibprune.records.comparison import Estimate
from hibprune.records.manifest import Machine, ModelSummary
from hibprune.records.medium import MediumName
from hibprune.records.ranking import RankingFault
from hibprune.records.units import Head

Matrix = tuple[tuple[float, ...], ...]
"""Rows of numbers: of attention, a row for each query and a column for each key."""

Kind = Literal["global", "vertical", "diagonal"]
"""Kinds of attention over speech (Yang et al. 2020)."""


class Span(Record):
    """A word and the positions it takes up: from `start` to before `end`."""

    text: str
    start: float
    end: float


class Axis(Record):
    """What the positions of an encoder's attention stand for.

    `seconds` is the length of a clip, whose positions follow each other in time; None where they
    do not. `tokens` are those of a text, `words` those that a recogniser of speech aligns by
    itself.
    """

    positions: int
    seconds: float | None = None
    tokens: tuple[str, ...] = ()
    words: tuple[Span, ...] = ()


class Spectrogram(Record):
    """Power of a clip in dB below its loudest cell: rows from 0 Hz up, columns over time."""

    decibels: Matrix
    highest_hertz: float


class ExplainedClip(Record):
    """A clip or text, and what the model says of it: all that is drawn explains that answer."""

    id: str
    said: str
    axis: Axis
    spectrogram: Spectrogram | None = None


class HeadMap(Record):
    """Four views of what a head attends to; beyond a bound on cells, means over neighbours.

    `own` is the model's attention; `softmax` and `sigmoid` are what HIB learns, by the activation;
    `attribution` is AttAttr's. `similarity` is Pearson's correlation of the first two over all
    pairs of positions, `largest` AttAttr's largest entry.
    """

    head: Head
    own: Matrix
    softmax: Matrix
    sigmoid: Matrix
    attribution: Matrix
    similarity: float
    largest: float


class ClipMaps(Record):
    """The maps of some heads on one clip or text."""

    clip: str
    heads: tuple[HeadMap, ...]
    beta: float
    noise: float
    steps: int
    answer: str


class InputScores(Record):
    """What each position is worth by one method."""

    method: str
    values: tuple[float, ...]


class InputAttribution(Record):
    """What each position of a clip or text is worth to the answer; `layer` and `beta` are IBA's.

    `removable` are the positions that are no special tokens.
    """

    clip: str
    layer: int
    beta: float
    removable: tuple[int, ...]
    scores: tuple[InputScores, ...]


class DegradationCurve(Record):
    """What is left of the answer's probability when the positions a method ranks highest go first.

    `probabilities` are means over clips, `normalised` the same on the scale from the least (0) to
    that of whole clips (1), `area` the mean height of that curve: lower is better. `drop` is what
    the probability loses at the table's share, `beyond_chance` how much more than a random ranking.
    """

    method: str
    probabilities: tuple[float, ...]
    normalised: tuple[float, ...]
    area: float
    drop: Estimate
    beyond_chance: Estimate | None


class Degradation(Record):
    """The degradation test over clips or texts. `original` is the probability of whole ones."""

    clips: int
    removed_as: str
    original: float
    least: float
    shares: tuple[float, ...]
    table_share: float
    curves: tuple[DegradationCurve, ...]


class HeadFunction(Record):
    """What one head does, over all clips.

    `positional` is the share of queries whose largest weight lies at the commonest `offset` (key
    less query). The three numbers of Yang et al. 2020 are means over clips; `kind` is the one that
    ranks the head highest, None where positions do not follow each other in time. `rarest` is the
    share of queries whose largest weight lies on the rarest token of a text.
    """

    head: Head
    positional: float
    offset: int
    globalness: float
    verticality: float
    diagonality: float
    kind: Kind | None
    rarest: float | None = None
    function: str
    score: float | None = None


class ScoreCorrelation(Record):
    """Spearman's correlation of a number with the score; None where either is constant."""

    number: str
    spearman: Estimate | None


class HeadFunctions(Record):
    """What all heads of the encoder do over some clips or texts.

    `method` gave the scores; None where there are none. `rare_texts` are those with one token that
    is rarer than all others; `skipped` says of each clip that was not looked at why.
    """

    heads: tuple[HeadFunction, ...]
    clips: int
    rare_texts: int | None
    skipped: tuple[str, ...] = ()
    method: str | None = None
    correlations: tuple[ScoreCorrelation, ...] = ()


class TreeEdge(Record):
    """From a node to one below it, with the layer it was found in and what it has there."""

    parent: int
    child: int
    layer: int
    weight: float


class AttributionTree(Record):
    """How a clip's words or a text's tokens, by place in `names`, come together to the answer.

    `terminal` is the place of the token that the answer is read off, where there is one.
    """

    clip: str
    names: tuple[str, ...]
    terminal: int | None
    threshold: float
    layers: int
    top: int
    edges: tuple[TreeEdge, ...]


class Attack(Record):
    """Two words in front of texts: so many of those tried are answered otherwise.

    `of` is the answer that the words stand for; empty, as `words`, where they are drawn by chance.
    """

    words: tuple[str, ...]
    of: str
    changed: int
    tried: int
    interval: Interval


class Triggers(Record):
    """Attacks on validation `texts` by patterns from calibration texts (`sources`)."""

    texts: int
    sources: int
    attacks: tuple[Attack, ...]
    random: Attack


class StackPoint(Record):
    """The metric with so many heads of a stack gone."""

    removed: int
    value: Estimate


class StackCurve(Record):
    """The metric as the lowest heads of one stack go, those of the others staying."""

    stack: str
    heads: int
    repair: str
    points: tuple[StackPoint, ...]


class Stacks(Record):
    """How much the metric needs each kind of attention. `method` ranked the heads;
    `ranking_fault` is why that ranking says nothing, where it does not."""

    metric: str
    higher_is_better: bool
    clips: int
    method: str
    ranking_fault: RankingFault | None
    whole: Estimate
    curves: tuple[StackCurve, ...]


class KeptPoint(Record):
    """What training leaves where each open gate costs `penalty`: heads, and the metric of them."""

    penalty: float
    kept: tuple[Head, ...]
    value: Estimate


class KeptHeads(Record):
    """Heads that hard-concrete gates leave open, over a sweep of penalties (Voita et al. 2019).

    `heads` are those there were, by stack; `trained` is whether the weights were learnt together
    with the gates, on `samples` of the calibration set in so many `steps`; `whole` is the metric of
    the model as it is, on as many validation `clips` as that of the points.
    """

    metric: str
    higher_is_better: bool
    clips: int
    samples: int
    trained: Literal["gates", "model"]
    steps: int
    heads: dict[str, int]
    whole: Estimate
    points: tuple[KeptPoint, ...]


class Explanation(Record):
    """All that was found out. `left_out` says of each part that is not there why."""

    schema_version: Literal[1] = 1
    recipe: str
    command: str
    model: ModelSummary
    task: str
    medium: MediumName
    device: str
    seed: int
    clips: tuple[ExplainedClip, ...]
    maps: tuple[ClipMaps, ...] = ()
    inputs: tuple[InputAttribution, ...] = ()
    degradation: Degradation | None = None
    functions: HeadFunctions | None = None
    stacks: Stacks | None = None
    kept: KeptHeads | None = None
    trees: tuple[AttributionTree, ...] = ()
    triggers: Triggers | None = None
    left_out: tuple[str, ...] = ()
    machine: Machine
    versions: dict[str, str]
