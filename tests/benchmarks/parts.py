"""Parts of a benchmark, each in a process of its own with a time limit.

So that one that fails, hangs, or takes its process down leaves the others alone.
"""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

Finding = tuple[str, Any]
"""What was found, by name: plain values that JSON can hold."""

ENDING = 5.0
"""Seconds until a process that says nothing more is known to have ended."""


@dataclass(frozen=True)
class Part:
    """A piece of a benchmark. `find` is a function of a module; it is told whether it is a dry run.

    It yields findings as it comes to them: those before a failure are kept.
    """

    name: str
    limit_seconds: float
    find: Callable[[bool], Iterable[Finding]]


def context(preload: Iterable[str] = ()) -> ForkServerContext:
    """Where parts are started from: a process that has imported some modules and done nothing else.

    So that they are imported once, and no part finds a GPU that another has touched.
    """
    found = ForkServerContext()
    found.set_forkserver_preload(list(preload))
    return found


def run_part(part: Part, dry: bool, starter: ForkServerContext) -> dict[str, Any]:
    """Its outcome (`passed` or `failed`) with the error, its seconds, and what it found."""
    start = time.monotonic()
    receiver, sender = starter.Pipe(duplex=False)
    process = starter.Process(target=_work, args=(part, dry, sender))
    process.start()
    sender.close()
    found: dict[str, Any] = {}
    try:
        error = _follow(receiver, start + part.limit_seconds, found)
    except EOFError:
        process.join(ENDING)
        error = f"its process ended with exit code {process.exitcode}"
    except TimeoutError:
        error = f"took longer than {part.limit_seconds:g} s"
    finally:
        _end(process)
    return {
        "outcome": "passed" if error is None else "failed",
        "error": error,
        "seconds": round(time.monotonic() - start, 2),
        "limit_seconds": part.limit_seconds,
        "found": found,
    }


def _follow(receiver: Connection, deadline: float, found: dict[str, Any]) -> str | None:
    """Take in what a part finds until it is done; gives the error that it tells of, if it does.

    Raises:
        EOFError: its process ended without a word.
        TimeoutError: it goes on beyond the deadline.
    """
    while (left := deadline - time.monotonic()) > 0 and receiver.poll(left):
        kind, name, value = receiver.recv()
        if kind != "found":
            return None if kind == "done" else str(value)
        found[name] = value
    raise TimeoutError


def _work(part: Part, dry: bool, sender: Connection) -> None:
    # A group of its own, so that what it starts ends with it.
    os.setpgrp()
    try:
        for name, value in part.find(dry):
            sender.send(("found", name, value))
    except BaseException as error:
        sender.send(("failed", "", "".join(traceback.format_exception(error)).strip()))
    else:
        sender.send(("done", "", None))


def _end(process: ForkServerProcess) -> None:
    """End it with all that it started."""
    if process.pid is not None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()
