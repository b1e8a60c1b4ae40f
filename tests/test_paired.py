"""Whether a change is noise is judged on the clips both models were given."""

from __future__ import annotations

from math import comb

import pytest
from pydantic import TypeAdapter

from hibprune.records.base import Interval
from hibprune.records.measurements import Evaluation, paired_change
from hibprune.report.wording import metric_finding
from hibprune.tasks import Task, Vocabulary

NOTHING = Vocabulary(())


def accuracy(right: list[bool]) -> Evaluation:
    task = TypeAdapter(Task).validate_python({"kind": "keyword-spotting"})
    said = ["a" if good else "b" for good in right]
    return task.evaluate(said, ["a"] * len(right), NOTHING)


def test_seven_clips_lost_and_none_won_is_more_than_noise() -> None:
    """McNemar's exact test gives p = 2 · 0.5⁷ = 0.016, though the two intervals overlap."""
    before, after = accuracy([True] * 78 + [False] * 2), accuracy([True] * 71 + [False] * 9)
    assert before.interval.low < after.interval.high
    assert 2 * comb(7, 0) * 0.5**7 < 0.05
    assert "more than the noise of 80 clips" in metric_finding(
        before, after, paired_change(before, after)
    )


def test_as_many_won_as_lost_is_noise() -> None:
    before = accuracy([True] * 70 + [False] * 10)
    after = accuracy([False] * 6 + [True] * 64 + [True] * 5 + [False] * 5)
    assert "within the noise of 80 clips" in metric_finding(
        before, after, paired_change(before, after)
    )


def test_a_change_is_in_the_metrics_own_direction() -> None:
    fall = paired_change(accuracy([True] * 100), accuracy([False] * 20 + [True] * 80))
    assert fall is not None
    # Binomial: 0.2 ± 1.96 · sqrt(0.2 · 0.8 / 100), and accuracy falls.
    assert fall.low == pytest.approx(-0.2 - 0.078, abs=0.02)
    assert fall.high == pytest.approx(-0.2 + 0.078, abs=0.02)


def test_word_errors_rise_above_zero() -> None:
    """Every other of 100 one-word transcripts goes wrong: 0.5 ± 1.96 · sqrt(0.25 / 100)."""
    before, after = (
        Evaluation(
            metric="WER",
            value=sum(errors) / 100,
            interval=Interval(0, 1),
            n=100,
            higher_is_better=False,
            errors=errors,
            counted=(1.0,) * 100,
        )
        for errors in ((0.0,) * 100, (0.0, 1.0) * 50)
    )
    rise = paired_change(before, after)
    assert rise is not None
    assert rise.low == pytest.approx(0.5 - 0.098, abs=0.02)
    assert rise.high == pytest.approx(0.5 + 0.098, abs=0.02)


def test_a_measurement_is_the_evaluation_without_its_clips() -> None:
    whole = accuracy([True, False])
    kept = whole.measurement.model_dump()
    assert kept == {
        "metric": "accuracy",
        "value": 0.5,
        "interval": whole.interval,
        "n": 2,
        "higher_is_better": True,
    }


def test_different_clips_are_not_paired() -> None:
    assert paired_change(accuracy([True] * 5), accuracy([True] * 6)) is None
