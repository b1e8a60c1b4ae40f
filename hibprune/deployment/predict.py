"""Asks an exported model about sound files or texts, as a deployer would."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from hibprune.errors import UserError, did_you_mean, shortened
from hibprune.execution.confined import ConfinedError, confined
from hibprune.execution.output import MARKER, read_manifest
from hibprune.execution.runtime import ONNX_DIRECTORY
from hibprune.records.manifest import FILE_NAME
from hibprune.records.precision import FIRST_GRAPHS, Precision, graph_name
from hibprune.records.variants import DEPLOYABLE, PRUNED, VariantName, precision_of

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
    scores: Any = None
    """Probabilities of labels, of labels by slot, or of a transcript's tokens, if asked for."""

    @property
    def line(self) -> str:
        """The answer as a person reads it."""
        return self._said if self.scores is None else f"{self._said} ({_listed(self.scores)})"

    @property
    def fields(self) -> dict[str, Any]:
        """The answer as a program reads it, under the name of what was asked about."""
        scores = {} if self.scores is None else {"scores": self.scores}
        return {self.argument_name: self.argument, "prediction": self.prediction, **scores}

    @property
    def _said(self) -> str:
        if isinstance(self.prediction, str):
            limit = len(self.prediction) if self.is_transcript else LONGEST_LABEL
            return f"{self.named}: {shortened(self.prediction, limit)}"
        slots = ", ".join(
            f"{shortened(slot, LONGEST_LABEL)}={shortened(label, LONGEST_LABEL)}"
            for slot, label in self.prediction.items()
        )
        return f"{self.named}: {slots}"


def answers(
    directory: Path,
    arguments: Sequence[str],
    seconds: float,
    variant: str = PRUNED,
    batch: int = 1,
    with_scores: bool = False,
    note: Callable[[str], None] = lambda _: None,
) -> Iterator[Answer]:
    """What a variant of the exported model says of what each argument stands for, in their order.

    Arguments are sound files, directories of them, manifests or, of tasks on text, texts. Up to
    `batch` inputs of equal length share a pass. `note` is told of files that are passed over.

    Raises:
        UserError: the directory holds no model of ours, or has no such variant, or that cannot be
            asked so; the model takes more than `seconds` to load or for one input; or, once the
            others are done, a line for each input that cannot be used.
    """
    precision = precision_of(_variant(directory, variant))
    if batch > 1 and precision == "int8":
        raise UserError(
            "--batch: in int8 a clip's answer depends on the others in its batch, which share one "
            "range of numbers: leave it out or take another variant"
        )
    work = (os.fspath(directory), list(arguments), precision, batch, with_scores)
    faults = []
    try:
        for told in confined(DEPLOYED, "told", work, seconds):
            if "fault" in told:
                faults.append(told["fault"])
            elif "note" in told:
                note(told["note"])
            elif "prediction" in told:
                yield Answer(**told)
    except ConfinedError as error:
        remedy = "give it longer (--timeout)" if error.timed_out else "run hibprune again for it"
        raise UserError(f"{directory}: its model {error}: {remedy}") from error
    if faults:
        raise UserError("\n".join(faults))


def _listed(scores: Any) -> str:
    """Probabilities in one line, those of slots one slot after the other."""
    entries = scores.items() if isinstance(scores, dict) else scores
    return ", ".join(
        f"{shortened(name, LONGEST_LABEL)}: {_listed(share)}"
        if isinstance(share, dict)
        else f"{shortened(name, LONGEST_LABEL)} {share:.3g}"
        for name, share in entries
    )


def _variant(directory: Path, wanted: str) -> VariantName:
    """The variant meant by its name or its precision.

    Raises:
        UserError: a line that lists those there are.
    """
    names = {name: name for name in DEPLOYABLE} | {precision_of(name): name for name in DEPLOYABLE}
    name = names.get(wanted)
    lying = _lying_there(directory)
    if name == PRUNED and (PRUNED in lying or not lying):
        # A run makes the others from it, so that its files are the ones that are missed.
        return PRUNED
    is_run = any(os.path.lexists(directory / one) for one in (FILE_NAME, MARKER))
    # What an earlier recipe has left there is not the run's; a copy may be of graphs alone.
    manifest = read_manifest(directory) if is_run or not lying else None
    made = set(lying) if manifest is None else {one.name for one in manifest.variants}
    there = [one for one in lying if one in made]
    if name is not None and name in there:
        return name
    missing = () if manifest is None else manifest.missing
    reason = next((one.reason for one in missing if one.name == name), None)
    if reason is not None:
        fault = f"{name} could not be made ({shortened(reason, LONGEST_LABEL)})"
    elif name is not None and name in made:
        fault = f"{name} was made, but its graph is gone: copy it again or run again"
    elif name is not None:
        fault = f"{name} is not in it"
        if manifest is not None:
            fault += f": add {precision_of(name)} to export.variants and run again"
    elif wanted in made:
        fault = f"{wanted} was measured for comparison and is not in it"
    else:
        fault = f"no variant '{shortened(wanted)}'{did_you_mean(wanted, list(names))}"
    raise UserError(f"{directory}: {fault}; there are: {', '.join(there) or 'none'}")


def _lying_there(directory: Path) -> list[VariantName]:
    """The variants whose first graph is in a directory, of whatever task."""
    precisions: tuple[Precision, ...] = get_args(Precision)
    found = {
        precision
        for precision in precisions
        for graph in FIRST_GRAPHS
        if os.path.lexists(directory / ONNX_DIRECTORY / graph_name(graph, precision))
    }
    return [one for one in DEPLOYABLE if precision_of(one) in found]
