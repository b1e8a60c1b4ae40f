"""Runs the command line in processes of its own, which can be killed at any moment."""

from __future__ import annotations

from pathlib import Path

import interpreters

HIBPRUNE = "from hibprune.cli import main; main()"


class Command:
    """A running `hibprune`; what it says goes to a file."""

    def __init__(self, said: Path, *arguments: str) -> None:
        self._said = said
        with said.open("wb") as file:
            self._interpreter = interpreters.start(
                HIBPRUNE, *arguments, ready="hibprune", stdout=file.fileno(), stderr=file.fileno()
            )
        self.kill_when = self._interpreter.kill_when

    def finish(self) -> str:
        """Wait for success; returns what was said."""
        assert self._interpreter.wait() == 0, self._said.read_text()
        return self._said.read_text()
