"""Numbers and lists as people write them: percent, points, megabytes, counts, durations."""

from __future__ import annotations

from collections.abc import Sequence

MINUS = "−"


def percent(fraction: float, decimals: int) -> str:
    """`0.961` as `96.1 %`."""
    return f"{100 * fraction:.{decimals}f} %"


def metric_decimals(n: int) -> int:
    """Decimals of a percentage over `n` inputs: a second one says something from 1000 clips on."""
    return 2 if n >= 1000 else 1


def points(difference: float, n: int) -> str:
    """A difference of two metrics in percentage points, with its sign."""
    decimals = metric_decimals(n)
    size = f"{100 * abs(difference):.{decimals}f}"
    if float(size) == 0:
        return f"{size} points"
    return f"{'+' if difference > 0 else MINUS}{size} points"


def three_digits(number: float) -> str:
    """Three significant digits, never a power of ten: `7.18`, `55.2`, `185`."""
    decimals = 2 if number < 9.995 else 1 if number < 99.95 else 0
    return f"{number:.{decimals}f}"


def counted(number: int, what: str) -> str:
    """`1 step`, `200 steps`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def four_decimals(number: float) -> str:
    """`0.1234`, and `3.0e-05` where they would show hardly anything."""
    return f"{number:.1e}" if 0 < abs(number) < 0.001 else f"{number:.4f}"


def milliseconds(time: float) -> str:
    """A latency with its unit."""
    return f"{three_digits(time)} ms"


def megabytes(size_bytes: int) -> str:
    """A file size in MB of 10⁶ bytes."""
    return f"{three_digits(size_bytes / 1e6)} MB"


def count(number: int) -> str:
    """Parameters or multiply-adds: `94.4 M`, `3.02 M`, `1.23 G`."""
    for scale, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        # 999 700 rounds to 1.00 M, not to 1000 k.
        if number >= 0.9995 * scale:
            return f"{three_digits(number / scale)} {unit}"
    return str(number)


def change(before: float, after: float) -> str:
    """Relative change in percent, signed; a dash where there is nothing to relate to."""
    if before == 0:
        return "–"
    share = 100 * (after - before) / before
    if round(share) == 0 and share != 0:
        return f"{MINUS if share < 0 else '+'}{abs(share):.1f} %"
    return f"{MINUS if share < 0 else '+' if share > 0 else ''}{abs(share):.0f} %"


def duration(seconds: float) -> str:
    """`4.2 s`, `2 min 13 s`, `1 h 5 min`."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def listing(items: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def capitalised(words: str) -> str:
    """The same words as the beginning of a sentence."""
    return f"{words[:1].upper()}{words[1:]}"
