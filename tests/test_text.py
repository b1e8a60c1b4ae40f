"""Models of text: from texts in a file or data set to a directory that can be deployed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from commands import faults, invoke, refused, run
from standin import LONGEST_TEXT, StandIn, as_csv, as_dataset
from tiny_models import TINY_MODELS, TinyModel

import hibprune  # noqa: F401 - teaches transformers to load pruned layers
from hibprune.attribution import HeadInformationBottleneck
from hibprune.attribution.methods import Occlusion
from hibprune.attribution.session import Sample, Session
from hibprune.data import ContentFault, DurationLimits, Text, Utterance, overlap
from hibprune.models.attention import heads_of
from hibprune.models.checkpoint import load_checkpoint
from hibprune.models.preprocessing import TextPreprocessor, load_preprocessor
from hibprune.models.source import TOKENIZER_FILES, ModelSource
from hibprune.models.staging import StagedCheckpoint
from hibprune.records.manifest import Manifest
from hibprune.records.medium import TEXT, Length
from hibprune.tasks.text import TextClassification

TASK = TextClassification(kind="text-classification")
READERS = [tiny for tiny in TINY_MODELS if tiny.takes == "tokens"]
every_reader = pytest.mark.parametrize("tiny", READERS, ids=lambda tiny: tiny.name)


def tokenizer_of(root: Path, kind: str = "DistilBertTokenizerFast") -> Any:
    """A word is a token: 5 special ones, then w5 to w39, as many as the tiny models know."""
    vocabulary = root / "vocab.txt"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary.write_text("\n".join([*special, *(f"w{number}" for number in range(5, 40))]))
    return getattr(transformers, kind)(str(vocabulary))


def prepared(tiny: TinyModel, root: Path, kind: str = "DistilBertTokenizerFast") -> Any:
    tokenizer_of(root, kind).save_pretrained(root)
    return loaded(tiny, root)


def loaded(tiny: TinyModel, root: Path) -> Any:
    return load_preprocessor(TEXT, tiny.config(), StagedCheckpoint(root, "tiny", TOKENIZER_FILES))


def words(count: int) -> str:
    return " ".join(f"w{5 + number % 35}" for number in range(count))


def manifest_of(output: Path) -> Manifest:
    return Manifest.model_validate_json((output / "manifest.json").read_text())


# The whole chain -----------------------------------------------------------------------------


def test_optimum_onnx_runtime_and_pytorch_say_the_same(
    finished: Callable[[str], Path], stand_ins: Callable[[str], Path]
) -> None:
    """Over texts one by one and padded together, which the exported mask has to see to."""
    import onnxruntime
    from optimum.onnxruntime import ORTModelForSequenceClassification

    output = finished("text_classification")
    texts = [row["text"] for row in StandIn(stand_ins("text_classification")).rows("validation")]
    tokenizer = transformers.AutoTokenizer.from_pretrained(output)
    pruned = transformers.AutoModelForSequenceClassification.from_pretrained(output).eval()
    assert {layer: set(heads) for layer, heads in pruned.config.pruned_heads.items()} == {
        layer: set(heads) for layer, heads in manifest_of(output).heads.removed.items()
    }
    deployed = ORTModelForSequenceClassification.from_pretrained(output, subfolder="onnx")
    session = onnxruntime.InferenceSession(output / "onnx/model.onnx")
    assert {node.name for node in session.get_inputs()} == {"input_ids", "attention_mask"}
    alone = []
    for text in texts:
        inputs = tokenizer(text, return_tensors="pt")
        with torch.inference_mode():
            wanted = pruned(**inputs).logits.numpy()
        alone.append(wanted[0])
        raw = session.run(["logits"], {name: value.numpy() for name, value in inputs.items()})[0]
        for found in (deployed(**inputs).logits.numpy(), raw):
            assert np.abs(found - wanted).max() < 1e-5
    together = deployed(**tokenizer(texts, padding=True, return_tensors="pt")).logits.numpy()
    assert np.abs(together - np.stack(alone)).max() < 1e-5
    assert np.ptp(np.stack(alone)) > 1


def test_the_metric_is_that_of_a_plain_loop(
    finished: Callable[[str], Path], stand_ins: Callable[[str], Path]
) -> None:
    output, stand_in = finished("text_classification"), StandIn(stand_ins("text_classification"))
    original, pruned = (one.metric for one in manifest_of(output).variants)
    rows = stand_in.rows("validation")
    for directory, measured in ((stand_in.model, original), (output, pruned)):
        pipeline = transformers.pipeline("text-classification", model=str(directory), device="cpu")
        said = [pipeline(row["text"])[0]["label"] for row in rows]
        right = sum(label == row["label"] for label, row in zip(said, rows, strict=True))
        assert measured.value == right / len(rows)
    assert original.value == 1.0


def test_lengths_are_tokens_in_manifest_and_report(finished: Callable[[str], Path]) -> None:
    output = finished("text_classification")
    told = json.loads((output / "manifest.json").read_text())
    assert told["input"] == "text"
    for variant in told["variants"]:
        (latency,) = variant["latency"]
        assert latency["tokens"] == 16
        assert "seconds" not in latency
        assert latency["times"]["real_time_factor"] is None
        parity = variant["parity"]
        assert (parity["lengths"], parity["unit"]) == ([8, 24], "tokens")
    assert told["counted_work"]["at_tokens"] == 16
    report, card = (output / "report.md").read_text(), (output / "README.md").read_text()
    assert "compared at 8 and 24 tokens" in report
    assert "| 16 tokens | original |" in report
    for page in (report, card):
        assert "16 tokens" in page
        assert "30 texts" in page
        for word in ("clip", "sound", "real-time", "Real-time", "microphones", "16 s"):
            assert word not in page, word
    assert "pipeline_tag: text-classification" in card
    log = (output / "run.log").read_text()
    assert "20 calibration and 30 validation texts\n" in log
    assert "2 variants at 1 length\n" in log


def test_lengths_are_seconds_for_sound(finished: Callable[[str], Path]) -> None:
    told = json.loads((finished("keyword_spotting") / "manifest.json").read_text())
    for variant in told["variants"]:
        (latency,) = variant["latency"]
        assert latency["seconds"] == 0.5
        assert "tokens" not in latency
        times = latency["times"]
        assert times["real_time_factor"] == pytest.approx(times["p50"] / 1000 / 0.5)
        assert variant["parity"]["lengths"] == [0.5, 1.0]
    assert told["counted_work"]["at_seconds"] == 0.5
    assert Manifest.model_validate(told).medium.name == "sound"


def test_the_cards_examples_run(
    finished: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    output = finished("text_classification")
    card = (output / "README.md").read_text()
    first, second = (part.split("```")[0] for part in card.split("```python\n")[1:])
    monkeypatch.chdir(output)
    names: dict[str, Any] = {}
    exec(first, names)
    assert capsys.readouterr().out.strip() in ("NEGATIVE", "POSITIVE")
    exec(second, names)
    assert names["model"].config.num_labels == 2


def letters_tokenizer(root: Path) -> Any:
    """RoBERTa's own kind, whose padding token is number 1: a letter is a token."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "Ġ", *"abcdefghijklmnopqrstuvwxyz"]
    numbers = {token: number for number, token in enumerate(tokens)}
    (root / "vocab.json").write_text(json.dumps(numbers))
    (root / "merges.txt").write_text("#version: 0.2\n")
    return transformers.RobertaTokenizerFast(str(root / "vocab.json"), str(root / "merges.txt"))


