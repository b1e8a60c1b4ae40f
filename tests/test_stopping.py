"""`steps: auto`: the first samples settle how many steps all of them take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import run
from pydantic import ValidationError
from standin import StandIn
from test_hib import method, samples_of, task_loss, tiny
from torch import Tensor

import hibprune.attribution.hib
from hibprune.attribution import HeadInformationBottleneck
from hibprune.attribution.session import Session
from hibprune.attribution.stopping import Probe
from hibprune.tasks import Batch

RISING = [0.0, 1.0, 2.0, 3.0]
FALLING = RISING[::-1]
LENGTHS = (0.08, 0.12, 0.09, 0.08, 0.12)


def settled(*checkpoints: list[float]) -> int | None:
    """Of two samples whose mean is the checkpoint's, each a different one."""
    probe = Probe(["a", "b"])
    for means in checkpoints:
        scores = torch.tensor([means, means])
        probe.add(["a", "b"], scores + torch.tensor([[5.0, -9.0, 1.0, 0.0], [-5.0, 9.0, -1.0, 0]]))
    return probe.settled()


class TestTheRule:
    def test_three_agreements_in_a_row(self) -> None:
        assert settled(RISING, RISING, RISING) is None
        assert settled(RISING, RISING, RISING, RISING) == 4
        assert settled(RISING, RISING, RISING, RISING, FALLING) == 4
        assert settled(RISING, RISING, RISING, FALLING, FALLING, FALLING) is None
        assert settled(RISING, RISING, RISING, FALLING, FALLING, FALLING, FALLING) == 7

    def test_ranks_count_not_values(self) -> None:
        assert settled(RISING, [-7.0, 0.0, 0.1, 9.0], RISING, [1.0, 2.0, 3.0, 90.0]) == 4

    def test_heads_that_all_score_the_same_have_no_ranking(self) -> None:
        assert settled(*[[1.0, 1.0, 1.0, 1.0]] * 9) is None

    def test_nothing_is_settled_before_every_sample_is_there(self) -> None:
        probe = Probe(["a", "b"])
        for _ in range(8):
            probe.add(["a"], torch.tensor([RISING]))
        assert probe.settled() is None
        for _ in range(3):
            probe.add(["b"], torch.tensor([RISING]))
            assert probe.settled() is None
        probe.add(["b"], torch.tensor([[10.0, 11.0, 12.0, 13.0]]))
        assert probe.settled() == 4
        assert probe.rows_at(4) == {"a": (0.0, 1.0, 2.0, 3.0), "b": (10.0, 11.0, 12.0, 13.0)}

    def test_a_batch_that_starts_again_leaves_nothing_of_its_first_attempt(self) -> None:
        probe = Probe(["a"])
        for scores in (FALLING, RISING):
            probe.begin(["a"])
            for _ in range(3):
                probe.add(["a"], torch.tensor([scores]))
        assert probe.settled() is None


EASY: dict[str, Any] = {"steps": "auto", "most_steps": 90, "learning_rate": 1e-4}
"""Small steps change no ranking."""


