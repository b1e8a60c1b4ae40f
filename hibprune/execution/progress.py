"""What a person sees while a run goes on, and what `run.log` keeps of it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from hibprune.errors import OutputError, UserError, printable
from hibprune.execution.console import output_fault
from hibprune.execution.files import open_to_append

SECONDS_SILENT = 25.0
"""After so long a step says how far it is: within 30 s, also where the machine is busy."""
LOGGER = "hibprune.run"

Ticking = Callable[[float, Callable[[], None]], AbstractContextManager[None]]
"""Takes seconds and what to call whenever they have passed, for as long as it is open."""


class Terminal(Console):
    """A console whose reader may go away, of which the command line is told."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


@contextmanager
def ticking(seconds: float, call: Callable[[], None]) -> Iterator[None]:
    """Call something every so many seconds from a thread of its own, whatever goes on in others."""
    ended = threading.Event()

    def tick() -> None:
        # An output that takes no more fails again at the next line of the step itself.
        with suppress(UserError, OSError):
            while not ended.wait(seconds):
                call()

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@dataclass
class Narrator:
    """Says one line per step on a console and, while it runs, how far it is.

    That is a bar where there are `bars`, and else a line every `SECONDS_SILENT`, which the log has
    in any case. Lines said before the output directory exists are kept for the log.
    """

    console: Console
    bars: bool = True
    clock: Callable[[], float] = time.perf_counter
    ticking: Ticking = ticking
    _logger: logging.Logger | None = None
    _unlogged: list[logging.LogRecord] = field(default_factory=list)

    def say(self, line: str) -> None:
        """Print a line and log it; what would steer a terminal goes to neither."""
        line = printable(line)
        with _plain_output():
            self.console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)
        self._log(line)

    def _log(self, line: str) -> None:
        record = logging.makeLogRecord({"msg": line, "levelno": logging.INFO, "name": LOGGER})
        if self._logger is None:
            self._unlogged.append(record)
        else:
            self._logger.handle(record)

    @contextmanager
    def log_to(self, path: Path) -> Iterator[None]:
        """Append what was said, and what will be while this is open, to a file."""
        logger, handler = logging.getLogger(LOGGER), RunLog(path)
        # Whoever shows the lines of all loggers would show these twice.
        before, logger.propagate = logger.propagate, False
        logger.addHandler(handler)
        try:
            for record in self._unlogged:
                logger.handle(record)
            self._unlogged.clear()
            self._logger = logger
            yield
        finally:
            self._logger = None
            logger.removeHandler(handler)
            logger.propagate = before
            handler.close()

    @contextmanager
    def step(self, name: str) -> Iterator[StepNarration]:
        """Narrate one step; its closing line gives the time it took and what it found."""
        start = self.clock()
        status = TextColumn("{task.fields[status]}")
        with (
            self._progress(status, TimeRemainingColumn(compact=True)) as progress,
            self._followed() as follow,
        ):
            narration = StepNarration(name, progress)
            follow(narration)
            yield narration
        seconds = narration.earlier_seconds
        took = f"{self.clock() - start:6.1f} s" if seconds is None else "  done  "
        before = "" if seconds is None else f" (from an earlier run, {seconds:.1f} s)"
        self.say(f"{name:<11} {took}  {narration.finding}{before}")

    @contextmanager
    def counted(self) -> Iterator[Callable[[str, int, int], None]]:
        """Takes what is being done, how much of it is done, and of how much; says no last line."""
        narrations: dict[str, StepNarration] = {}
        with self._progress(TimeRemainingColumn()) as progress, self._followed() as follow:

            def advance(name: str, done: int, total: int) -> None:
                if name not in narrations:
                    narrations[name] = StepNarration(name, progress)
                    follow(narrations[name])
                narrations[name].advance(done, total)

            yield advance

    def _progress(self, *columns: ProgressColumn) -> Progress:
        first = (TextColumn("{task.description:<11}"), BarColumn(bar_width=28))
        return Progress(
            *first, *columns, console=self.console, transient=True, disable=not self.bars
        )

    @contextmanager
    def _followed(self) -> Iterator[Callable[[StepNarration], None]]:
        """Takes what is going on; tells again and again how far it is."""
        start = self.clock()
        latest: list[StepNarration] = []

        def tell() -> None:
            if latest:
                line = latest[-1].progress_line(self.clock() - start)
                if self.bars:
                    self._log(printable(line))
                else:
                    self.say(line)

        with self.ticking(SECONDS_SILENT, tell):
            yield latest.append


class RunLog(logging.Handler):
    """Appends lines with their time to a file, which is opened for each as all files of a run are.

    What goes wrong is raised, as for any other file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        formatter = logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
        formatter.converter = time.gmtime
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        with open_to_append(self.path) as file:
            file.write(f"{self.format(record)}\n")


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
    """A running step's progress, and what will be said of it at the end."""

    def __init__(self, name: str, progress: Progress) -> None:
        self.name = name
        self.finding = ""
        self.earlier_seconds: float | None = None
        self._bar = progress
        self._task: TaskID = progress.add_task(name, total=None, status="")
        self._reached = "at work"

    def advance(self, done: float, total: float, status: str = "") -> None:
        """Show how far the step is."""
        share = f"{done / total:.0%}" if total else ""
        self._reached = ", ".join(part for part in (share, status) if part)
        self._bar.update(self._task, completed=done, total=total, status=status)

    def progress_line(self, seconds: float) -> str:
        """How far the step is after some seconds."""
        return f"{self.name:<11} {seconds:6.0f} s … {self._reached}"

    def found(self, finding: str, earlier_seconds: float | None = None) -> None:
        """Set what the closing line says; `earlier_seconds` if an earlier run found it."""
        self.finding, self.earlier_seconds = finding, earlier_seconds
