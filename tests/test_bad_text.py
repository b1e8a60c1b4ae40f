"""Bad input for tasks on text: one plain line that names the place, and nothing written."""

from __future__ import annotations

import shutil

import pytest
from commands import faults, invoke, refused, run
from standin import StandIn, as_csv, as_dataset

from hibprune.records.manifest import Manifest


def spoil(stand_in: StandIn, split: str = "validation", **values: str | None) -> None:
    """Change the fourth line of a manifest; None takes a column out."""
    rows = stand_in.rows(split)
    rows[3] = {k: v for k, v in {**rows[3], **values}.items() if v is not None}
    stand_in.write_rows(split, rows)


@pytest.mark.parametrize("split", ["calibration", "validation"])
@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"text": None}, "{split}.jsonl:4: no 'text'; the line has label"),
        ({"label": None}, "{split}.jsonl:4: no 'label'; the line has text"),
        ({"text": " "}, "{split}.jsonl:4: 'text' is empty"),
        ({"label": "POSITIV"},
         "{split}: {split}.jsonl:4: the model has no label 'POSITIV' (did you mean 'POSITIVE'?); "
         "it knows NEGATIVE, POSITIVE"),
        ({"label": "great"},
         "{split}: {split}.jsonl:4: the model has no label 'great'; it knows NEGATIVE, POSITIVE"),
    ],
)  # fmt: skip
def test_rows_that_say_too_little(
    reviews: StandIn, split: str, values: dict[str, str | None], fault: str
) -> None:
    spoil(reviews, split, **values)
    assert refused(reviews) == [fault.format(split=split)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("the film " * 40, "longer than 48 tokens (82 tokens)"),
        ("漢 字", "nothing in it that the tokenizer knows"),
        ("good \ud83d but bad", "holds half a character (a lone surrogate)"),
    ],
)
def test_texts_that_cannot_be_used_are_too_many_or_skipped_by_name(
    reviews: StandIn, text: str, reason: str
) -> None:
    spoil(reviews, text=text)
    assert refused(reviews) == [
        "validation: 1 of the first 4 texts cannot be used, more than max_unreadable (0.01) "
        f"allows: validation.jsonl:4: {reason}; mend or remove them"
    ]
    lenient = ("--set=validation.max_unreadable=0.1", "--set=attribution={method: magnitude}")
    result = run(reviews, *lenient)
    assert result.exit_code == 0, result.output
    assert f"skipped validation text validation.jsonl:4: {reason}" in result.stdout
    path = reviews.root / "out/manifest.json"
    manifest = Manifest.model_validate_json(path.read_text())
    skipped = manifest.validation.skipped
    assert [(one.id, one.reason) for one in skipped] == [("validation.jsonl:4", reason)]
    assert f"validation.jsonl:4: {reason}" in (reviews.root / "out/report.md").read_text()


def test_columns_a_csv_or_data_set_has_not(reviews: StandIn) -> None:
    content = reviews.content()
    sources = {"csv": as_csv(reviews), "dataset": as_dataset(reviews)}
    for name, fault in {
        "csv": "calibration.csv:1: no column 'sentance'; its columns are review, verdict",
        "dataset": "reviews (calibration): no column 'sentance'; its columns are sentence, label",
    }.items():
        for split, source in sources[name].items():
            content[split]["source"] = {**source, "text": "sentance"}
        reviews.write(content)
        assert refused(reviews) == [fault]
    for split, source in sources["dataset"].items():
        content[split]["source"] = {**source, "text": "label"}
    reviews.write(content)
    (fault,) = refused(reviews)
    assert fault.startswith("reviews (calibration): column 'label' is ClassLabel(")
    assert fault.endswith("; it must hold text")


def test_empty_texts_of_a_data_set_are_unusable_samples(reviews: StandIn) -> None:
    """A data set is not the user's to mend, as a manifest is."""
    import datasets

    sources = as_dataset(reviews)
    saved = datasets.load_from_disk(str(reviews.root / "reviews"))
    saved["validation"] = saved["validation"].map(
        lambda row, index: {**row, "sentence": (None, "")[index] if index < 2 else row["sentence"]},
        with_indices=True,
    )
    saved.save_to_disk(str(reviews.root / "holes"))
    content = reviews.content()
    for split, source in sources.items():
        content[split]["source"] = {**source, "path": "holes"}
    reviews.write(content)
    assert refused(reviews, "--set=validation.max_unreadable=0.05") == [
        "validation: 2 of the first 2 texts cannot be used, more than max_unreadable (0.05) "
        "allows: validation:0: empty; validation:1: empty; mend or remove them"
    ]


