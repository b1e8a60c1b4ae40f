"""What rounds of scoring and removing came to: one plan, and every head's last score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hibprune.execution.files import digest
from hibprune.execution.steps import Done
from hibprune.records.recovery import RecoveredModel
from hibprune.records.speedup import SpeedSearch
from hibprune.records.units import Head, Plan, Pool, Scores
from hibprune.stages.repair import Start


@dataclass(frozen=True)
class FinishedRound:
    """The scores of the heads that were left, and which of them went."""

    scores: Done[Scores]
    plan: Done[Plan]
    recovered: Done[RecoveredModel] | None = None
    """The model behind it, where it is recovered before the next round."""


@dataclass(frozen=True)
class Choice:
    """All rounds of a run, at least one."""

    rounds: tuple[FinishedRound, ...]
    others: Mapping[Pool, FinishedRound] = field(default_factory=dict)
    """What goes beside heads, where the budget is of it too: the scores of all, and which go."""
    speed: Done[SpeedSearch] | None = None
    """How the mix was found, where the budget is a speed."""
    recovered: Start | None = None
    """The model that the last of them took from, where it is recovered between rounds."""

    @property
    def removed(self) -> tuple[Head, ...]:
        """The heads that went in any round."""
        return tuple(sorted(head for one in self.rounds for head in one.plan.result.removed))

    @property
    def plan(self) -> Done[Plan]:
        """The plans of all rounds as one; its key hangs on those before through their scores."""
        last, others = self.rounds[-1].plan, [one.plan for one in self.others.values()]
        gone = [unit for one in others for unit in one.result.units]
        return Done(
            key=digest(last.key, *(one.key for one in others)) if others else last.key,
            result=Plan.of([*self.removed, *gone], last.result.kept, last.result.ranks),
            seconds=sum(one.plan.seconds for one in self.rounds),
            resumed=last.resumed,
        )

    @property
    def scores(self) -> Scores:
        """Each head's scores of its last round: for removed ones, the round they went in.

        Scores of different rounds are of different models.
        """
        columns: dict[Head, tuple[float, ...]] = {}
        for one in self.rounds:
            scores = one.scores.result
            by_head = zip(*scores.per_sample, strict=True)
            columns.update(zip(scores.heads, by_head, strict=True))
        first = self.rounds[0].scores.result
        rows = zip(*(columns[head] for head in first.heads), strict=True)
        return first.model_copy(update={"per_sample": tuple(rows)})


def step_name(step: str, number: int) -> str:
    """What a step of a round is called: `plan`, `plan-2`, `plan-3`."""
    return step if number == 1 else f"{step}-{number}"
