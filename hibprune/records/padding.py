"""What filling clips up to one length costs: with a mask where graphs take one, else without."""

from __future__ import annotations

from hibprune.records.base import Record


class PaddingEffect(Record):
    """Of `n` clips filled up with silence, `batch` at a time, `equal` are answered as alone.

    `longest` is how many times as long as itself the clip was made that was filled up most.
    """

    n: int
    equal: int
    batch: int
    longest: float

    @property
    def changed(self) -> int:
        return self.n - self.equal
