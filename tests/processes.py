"""Runs the command line in processes of its own, which can be killed at any moment.

They are forked from a server that has imported everything already: a run of a tiny model takes a
second, its imports five.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

PRELOADED = ("hibprune.pipeline", "hibprune.cli", "optimum.exporters.onnx.convert", "onnxruntime")
PATIENCE = 120.0
"""Seconds until a test gives up waiting."""


class Command:
    """A running `hibprune`; what it says goes to a file."""

    def __init__(self, said: Path, *arguments: str) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(PRELOADED))
        self._said = said
        self._process = context.Process(target=_run, args=(said, arguments))
        self._process.start()

    @property
    def running(self) -> bool:
        return self._process.is_alive()

    def finish(self) -> str:
        """Wait for success; returns what was said."""
        self._process.join(PATIENCE)
        assert self._process.exitcode == 0, (self._process.exitcode, self._said.read_text())
        return self._said.read_text()

    def kill_when(self, condition: Callable[[], bool]) -> None:
        """SIGKILL as soon as `condition` holds; the process must still be running then."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert self.running, f"ended before it could be killed: {self._said.read_text()}"
            assert time.monotonic() < deadline, "the moment to kill never came"
            time.sleep(0.002)
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.join(PATIENCE)
        assert self._process.exitcode == -signal.SIGKILL


def _run(said: Path, arguments: tuple[str, ...]) -> None:
    from hibprune.cli import main

    with said.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    main(list(arguments), prog_name="hibprune")
