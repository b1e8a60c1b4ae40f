"""Sources of the methods that a model was made with, as a card cites them."""

from __future__ import annotations

from collections.abc import Iterator

from hibprune.records.manifest import Manifest

TRANSFORMERS = (
    "Wolf et al. 2020. Transformers: State-of-the-Art Natural Language Processing. arXiv:1910.03771"
)
HEAD_INFORMATION_BOTTLENECK = (
    "Head Information Bottleneck: An Evaluation Method for Transformer Head Contributions in "
    "Speech Tasks. 2023. https://openreview.net/forum?id=WjYNFZEjc7"
)
ANALYSED_HEADS = (
    "Voita et al. 2019. Analyzing Multi-Head Self-Attention: Specialized Heads Do the Heavy "
    "Lifting, the Rest Can Be Pruned. arXiv:1905.09418"
)
SIXTEEN_HEADS = (
    "Michel, Levy, Neubig 2019. Are Sixteen Heads Really Better than One? arXiv:1905.10650"
)
SELF_ATTENTION_ATTRIBUTION = (
    "Hao et al. 2021. Self-Attention Attribution: Interpreting Information Interactions Inside "
    "Transformer. arXiv:2004.11207"
)
METHODS: dict[str, tuple[str, ...]] = {
    "hib": (HEAD_INFORMATION_BOTTLENECK,),
    "head-iba": (
        "Jiang et al. 2020. Inserting Information Bottlenecks for Attribution in Transformers. "
        "arXiv:2012.13838",
    ),
    "gates": (
        "Louizos, Welling, Kingma 2018. Learning Sparse Neural Networks through L0 Regularization. "
        "arXiv:1712.01312",
        ANALYSED_HEADS,
    ),
    "attattr": (SELF_ATTENTION_ATTRIBUTION,),
    "attention": (SELF_ATTENTION_ATTRIBUTION,),
    "occlusion": (SIXTEEN_HEADS,),
    "taylor": (SIXTEEN_HEADS,),
    "lrp": (
        ANALYSED_HEADS,
        "Ali et al. 2022. XAI for Transformers: Better Explanations through Conservative "
        "Propagation. arXiv:2202.07304",
    ),
    "confidence": (ANALYSED_HEADS,),
    "reconstruction": (
        "Hassibi, Stork 1993. Second Order Derivatives for Network Pruning: Optimal Brain Surgeon. "
        "NIPS 5",
        "Kurtić, Frantar, Alistarh 2023. ZipLM: Inference-Aware Structured Pruning of Language "
        "Models. arXiv:2302.04089",
    ),
}
"""By the method that scored units; weight magnitude and chance are nobody's."""
LEAST_SQUARES = (
    "Kwon et al. 2022. A Fast Post-Training Pruning Framework for Transformers. arXiv:2204.09656"
)
FACTORED = (
    "Wang et al. 2024. SVD-LLM: Truncation-aware Singular Value Decomposition for Large Language "
    "Model Compression. arXiv:2403.07378"
)
RECOVERY = (
    "Peng et al. 2023. DPHuBERT: Joint Distillation and Pruning of Self-Supervised Speech Models. "
    "arXiv:2305.17651",
    "Hinton, Vinyals, Dean 2015. Distilling the Knowledge in a Neural Network. arXiv:1503.02531",
)


def citations(manifest: Manifest) -> list[str]:
    """A line for each source of what was done, once each."""
    return list(dict.fromkeys(_cited(manifest)))


def _cited(manifest: Manifest) -> Iterator[str]:
    others = (units.method for units in manifest.others.values())
    for method in (manifest.attribution.method, *others):
        yield from METHODS.get(method, ())
    if manifest.repair is not None and manifest.repair.kind == "least-squares":
        yield LEAST_SQUARES
    if manifest.ranks is not None:
        yield FACTORED
    if manifest.recovery is not None:
        yield from RECOVERY
    yield TRANSFORMERS
