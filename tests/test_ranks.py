"""Under torchrun: two processes score what one would have scored, and only one of them writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from standin import CALIBRATION_CLIPS, StandIn

from hibprune.ranks import ALONE, Ranks, joined

ROOT = Path(__file__).resolve().parents[1]
HIBPRUNE = (sys.executable, "-c", "from hibprune.cli import main; main()")
TOGETHER = (
    sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
    "--no-python",
)  # fmt: skip


def call(*words: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, timeout=240, env=environment
    )


def test_shares_are_all_of_it_once() -> None:
    shares = [Ranks(number, 3).share("abcdefgh") for number in range(3)]
    assert sorted(item for share in shares for item in share) == list("abcdefgh")
    assert {len(share) for share in shares} == {2, 3}
    assert ALONE.share("ab") == ["a", "b"]


def test_a_process_that_torchrun_did_not_start_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for world in (None, "1"):
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        if world is not None:
            monkeypatch.setenv("WORLD_SIZE", world)
        with joined() as ranks:
            assert ranks is ALONE
    assert ALONE.leads
    assert ALONE.gathered({"a": 1}) == {"a": 1}
    ALONE.tell("nobody")


PROGRAM = """
import sys
from hibprune.ranks import joined
with joined() as ranks:
    rows = ranks.gathered({name: ranks.number for name in ranks.share("abc")})
    assert rows == {"a": 0, "b": 1, "c": 0}, rows
    if ranks.leads:
        ranks.tell({"steps": 7})
    else:
        assert ranks.hear() == {"steps": 7}
        print("heard")
"""


def test_two_processes_exchange_what_they_found() -> None:
    done = call(*TOGETHER, sys.executable, "-c", PROGRAM)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "heard\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "shared"),
    [
        (("attribution={method: hib, steps: 4}", "schedule={rounds: 2}"), True),
        (("attribution={method: taylor}",), True),
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
    efforts = [each["attribute.json"]["effort"]["samples"] for each in (one, two)]
    assert efforts == [CALIBRATION_CLIPS, CALIBRATION_CLIPS / 2 if shared else CALIBRATION_CLIPS]


@pytest.mark.slow
def test_a_fault_ends_all_ranks(stand_in: StandIn) -> None:
    done = call(*TOGETHER, *HIBPRUNE, "run", stand_in.root / "none.yaml")
    assert done.returncode != 0
    assert "none.yaml" in done.stderr
