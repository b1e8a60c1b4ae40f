"""Work on what strangers made, in a process of its own: ended when it takes too long or too much.

A graph can loop without end, ask for all memory, or crash the library that runs it. What the
process hands back is JSON, so that whatever went on in it, only plain values come out.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import connection, get_all_start_methods, get_context, parent_process
from pathlib import Path
from types import ModuleType
from typing import Any

from hibprune.errors import UserError, import_fault

STARTING = 600.0
"""Seconds that the libraries may take to be imported."""
MAX_MESSAGE_BYTES = 2**28
SHARE_OF_MEMORY = 0.9
"""Of what is free, may be taken."""


class ConfinedError(Exception):
    """The process did not get to its end; says why in a few words."""

    def __init__(self, reason: str, timed_out: bool = False) -> None:
        super().__init__(reason)
        self.timed_out = timed_out


def confined(module: str, function: str, arguments: Sequence[Any], seconds: float) -> Iterator[Any]:
    """What the generator `module.function(*arguments)` yields, JSON values, in its own process.

    Raises:
        UserError: as the function does, or a package that it needs is missing.
        ConfinedError: it took more than `seconds` for a value, crashed, or ran out of memory.
        RuntimeError: a defect; holds the traceback.
    """
    method = "forkserver" if "forkserver" in get_all_start_methods() else "spawn"
    context = get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload([module])
    receiver, sender = context.Pipe(duplex=False)
    try:
        # What the process leaves when it is ended goes with this.
        scratch = tempfile.TemporaryDirectory(prefix="hibprune-", ignore_cleanup_errors=True)
    except OSError as error:
        raise ConfinedError(f"has no place for temporary files ({error})") from error
    work = (module, function, tuple(arguments))
    # A daemon, so that it does not outlive this process either.
    process = context.Process(  # type: ignore[attr-defined]
        target=_serve, args=(sender, scratch.name, *work), daemon=True
    )
    try:
        with _main_hidden():
            process.start()
    except (OSError, EOFError) as error:
        scratch.cleanup()
        raise ConfinedError(f"could not be started ({error})") from error
    sender.close()
    patience = STARTING
    try:
        while True:
            if not receiver.poll(patience):
                raise ConfinedError(f"took more than {patience:g} s", timed_out=True)
            try:
                kind, value = json.loads(receiver.recv_bytes(MAX_MESSAGE_BYTES))
            except (EOFError, OSError) as error:
                process.join()
                raise ConfinedError(_crash(process.exitcode)) from error
            if kind == "ready":
                patience = seconds
            elif kind == "value":
                yield value
            elif kind == "fault":
                raise UserError(value)
            elif kind == "defect":
                raise RuntimeError(value)
            else:
                return
    finally:
        process.kill()
        process.join()
        receiver.close()
        scratch.cleanup()


@contextmanager
def _main_hidden() -> Iterator[None]:
    """Keep a new process from running the caller's program once more, as multiprocessing would.

    It is not needed there, and a program that does not expect it starts all over again.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _crash(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        # What Linux sends when there is no memory left.
        return "took too much memory" if name == "SIGKILL" else f"crashed ({name})"
    return "ended before its time"


def _serve(
    sender: connection.Connection,
    scratch: str,
    module: str,
    function: str,
    arguments: tuple[Any, ...],
) -> None:
    """Run the function and send what it yields, then how it ended."""
    tempfile.tempdir = scratch
    _keep_quiet()
    _end_with_the_parent()

    def send(kind: str, value: object = None) -> None:
        sender.send_bytes(json.dumps((kind, value)).encode())

    try:
        work: Callable[..., Iterator[Any]] = getattr(importlib.import_module(module), function)
        _limit_memory()
        send("ready")
        for value in work(*arguments):
            send("value", value)
        send("end")
    except UserError as error:
        send("fault", str(error))
    except MemoryError:
        send("fault", "the model takes more memory than there is")
    except BaseException as error:
        fault = import_fault(error)
        send("fault" if fault else "defect", fault or traceback.format_exc())


def _keep_quiet() -> None:
    """Print nothing: libraries repeat what a stranger wrote; nor take what is typed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(nowhere, descriptor)
    sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115


def _end_with_the_parent() -> None:
    """End when the process that asked for the work is gone, however it went."""

    def wait() -> None:
        parent = parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _limit_memory() -> None:
    """Refuse what does not fit, before the system ends other processes to make room for it."""
    with suppress(ImportError, OSError, ValueError):  # Linux alone can do both.
        import resource

        import psutil

        pages = int(Path("/proc/self/statm").read_text().split()[5])
        free = int(psutil.virtual_memory().available * SHARE_OF_MEMORY)
        most = pages * resource.getpagesize() + free
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