@pytest.mark.parametrize("command", ["run", "check"])
def test_a_text_on_both_sides(reviews: StandIn, command: str) -> None:
    spoil(reviews, text=reviews.rows("calibration")[5]["text"])
    fault = (
        "calibration and validation share 1 text: calibration.jsonl:6 = validation.jsonl:4; "
        "validate on texts that the heads were not chosen on"
    )
    if command == "run":
        assert refused(reviews) == [fault]
    else:
        assert faults(invoke("check", reviews.recipe)) == [fault]


TAKES = "text-classification takes text"


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("benchmark.seconds=[1]", f"recipe.yaml: benchmark.seconds: {TAKES}: give tokens"),
        ("export.seconds=[1]", f"recipe.yaml: export.seconds: {TAKES}: give tokens"),
        ("calibration.crop_seconds=1",
         f"recipe.yaml: calibration.crop_seconds: {TAKES}, which has no seconds: leave it out"),
        ("calibration.max_seconds=9",
         f"recipe.yaml: calibration.max_seconds: {TAKES}, which has no seconds: leave it out"),
        ("validation.min_seconds=1",
         f"recipe.yaml: validation.min_seconds: {TAKES}, which has no seconds: leave it out"),
        ("validation.source={kind: folder, path: x}",
         f"recipe.yaml: validation.source: folder holds sound, but {TAKES}: "
         "choose another data source or task"),
        ("calibration.source={kind: speechcommands, root: x, subset: training}",
         f"recipe.yaml: calibration.source: speechcommands holds sound, but {TAKES}: "
         "choose another data source or task"),
        ("benchmark.tokens=[0]", "recipe.yaml: benchmark.tokens: should be at least 1, not 0"),
        ("benchmark.tokens=[16, 1.5]",
         "recipe.yaml: benchmark.tokens.1: should be a whole number, not 1.5"),
        ("benchmark.tokens=[16, 49]",
         "benchmark.tokens: 49 tokens is more than the 48 tokens that the model takes: "
         "set shorter ones"),
        ("export.tokens=[64]",
         "export.tokens: 64 tokens is more than the 48 tokens that the model takes: "
         "set shorter ones"),
        ("gates.max_wer_rise=0.1",
         "recipe.yaml: gates.max_wer_rise: the metric of text-classification is accuracy: "
         "use max_accuracy_drop"),
    ],
)  # fmt: skip
def test_recipes_that_take_text_for_sound(reviews: StandIn, override: str, fault: str) -> None:
    assert refused(reviews, f"--set={override}") == [fault]


@pytest.mark.parametrize("place", ["benchmark", "export"])
def test_a_recipe_that_takes_sound_for_text(stand_in: StandIn, place: str) -> None:
    assert refused(stand_in, f"--set={place}.tokens=[16]") == [
        f"recipe.yaml: {place}.tokens: keyword-spotting takes sound: give seconds"
    ]


def test_models_of_the_other_medium(reviews: StandIn, stand_in: StandIn) -> None:
    shutil.copytree(stand_in.model, reviews.root / "spotter")
    assert refused(reviews, "--set=model.source=spotter") == [
        "spotter: cannot serve 'text-classification': transformers has no "
        "AutoModelForSequenceClassification of model type 'wav2vec2'"
    ]
    shutil.copytree(reviews.model, stand_in.root / "reader")
    assert refused(stand_in, "--set=model.source=reader") == [
        "reader: cannot serve 'keyword-spotting': transformers has no "
        "AutoModelForAudioClassification of model type 'distilbert'"
    ]


def test_a_tokenizer_that_is_not_there(reviews: StandIn) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (reviews.model / name).unlink()
    (fault,) = refused(reviews)
    assert fault.startswith("model: cannot read its tokenizer (tokenizer_config.json, vocab.json)")
