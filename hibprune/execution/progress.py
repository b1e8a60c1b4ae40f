"""What a person sees while a run goes on, and what `run.log` keeps of it."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from hibprune.errors import OutputError, printable
from hibprune.execution.console import output_fault
from hibprune.execution.files import open_to_append


def quiet_libraries() -> None:
    """Keep other libraries' progress bars, warnings and telemetry out of what a run says."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    # The variable is read on import, which may have been before.
    logging.getLogger("transformers").setLevel(logging.ERROR)
    # It logs what it raises, too, in lines of its own.
    logging.getLogger("datasets").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    # Advice that does not go through its logger, e.g. on where Whisper's settings are kept.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"transformers\.")


@contextmanager
def counted(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """Takes what is being done, how much of it is done, and of how much; a bar on a terminal."""
    columns = (TextColumn("{task.description:<11}"), BarColumn(bar_width=28), TimeRemainingColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        tasks: dict[str, TaskID] = {}

        def advance(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(name, total=total)
            progress.update(tasks[name], completed=done, total=total)

        yield advance


class Terminal(Console):
    """A console whose reader may go away, of which the command line is told."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


@dataclass
class Narrator:
    """Says one line per step on a console, with a progress bar while it runs if `bars`.

    Lines said before the output directory exists are kept and written to the log afterwards.
    """

    console: Console
    bars: bool = True
    log: Path | None = None
    _unlogged: list[str] = field(default_factory=list)

    def say(self, line: str) -> None:
        """Print a line and log it; what would steer a terminal goes to neither."""
        line = printable(line)
        with _plain_output():
            self.console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)
        self._unlogged.append(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {line}")
        self._flush()

    def log_to(self, path: Path) -> None:
        """Append what was said, and what will be, to a file."""
        self.log = path
        self._flush()

    def _flush(self) -> None:
        if self.log is not None:
            with open_to_append(self.log) as file:
                file.writelines(f"{line}\n" for line in self._unlogged)
            self._unlogged.clear()

    @contextmanager
    def step(self, name: str) -> Iterator[StepNarration]:
        """Narrate one step; its closing line gives the time it took and what it found."""
        narration = StepNarration(name)
        start = time.perf_counter()
        columns = (
            TextColumn("{task.description:<11}"),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(compact=True),
        )
        with Progress(
            *columns, console=self.console, transient=True, disable=not self.bars
        ) as progress:
            task = progress.add_task(name, total=None, status="")
            narration.attach(progress, task)
            yield narration
        seconds = narration.earlier_seconds
        took = f"{time.perf_counter() - start:6.1f} s" if seconds is None else "  done  "
        before = "" if seconds is None else f" (from an earlier run, {seconds:.1f} s)"
        self.say(f"{name:<11} {took}  {narration.finding}{before}")


@contextmanager
def _plain_output() -> Iterator[None]:
    """Tell a terminal that takes no more from a full disk in the output directory."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(output_fault(error)) from error


class StepNarration:
    """A running step's progress bar, and what will be said of it at the end."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.finding = ""
        self.earlier_seconds: float | None = None
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def attach(self, progress: Progress, task: TaskID) -> None:
        """Let the step draw on a bar."""
        self._progress, self._task = progress, task

    def advance(self, done: float, total: float, status: str = "") -> None:
        """Show how far the step is."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, total=total, status=status)

    def found(self, finding: str, earlier_seconds: float | None = None) -> None:
        """Set what the closing line says; `earlier_seconds` if an earlier run found it."""
        self.finding, self.earlier_seconds = finding, earlier_seconds
