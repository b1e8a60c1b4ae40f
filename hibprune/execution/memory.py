"""How much memory is free, how much a computation takes, and whether it was enough."""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Found = TypeVar("Found")

CONTAINER = Path("/sys/fs/cgroup")
"""Where Linux says what the container around us may use."""


def free_bytes(device: torch.device) -> int:
    """Memory that can still be had on a device; of a CPU, without pushing others out."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    free = min(psutil.virtual_memory().available, _free_in_container())
    # What torchrun started on this machine shares it.
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _free_in_container() -> int:
    try:
        limit = int((CONTAINER / "memory.max").read_text())
        return limit - int((CONTAINER / "memory.current").read_text())
    except (OSError, ValueError):
        # There is none, or it may use all ("max").
        return sys.maxsize


def peak_bytes(compute: Callable[[], object], device: torch.device) -> int:
    """Most memory that the tensors made by a computation take up at once.

    On a CPU counted tensor by tensor: what the process holds tells little, as freed memory is used
    again. Room that kernels need within themselves is not seen there.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        compute()
        return int(torch.cuda.max_memory_allocated(device) - before)
    with _TensorsCounted() as counted:
        compute()
    return int(counted.peak)


def or_none_without_memory(compute: Callable[[], Found]) -> Found | None:
    """What a computation finds, or None where memory ran out."""
    try:
        return compute()
    except MemoryError:
        pass
    except RuntimeError as error:
        # torch.OutOfMemoryError on a GPU; on a CPU the allocator raises a plain RuntimeError.
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
    # Left here, outside the handlers, so that no traceback holds on to the tensors of `compute`.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


class _TensorsCounted(TorchDispatchMode):
    """Follows the storages that operations give out until they are freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._alive = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        outputs = func(*args, **(kwargs or {}))
        found = [one for one in _storages((outputs,)) if one not in self._known]
        if found:
            given = {id(one) for one in _storages((*args, *(kwargs or {}).values()))}
            for storage in found:
                # Two outputs may be one storage.
                if id(storage) not in given and storage not in self._known:
                    self._known.add(storage)
                    self._alive += storage.nbytes()
                    weakref.finalize(storage, self._freed, storage.nbytes())
            self.peak = max(self.peak, self._alive)
        return outputs

    def _freed(self, number: int) -> None:
        self._alive -= number


def _storages(values: Iterable[object]) -> Iterator[torch.UntypedStorage]:
    """Those of tensors among what an operation takes or gives, also in lists and tuples."""
    for value in values:
        if isinstance(value, Tensor):
            yield value.untyped_storage()
        elif isinstance(value, list | tuple):
            yield from _storages(value)
