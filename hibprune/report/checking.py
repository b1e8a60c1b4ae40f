"""What `hibprune check` says on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter

from hibprune.errors import shortened
from hibprune.records.check import CheckedData, CheckReport
from hibprune.records.medium import MEDIA

NAMED = 10
"""Skipped inputs, and files passed over for one reason, that have a name in the lines."""


def check_lines(report: CheckReport) -> list[str]:
    """Data, what would go, what is odd or not looked at; that the recipe is in order.

    Nothing where it is not: the faults are for standard error, the rest of the report for `--json`.
    """
    if not report.ok:
        return []
    lines = [line for data in report.data if data.inputs is not None for line in _set(data)]
    lines += [f"would remove {line}" for line in report.removes]
    lines += [f"note: {line}" for line in report.notes]
    lines += [f"not checked: {line}" for line in report.not_checked]
    return [*lines, f"{report.recipe}: ok"]


def _set(data: CheckedData) -> Iterator[str]:
    medium = MEDIA[data.medium]
    parts = [medium.counted(data.inputs or 0) + _of_classes(data.classes)]
    if data.decoded is not None:
        parts.append(f"{data.decoded} of {medium.counted(data.inputs or 0)} decoded")
    if data.hours is not None:
        parts.append(f"{data.hours:.3g} hours")
    if data.drawn is not None:
        parts.append(f"{data.drawn} drawn")
    parts.append(f"{len(data.skipped)} skipped")
    if data.passed_over:
        parts.append(f"{len(data.passed_over)} passed over")
    yield f"{data.use}: {', '.join(parts)}"
    for one in data.skipped[:NAMED]:
        yield f"  skipped {shortened(one.id)}: {one.reason}"
    if len(data.skipped) > NAMED:
        yield f"  skipped {len(data.skipped) - NAMED} more, named by --json"
    files = [(one.id, one.reason) for one in data.passed_over]
    yield from (f"  {line}" for line in passed_over_lines(files))


def passed_over_lines(passed_over: Sequence[tuple[str, str]]) -> Iterator[str]:
    """A line for each reason for which files were passed over, with the first of their names."""
    by_reason = sorted(passed_over, key=itemgetter(1))
    for reason, group in groupby(by_reason, key=itemgetter(1)):
        names = [name for name, _ in group]
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        yield f"passed over ({reason}): {', '.join(map(shortened, names[:NAMED]))}{more}"


def _of_classes(classes: dict[str, int] | None) -> str:
    if classes is None:
        return ""
    fewest, most = min(classes.values()), max(classes.values())
    each = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    return f" of {len(classes)} {'class' if len(classes) == 1 else 'classes'} ({each} each)"
