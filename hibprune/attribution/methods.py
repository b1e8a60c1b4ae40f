"""The attribution methods: what a recipe may say about each, where it comes from, what it costs."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field

from hibprune.attribution.hib_settings import HeadInformationBottleneck
from hibprune.attribution.interface import AnyStackMethod, BatchedMethod, BatchSize, MethodBase
from hibprune.records.units import POOLS, Pool

Answer = Literal["probability", "log-likelihood"]


class HeadOutputBottleneck(BatchedMethod):
    """Information that a head's output keeps when every unit of it costs β, in nats per feature.

    `initial` is the α that all heads start from: 5 lets 99.3 % through, as in the paper.

    On the quickstart with 67 % of the heads removed, β = 0.03, 0.1, 0.3 and 1 keep 75.5, 78.0, 68.5
    and 63.0 % accuracy on the calibration clips; the same number from every layer, 85.5 % with the
    first two. 20 steps at a learning rate of 1 and 80 at 0.2 keep 71.5 and 74.0 %
    (tests/benchmarks/settings_search.py --shares 0.667).
    """

    method: Literal["head-iba"]
    beta: float = Field(default=0.1, ge=0)
    steps: int = Field(default=40, ge=1)
    learning_rate: float = Field(default=0.5, gt=0)
    initial: float = 5.0
    batch_size: BatchSize = 50

    title: ClassVar[str] = "Information bottleneck on each head's output"
    source: ClassVar[str] = "Jiang et al. 2020 (IBA), on heads in the place of tokens"
    cost: ClassVar[str] = "1 forward + steps × (forward + backward) per sample"


class HardConcreteGates(AnyStackMethod, BatchedMethod):
    """Probability that a head's gate is open, P(gate ≠ 0), after training the gates.

    `penalty` is λ: the task loss that an open gate must save to stay open. `temperature`,
    `stretch_low` and `stretch_high` (β, γ, ζ) shape the distribution; `initial` is the log α that
    all gates start from. A step takes `samples_per_step` samples, shuffled, a draw of gates each.

    `train: model` also trains the weights behind the convolutions, as Voita et al. did, on a copy
    that is thrown away: the scores then speak of a model that was trained, and the heads are
    removed from one that was not. What such a model is worth is told by `hibprune explain --parts
    gates`.

    On the quickstart with 67 % of the heads removed, λ = 0.01, 0.03, 0.1 and 0.3 keep 86.5, 92.5,
    95.5 and 78.5 % accuracy on the calibration clips; with 200 steps 0.01 keeps 73.5 %: fewer than
    half of the gates are shut then, and the order of the open ones says little. With 50 % removed,
    all up to 0.1 keep 98 % or more (tests/benchmarks/settings_search.py --shares 0.667).

    What all samples give in front of the first attention is kept in memory, beside the batches. An
    interrupted training goes on after its last step, and with the same batches comes to the same
    gates bit for bit; with `train: model`, which moves too much to keep, it starts anew.
    """

    former_names: ClassVar[dict[str, str]] = {"fine_tune": "train: model"}

    method: Literal["gates"]
    penalty: float = Field(default=0.1, ge=0)
    steps: int = Field(default=100, ge=1)
    learning_rate: float = Field(default=0.1, gt=0)
    samples_per_step: int = Field(default=50, ge=1)
    temperature: float = Field(default=2 / 3, gt=0)
    stretch_low: float = Field(default=-0.1, lt=0)
    stretch_high: float = Field(default=1.1, gt=1)
    initial: float = 2.0
    train: Literal["gates", "model"] = "gates"
    weights_learning_rate: float = Field(default=1e-5, gt=0)
    batch_size: BatchSize = 50

    by_sample: ClassVar[bool] = False
    title: ClassVar[str] = "Hard-concrete gates: probability that a head's gate stays open"
    source: ClassVar[str] = "Louizos et al. 2018, Voita et al. 2019"
    cost: ClassVar[str] = "1 forward per sample + steps × samples per step × (forward + backward)"


class AttAttr(BatchedMethod):
    """Largest entry of Attr_h(A) = A_h ⊙ ∫₀¹ ∂F(αA)/∂A_h dα, a layer at a time.

    A holds all heads of the layer, which are scaled together, so a layer's attributions add up to
    F(A) − F(0); single heads' need not. All other layers attend as usual. The integral is a sum of
    `steps` equal steps, at their upper ends as in the paper. F is `answer`: `probability` is
    exp(−loss), that of the true label, or of all slots together; `log-likelihood` is −loss, which
    for speech recognition is per token of the transcript. Left open, it is the log-likelihood for
    recognition and the probability for everything else.
    """

    method: Literal["attattr"]
    answer: Answer | None = None
    steps: int = Field(default=20, ge=1)
    batch_size: BatchSize = 100
    """Passes at once: samples times steps."""

    reads_attention: ClassVar[bool] = True
    title: ClassVar[str] = "AttAttr: integrated gradients along the head's own attention"
    source: ClassVar[str] = "Hao et al. 2021; HIB paper, eq. 18"
    cost: ClassVar[str] = "2 forwards + layers × steps × (forward + backward) per sample"

    def for_task(self, task: str) -> Self:
        usual: Answer = "log-likelihood" if task.startswith("asr") else "probability"
        return self.model_copy(update={"answer": usual if self.answer is None else self.answer})


class Occlusion(AnyStackMethod, BatchedMethod):
    """Rise of the task loss, a clip at a time, when this head alone is silenced.

    Negative: better without.
    """

    method: Literal["occlusion"]

    title: ClassVar[str] = "Occlusion: rise of the task loss when one head alone is silenced"
    source: ClassVar[str] = "leave-one-out, as in Michel et al. 2019"
    cost: ClassVar[str] = "2 + heads forward passes per sample"


class Taylor(AnyStackMethod, BatchedMethod):
    """abs(∂loss/∂ξ) at ξ = 1 for a factor ξ on the head's output, a clip at a time.

    `normalise: layer` divides by the L2 norm of a layer's mean scores, as Michel et al. do after
    Molchanov et al. 2017; the default compares heads of all layers as they are.
    """

    method: Literal["taylor"]
    pools: ClassVar[tuple[Pool, ...]] = tuple(POOLS)
    normalise: Literal["none", "layer"] = "none"

    title: ClassVar[str] = "Taylor: slope of the task loss as the head's output is turned down"
    source: ClassVar[str] = "Michel, Levy, Neubig 2019, eq. 2"
    cost: ClassVar[str] = "2 forward passes + 1 backward per sample"


class LayerwiseRelevance(AnyStackMethod, BatchedMethod):
    """Relevance of a head's output for the answer, as a share of its layer's, a clip at a time.

    Propagation starts from −loss, the log-probability of the truth, where Voita et al. start from
    the top logit: it is there for every task. What reaches a head is summed over frames and
    features. With `normalise: layer` absolute values within a layer sum to 1; where all are
    positive, as under Voita's rules, this is their normalisation. `sign: absolute` ranks a head
    that speaks against the truth by how much it says, `signed` below one that says nothing.
    Biases take the share of relevance that they have in what they are added to.
    """

    method: Literal["lrp"]
    sign: Literal["absolute", "signed"] = "absolute"
    normalise: Literal["layer", "none"] = "layer"

    title: ClassVar[str] = "LRP: relevance propagated to the head's output, as a share of its layer"
    source: ClassVar[str] = "Voita et al. 2019; rules of Ali et al. 2022"
    cost: ClassVar[str] = "2 forward passes + 1 backward per sample"


class WeightsMethod(BatchedMethod):
    """A method that sees attention weights and nothing else, not even what a head gives out."""

    reads_attention: ClassVar[bool] = True
    cost: ClassVar[str] = "1 forward pass per sample"


class AttentionScore(WeightsMethod):
    """Largest attention weight of a clip, the baseline of AttAttr's figure 2."""

    method: Literal["attention"]

    title: ClassVar[str] = "Attention score: the head's largest attention weight"
    source: ClassVar[str] = "Hao et al. 2021 (AttAttr), figure 2's baseline"


