"""Runs the command line in processes of its own, which can be killed at a chosen moment."""

from __future__ import annotations

import signal
from pathlib import Path

import interpreters

HIBPRUNE = "from hibprune.cli import main; main()"
KILLED = """
import os, signal, sys
from pathlib import Path
replace, pattern = os.replace, sys.argv.pop(1)
def replace_and_end(source, place, **more):
    replace(source, place, **more)
    if Path(place).match(pattern):
        os.kill(os.getpid(), signal.SIGKILL)
os.replace = replace_and_end
"""
"""Every file is put in its place by a rename. Whoever kills from outside may come too late."""


def finish(said: Path, *arguments: str) -> str:
    """Run `hibprune` to success; returns what was said, which also goes to a file."""
    assert _ended(said, HIBPRUNE, *arguments) == 0, said.read_text()
    return said.read_text()


def kill_after(place: str, said: Path, *arguments: str) -> None:
    """Run `hibprune` until SIGKILL, right after it put a file where a pattern says."""
    assert _ended(said, KILLED + HIBPRUNE, place, *arguments) == -signal.SIGKILL, said.read_text()


def _ended(said: Path, code: str, *arguments: str) -> int:
    with said.open("wb") as file:
        told = {"stdout": file.fileno(), "stderr": file.fileno()}
        interpreter = interpreters.start(code, *arguments, ready="hibprune", **told)
        return interpreter.wait()
