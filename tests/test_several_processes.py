"""Under torchrun: two processes score what one would have scored, and only one of them writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import interpreters
import numpy as np
import pytest
from standin import CALIBRATION_CLIPS, StandIn
from test_hib import samples_of, task_loss, tiny

from hibprune.attribution.methods import AttentionScore
from hibprune.attribution.session import Session
from hibprune.execution.processes import ALONE, Processes, joined

ROOT = Path(__file__).resolve().parents[1]
HIBPRUNE = (sys.executable, "-c", "from hibprune.cli import main; main()")
TOGETHER = (
    sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
    "--no-python",
)  # fmt: skip


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def call(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        timeout=240,
        env=environment(),
    )


TORCHRUN = """
import sys
from torch.distributed import run

elastic_launch = run.elastic_launch

def launch(config, entrypoint):
    assert entrypoint == sys.executable
    config.start_method = "fork"

    def program(option, code, *arguments):
        sys.argv = [option, *arguments]
        exec(code, {"__name__": "__main__"})

    return elastic_launch(config, program)

run.elastic_launch = launch
run.main(sys.argv[1:])
"""
"""torchrun for `python -c`, whose processes are forked: each would import torch again."""


def said_apart(place: Path, *words: object) -> tuple[int, str, str]:
    """The exit code of torchrun, and what each of two processes says on standard error."""
    done = interpreters.run(TORCHRUN, *TOGETHER[3:], *apart(place), *words, ready="hibprune")
    return done.returncode, *said_by_both(place)


def apart(place: Path) -> tuple[object, ...]:
    """torchrun's options by which each process speaks into a file of its own."""
    # A process that has failed is noticed late, so that the other can say all it has to.
    return ("--log-dir", place, "--redirects", 3, "--monitor-interval", 1)


def said_by_both(place: Path) -> tuple[str, str]:
    """What each of two processes said on standard error, where torchrun keeps it."""
    leader, helper = (
        next(place.glob(f"*/attempt_0/{process}/stderr.log")).read_text() for process in (0, 1)
    )
    return leader, helper


def test_shares_are_all_of_it_once() -> None:
    shares = [Processes(number, 3).share("abcdefgh") for number in range(3)]
    assert sorted(item for share in shares for item in share) == list("abcdefgh")
    assert {len(share) for share in shares} == {2, 3}
    assert ALONE.share("ab") == ["a", "b"]


def test_a_process_that_torchrun_did_not_start_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for world in (None, "1"):
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        if world is not None:
            monkeypatch.setenv("WORLD_SIZE", world)
        with joined() as processes:
            assert processes is ALONE
    assert ALONE.leads
    assert ALONE.gathered({"a": 1}) == {"a": 1}
    ALONE.tell("nobody")


PROGRAM = """
import sys
from hibprune.execution.processes import joined
with joined() as processes:
    rows = processes.gathered({name: processes.number for name in processes.share("abc")})
    assert rows == {"a": 0, "b": 1, "c": 0}, rows
    if processes.leads:
        processes.tell({"steps": 7})
    else:
        assert processes.hear() == {"steps": 7}
        print("heard")
"""


