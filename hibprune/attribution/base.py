"""What an attribution method is: a model, samples and a loss go in, a score per head comes out.

A method knows nothing of pruning, files or recipes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal, Protocol, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor
from transformers import PreTrainedModel

from hibprune.execution.processes import ALONE, Ranks
from hibprune.models.attention import heads_of
from hibprune.models.families import Family
from hibprune.records.units import ENCODER, Scores, Training
from hibprune.tasks import Batch, Encoded

Loss = Callable[[PreTrainedModel, Batch], Tensor]
"""Task loss of each clip of a batch, shape (batch,)."""

StackName = Literal["encoder", "decoder.self", "decoder.cross"]

Row = tuple[float, ...]
"""One sample's score for every head, in the order of `heads_of(model, method.scored_stacks())`."""


@dataclass(frozen=True)
class Sample:
    """One calibration clip, ready for the model: `inputs` has a batch dimension of 1.

    `inputs` hold the clip without padding, also where the model is used with padding.
    """

    id: str
    inputs: dict[str, Tensor]
    target: Encoded


class Save(Protocol):
    """Keeps what there is so far, in the place of what it kept before.

    All rows, with the number of steps where the samples themselves settled it; or, of a method that
    has no rows before its end, how far its training has come.
    """

    def __call__(
        self,
        rows: Mapping[str, Row],
        *,
        steps: int | None = None,
        training: Training | None = None,
    ) -> None: ...


def _save_nothing(
    rows: Mapping[str, Row], *, steps: int | None = None, training: Training | None = None
) -> None:
    """For a run that nobody will take up again."""


@dataclass(frozen=True)
class Session:
    """What surrounds a run of a method, so that it can be watched and taken up again.

    `done` are rows of samples scored before, and `steps` how many they took where a method was to
    find that out; `training` is one that was interrupted; `ranks` are the processes that score the
    samples together; `save` is called after every batch or step of training; `progress` gets
    samples done (may be a fraction), samples in all, and the current loss.
    """

    seed: int = 0
    done: Mapping[str, Row] = field(default_factory=dict)
    steps: int | None = None
    training: Training | None = None
    ranks: Ranks = ALONE
    save: Save = _save_nothing
    progress: Callable[[float, int, float | None], None] = lambda done, total, loss: None
    notice: Callable[[str], None] = lambda line: None

    def waiting(self, samples: Sequence[Sample]) -> list[Sample]:
        """Those that this process is to score."""
        return self.ranks.share([sample for sample in samples if sample.id not in self.done])


class MethodBase(BaseModel, ABC):
    """One attribution method. Its fields are its hyperparameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: ClassVar[str]
    source: ClassVar[str]
    cost: ClassVar[str]
    """Forward and backward passes it takes."""
    resources: ClassVar[frozenset[str]] = frozenset()
    """Fields that change time and memory, not scores."""
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

    @abstractmethod
    def attribute(
        self, model: PreTrainedModel, samples: Sequence[Sample], loss: Loss, session: Session
    ) -> Scores:
        """Score every head still in those stacks; the model is left as it was found."""

    def scores(
        self, model: PreTrainedModel, samples: Sequence[Sample], rows: Iterable[Row]
    ) -> Scores:
        """What was found of the heads in those stacks: a row a sample, or one of all together."""
        return Scores(
            method=self.name(),
            heads=heads_of(model, self.scored_stacks()),
            samples=tuple(sample.id for sample in samples),
            per_sample=tuple(rows),
        )


BatchSize = Annotated[int, Field(ge=1)]


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
