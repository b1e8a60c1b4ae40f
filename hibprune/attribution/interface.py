"""What every attribution method is: settings, and a function that scores heads.

The settings load without torch. The function, `attribute(settings, model, samples, loss, session)`,
stands in the file of the method's name (`head-iba`: head_iba.py), which is imported when it runs.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import Field, field_validator

from hibprune.records.base import Settings
from hibprune.records.units import ENCODER, Pool, Scores

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hibprune.attribution.session import Loss, Sample, Session
    from hibprune.models.layouts import Family

StackName = Literal["encoder", "decoder.self", "decoder.cross"]
BatchSize = Annotated[int, Field(ge=1)]


class MethodBase(Settings, ABC):
    """One attribution method. Its fields are its hyperparameters."""

    title: ClassVar[str]
    source: ClassVar[str]
    cost: ClassVar[str]
    """Forward and backward passes it takes."""
    resources: ClassVar[frozenset[str]] = frozenset()
    """Fields that change time and memory, not scores."""
    pools: ClassVar[tuple[Pool, ...]] = ("head",)
    """What it can score."""
    by_sample: ClassVar[bool] = True
    """Whether samples are scored one by one, so that several processes can share them."""

    @classmethod
    def name(cls) -> str:
        """What a recipe calls the method."""
        return str(get_args(cls.model_fields["method"].annotation)[0])

    def for_task(self, task: str) -> Self:
        """The method with fields left open filled in for a kind of task."""
        return self

    def scored_stacks(self) -> tuple[str, ...]:
        """The stacks of attention whose heads it scores."""
        return (ENCODER,)

    def family_fault(self, family: Family) -> str | None:
        """Why it cannot score models of a family, or None when it can."""
        return None

    def attribute(
        self,
        model: PreTrainedModel,
        samples: Sequence[Sample],
        loss: Loss,
        session: Session,
        pool: Pool = "head",
    ) -> Scores:
        """Score every head still in those stacks, or all of another pool that can be removed.

        Those by methods that have it among their `pools`. The model is left as it was found.
        """
        file: Any = import_module(f"{__package__}.{self.name().replace('-', '_')}")
        options = {} if pool == "head" else {"pool": pool}
        scores: Scores = file.attribute(self, model, samples, loss, session, **options)
        return scores


class BatchedMethod(MethodBase, ABC):
    """A method that works on several samples at once, as many as fit into memory.

    `batch_size` is the most of them; `memory_gib` is what they may take up with all that is
    computed on them, half of what is free unless it is said.
    """

    batch_size: BatchSize = 16
    memory_gib: float | None = Field(default=None, gt=0)

    resources: ClassVar[frozenset[str]] = frozenset({"batch_size", "memory_gib"})
    reads_attention: ClassVar[bool] = False
    """Whether it is handed the attention weights of the unmodified model."""


class AnyStackMethod(MethodBase, ABC):
    """A method that also scores a decoder's heads, to compare kinds of attention.

    `stacks` takes `decoder.self` and `decoder.cross` of encoder–decoder models; a plan can be made
    of the encoder's scores only.
    """

    stacks: tuple[StackName, ...] = Field(default=("encoder",), min_length=1)

    @field_validator("stacks")
    @classmethod
    def _stacks_are_distinct(cls, stacks: tuple[StackName, ...]) -> tuple[StackName, ...]:
        if len(set(stacks)) < len(stacks):
            raise ValueError("name each stack once")
        return stacks

    def scored_stacks(self) -> tuple[str, ...]:
        return self.stacks

    def family_fault(self, family: Family) -> str | None:
        there = [stack.name for stack in family.stacks]
        missing = [stack for stack in self.stacks if stack not in there]
        return f"it has no attention heads '{missing[0]}'" if missing else None