def test_two_processes_exchange_what_they_found() -> None:
    done = interpreters.run(TORCHRUN, *TOGETHER[3:], sys.executable, "-c", PROGRAM, ready="torch")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "heard\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "shared"),
    [
        (("attribution={method: hib, steps: 4}", "schedule={rounds: 2}"), True),
        (("attribution={method: taylor}", "removal.refine={steps: 8}"), True),
        # All of its samples are among the first, which the leader scores alone.
        (("attribution={method: hib, steps: auto, most_steps: 60}",), True),
        (("attribution={method: magnitude}", "calibration.labels=model"), False),
    ],
)
def test_a_run_of_two_finds_what_a_run_of_one_does(
    stand_in: StandIn, options: tuple[str, ...], shared: bool
) -> None:
    task = stand_in
    settings = [word for option in options for word in ("--set", option)]
    said = {}
    for name, start in (("one", ()), ("two", TOGETHER)):
        output = task.root / name
        done = call(*start, *HIBPRUNE, "run", task.recipe, "--output", output, "--quiet", *settings)
        assert done.returncode == 0, done.stderr
        said[name] = [line.split()[0] for line in done.stdout.splitlines()]
    assert said["one"] == said["two"]
    one, two = (
        {path.name: json.loads(path.read_text())["result"] for path in steps.glob("*.json")}
        for steps in (task.root / "one/steps", task.root / "two/steps")
    )
    assert one.keys() == two.keys()
    for name in one:
        if name.startswith("attribute"):
            assert one[name]["samples"] == two[name]["samples"]
            assert one[name]["steps"] == two[name]["steps"]
            np.testing.assert_allclose(one[name]["per_sample"], two[name]["per_sample"], atol=1e-4)
        elif name.startswith("plan"):
            assert one[name] == two[name]
        elif name == "repair.json":
            assert one[name]["files"] == two[name]["files"]
            same_repair(one[name]["repair"], two[name]["repair"])
    efforts = [each["attribute.json"]["effort"]["samples"] for each in (one, two)]
    assert efforts == [CALIBRATION_CLIPS, CALIBRATION_CLIPS / 2 if shared else CALIBRATION_CLIPS]


