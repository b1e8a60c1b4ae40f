"""A training that was interrupted: all that has to be there to go on as if it had not been."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hibprune.execution.files import open_bounded, write_via_temporary
from hibprune.records.recovery import Losses

CURRENT, BEST = "current", "best"
MOMENTS = ("exp_avg", "exp_avg_sq")
"""What Adam keeps of the gradients, in its own words."""
FORMAT = "hibprune recovery 1"
MAX_METADATA = 2**24


@dataclass
class TrainingState:
    """How far a training is, after a check: tensors by the names of the weights that move.

    `worse` counts the checks since the best one; `scale` and `growth` are those of a gradient
    scaler, where there is one; `seconds` is what it took so far.
    """

    step: int
    current: Mapping[str, Tensor]
    best: Mapping[str, Tensor]
    moments: Mapping[str, Mapping[str, Tensor]]
    best_step: int
    worse: int
    curve: list[Losses] = field(default_factory=list)
    updates: int = 0
    scaler: Mapping[str, int | float] = field(default_factory=dict)
    seconds: float = 0.0


def save_state(path: Path, key: str, state: TrainingState) -> None:
    """Keep a state in the place of an earlier one; `key` names what it is a training of.

    Raises:
        OutputError: the disk is full, or the directory cannot be written to.
    """
    tensors: dict[str, Tensor] = {}
    groups = {CURRENT: state.current, BEST: state.best, **state.moments}
    for group, own in groups.items():
        tensors.update({f"{group}/{name}": value.contiguous() for name, value in own.items()})
    told = {
        "step": state.step,
        "best_step": state.best_step,
        "worse": state.worse,
        "curve": [one.model_dump(mode="json") for one in state.curve],
        "updates": state.updates,
        "scaler": dict(state.scaler),
        "seconds": state.seconds,
    }
    metadata = {"format": FORMAT, "key": key, "state": json.dumps(told)}
    write_via_temporary(path, lambda temporary: save_file(tensors, temporary, metadata))


def load_state(
    path: Path, key: str, shapes: Mapping[str, torch.Size], within: Path
) -> TrainingState | None:
    """The state that an interrupted training of this very kind left; None where there is none.

    What is kept in a file may have been changed there: what cannot be right is not taken up.
    """
    try:
        open_bounded(path, within=within).close()
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT or metadata.get("key") != key:
                return None
            told = json.loads(metadata["state"][:MAX_METADATA])
            groups = {
                group: {name: file.get_tensor(f"{group}/{name}") for name in shapes}
                for group in (CURRENT, BEST, *MOMENTS)
            }
        state = TrainingState(
            step=int(told["step"]),
            current=groups[CURRENT],
            best=groups[BEST],
            moments={name: groups[name] for name in MOMENTS},
            best_step=int(told["best_step"]),
            worse=int(told["worse"]),
            curve=TypeAdapter(list[Losses]).validate_python(told["curve"]),
            updates=int(told["updates"]),
            scaler=TypeAdapter(dict[str, int | float]).validate_python(told["scaler"]),
            seconds=float(told["seconds"]),
        )
    except (OSError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError):
        return None
    except (SafetensorError, ValidationError, RecursionError):
        return None
    return state if _credible(state, shapes) else None


def _credible(state: TrainingState, shapes: Mapping[str, torch.Size]) -> bool:
    """Whether it is one of these weights, and all of it numbers."""
    groups = [state.current, state.best, *state.moments.values()]
    steps = [one.step for one in state.curve]
    return (
        0 <= state.best_step <= state.step
        and state.best_step in steps
        and steps == sorted(set(steps))
        and steps[0] == 0
        and steps[-1] == state.step
        and min(state.worse, state.seconds, state.updates) >= 0
        and all(own[name].shape == shape for own in groups for name, shape in shapes.items())
        and all(bool(own[name].isfinite().all()) for own in groups for name in shapes)
    )