@pytest.mark.parametrize("name", ["bert", pytest.param("roberta", marks=pytest.mark.slow)])
def test_other_families_run_through_the_chain(reviews: StandIn, name: str) -> None:
    from optimum.onnxruntime import ORTModelForSequenceClassification

    (tiny,) = (tiny for tiny in READERS if tiny.name == name)
    model = tiny.build()
    model.config.id2label = {**model.config.id2label, 0: "NEGATIVE", 1: "POSITIVE"}
    if name == "roberta":
        for path in reviews.model.iterdir():
            path.unlink()
        letters_tokenizer(reviews.root).save_pretrained(reviews.model)
    model.save_pretrained(reviews.model)
    result = run(reviews, "--quiet", "--set=validation.allow_chance_baseline=true")
    assert result.exit_code == 0, result.output
    output = reviews.root / "out"
    assert manifest_of(output).heads.removed_count == 3
    tokenizer = transformers.AutoTokenizer.from_pretrained(output)
    pruned = transformers.AutoModelForSequenceClassification.from_pretrained(output).eval()
    deployed = ORTModelForSequenceClassification.from_pretrained(output, subfolder="onnx")
    for row in reviews.rows("validation"):
        inputs = tokenizer(row["text"], return_tensors="pt")
        with torch.inference_mode():
            wanted = pruned(**inputs).logits
        assert (deployed(**inputs).logits - wanted).abs().max() < 1e-4
    text = reviews.rows("validation")[0]["text"]
    with torch.inference_mode():
        best = int(pruned(**tokenizer(text, return_tensors="pt")).logits.argmax())
    told = invoke("predict", output, text, "--json")
    assert json.loads(told.stdout)["prediction"] == pruned.config.id2label[best]


