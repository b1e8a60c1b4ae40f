"""Whether a change is noise is judged on the clips both models were given."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from pydantic import TypeAdapter
from scipy.stats import norm

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


def words(
    errors: list[int], counted: list[int], n: int | None = None, rate: float | None = None
) -> Evaluation:
    value = sum(errors) / sum(counted) if rate is None else rate
    return Evaluation(
        metric="WER",
        value=value,
        interval=Interval(0, 1),
        n=n or len(errors),
        higher_is_better=False,
        errors=tuple(map(float, errors)),
        counted=tuple(map(float, counted)),
    )


CHANGES = [-2, -1, 1, 1, 1, 3, 3, 3, 3] + [0] * 31
SPOKEN = [8 + place % 9 for place in range(40)]


def test_the_verdict_is_the_same_whatever_the_seed() -> None:
    """12 words of 471, on 9 of 40 clips: exact sign flips give p = 0.09.

    Intervals from 2000 resamples would say so with half of the seeds only.
    """
    changes, spoken = np.array(CHANGES), np.array(SPOKEN)

    def lowest_of_2000(seed: int) -> float:
        drawn = np.random.default_rng(seed).integers(0, 40, size=(2000, 40))
        rates = changes[drawn].sum(axis=1) / spoken[drawn].sum(axis=1)
        return float(np.quantile(rates, 0.025))

    fickle = sum(lowest_of_2000(seed) <= 0 for seed in range(40))
    assert 10 < fickle < 30

    errors = [max(0, -change) + 1 for change in CHANGES]
    before = words(errors, SPOKEN)
    after = words([e + c for e, c in zip(errors, CHANGES, strict=True)], SPOKEN)
    found = [paired_change(before, after, seed) for seed in range(40)]
    assert all(one is not None and one.low <= 0 <= one.high for one in found)
    ends = [one.high for one in found if one is not None]
    assert max(ends) - min(ends) < 0.03 * max(ends)
    order = np.random.default_rng(1).permutation(40)
    shuffled = [
        words([int(one.errors[i]) for i in order], [SPOKEN[i] for i in order])
        for one in (before, after)
    ]
    assert paired_change(*shuffled) == paired_change(before, after)


@pytest.mark.parametrize(("before", "loss"), [(48, 0.25), (12, 1.0), (100, 0.12)])
def test_a_quarter_more_errors_are_not_called_noise(before: int, loss: float) -> None:
    """12 more errors in 471 words, which 40 clips do not tell from chance."""
    assert 12 / before == pytest.approx(loss)
    spread = [before // 40 + (place < before % 40) for place in range(40)]
    lowered = [error + max(0, -change) for error, change in zip(spread, CHANGES, strict=True)]
    total = sum(SPOKEN)
    one = words(lowered, SPOKEN, rate=before / total)
    other = words(
        [error + change for error, change in zip(lowered, CHANGES, strict=True)],
        SPOKEN,
        rate=(before + 12) / total,
    )
    change = paired_change(one, other)
    assert change is not None
    finding = metric_finding(one, other, change)
    assert ("noise" in finding) == (loss < 0.25)
    assert ("which 40 clips cannot confirm" in finding) == (loss >= 0.25)
    assert finding.endswith(f"; a loss of up to {100 * change.high:.1f} points cannot be ruled out")
    assert change.high > 0.04


def test_a_loss_from_no_error_is_not_called_noise() -> None:
    before, after = accuracy([True] * 100), accuracy([True] * 97 + [False] * 3)
    change = paired_change(before, after)
    assert change is not None
    assert change.low < -0.03 < 0 <= change.high
    assert metric_finding(before, after, change) == (
        "3.0 points worse where there was no error, which 100 clips cannot confirm; "
        f"a loss of up to {-100 * change.low:.1f} points cannot be ruled out"
    )


@pytest.mark.parametrize("n", [12, 432])
def test_equal_results_do_not_rule_out_a_loss(n: int) -> None:
    """Tango's interval for no change at all, in closed form."""
    z2 = norm.ppf(0.975) ** 2
    same = accuracy([True] * n)
    change = paired_change(same, same)
    assert change == pytest.approx((-z2 / (n + z2), z2 / (n + z2)))
    assert metric_finding(same, same, change) == (
        f"the same value on {n} clips; a loss of up to {100 * z2 / (n + z2):.1f} points "
        "cannot be ruled out"
    )


def test_a_gain_beyond_doubt_rules_out_a_loss() -> None:
    before, after = accuracy([False] * 40 + [True] * 60), accuracy([True] * 100)
    finding = metric_finding(before, after, paired_change(before, after))
    assert finding == "40.0 points better, more than the noise of 100 clips explains"


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
