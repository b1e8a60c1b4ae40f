"""A model that guesses is not pruned as if it knew, nor is one that came to guess passed over."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import faults, invoke, refused, run
from pydantic import TypeAdapter
from scipy.stats import binomtest
from standin import StandIn

from hibprune.evaluation.chance import chance_fault, chance_level
from hibprune.records.manifest import Manifest
from hibprune.records.measurements import Evaluation
from hibprune.records.medium import SOUND, TEXT
from hibprune.tasks import OwnMetric, Target, Task, Vocabulary

STRICT = ("--set", "validation.allow_chance_baseline=false")
ALLOWED = ("--set", "validation.allow_chance_baseline=true")
REMEDY = (
    "look for what is wrong with the model, its labels or the data, "
    "or set validation.allow_chance_baseline: true"
)
NOTHING = Vocabulary(())


def measured(kind: str, said: list[Target], true: list[Target]) -> Evaluation:
    task = TypeAdapter(Task).validate_python({"kind": kind})
    return OwnMetric(task, NOTHING).evaluate(said, true)


def keywords(right: int, labels: list[Target]) -> Evaluation:
    """Of a spotter that is right on the first so many of them and wrong on the others."""
    said: list[Target] = [
        label if place < right else f"not {label}" for place, label in enumerate(labels)
    ]
    return measured("keyword-spotting", said, labels)


# What chance is ------------------------------------------------------------------------------


@pytest.mark.parametrize("right", range(18, 31))
def test_accuracy_has_to_be_above_the_commonest_label_with_all_of_its_interval(right: int) -> None:
    """18 of 30 have one label: 60 %."""
    labels: list[Target] = ["yes"] * 18 + ["no"] * 12
    evaluation = keywords(right, labels)
    assert chance_level(evaluation, labels) == pytest.approx(0.6)
    fault = chance_fault(evaluation, labels, SOUND)
    low = binomtest(right, 30).proportion_ci(method="wilson").low
    assert (fault is None) == (low > 0.6)
    if right == 20:
        assert fault == (
            "validation: the original model's accuracy 66.67% (48.78% to 80.77%, n = 30) is not "
            f"above chance: 'yes', said of all, is right of 60.00%: {REMEDY}"
        )


def test_slots_are_one_label_together() -> None:
    answers: list[Target] = [
        {"action": "on", "object": thing} for thing in ("lamp", "lamp", "heat", "none")
    ]
    evaluation = measured("keyword-spotting", answers, answers)
    assert chance_level(evaluation, answers) == 0.5
    fault = chance_fault(evaluation, answers, SOUND)
    # 4 of 4 is no less than 51 % with Wilson's interval.
    assert fault is None
    assert "'action=on, object=lamp'" in str(
        chance_fault(measured("keyword-spotting", answers[::-1], answers), answers, SOUND)
    )


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        # 3 words of 4 wrong, 4 of 4, 5 of 4, and nothing said, which makes every word an error.
        (["ONE", "NO", "SUCH"], None),
        (["NO", "NO", "NO SUCH"], "no better than saying nothing"),
        (["NO", "NO SUCH", "NO SUCH"], "no better than saying nothing"),
        (["", "", ""], "no better than saying nothing"),
        # Always the same, and right once.
        (["ONE", "ONE", "ONE"], "of a model that says 'ONE' of all clips"),
    ],
)
def test_words_have_to_be_better_than_silence(said: list[Target], fault: str | None) -> None:
    true: list[Target] = ["ONE", "TWO", "AND THREE"]
    found = chance_fault(measured("asr-ctc", said, true), true, SOUND)
    if fault is None:
        assert found is None
    else:
        assert found is not None
        assert fault in found
        assert found.endswith(REMEDY)


def test_one_and_the_same_phrase_may_be_all_there_is_to_recognise() -> None:
    true: list[Target] = ["HEY THERE"] * 3
    assert chance_fault(measured("asr-ctc", true, true), true, SOUND) is None


def test_a_single_label_proves_nothing_however_well_it_is_found() -> None:
    labels: list[Target] = ["good"] * 400
    assert chance_fault(measured("text-classification", labels, labels), labels, TEXT) == (
        "validation: 400 texts, all with the label 'good', which a model that always says so gets "
        "right: add texts with other labels, or set validation.allow_chance_baseline: true"
    )


def test_a_metric_whose_chance_is_not_known_is_not_judged() -> None:
    accuracy = keywords(1, ["a", "b"]).model_copy(update={"metric": "token accuracy"})
    assert chance_level(accuracy, ["a", "b"]) is None
    assert chance_fault(accuracy, ["a", "b"], SOUND) is None


def test_labels_that_begin_alike_are_not_one() -> None:
    labels: list[Target] = [f"{'x' * 60}{number % 2}" for number in range(40)]
    assert chance_level(keywords(40, labels), labels) == 0.5
    assert chance_fault(keywords(40, labels), labels, SOUND) is None


# What a run does -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("keyword_spotting", "is not above chance: 'w0', said of all, is right of 20.00%"),
        ("intents", "is not above chance: 'action="),
        ("speech_recognition", "is no better than saying nothing"),
    ],
)
def test_a_baseline_that_guesses_stops_the_run(
    stand_in_of: Callable[[str], StandIn], name: str, reason: str
) -> None:
    stand_in = stand_in_of(name)
    (fault,) = faults(run(stand_in, *STRICT))
    assert fault.startswith("validation: the original model's ")
    assert reason in fault
    assert fault.endswith(REMEDY)
    written = {path.name for path in (stand_in.root / "out").rglob("*") if path.is_file()}
    assert written - {".hibprune"} == {
        "run.log",
        "export-original.json",
        "measure-original.json",
        "original.jsonl",
    }


def test_a_run_that_is_allowed_to_goes_on_and_says_so(stand_in: StandIn) -> None:
    assert run(stand_in, *STRICT).exit_code == 2
    result = run(stand_in, *ALLOWED, "--set=removal.repair=none")
    assert result.exit_code == 0, result.output
    assert "done" in next(line for line in result.stdout.splitlines() if line[:9] == "original ")
    output = stand_in.root / "out"
    manifest = Manifest.model_validate_json((output / "manifest.json").read_text())
    assert manifest.metric.chance == pytest.approx(0.2)
    # By the predictions themselves.
    said = {
        model: {
            json.loads(line)["prediction"]
            for line in (output / f"predictions/{model}.jsonl").read_text().splitlines()
        }
        for model in ("original", "pruned")
    }
    constant = {model: answers.pop() for model, answers in said.items() if len(answers) == 1}
    assert constant
    told = {one.name: one.constant for one in manifest.variants if one.constant is not None}
    assert told == constant
    one_line = " ".join(result.stdout.split())
    told = (
        "no better than chance (the commonest label, said of all, is right on 20.0 %): "
        "no difference between the models says what removal costs."
    )
    for text in (one_line, *((output / page).read_text() for page in ("report.md", "README.md"))):
        assert told in text.replace("\\", "")
        for answer in constant.values():
            assert f"of all 30 clips said is ‘{answer}’" in text


def test_a_model_that_knows_is_let_through(reviews: StandIn) -> None:
    result = run(reviews)
    assert result.exit_code == 0
    assert "chance" not in result.stdout
    manifest = json.loads((reviews.root / "out/manifest.json").read_text())
    labels = [row["label"] for row in reviews.rows("validation")]
    commonest = max(labels.count(label) for label in labels)
    assert manifest["metric"]["chance"] == pytest.approx(commonest / len(labels))


@pytest.mark.parametrize("limit", [None, 7])
def test_a_validation_of_one_label_is_refused_before_anything_is_written(
    reviews: StandIn, limit: int | None
) -> None:
    rows = [row for row in reviews.rows("validation") if row["label"] == "POSITIVE"]
    reviews.write_rows("validation", rows)
    options = () if limit is None else ("--set", f"validation.limit={limit}")
    line = (
        f"validation: {limit or len(rows)} texts, all with the label 'POSITIVE', which a model "
        "that always says so gets right: add texts with other labels, or set "
        "validation.allow_chance_baseline: true"
    )
    assert refused(reviews, *options) == [line]
    assert faults(invoke("check", reviews.recipe, *options)) == [line]
    assert invoke("check", reviews.recipe, *options, *ALLOWED).exit_code == 0


def test_methods_are_not_compared_on_guesses(stand_in: StandIn) -> None:
    few = ("--methods", "magnitude,random", "--fractions", "0.5", "--scope", "global")
    output = stand_in.root / "out"
    (fault,) = faults(invoke("compare", stand_in.recipe, *few, "--output", output, *STRICT))
    assert "is not above chance" in fault
    assert not (output / "compare.json").exists()
    result = invoke("compare", stand_in.recipe, *few, "--output", output, *ALLOWED)
    assert result.exit_code == 0, result.output
    told = "By accuracy the model is no better than chance with no head removed"
    assert told in result.stdout
    assert told in (output / "compare.md").read_text()
    assert json.loads((output / "compare.json").read_text())["guessing"] == ["accuracy"]


def test_few_clips_are_called_few(reviews: StandIn) -> None:
    result = run(reviews, "--set", "validation.limit=12")
    assert result.exit_code == 0, result.output
    told = "12 texts are few to measure on"
    assert told in result.stdout
    for page in ("report.md", "README.md"):
        assert told in (Path(reviews.root) / "out" / page).read_text()
    assert "few to measure on" not in run(reviews).stdout