@pytest.mark.parametrize("stored", [as_csv, as_dataset])
def test_other_sources_give_the_same_run(
    reviews: StandIn,
    finished: Callable[[str], Path],
    stored: Callable[[StandIn], dict[str, Any]],
) -> None:
    content = reviews.content()
    for split, source in stored(reviews).items():
        content[split]["source"] = source
        (reviews.root / f"{split}.jsonl").unlink()
    reviews.write(content)
    checked = invoke("check", reviews.recipe)
    assert checked.exit_code == 0
    assert checked.stdout.splitlines()[-1] == f"{reviews.recipe}: ok"
    result = run(reviews, "--quiet", "--set", "attribution={method: magnitude}")
    assert result.exit_code == 0, result.output
    manifest = manifest_of(reviews.root / "out")
    assert (manifest.metric.n, manifest.original.metric) == (
        30, manifest_of(finished("text_classification")).original.metric
    )  # fmt: skip


def test_the_models_own_labels_serve_unlabelled_texts(reviews: StandIn) -> None:
    rows = [{"text": row["text"]} for row in reviews.rows("calibration")]
    reviews.write_rows("calibration", rows)
    unlabelled = ("--quiet", "--set=calibration.source.labelled=false")
    assert refused(reviews, *unlabelled) == [
        "calibration: calibration.jsonl:1 has no label: label the texts or set "
        "calibration.labels: model"
    ]
    result = run(reviews, *unlabelled, "--set=calibration.labels=model")
    assert result.exit_code == 0, result.output
    assert "20 calibration texts labelled by the model itself" in result.stdout


def test_another_tokenizer_is_another_model(reviews: StandIn) -> None:
    """Or the steps of a run with the one would be taken for those of a run with the other."""

    def identity() -> str:
        source = ModelSource(source="model")
        return load_checkpoint(source, TASK, reviews.root, torch.device("cpu")).identity

    before = identity()
    assert identity() == before
    path = reviews.model / "tokenizer.json"
    path.write_text(path.read_text().replace('"strip_accents": null', '"strip_accents": false'))
    assert identity() != before


# Attribution ---------------------------------------------------------------------------------


@every_reader
@pytest.mark.parametrize(
    "method",
    [
        HeadInformationBottleneck(method="hib", steps=3).for_task("any"),
        HeadInformationBottleneck(method="hib", steps=3, paper=True).for_task(
            "text-classification"
        ),
        Occlusion(method="occlusion"),
    ],
    ids=["information", "similarity", "occlusion"],
)
def test_texts_that_share_a_batch_score_as_each_alone(
    tiny: TinyModel, method: Any, tmp_path: Path
) -> None:
    """With the tokenizer's mask, which has to be continued over what pads."""
    prepare, model = prepared(tiny, tmp_path), tiny.build()
    samples = [
        Sample(f"text{count}", prepare.inputs(words(count)), (count % 5,)) for count in (9, 10, 8)
    ]
    assert {sample.inputs["attention_mask"].shape[1] for sample in samples} == {10, 11, 12}
    together = method.attribute(model, samples, TASK.loss, Session())
    for row, sample in zip(together.per_sample, samples, strict=True):
        (alone,) = method.attribute(model, [sample], TASK.loss, Session()).per_sample
        assert row == pytest.approx(alone, abs=2e-5)
    assert together.heads == heads_of(model)
    assert np.ptp(together.per_sample) > 1e-4


# Inputs --------------------------------------------------------------------------------------