class Confidence(WeightsMethod):
    """Mean over a clip's frames of the largest weight in the frame's row.

    The paper leaves out the end-of-sentence token, of which an encoder of speech has none; where
    the input is text, all of its tokens count.
    """

    method: Literal["confidence"]

    title: ClassVar[str] = "Confidence: mean over frames of the largest attention weight"
    source: ClassVar[str] = "Voita et al. 2019 (Story of Heads)"


class Reconstruction(MethodBase):
    """Error that the best linear repair leaves when a unit goes, one unit after the other.

    The surgeon's score, by blocks and greedily within a sublayer: what the units that stay cannot
    make up for. `normalise: stream` takes it as a share of the variance of the residual stream
    there, so that layers can be compared (of channels: of what reads them); `none` as it is. Hidden
    states take up to `memory_gib`, and files beyond that.
    """

    method: Literal["reconstruction"]
    normalise: Literal["stream", "none"] = "stream"
    memory_gib: float = Field(default=2.0, gt=0)

    resources: ClassVar[frozenset[str]] = frozenset({"memory_gib"})
    pools: ClassVar[tuple[Pool, ...]] = tuple(POOLS)
    by_sample: ClassVar[bool] = False
    title: ClassVar[str] = "Reconstruction: what the best linear repair cannot bring back"
    source: ClassVar[str] = "Hassibi & Stork 1993, by blocks; Kurtić et al. 2023 (ZipLM)"
    cost: ClassVar[str] = "1 forward pass per sample, and a matrix inverse per sublayer"


class Magnitude(MethodBase):
    """Product of the Frobenius norms of a head's value rows and output columns.

    The product bounds the norm of what the head can write into the residual stream. Of a neuron
    the norms of its row in front of the activation and of its column behind it; of a channel those
    of its row of the convolution and of what reads it.
    """

    method: Literal["magnitude"]

    pools: ClassVar[tuple[Pool, ...]] = tuple(POOLS)
    by_sample: ClassVar[bool] = False
    title: ClassVar[str] = "Norm of the head's slice of the value and output projections"
    source: ClassVar[str] = "the usual weight-only baseline"
    cost: ClassVar[str] = "none"


class Random(MethodBase):
    """Scores drawn uniformly from the recipe's seed."""

    method: Literal["random"]

    pools: ClassVar[tuple[Pool, ...]] = tuple(POOLS)
    by_sample: ClassVar[bool] = False
    title: ClassVar[str] = "Uniform random scores, seeded: the baseline"
    source: ClassVar[str] = "every pruning paper"
    cost: ClassVar[str] = "none"


METHODS: tuple[type[MethodBase], ...] = (
    HeadInformationBottleneck,
    HeadOutputBottleneck,
    HardConcreteGates,
    AttAttr,
    Occlusion,
    Taylor,
    LayerwiseRelevance,
    AttentionScore,
    Confidence,
    Reconstruction,
    Magnitude,
    Random,
)

Method = Annotated[
    HeadInformationBottleneck
    | HeadOutputBottleneck
    | HardConcreteGates
    | AttAttr
    | Occlusion
    | Taylor
    | LayerwiseRelevance
    | AttentionScore
    | Confidence
    | Reconstruction
    | Magnitude
    | Random,
    Field(discriminator="method"),
]

AnyUnitMethod = Annotated[
    Reconstruction | Taylor | Magnitude | Random, Field(discriminator="method")
]
"""Those that can score units of every kind."""
