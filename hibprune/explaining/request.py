"""What an explanation is asked for on the command line, checked before anything is loaded."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, get_args

from hibprune.errors import UserError, did_you_mean, shortened
from hibprune.records.units import Head

Part = Literal["maps", "inputs", "tree", "degradation", "functions", "stacks", "triggers", "gates"]
PARTS: tuple[Part, ...] = get_args(Part)
OF_CLIPS: tuple[Part, ...] = ("maps", "inputs", "tree")
"""Those that look at single clips."""
USUAL: tuple[Part, ...] = tuple(part for part in PARTS if part != "gates")
"""What a model's page holds unless more is asked for: gates train the model many times."""
QUICK: tuple[Part, ...] = (*OF_CLIPS, "functions")
"""What a clip's page holds unless more is asked for."""
ALL = "all"
PENALTIES = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Of an open gate, in units of the task's loss; at 0 the training alone is seen."""
MOST_PENALTIES = 20
MOST_CLIPS = 20
"""On one page."""
MOST_HEADS = 48
"""Drawn of a clip."""


@dataclass(frozen=True)
class Request:
    """The options of `hibprune explain`, as typed."""

    clips: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    parts: str | None = None
    layer: int | None = None
    samples: int = 40
    penalties: str | None = None


@dataclass(frozen=True)
class Choice:
    """What will be explained. Without `clips` some of the validation set are drawn; without
    `heads` those that stand out."""

    clips: tuple[str, ...]
    heads: tuple[Head, ...]
    parts: tuple[Part, ...]
    layer: int | None
    samples: int
    penalties: tuple[float, ...]

    @property
    def of_a_clip(self) -> bool:
        """Whether a page on clips is wanted, in seconds, rather than on the model."""
        return bool(self.clips) and self.parts == QUICK


def choose(request: Request) -> Choice:
    """Read the options.

    Raises:
        UserError: a head is not written as one, a part is not known, or there are too many.
    """
    if len(request.clips) > MOST_CLIPS:
        raise UserError(f"--clip: {len(request.clips)} of them: give at most {MOST_CLIPS}")
    if len(request.heads) > MOST_HEADS:
        raise UserError(f"--head: {len(request.heads)} of them: give at most {MOST_HEADS}")
    usual = QUICK if request.clips else USUAL
    return Choice(
        clips=tuple(dict.fromkeys(request.clips)),
        heads=tuple(dict.fromkeys(map(_head, request.heads))),
        parts=usual if request.parts is None else _parts(request.parts),
        layer=request.layer,
        samples=request.samples,
        penalties=PENALTIES if request.penalties is None else _penalties(request.penalties),
    )


def _head(text: str) -> Head:
    told = re.fullmatch(r"(\d{1,4})\.(\d{1,4})", text, re.ASCII)
    if told is None:
        raise UserError(
            f"--head: '{shortened(text)}' is no head: write layer and head from 0 on, e.g. 2.5"
        )
    return Head(int(told[1]), int(told[2]))


def _parts(text: str) -> tuple[Part, ...]:
    wanted = [part.strip() for part in text.split(",") if part.strip()]
    if not wanted:
        raise UserError(f"--parts: nothing in it: any of {', '.join(PARTS)}")
    for part in wanted:
        if part not in (*PARTS, ALL):
            hint = did_you_mean(part, PARTS) or f": any of {', '.join(PARTS)}"
            raise UserError(f"--parts: unknown part '{shortened(part)}'{hint}")
    return PARTS if ALL in wanted else tuple(part for part in PARTS if part in wanted)


def _penalties(text: str) -> tuple[float, ...]:
    found = []
    for one in text.split(","):
        try:
            value = float(one)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= 0):
            raise UserError(
                f"--penalties: '{shortened(one.strip())}' is no penalty: write numbers from 0 on, "
                "e.g. 0,0.03,0.1"
            )
        found.append(value)
    if len(found) > MOST_PENALTIES:
        raise UserError(f"--penalties: {len(found)} of them: give at most {MOST_PENALTIES}")
    return tuple(sorted(set(found)))


def named_heads(wanted: Collection[Head], there: Collection[Head]) -> tuple[list[Head], list[str]]:
    """Those of the wanted heads that the model has, and a line for each other."""
    found, missing = [], []
    for head in wanted:
        if head in there:
            found.append(head)
            continue
        own = sorted(one.index for one in there if one.layer == head.layer)
        layers = sorted({one.layer for one in there})
        if own:
            remedy = f"layer {head.layer} has {_listed(own)}"
        else:
            remedy = f"layers with heads are {_listed(layers)}"
        missing.append(f"--head {head.layer}.{head.index}: no such head, or it is gone: {remedy}")
    return found, missing


def _listed(numbers: list[int]) -> str:
    whole = numbers == list(range(numbers[0], numbers[-1] + 1)) and len(numbers) > 2
    return f"{numbers[0]} to {numbers[-1]}" if whole else ", ".join(map(str, numbers))
