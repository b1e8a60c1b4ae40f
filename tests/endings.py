"""Ways for work in a process of its own to end; run there by tests/test_deployed.py."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

from hibprune.errors import UserError


def count(number: int) -> Iterator[Any]:
    """Values of several kinds."""
    for value in range(number):
        yield {"2": "ü\ud800"} if value == 2 else value


def crash() -> Iterator[int]:
    yield 0
    os.kill(os.getpid(), signal.SIGSEGV)


def kill() -> Iterator[int]:
    yield 0
    os.kill(os.getpid(), signal.SIGKILL)


def exit() -> Iterator[int]:
    yield 0
    os._exit(0)


def fault() -> Iterator[int]:
    yield 0
    raise UserError("said so")


def missing() -> Iterator[int]:
    import no_such_package  # type: ignore[import-not-found]

    yield no_such_package


def defect() -> Iterator[float]:
    yield 1 / 0
