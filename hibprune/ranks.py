"""Several processes that score together, as torchrun starts them: one leads, the others help.

Samples are independent, so each rank scores its share of them and all get every row. What is
exchanged is small, and goes over gloo wherever the ranks compute.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

PATIENCE = timedelta(days=7)
"""Helpers wait while the leader evaluates, however long that takes."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Ranks:
    """The place of this process among those that score together."""

    number: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process does all that is not scoring: evaluation, files, output."""
        return self.number == 0

    def share(self, items: Sequence[Item]) -> list[Item]:
        """What this rank has to do of something; the shares differ by one item at most."""
        return list(items[self.number :: self.count])

    def gathered(self, rows: Mapping[str, Item]) -> dict[str, Item]:
        """What all ranks have found, on every one of them."""
        if self.count == 1:
            return dict(rows)
        parts: list[Any] = [None] * self.count
        distributed.all_gather_object(parts, dict(rows))
        return {name: row for part in parts for name, row in part.items()}

    def tell(self, value: object) -> None:
        """Hand something from the leader to all others, which are waiting to `hear` it."""
        if self.count > 1:
            distributed.broadcast_object_list([value], src=0)

    def hear(self) -> Any:
        """What the leader tells."""
        heard: list[Any] = [None]
        distributed.broadcast_object_list(heard, src=0)
        return heard[0]


ALONE = Ranks()


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the processes that torchrun started with this one; alone where it did not."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield ALONE
        return
    if torch.cuda.is_available():
        # What `cuda` means from here on.
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    distributed.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Ranks(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()
