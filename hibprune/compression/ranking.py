"""The lowest of a ranking that may go, and shares of heads that are less than one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from hibprune.errors import UserError
from hibprune.records.units import Pool, Unit, pool_words


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
            f"{place}: {heads_counted(amount)} to remove, but only {removable} of {len(ranking)} "
            f"can go {held}: lower the budget"
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


def no_head_by(fraction: float, heads: Sequence[Unit], scope: str, keep: int) -> str:
    """That a share of heads is less than one, and what to do about it, in a line."""
    said = (
        f"budget: fraction {fraction:g} of {heads_counted(len(heads))} ({scope}) is less than one"
    )
    if most_in_layer(heads) <= keep:
        return f"{said}, and min_heads_per_layer {keep} keeps all: lower it or leave the heads out"
    if most_together(heads, scope) > 1:
        return f"{said} head: raise it"
    if len(heads) > 1:
        return f"{said}, as any of layers of 1 head is: set budget.scope to global or give heads: 1"
    return f"{said}, as any is: give budget.heads: 1 instead, or leave the heads out"


def most_together(heads: Sequence[Unit], scope: str) -> int:
    """How many heads a share is of: all, or those of the layer that has most."""
    return len(heads) if scope == "global" else most_in_layer(heads)


def most_in_layer(heads: Sequence[Unit]) -> int:
    """How many the layer has that has most."""
    return max(Counter(head.layer for head in heads).values(), default=0)


def heads_counted(number: int) -> str:
    """E.g. `1 head` or `12 heads`."""
    return f"{number} {pool_words('head', number)}"