class TestScores:
    def test_an_easy_case_stops_early_and_equals_so_many_steps(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(hibprune.attribution.hib, "PROBE", 3)
        row = tiny("wav2vec2")
        samples = samples_of(row, LENGTHS)
        found = method(**EASY).attribute(row.build(), samples, task_loss, Session())
        assert found.steps is not None
        assert 40 <= found.steps < 90
        fixed = method(**{**EASY, "steps": found.steps, "most_steps": None})
        expected = fixed.attribute(row.build(), samples, task_loss, Session())
        assert expected.steps is None
        np.testing.assert_allclose(found.per_sample, expected.per_sample, atol=1e-5)
        other = method(**{**EASY, "steps": found.steps - 10, "most_steps": None})
        fewer = other.attribute(row.build(), samples, task_loss, Session())
        assert np.abs(np.subtract(found.per_sample, fewer.per_sample)).max() > 1e-4

    def test_without_a_ranking_it_takes_the_most_steps(self) -> None:
        """A_r that never leaves zero correlates with nothing, so all heads score 0."""
        row = tiny("wav2vec2")
        settings = {**EASY, "initial_scale": 0.0, "learning_rate": 1e-30, "most_steps": 45}
        found = method(**settings).attribute(row.build(), samples_of(row), task_loss, Session())
        assert found.steps == 45

    @pytest.mark.parametrize(
        "size",
        [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(5, marks=pytest.mark.slow)],
    )
    def test_batches_and_memory_running_out_change_nothing(self, size: int) -> None:
        row = tiny("wav2vec2")
        model, samples = row.build(), samples_of(row, LENGTHS)
        calls = 0

        def forgetful(model: Any, batch: Batch) -> Tensor:
            nonlocal calls
            calls += 1
            if calls == 25 and size > 1:
                raise torch.OutOfMemoryError("out of memory")
            return task_loss(model, batch)

        settings = {**EASY, "learning_rate": 3e-4}
        together = method(**settings).attribute(model, samples, task_loss, Session())
        split = method(**settings, batch_size=size).attribute(model, samples, forgetful, Session())
        assert together.steps == split.steps
        assert 40 < (split.steps or 0) < 90
        np.testing.assert_allclose(together.per_sample, split.per_sample, atol=1e-4)

    def test_a_resumed_run_keeps_to_what_was_settled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hibprune.attribution.hib, "PROBE", 3)
        row = tiny("wav2vec2")
        model, samples = row.build(), samples_of(row, LENGTHS)
        saved: list[tuple[dict[str, Any], int | None]] = []

        def save(rows: Any, *, steps: int | None = None) -> None:
            saved.append((dict(rows), steps))

        undisturbed = method(**EASY).attribute(model, samples, task_loss, Session(save=save))
        first, steps = saved[0]
        assert set(first) == {"clip0", "clip1", "clip2"}
        assert {steps for _, steps in saved} == {undisturbed.steps}

        losses: list[tuple[str, ...]] = []

        def watched(model: Any, batch: Batch) -> Tensor:
            losses.append(batch.ids)
            return task_loss(model, batch)

        resumed = method(**EASY, batch_size=1).attribute(
            model, samples, watched, Session(done=first, steps=steps)
        )
        assert resumed.steps == undisturbed.steps
        np.testing.assert_allclose(resumed.per_sample, undisturbed.per_sample, atol=1e-4)
        assert steps is not None
        # Two samples are left; two steps more measure memory.
        assert len(losses) == 2 * steps + 2
        assert ("clip0",) not in losses


def test_the_most_steps_are_the_papers_unless_said() -> None:
    def filled(task: str, **fields: Any) -> HeadInformationBottleneck:
        return HeadInformationBottleneck(method="hib", **fields).for_task(task)

    assert filled("asr-ctc", steps="auto").most_steps == 100
    assert filled("keyword-spotting", steps="auto").most_steps == 200
    assert filled("asr-ctc", steps="auto", most_steps=7).most_steps == 7
    assert filled("asr-ctc").most_steps is None
    with pytest.raises(ValidationError, match="most_steps is for steps: auto"):
        filled("asr-ctc", steps=10, most_steps=20)
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        filled("asr-ctc", steps=0)


def test_a_run_says_how_many_steps_it_took(stand_in: StandIn) -> None:
    settings = "attribution={method: hib, steps: auto, learning_rate: 0.001}"
    result = run(stand_in, "--set", settings, "--quiet")
    assert result.exit_code == 0, result.output
    output = stand_in.root / "out"
    steps = json.loads((output / "manifest.json").read_text())["attribution"]["steps"]
    assert 40 <= steps < 200
    assert steps % 10 == 0
    assert f"8 heads by hib, {steps} steps, split-half" in result.stdout
    assert ["steps taken", str(steps)] in _table_rows(output / "report.md")


def _table_rows(report: Path) -> list[list[str]]:
    lines = report.read_text().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
