"""What the gates found, in words."""

from __future__ import annotations

from collections.abc import Sequence

from hibprune.records.manifest import SPEEDUP
from hibprune.records.measurements import Gate, Verdict
from hibprune.report.numbers import MINUS, listing

MARKS: dict[Verdict, str] = {"passed": "✓ passed", "failed": "✗ FAILED", "undecided": "? undecided"}
RATIO = "ratio of medians"


def gates_sentence(gates: Sequence[Gate]) -> str:
    """Whether every gate passed; those that failed are named, and those that are undecided."""
    if not gates:
        return "No gates were set."
    failed, undecided = (
        [gate.name for gate in gates if gate.verdict == verdict]
        for verdict in ("failed", "undecided")
    )
    sentences = []
    if failed:
        sentences.append(f"{len(failed)} of {len(gates)} gates FAILED: {listing(failed)}.")
    if undecided:
        which = "the 95 % interval holds the limit"
        sentences.append(f"Undecided, since {which}: {listing(undecided)}.")
    if not sentences:
        return "The gate passed." if len(gates) == 1 else f"All {len(gates)} gates passed."
    return " ".join(sentences)


def gate_verdict(gate: Gate) -> str:
    """`✓ passed`, `✗ FAILED`, `? undecided`, with the reason where the interval holds the limit."""
    reason = gate_reason(gate)
    return MARKS[gate.verdict] + (f": {reason}" if reason else "")


def gate_summary(gate: Gate) -> str:
    """What was measured with its interval, and the limit, for a line of 80 letters."""
    notes = [] if gate.interval is None else [gate_interval(gate)]
    notes += [RATIO] if gate.name == SPEEDUP else []
    shown = gate_number(gate.value)
    if notes and gate.value is not None:
        shown += f" ({', '.join(notes)})"
    return f"{gate.name}: {shown}, limit {gate_number(gate.limit)}"


def gate_line(gate: Gate) -> str:
    """A gate in a line of a log: the limit, what was measured, its interval, and what that says."""
    interval = "" if gate.interval is None else f", 95 % interval {gate_interval(gate)}"
    limit, value, reason = gate_number(gate.limit), gate_value(gate), gate_reason(gate)
    return f"{gate.name}: limit {limit}, measured {value}{interval}" + (
        f": {reason}" if reason else ""
    )


def verdict_lines(gates: Sequence[Gate]) -> list[str]:
    """A line of a log for every gate that did not pass."""
    return [f"gate {gate.verdict}: {gate_line(gate)}" for gate in gates if gate.verdict != "passed"]


def gate_reason(gate: Gate) -> str:
    """Why a gate is undecided, or failed only by the stricter reading; nothing for others."""
    if not gate.holds_limit or gate.verdict == "passed":
        return ""
    strict = ", and gates.strict is set" if gate.verdict == "failed" else ""
    return f"the interval holds the limit{strict}"


def gate_value(gate: Gate) -> str:
    """What was measured: `0.0023`, `1.15 (ratio of medians)`."""
    with_kind = gate.name == SPEEDUP and gate.value is not None
    return gate_number(gate.value) + (f" ({RATIO})" if with_kind else "")


def gate_interval(gate: Gate) -> str:
    """The 95 % interval of what was measured, `1.13 to 1.17`; a dash where it has none."""
    return "–" if gate.interval is None else " to ".join(map(gate_number, gate.interval))


def gate_number(number: float | None) -> str:
    """A limit or what is held against it, in the unit the recipe gives limits in."""
    if number is None:
        return "nothing: the variant was not made"
    # A drop of nothing is a zero with a sign.
    return f"{number + 0.0:.4g}".replace("-", MINUS)
