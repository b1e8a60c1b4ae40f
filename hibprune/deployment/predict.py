"""Asks an exported model about sound files or texts, as a deployer would."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hibprune.errors import UserError, shortened
from hibprune.execution.confined import ConfinedError, confined

DEPLOYED = "hibprune.deployment.deployed"
"""What opens and runs the model; imported in the process where that happens."""
LONGEST_LABEL = 200
"""Characters of a label that a line shows; a transcript is shown whole."""


@dataclass(frozen=True)
class Answer:
    """What the model says of one argument, a `file` or a `text`: a label, a text, or slots.

    `named` is the argument as a line names it.
    """

    argument_name: str
    argument: str
    named: str
    prediction: str | dict[str, str]
    is_transcript: bool

    @property
    def line(self) -> str:
        """The answer as a person reads it."""
        if isinstance(self.prediction, str):
            limit = len(self.prediction) if self.is_transcript else LONGEST_LABEL
            return f"{self.named}: {shortened(self.prediction, limit)}"
        slots = ", ".join(
            f"{shortened(slot, LONGEST_LABEL)}={shortened(label, LONGEST_LABEL)}"
            for slot, label in self.prediction.items()
        )
        return f"{self.named}: {slots}"


def answers(directory: Path, arguments: Sequence[str], seconds: float) -> Iterator[Answer]:
    """What the exported model says of each argument: a sound file, or a text for tasks on text.

    Raises:
        UserError: the directory is not that of a finished run; the model takes more than `seconds`
            to load or for one argument; or, once the others are done, a line for each argument
            that cannot be used.
    """
    faults = []
    try:
        for told in confined(DEPLOYED, "told", (os.fspath(directory), list(arguments)), seconds):
            if "fault" in told:
                faults.append(f"{told['named']}: {told['fault']}")
            elif "prediction" in told:
                yield Answer(**told)
    except ConfinedError as error:
        remedy = "give it longer (--timeout)" if error.timed_out else "run hibprune again for it"
        raise UserError(f"{directory}: its model {error}: {remedy}") from error
    if faults:
        raise UserError("\n".join(faults))
