"""One run of a recipe into a directory, and how it goes through a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from hibprune.execution.output import withdraw
from hibprune.execution.processes import ALONE, Processes
from hibprune.execution.progress import Narrator, StepNarration
from hibprune.execution.steps import Done, Step
from hibprune.models.checkpoint import Checkpoint
from hibprune.recipe import LoadedRecipe, Recipe
from hibprune.stages.load import Material

Result = TypeVar("Result")


@dataclass(frozen=True)
class Run:
    """One run of a recipe into a directory."""

    loaded: LoadedRecipe
    material: Material
    directory: Path
    device: torch.device
    narrator: Narrator
    processes: Processes = ALONE

    @property
    def recipe(self) -> Recipe:
        return self.loaded.recipe

    @property
    def checkpoint(self) -> Checkpoint:
        return self.material.checkpoint

    @property
    def basis(self) -> dict[str, Any]:
        """What every step's result depends on."""
        return {
            "model": self.checkpoint.identity,
            "task": self.recipe.task.model_dump(mode="json"),
            "device": self.device.type,
        }


def once(
    run: Run,
    name: str,
    inputs: Mapping[str, Any],
    result_type: type[Result],
    compute: Callable[[Step[Result], StepNarration], Result],
    finding: Callable[[Result], str],
    files: Callable[[Result], list[str]] | None = None,
    credible: Callable[[Result], bool] = lambda result: True,
    timed: frozenset[str] = frozenset(),
    version: int = 1,
    said: str | None = None,
) -> Done[Result]:
    """A step of a run, told of as it goes: its result, kept from before or computed and kept.

    `inputs` are what it depends on beside the run's basis, `finding` says in a line what came out,
    `files` are those it leaves, `credible` whether what was kept can be its result, `timed` what in
    that tells of time taken, `said` what to call the step where `name` would mean nothing.
    """
    depends_on = {**run.basis, **inputs}
    step = Step[Result](run.directory, name, version, depends_on, result_type, timed)

    def computed() -> Result:
        if files is not None:
            withdraw(run.directory)
        return compute(step, narration)

    with run.narrator.step(said or name) as narration:
        done = step.once(computed, files or (lambda result: []), credible)
        narration.found(finding(done.result), done.seconds if done.resumed else None)
    return done
