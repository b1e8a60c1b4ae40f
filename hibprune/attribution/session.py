"""What attribution methods work with: samples, a loss, a session; and what they give out.

A method knows nothing of pruning, files or recipes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedModel

from hibprune.attribution.interface import MethodBase
from hibprune.execution.processes import ALONE, Processes
from hibprune.models.attention import heads_of
from hibprune.records.units import Scores, Training, Unit
from hibprune.tasks import Batch, Encoded

Loss = Callable[[PreTrainedModel, Batch], Tensor]
"""Task loss of each clip of a batch, shape (batch,)."""

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
    find that out; `training` is one that was interrupted; `processes` are those that score the
    samples together; `save` is called after every batch or step of training; `progress` gets
    samples done (may be a fraction), samples in all, and the current loss.
    """

    seed: int = 0
    done: Mapping[str, Row] = field(default_factory=dict)
    steps: int | None = None
    training: Training | None = None
    processes: Processes = ALONE
    save: Save = _save_nothing
    progress: Callable[[float, int, float | None], None] = lambda done, total, loss: None
    notice: Callable[[str], None] = lambda line: None

    def waiting(self, samples: Sequence[Sample]) -> list[Sample]:
        """Those that this process is to score."""
        return self.processes.share([sample for sample in samples if sample.id not in self.done])


def scores_of(
    method: MethodBase,
    model: PreTrainedModel,
    samples: Sequence[Sample],
    rows: Iterable[Row],
    units: tuple[Unit, ...] | None = None,
) -> Scores:
    """What a method found of the units it scores: a row a sample, or one of all together.

    Of the heads of its stacks where none are named.
    """
    return Scores(
        method=method.name(),
        heads=heads_of(model, method.scored_stacks()) if units is None else units,
        samples=tuple(sample.id for sample in samples),
        per_sample=tuple(rows),
    )