def same_repair(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Fitted on the same clips, of which each of two processes has seen some."""
    for key in ("kind", "clips", "held_out", "frames"):
        assert one[key] == other[key]
    for part in ("sublayers", "refinements"):
        assert len(one[part]) == len(other[part])
        for first, second in zip(one[part], other[part], strict=True):
            for key, value in first.items():
                close = pytest.approx(value, rel=0.02) if key in ("before", "after") else value
                assert second[key] == close, (part, key)


# Ended before its time ------------------------------------------------------------------------

ENDING = """
import os, sys
from click import command
from hibprune.execution.console import PlainGroup
from hibprune.errors import UserError
from hibprune.execution.processes import joined
def fault():
    raise UserError("here: wrong: mend it")
def killed():
    os.kill(os.getpid(), 9)
def defect():
    sys.exit(str(1 / 0))
def stopped():
    raise KeyboardInterrupt
who, how = sys.argv[1:]
@command()
def end():
    with joined() as processes:
        if who == "both" or (who == "leader") == processes.leads:
            globals()[how]()
        processes.gathered({})
PlainGroup(commands={"end": end})(["end"])
"""
LINE = "error: here: wrong: mend it\n"
STOPPED = "stopped: the same command goes on from here\n"
GONE = (
    "error: torchrun: a process that helped to score has ended: see whether it said why, and run "
    "again: samples scored so far are kept\n"
)


@pytest.mark.parametrize(
    ("who", "how", "leader", "helper"),
    [
        ("leader", "fault", LINE, ""),
        pytest.param("helper", "fault", "", LINE, marks=pytest.mark.slow),
        pytest.param("helper", "killed", GONE, "", marks=pytest.mark.slow),
    ],
    ids=["leader's fault", "helper's fault", "helper killed"],
)
def test_one_rank_says_why_all_end(
    tmp_path: Path, who: str, how: str, leader: str, helper: str
) -> None:
    said = said_apart(tmp_path, sys.executable, "-c", ENDING, who, how)
    # torchrun's own: it has no other code for processes that fail.
    assert said == (1, leader, helper)


@pytest.mark.parametrize(
    ("how", "line"),
    [("fault", LINE), pytest.param("stopped", STOPPED, marks=pytest.mark.slow)],
    ids=["fault", "stopped"],
)
def test_what_all_processes_find_is_said_once(tmp_path: Path, how: str, line: str) -> None:
    code, *said = said_apart(tmp_path, sys.executable, "-c", ENDING, "both", how)
    assert code == 1
    assert sorted(said) == ["", line]


@pytest.mark.slow
def test_the_others_are_silent_about_a_defect(tmp_path: Path) -> None:
    # A torchrun of its own: the traceback is the last word of an interpreter that ends by itself.
    done = call(*TOGETHER, *apart(tmp_path), sys.executable, "-c", ENDING, "leader", "defect")
    leader, helper = said_by_both(tmp_path)
    assert done.returncode == 1
    assert "ZeroDivisionError" in leader
    assert helper == ""


@pytest.mark.slow
def test_a_fault_in_the_recipe_is_said_once(stand_in: StandIn, tmp_path: Path) -> None:
    recipe = stand_in.root / "none.yaml"
    code, *said = said_apart(tmp_path / "said", *HIBPRUNE, "run", recipe)
    assert code == 1
    assert sorted(said) == ["", f"error: {recipe}: no such file\n"]


@pytest.mark.slow
def test_a_gate_that_fails_is_no_crash(stand_in: StandIn, tmp_path: Path) -> None:
    output = tmp_path / "out"
    words = ("run", stand_in.recipe, "--output", output, "--quiet", "--set")
    limit = "gates.max_file_mb=0.001"
    code, leader, helper = said_apart(tmp_path / "said", *HIBPRUNE, *words, limit)
    assert (code, helper) == (1, "")
    failed, remark = leader.splitlines()
    assert failed.startswith("gate failed: max_file_mb: limit 0.001, measured ")
    assert remark == (
        "exit code 3: everything is written; torchrun calls that a failed process and exits with 1"
    )
    gates = json.loads((output / "manifest.json").read_text())["gates"]
    assert [gate["verdict"] for gate in gates] == ["failed"]
    assert (output / "report.md").is_file()


# Killed while scoring -------------------------------------------------------------------------


@dataclass(frozen=True)
class BesideAnother(Processes):
    """One of two processes, the other of which finds these rows, one batch after the other."""

    others: list[dict[str, Any]] = field(default_factory=list)

    def gathered(self, rows: Mapping[str, Any]) -> dict[str, Any]:
        return {**rows, **(self.others.pop(0) if self.others else {})}


@pytest.mark.parametrize(
    ("others", "saved"),
    [
        (["b", "df"], ["ab", "abcdf", "abcdef"]),
        (["", "b", "", "d", "f"], ["a", "abc", "abce", "abcde", "abcdef"]),
    ],
    ids=["the other is done first", "the other is done last"],
)
def test_what_is_saved_holds_the_rows_of_all_processes(others: list[str], saved: list[str]) -> None:
    row = tiny("wav2vec2-stable")
    samples = [
        replace(sample, id=name)
        for name, sample in zip("abcdef", samples_of(row, 6 * (0.1,)), strict=True)
    ]
    alone = AttentionScore(method="attention").attribute(row.build(), samples, task_loss, Session())
    rows = dict(zip("abcdef", alone.per_sample, strict=True))
    seen: list[dict[str, Any]] = []
    counted: list[tuple[float, int]] = []
    session = Session(
        processes=BesideAnother(0, 2, [{name: rows[name] for name in batch} for batch in others]),
        save=lambda rows, *, steps=None: seen.append(dict(rows)),
        progress=lambda done, total, loss: counted.append((done, total)),
    )
    method = AttentionScore(method="attention", batch_size=1)
    scores = method.attribute(row.build(), samples, task_loss, session)
    assert ["".join(sorted(kept)) for kept in seen] == saved
    assert counted[-1] == (6, 6)
    assert scores.samples == tuple("abcdef")
    np.testing.assert_allclose(scores.per_sample, alone.per_sample, atol=1e-6)


@pytest.mark.slow
def test_a_killed_run_of_two_goes_on_with_the_rows_of_both(stand_in: StandIn) -> None:
    output = stand_in.root / "out"
    settings = ("--set", "attribution={method: hib, steps: 120, batch_size: 2}", "--quiet")
    words = (*TOGETHER, *HIBPRUNE, "run", stand_in.recipe, "--output", output, *settings)
    partial = output / "steps/attribute.partial.json"
    with subprocess.Popen([str(word) for word in words], env=environment()) as running:
        deadline = time.monotonic() + 240
        while not partial.exists():
            assert running.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        running.terminate()
    kept = list(json.loads(partial.read_text())["rows"])
    assert 0 < len(kept) < CALIBRATION_CLIPS
    done = call(*words)
    assert done.returncode == 0, done.stderr
    assert f"attribute: going on after {len(kept)} samples scored before" in done.stdout
    scores = json.loads((output / "steps/attribute.json").read_text())["result"]
    # Every second sample is one process's.
    assert {scores["samples"].index(name) % 2 for name in kept} == {0, 1}