@every_reader
def test_a_text_of_the_longest_length_is_taken_and_one_token_more_is_not(
    tiny: TinyModel, tmp_path: Path
) -> None:
    """The model's own table of positions has the last word: RoBERTa's has rows for padding."""
    prepare, model = prepared(tiny, tmp_path), tiny.build()
    longest = int(prepare.longest)
    whole = prepare.read(Text(words(longest - 2)), DurationLimits())
    inputs = prepare.inputs(whole)
    assert inputs["input_ids"].shape == (1, longest)
    model(**inputs)
    with pytest.raises(ContentFault, match=rf"^longer than {longest} tokens \({longest + 1} tok"):
        prepare.read(Text(words(longest - 1)), DurationLimits())
    too_long = {name: torch.cat([value, value[:, -1:]], 1) for name, value in inputs.items()}
    with pytest.raises((IndexError, RuntimeError)):
        model(**too_long)


def test_a_tokenizers_own_limit_counts_where_it_is_the_lower(tmp_path: Path) -> None:
    tokenizer_of(tmp_path).save_pretrained(tmp_path)
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "model_max_length": 20}))
    assert loaded(READERS[0], tmp_path).longest == 20


@every_reader
@pytest.mark.parametrize("kind", ["BertTokenizerFast", "DistilBertTokenizerFast"])
def test_the_model_gets_token_types_if_it_has_them_whatever_the_tokenizer(
    tiny: TinyModel, kind: str, tmp_path: Path
) -> None:
    prepare = prepared(tiny, tmp_path, kind)
    wanted = {"input_ids", "attention_mask"} | (
        {"token_type_ids"} if tiny.name == "bert" else set()
    )
    inputs = prepare.inputs("w5 w6 w39")
    assert set(inputs) == wanted
    assert inputs["input_ids"].tolist() == [[2, 5, 6, 39, 3]]
    tiny.build()(**inputs)
    example = prepare.example(Length(value=12, unit="tokens"), 3)
    assert {name: value.shape for name, value in example.items()} == dict.fromkeys(wanted, (3, 12))
    # Padding or special tokens would be skipped or weigh differently.
    assert example["input_ids"].min() >= 5
    assert example["attention_mask"].all()
    tiny.build()(**example)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("w5 \ud83d", "holds half a character (a lone surrogate)"),
        ("zzz qqq", "nothing in it that the tokenizer knows"),
    ],
)
def test_texts_that_cannot_be_used(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ContentFault) as fault:
        prepared(READERS[0], tmp_path).read(Text(text), DurationLimits())
    assert fault.value.reason == reason


def test_a_text_is_read_without_white_space_around_it(tmp_path: Path) -> None:
    prepare: TextPreprocessor = prepared(READERS[0], tmp_path)
    assert prepare.read(Text("  w5 zzz w6\n"), DurationLimits()) == "w5 zzz w6"


def test_equal_texts_are_the_same_sample() -> None:
    def texts(name: str, *contents: str) -> list[Utterance]:
        return [Utterance(f"{name}:{i}", Text(text), "x") for i, text in enumerate(contents)]

    pairs = overlap(texts("a", "one", "two ", "three", ""), texts("b", "Two", " two", "eno", ""))
    assert pairs == [("a:1", "b:1")]


# Prediction ----------------------------------------------------------------------------------


def test_predict_takes_texts(finished: Callable[[str], Path]) -> None:
    texts = ["it was awful but the film was lovely", "good but\nvery dull"]
    result = invoke("predict", finished("text_classification"), *texts)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        "'it was awful but the film was lovely': POSITIVE\n'good but very dull': NEGATIVE\n"
    )
    result = invoke("predict", finished("text_classification"), *texts, "--json")
    assert [json.loads(line) for line in result.stdout.splitlines()] == [
        {"text": text, "prediction": label}
        for text, label in zip(texts, ("POSITIVE", "NEGATIVE"), strict=True)
    ]


def test_predict_goes_on_past_texts_it_cannot_use(finished: Callable[[str], Path]) -> None:
    long = "the film " * 40
    result = invoke("predict", finished("text_classification"), "", long, "bad but great")
    assert result.stdout == "'bad but great': POSITIVE\n"
    assert faults(result) == [
        "'': empty",
        f"'{'the film ' * 10}the film …': longer than {LONGEST_TEXT} tokens (82 tokens)",
    ]
