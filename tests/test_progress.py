"""How far a run is: a bar on a terminal, lines elsewhere, and both in run.log."""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from hibprune.errors import UserError
from hibprune.execution.progress import LOGGER, Narrator, Terminal, ticking

LONGEST_SILENCE = 30


class FakeTime:
    """Seconds that pass only when they are told to, and what is called as they do."""

    def __init__(self) -> None:
        self.now = 0.0
        self._calls: list[tuple[float, Callable[[], None]]] = []

    def clock(self) -> float:
        return self.now

    @contextmanager
    def ticking(self, seconds: float, call: Callable[[], None]) -> Iterator[None]:
        entry, began = (seconds, call), self.now
        self._due = began + seconds
        self._calls.append(entry)
        try:
            yield
        finally:
            self._calls.remove(entry)

    def passes(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now += 1
            for every, call in self._calls:
                if self.now >= self._due:
                    self._due += every
                    call()


def narrator(time: FakeTime, terminal: bool = False) -> tuple[Narrator, io.StringIO]:
    said = io.StringIO()
    console = Console(file=said, force_terminal=terminal, width=100)
    return Narrator(console, bars=terminal, clock=time.clock, ticking=time.ticking), said


def test_a_long_step_is_never_silent_for_long(tmp_path: Path) -> None:
    time = FakeTime()
    narrating, said = narrator(time)
    moments: list[float] = []
    with narrating.log_to(tmp_path / "run.log"), narrating.step("attribute") as narration:
        for done in range(10):
            narration.advance(done, 40, f"{done} of 40 samples, loss 0.5")
            before = said.getvalue()
            for _ in range(20):
                time.passes(1)
                if said.getvalue() != before:
                    moments.append(time.now)
                    before = said.getvalue()
        narration.found("8 heads")
    gaps = [b - a for a, b in zip([0.0, *moments], [*moments, time.now], strict=True)]
    assert max(gaps) <= LONGEST_SILENCE
    *lines, last = said.getvalue().splitlines()
    assert len(lines) == len(moments) >= 6
    assert lines[0] == "attribute       25 s … 2%, 1 of 40 samples, loss 0.5"
    assert last == "attribute    200.0 s  8 heads"
    logged = (tmp_path / "run.log").read_text(encoding="utf-8").splitlines()
    assert [line.partition(" ")[2] for line in logged] == [*lines, last]
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ", line) for line in logged)


def test_a_step_that_cannot_tell_how_far_it_is_shows_that_it_goes_on() -> None:
    time = FakeTime()
    narrating, said = narrator(time)
    with narrating.step("export"):
        time.passes(60)
    assert said.getvalue().splitlines()[:-1] == [
        "export          25 s … at work",
        "export          50 s … at work",
    ]


def test_a_quick_step_says_its_one_line() -> None:
    time = FakeTime()
    narrating, said = narrator(time)
    for name in ("plan", "prune"):
        with narrating.step(name) as narration:
            time.passes(20)
            narration.found("done")
    assert said.getvalue() == "plan          20.0 s  done\nprune         20.0 s  done\n"


def test_a_terminal_has_its_bar_and_the_log_its_lines(tmp_path: Path) -> None:
    time = FakeTime()
    narrating, said = narrator(time, terminal=True)
    with narrating.log_to(tmp_path / "run.log"), narrating.step("attribute") as narration:
        narration.advance(1, 4)
        time.passes(30)
    assert "…" not in said.getvalue()
    progress, closing = (tmp_path / "run.log").read_text(encoding="utf-8").splitlines()
    assert progress.endswith(" attribute       25 s … 25%")
    assert "attribute     30.0 s" in closing


def test_a_step_that_fails_is_no_longer_told_of() -> None:
    time = FakeTime()
    narrating, said = narrator(time)
    with pytest.raises(UserError), narrating.step("attribute"):
        raise UserError("no memory")
    time.passes(100)
    assert said.getvalue() == ""


def test_a_long_check_is_told_of_as_well() -> None:
    time = FakeTime()
    narrating, said = narrator(time)
    with narrating.counted() as advance:
        advance("calibration", 10, 20)
        time.passes(26)
        advance("validation", 1, 100)
        time.passes(26)
    assert said.getvalue().splitlines() == [
        "calibration     25 s … 50%",
        "validation      50 s … 1%",
    ]


# The log -------------------------------------------------------------------------------------


def test_the_log_goes_through_logging_and_leaves_nothing_behind(tmp_path: Path) -> None:
    def state() -> list[tuple[object, ...]]:
        loggers = [logging.getLogger(), logging.getLogger("hibprune"), logging.getLogger(LOGGER)]
        return [(*one.handlers, one.level, one.propagate, one.disabled) for one in loggers]

    narrating, _ = narrator(FakeTime())
    before = state()
    narrating.say("before there is a directory")
    with narrating.log_to(tmp_path / "run.log"):
        (handler,) = logging.getLogger(LOGGER).handlers
        narrating.say("100 % of it")
        logging.getLogger(LOGGER).warning("from elsewhere")
    narrating.say("afterwards")
    assert state() == before
    assert handler not in logging.getLogger(LOGGER).handlers
    lines = (tmp_path / "run.log").read_text().splitlines()
    said = [line.partition(" ")[2] for line in lines]
    assert said == ["before there is a directory", "100 % of it", "from elsewhere"]


def test_a_log_ends_with_its_run_also_where_that_fails(tmp_path: Path) -> None:
    narrating, _ = narrator(FakeTime())
    with pytest.raises(UserError), narrating.log_to(tmp_path / "first.log"):
        raise UserError("bad data")
    with narrating.log_to(tmp_path / "second.log"):
        narrating.say("again")
    assert not (tmp_path / "first.log").exists()
    assert (tmp_path / "second.log").read_text().count("\n") == 1


def test_lines_of_a_run_are_not_shown_twice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where a program that runs hibprune shows all that is logged."""
    narrating, said = narrator(FakeTime())
    with caplog.at_level(logging.DEBUG), narrating.log_to(tmp_path / "run.log"):
        narrating.say("once")
    assert caplog.records == []
    assert said.getvalue() == "once\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_log_that_cannot_be_written_stops_the_run(tmp_path: Path) -> None:
    narrating, _ = narrator(FakeTime())
    (tmp_path / "run.log").mkdir()
    with pytest.raises(OSError), narrating.log_to(tmp_path / "run.log"):  # noqa: PT011
        narrating.say("a line")


# The thread ----------------------------------------------------------------------------------


def test_ticking_calls_until_it_is_closed() -> None:
    calls: list[float] = []
    enough = threading.Event()

    def call() -> None:
        calls.append(time.monotonic())
        if len(calls) == 3:
            enough.set()

    before = threading.active_count()
    with ticking(0.01, call):
        assert enough.wait(30)
    assert threading.active_count() == before
    counted = len(calls)
    time.sleep(0.05)
    assert len(calls) == counted


def test_ticking_for_less_than_its_time_calls_nothing() -> None:
    calls: list[None] = []
    start = time.monotonic()
    with ticking(60, lambda: calls.append(None)):
        pass
    assert (calls, time.monotonic() - start < 30) == ([], True)


def test_an_output_that_takes_no_more_is_told_by_the_step_itself(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Not by a traceback of the thread that says how far the step is."""
    tried = threading.Event()

    class Full(Terminal):
        def print(self, *objects: object, **options: object) -> None:
            tried.set()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def soon(seconds: float, call: Callable[[], None]) -> object:
        return ticking(0.01, call)

    narrating = Narrator(Full(), bars=False, ticking=soon)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^standard output: "), narrating.step("export"):
        assert tried.wait(30)
    assert capsys.readouterr().err == ""
