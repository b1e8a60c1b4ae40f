"""What the data say is true of clips and texts, put into the model's own words, or refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from hibprune.data import Utterance
from hibprune.errors import UserError, shortened
from hibprune.tasks import Target, TaskBase, Vocabulary
from hibprune.tasks.labels import Reading, readings_fault, readings_note


@dataclass(frozen=True)
class Targeted:
    """Utterances whose targets are in the model's words, and what should be known of that."""

    utterances: list[Utterance]
    notes: tuple[str, ...] = ()


def with_targets(
    place: str,
    utterances: Sequence[Utterance],
    task: TaskBase,
    vocabulary: Vocabulary,
    measured: bool,
) -> Targeted:
    """See that the model has a number for every target and, where the metric is `measured` on
    them, that it is defined.

    Raises:
        UserError: names the first clip without a target, or with one the model does not know; or
            labels are partly names, partly numbers; or there is nothing to measure by.
    """
    named: list[Utterance] = []
    readings: dict[Reading, None] = {}
    for utterance in utterances:
        if utterance.target is None:
            remedy = "" if measured else f" or set {place}.labels: model"
            raise UserError(
                f"{place}: {shortened(utterance.id)} has no {task.fields.kind}: label "
                f"the {task.medium.many}{remedy}"
            )
        try:
            target = task.named(utterance.target, vocabulary)
            numbers = task.encode(utterance.target, vocabulary)
        except ValueError as error:
            # A label may hold line breaks and go on for pages, an error is one line.
            reason = shortened(" ".join(str(error).split()), 1000)
            raise UserError(f"{place}: {shortened(utterance.id)}: {reason}") from error
        if task.fields.kind != "text":
            pairs = zip(_labels(utterance.target), _labels(target), numbers, strict=True)
            readings.update(dict.fromkeys(Reading(*pair) for pair in pairs))
        named.append(replace(utterance, target=target))
    fault, notes = readings_fault(readings), [readings_note(readings)]
    if fault is None and measured:
        references = [utterance.target for utterance in named if utterance.target is not None]
        fault = task.references_fault(references, vocabulary)
        notes.append(task.references_note(references, vocabulary))
    if fault is not None:
        raise UserError(f"{place}: {fault}")
    return Targeted(named, tuple(f"{place}: {note}" for note in notes if note is not None))


def _labels(target: Target) -> Iterator[str]:
    """The label, or those of all slots in their order."""
    yield from (target,) if isinstance(target, str) else target.values()
