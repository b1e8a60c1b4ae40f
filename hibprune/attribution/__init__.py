"""The attribution methods, one file each; a new one is a file and its name in `Method`."""

from typing import Annotated

from pydantic import Field

from hibprune.attribution.attattr import AttAttr
from hibprune.attribution.attention import AttentionScore
from hibprune.attribution.base import MethodBase, Sample, Session
from hibprune.attribution.confidence import Confidence
from hibprune.attribution.gates import HardConcreteGates
from hibprune.attribution.head_iba import HeadOutputBottleneck
from hibprune.attribution.hib import HeadInformationBottleneck
from hibprune.attribution.lrp import LayerwiseRelevance
from hibprune.attribution.magnitude import Magnitude
from hibprune.attribution.occlusion import Occlusion
from hibprune.attribution.random import Random
from hibprune.attribution.taylor import Taylor

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
    | Magnitude
    | Random,
    Field(discriminator="method"),
]

__all__ = ["METHODS", "HeadInformationBottleneck", "Method", "MethodBase", "Sample", "Session"]
