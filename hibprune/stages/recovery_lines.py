"""What a run says of its trainings as they go: how the losses went, and why one was stopped."""

from __future__ import annotations

from hibprune.records.recovery import RecoveredModel, Recovery
from hibprune.report.numbers import counted, four_decimals


def told_as(name: str, number: int | None) -> str:
    """What to call a training, at the end of a run or behind the round of that number."""
    return name if number is None else f"recover-round-{number}"


def recovery_line(done: RecoveredModel) -> str:
    """What recovery came to, in a line."""
    found = done.recovery
    told = f"{counted(found.steps, 'step')} on {counted(found.clips, 'clip')}"
    before, later = found.start.held_out, [one.held_out for one in found.curve[1:]]
    reached = [loss for loss in later if loss is not None]
    if before is not None and reached:
        told += (
            f", loss on {found.held_out} held out {four_decimals(before)} → "
            f"{four_decimals(min(reached))}"
        )
    if found.best_step == 0:
        return f"{told}: no better, the repaired weights stay"
    return f"{told}, weights of step {found.best_step} kept"


def broken_line(found: Recovery, place: str) -> str:
    """Why a training was stopped, and what was kept."""
    fault = (
        "its loss is no longer finite" if found.ended == "not finite" else "its loss has diverged"
    )
    kept = "the repaired weights" if not found.best_step else f"those of step {found.best_step}"
    return (
        f"{place}: stopped after {found.steps} of {counted(found.planned, 'step')}, as {fault}: "
        f"the best weights so far are kept, {kept}; lower recover.learning_rate"
    )
