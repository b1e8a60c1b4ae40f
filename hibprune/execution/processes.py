"""Several processes that work together, as torchrun starts them: one leads, the others help.

Samples are independent, so each process scores its share of them and all get every row; repair adds
up sums over frames. What is exchanged goes over gloo wherever they compute. torch is imported where
there are several: a process alone has nothing to exchange.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from hibprune.errors import UserError, shortened

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed.distributed_c10d import Store

PATIENCE = timedelta(days=7)
"""Helpers wait while the leader evaluates, however long that takes."""

ENDED = "hibprune/ended"
"""Where the store that all processes share counts those that have ended before their time."""

Item = TypeVar("Item")


class ProcessLostError(Exception):
    """Another process has ended while this one was to exchange something with it."""


@dataclass(frozen=True)
class Processes:
    """The place of this process among those that work together."""

    number: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process does all that is not shared: evaluation, files, output."""
        return self.number == 0

    def share(self, items: Sequence[Item]) -> list[Item]:
        """What this process has to do of something; the shares differ by one item at most."""
        return list(items[self.number :: self.count])

    def gathered(self, rows: Mapping[str, Item]) -> dict[str, Item]:
        """What all processes have found, on every one of them. Raises ProcessLostError."""
        if self.count == 1:
            return dict(rows)
        from torch import distributed

        parts: list[Any] = [None] * self.count
        with _others_there():
            distributed.all_gather_object(parts, dict(rows))
        return {name: row for part in parts for name, row in part.items()}

    def summed(self, own: Tensor) -> Tensor:
        """The sum of what all processes have, the same on every one of them, where `own` lies.

        Raises ProcessLostError.
        """
        if self.count == 1:
            return own
        from torch import distributed

        total = own.to("cpu", copy=True).contiguous()
        with _others_there():
            distributed.all_reduce(total)
        return total.to(own.device)

    def tell(self, value: object) -> None:
        """Hand something from the leader to all others, waiting to `hear` it.

        Raises ProcessLostError.
        """
        if self.count > 1:
            from torch import distributed

            with _others_there():
                distributed.broadcast_object_list([value], src=0)

    def hear(self) -> Any:
        """What the leader tells. Raises ProcessLostError."""
        from torch import distributed

        heard: list[Any] = [None]
        with _others_there():
            distributed.broadcast_object_list(heard, src=0)
        return heard[0]


ALONE = Processes()


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the processes that torchrun started with this one; alone where it did not.

    When they end before their time, the first to do so says why, and the others raise a UserError
    that has no line.
    """
    if _told("WORLD_SIZE", 1) < 2:
        yield ALONE
        return
    import torch
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    if torch.cuda.is_available():
        # What `cuda` means from here on.
        torch.cuda.set_device(_told("LOCAL_RANK", 0) % torch.cuda.device_count())
    try:
        store, number, count = next(rendezvous("env://", timeout=PATIENCE))
    except (ValueError, OSError, RuntimeError) as error:
        reason = shortened(" ".join(str(error).split()), 200)
        raise UserError(
            f"torchrun: the processes cannot find one another: {reason}: start them by torchrun, "
            "or unset WORLD_SIZE to run alone"
        ) from error
    distributed.init_process_group(
        "gloo", store=store, rank=number, world_size=count, timeout=PATIENCE
    )
    processes = Processes(number, count)
    try:
        # All are connected behind this: whoever ended sooner would have others say so by gloo.
        processes.gathered({})
        yield processes
    except (UserError, KeyboardInterrupt) as error:
        if _ends_first(store, number):
            raise
        raise UserError from error
    except ProcessLostError as error:
        # One that was killed has said nothing, so that the leader does.
        if number == 0 and _ends_first(store, number):
            raise UserError(
                "torchrun: a process that helped to score has ended: see whether it said why, and "
                "run again: samples scored so far are kept"
            ) from error
        raise UserError from error
    finally:
        distributed.destroy_process_group()


def _told(variable: str, otherwise: int) -> int:
    """A number that torchrun sets in the environment.

    Raises:
        UserError: something else has set it, to no number.
    """
    value = os.environ.get(variable) or str(otherwise)
    if not value.isdecimal():
        raise UserError(f"{variable}='{shortened(value)}' is no number: unset it to run alone")
    return int(value)


def _ends_first(store: Store, number: int) -> bool:
    """Whether no other process has ended before its time; this one has from now on."""
    try:
        return bool(store.add(ENDED, 1) == 1)
    except RuntimeError:
        # The store ends with the process that keeps it, which is the leader if any of them.
        return number == 0


@contextmanager
def _others_there() -> Iterator[None]:
    """Tell the end of another process from a defect in this one."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessLostError from error
