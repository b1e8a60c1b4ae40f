"""The lowest of a ranking that may go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from hibprune.errors import UserError
from hibprune.records.units import Pool, Unit


def lowest_within(
    ranking: Sequence[Unit], amount: int, keep: int, pool: Pool = "head"
) -> Sequence[Unit]:
    """The first `amount` of a ranking, of which every layer keeps so many.

    Raises:
        UserError: fewer may go.
    """
    left = Counter(head.layer for head in ranking)
    removable = sum(max(0, count - keep) for count in left.values())
    if amount > removable:
        place, held = "budget", f"with min_heads_per_layer {keep}"
        if pool != "head":
            place, held = f"budget.{pool}s", f"where a layer keeps {keep}"
        raise UserError(
            f"{place}: {amount} heads to remove, but only {removable} of {len(ranking)} can go "
            f"{held}: lower the budget"
        )
    if not keep:
        return ranking[:amount]
    removed: list[Unit] = []
    for head in ranking:
        if len(removed) == amount:
            break
        if left[head.layer] > keep:
            left[head.layer] -= 1
            removed.append(head)
    return removed
