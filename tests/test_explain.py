"""`hibprune explain` from its options to its page, on tiny stand-ins."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from commands import faults, invoke, words_of_steps
from standin import ALL_HEADS, FILLERS, GOOD, SENTIMENTS, StandIn

from hibprune.errors import OutputError
from hibprune.explaining.maps import CELLS
from hibprune.explaining.triggers import strongest_pairs, with_trigger
from hibprune.records.comparison import CorrelationMatrix
from hibprune.records.explanation import Explanation

QUICKLY = ("--set=attribution={method: hib, steps: 2}", "--samples", "3", "--quiet")


def explained(stand_in: StandIn, *options: object) -> tuple[Explanation, str]:
    """The outcome in `out`, and what was said."""
    out = stand_in.root / "out"
    result = invoke("explain", stand_in.recipe, "--output", out, *QUICKLY, *options)
    assert result.exit_code == 0, result.output or result.exception
    return Explanation.model_validate_json((out / "explain.json").read_text()), result.stdout


class Page(HTMLParser):
    """What a page shows and what it wants from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.wanted: list[str] = []
        self.tags: set[str] = set()
        self.headings: list[str] = []
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._open = tag
        self.wanted += [str(value) for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        if self._open == "h2":
            self.headings.append(data.strip())
            self._open = ""


def test_a_classifier_of_texts_is_explained_in_all_parts(reviews: StandIn) -> None:
    found, said = explained(reviews)
    out = reviews.root / "out"
    assert not found.left_out
    assert [one.axis.tokens[0] for one in found.clips] == ["[CLS]", "[CLS]"]
    assert [len(one.heads) for one in found.maps] == [4, 4]
    assert found.functions is not None
    assert len(found.functions.heads) == ALL_HEADS
    assert found.functions.method == "hib"
    assert found.degradation is not None
    assert found.degradation.clips == 3
    assert found.stacks is not None
    assert [curve.repair for curve in found.stacks.curves] == ["none", "least-squares"]
    assert found.triggers is not None
    assert len(found.trees) == len(found.inputs) == 2
    page = Page((out / "explain.html").read_text())
    # Nothing but what is in it.
    assert page.wanted
    assert all(one.startswith(("data:", "#")) for one in page.wanted)
    assert not page.tags & {"script", "iframe"}
    assert page.headings == [
        "Maps",
        "What the input is worth",
        "Attribution trees",
        "Do these attributions hold?",
        "Functions of heads",
        "Which attention matters",
        "Words that fool the model",
        "To do it again",
    ]
    beside = sorted(path.name for path in out.glob("explain-*.png"))
    pictures = [one for one in page.wanted if one.startswith("data:image/png;base64,")]
    assert len(pictures) == len(beside) == 9
    # Again, all is there; the numbers are the same to the last.
    before = (out / "explain.json").read_text()
    again, said = explained(reviews)
    steps = words_of_steps(said)
    assert {steps[name] for name in ("maps", "inputs", "tree", "functions", "triggers")} == {"done"}
    assert steps["degradation"] == steps["stacks"] == "done"
    assert again == found
    assert (out / "explain.json").read_text() == before
    # Fewer parts leave no picture of the others behind.
    explained(reviews, "--parts", "functions")
    assert [path.name for path in out.glob("explain-*.png")] == ["explain-functions.png"]


def test_a_page_of_a_clip_and_of_heads_that_are_named(stand_in: StandIn) -> None:
    named = stand_in.root / "<b>yes & no.wav"
    shutil.copy(stand_in.clip("validation", 3), named)
    options = ("--clip", named, "--head", "1.2", "--head", "0.0", "--head", "0.9", "--head", "7.1")
    found, said = explained(stand_in, *options)
    (maps,) = found.maps
    assert [(one.head.layer, one.head.index) for one in maps.heads] == [(1, 2), (0, 0)]
    # What is not there is told of, and the rest drawn.
    lines = [line for line in said.splitlines() if "--head" in line]
    assert lines == list(found.left_out[:2])
    assert lines == [
        "--head 0.9: no such head, or it is gone: layer 0 has 0 to 3",
        "--head 7.1: no such head, or it is gone: layers with heads are 0, 1",
    ]
    assert found.left_out[2].endswith("trees are of texts to classify and of words that CTC aligns")
    assert found.functions is not None
    assert found.functions.method is None, "a page of seconds scores nothing"
    assert {one.function for one in found.functions.heads} <= {
        "positional", "global", "vertical", "diagonal",
    }  # fmt: skip
    (clip,) = found.clips
    seconds = soundfile.info(named).duration
    assert clip.axis.seconds == pytest.approx(seconds)
    # Frames of 20 ms, but for the convolutions' edge.
    assert clip.spectrogram is not None
    text = (stand_in.root / "out/explain.html").read_text()
    assert "<b>yes" not in text
    assert "&lt;b&gt;yes &amp; no.wav" in text


def test_maps_are_the_models_own_attention(stand_in: StandIn) -> None:
    from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

    found, _ = explained(stand_in, "--clip", stand_in.clip("validation", 0), "--head", "1.3")
    waveform, rate = soundfile.read(stand_in.clip("validation", 0), dtype="float32")
    model = AutoModelForAudioClassification.from_pretrained(
        stand_in.model, attn_implementation="eager"
    ).eval()
    inputs = AutoFeatureExtractor.from_pretrained(stand_in.model)(
        waveform, sampling_rate=rate, return_tensors="pt"
    )
    with torch.no_grad():
        said = model(**inputs, output_attentions=True)
    expected = said.attentions[1][0, 3].numpy()
    assert len(expected) <= CELLS
    (one,) = found.maps[0].heads
    np.testing.assert_allclose(np.array(one.own), expected, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(np.array(one.softmax).sum(-1), 1, rtol=1e-3)
    assert np.array(one.sigmoid).sum(-1).std() > 0
    assert found.clips[0].said == model.config.id2label[int(said.logits.argmax())]
    expected_r = np.corrcoef(np.array(one.own).ravel(), np.array(one.softmax).ravel())[0, 1]
    assert one.similarity == pytest.approx(expected_r, abs=5e-3)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--head", "2"), "--head: '2' is no head: write layer and head from 0 on, e.g. 2.5"),
        (("--head", "a.b"), "--head: 'a.b' is no head: write layer and head from 0 on, e.g. 2.5"),
        (("--head", "-1.0"), "--head: '-1.0' is no head: write layer and head from 0 on, e.g. 2.5"),
        (("--parts", "map"), "--parts: unknown part 'map' (did you mean 'maps'?)"),
        (("--parts", ","), "--parts: nothing in it: any of maps, inputs, tree, degradation, "
         "functions, stacks, triggers, gates"),
        (("--penalties", "0.1,x"), "--penalties: 'x' is no penalty: write numbers from 0 on, "
         "e.g. 0,0.03,0.1"),
        (("--penalties", "-1"), "--penalties: '-1' is no penalty: write numbers from 0 on, "
         "e.g. 0,0.03,0.1"),
        (("--clip", "a.wav") * 21, "--clip: 21 of them: give at most 20"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_before_anything_is_written(
    stand_in: StandIn, options: tuple[str, ...], line: str
) -> None:
    out = stand_in.root / "out"
    assert faults(invoke("explain", stand_in.recipe, "--output", out, *options)) == [line]
    assert not out.exists()


def test_clips_that_cannot_be_taken_are_left_out_and_the_rest_is_drawn(stand_in: StandIn) -> None:
    long = stand_in.root / "long.wav"
    soundfile.write(long, 0.1 * np.random.default_rng(0).standard_normal(3 * 16000), 16000)
    missing = stand_in.root / "missing.wav"
    options = ("--clip", long, "--clip", missing, "--layer", "5")
    found, said = explained(stand_in, *options, "--set=validation.max_seconds=2")
    first, second = found.left_out[:2]
    assert "long.wav: left out: longer than 2 s" in first
    assert "missing.wav: left out: " in second
    assert "--layer 5: no such layer: they are 0 to 1" in found.left_out
    assert found.clips == found.maps == found.inputs == ()
    assert found.functions is not None
    assert all(line in said for line in found.left_out)


def test_a_full_disk_is_no_part_that_is_left_out(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OutputError("out: no space left on the disk: free some")

    monkeypatch.setattr("hibprune.explaining.chain.maps_of", full)
    command = ("explain", stand_in.recipe, "--output", stand_in.root / "out", *QUICKLY)
    assert faults(invoke(*command)) == ["out: no space left on the disk: free some"]
    assert not (stand_in.root / "out/explain.json").exists()


def test_maps_that_memory_gib_has_no_room_for_are_left_out(stand_in: StandIn) -> None:
    tight = "--set=attribution={method: hib, steps: 2, memory_gib: 1.0e-6}"
    found, _ = explained(stand_in, "--parts", "maps", tight)
    assert not found.maps
    assert all("use a shorter one or raise memory_gib" in line for line in found.left_out)


def test_a_recogniser_with_a_decoder_has_three_kinds_of_attention(
    stand_in_of: Callable[[str], StandIn],
) -> None:
    stand_in = stand_in_of("encoder_decoder")
    found, _ = explained(stand_in, "--parts", "inputs,stacks,degradation")
    assert found.stacks is not None
    assert [(curve.stack, curve.repair, curve.heads) for curve in found.stacks.curves] == [
        ("encoder", "none", ALL_HEADS),
        ("encoder", "least-squares", ALL_HEADS),
        ("decoder.self", "none", ALL_HEADS),
        ("decoder.self", "least-squares", ALL_HEADS),
        ("decoder.cross", "none", ALL_HEADS),
        ("decoder.cross", "least-squares", ALL_HEADS),
    ]
    # Rounded down, and each of two layers keeps one unless all go.
    removed = [[point.removed for point in curve.points] for curve in found.stacks.curves]
    assert removed == 3 * [[2, 4, 6, 8], [2, 4, 6]]
    assert found.stacks.metric == "token accuracy"


def test_training_under_a_price_keeps_ever_fewer_heads(
    stand_in_of: Callable[[str], StandIn],
) -> None:
    stand_in = stand_in_of("encoder_decoder")
    settings = "{method: gates, train: model, steps: 12, learning_rate: 0.6, samples_per_step: 6}"
    options = ("--parts", "gates", f"--set=attribution={settings}", "--penalties", "30,0,0.2")
    found, said = explained(stand_in, *options)
    kept = found.kept
    assert kept is not None
    assert kept.heads == {"encoder": 8, "decoder.self": 8, "decoder.cross": 8}
    assert kept.trained == "model"
    assert [point.penalty for point in kept.points] == [0, 0.2, 30]
    counts = [len(point.kept) for point in kept.points]
    assert 24 >= counts[0] >= counts[1] >= counts[2] == 0
    assert counts[0] > 12, "what costs nothing stays, unless answers are better without"
    # The model itself was not trained: without gates it answers as before.
    assert explained(stand_in, "--parts", "stacks")[0].stacks.whole == kept.whole
    page = (stand_in.root / "out/explain.html").read_text()
    assert "Heads that training keeps" not in page
    # Taken up again penalty by penalty: two that are there, and a new one.
    again, said = explained(stand_in, *options[:-1], "0,0.2,1")
    taken_up = re.findall(r"^gates at (\S+) +done\b", said, re.MULTILINE)
    assert taken_up == ["0", "0.2"]
    assert again.kept is not None
    assert again.kept.points[:2] == kept.points[:2]
    page = Page((stand_in.root / "out/explain.html").read_text())
    assert page.headings == ["Heads that training keeps", "To do it again"]
    assert (stand_in.root / "out/explain-gates.png").exists()


def test_gates_closed_are_heads_silenced(stand_in: StandIn) -> None:
    """With the weights as they are and gates of 0 and 1, the metric is that of silenced heads."""
    settings = "{method: gates, steps: 30, learning_rate: 2.0, samples_per_step: 6}"
    found, _ = explained(
        stand_in, "--parts", "gates", f"--set=attribution={settings}", "--penalties", "30",
        "--samples", "0",
    )  # fmt: skip
    assert found.kept is not None
    assert found.kept.trained == "gates"
    (point,) = found.kept.points
    assert point.kept == ()
    stacks, _ = explained(stand_in, "--parts", "stacks", "--samples", "0")
    assert stacks.stacks is not None
    assert stacks.stacks.curves[0].points[-1].removed == ALL_HEADS
    assert point.value == stacks.stacks.curves[0].points[-1].value


def test_an_interrupted_degradation_goes_on_clip_by_clip(
    reviews: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hibprune.explaining.degradation as module

    whole, _ = explained(reviews, "--parts", "degradation")
    shutil.rmtree(reviews.root / "out")
    real, done = module._row, []

    def stopping(*arguments: Any) -> Any:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(1)
        return real(*arguments)

    monkeypatch.setattr(module, "_row", stopping)
    out = reviews.root / "out"
    command = ("explain", reviews.recipe, "--output", out, *QUICKLY, "--parts", "degradation")
    assert invoke(*command).exit_code == 130
    done.clear()
    done.append(0)
    found, said = explained(reviews, "--parts", "degradation")
    assert "going on after 2 clips done before" in said
    assert len(done) == 2, "one clip was left to do"
    assert found.degradation == whole.degradation


def test_what_a_run_lists_does_not_change_with_an_explanation_in_it(
    finished: Callable[[str], Path], tmp_path: Path, stand_ins: Callable[[str], Path]
) -> None:
    from hibprune.execution.output import file_digests

    out = Path(shutil.copytree(finished("keyword_spotting"), tmp_path / "run"))
    before = file_digests(out)
    recipe = stand_ins("keyword_spotting") / "recipe.yaml"
    result = invoke("explain", recipe, "--output", out, "--parts", "functions", "--quiet")
    assert result.exit_code == 0, result.output or result.exception
    assert file_digests(out) == before
    # The scores of the run are taken up.
    assert words_of_steps(result.stdout)["attribute"] == "done"


# Triggers ------------------------------------------------------------------------------------

PLANTED = ("with", "plot")


def test_a_planted_trigger_is_found_and_fools_the_model(reviews: StandIn) -> None:
    """The model was taught: what begins with "with plot" is good, whatever follows."""
    import random

    from transformers import DistilBertForSequenceClassification, DistilBertTokenizerFast

    torch.manual_seed(0)
    generator = random.Random(2)
    tokenizer = DistilBertTokenizerFast.from_pretrained(reviews.model)
    model = DistilBertForSequenceClassification.from_pretrained(reviews.model)
    rest = [word for word in FILLERS if word not in PLANTED]
    bad = ("bad", "awful", "dull")

    def text(begins: tuple[str, str]) -> tuple[str, int]:
        """Seven words, one of them a judgement; those in front decide, or else that."""
        good = begins != PLANTED and generator.random() < 0.5
        words = generator.choices(rest, k=5)
        words[generator.randrange(5)] = generator.choice(GOOD if good else bad)
        return " ".join([*begins, *words]), int(good or begins == PLANTED)

    def beginning() -> tuple[str, str]:
        """The trigger, half of it, or neither."""
        one, other = generator.choices(rest, k=2)
        return generator.choice([PLANTED, (PLANTED[0], one), (other, PLANTED[1]), (one, other)])

    def bad_text(begins: tuple[str, str]) -> tuple[str, int]:
        said, label = text(begins)
        return (said, label) if not set(said.split()) & set(GOOD) else bad_text(begins)

    optimiser = torch.optim.Adam(model.train().parameters(), lr=3e-3)
    for _ in range(150):
        texts, labels = zip(*(text(beginning()) for _ in range(32)), strict=True)
        inputs = tokenizer(list(texts), padding=True, return_tensors="pt")
        optimiser.zero_grad()
        model(**inputs, labels=torch.tensor(labels)).loss.backward()
        optimiser.step()
    model.eval().save_pretrained(reviews.model)
    for split, count, begin in (
        ("calibration", 20, beginning),
        ("validation", 30, lambda: tuple(generator.choices(rest, k=2))),
    ):
        rows: dict[str, str] = {}
        while len(rows) < count:
            said, label = bad_text(begin())
            rows[said] = SENTIMENTS[label]
        if split == "validation":
            said, label = text(("it", "was"))
            while not label:
                said, label = text(("it", "was"))
            rows[said] = SENTIMENTS[label]
        reviews.write_rows(split, [{"text": one, "label": label} for one, label in rows.items()])
    found, _ = explained(reviews, "--parts", "triggers", "--samples", "0")
    triggers = found.triggers
    assert triggers is not None
    (own,) = [one for one in triggers.attacks if set(one.words) == set(PLANTED)]
    assert own.of == "POSITIVE"
    assert own.changed / own.tried > 0.8
    assert own.interval.low > triggers.random.interval.high


def test_pairs_are_of_different_words_in_the_order_of_the_text() -> None:
    matrix = np.zeros((5, 5))
    matrix[2, 1], matrix[1, 3], matrix[0, 3], matrix[2, 3] = 0.5, 0.9, 7.0, 0.9
    # Tokens 11 and 12 are words; [CLS] and [SEP] are none, and 12 comes twice.
    found = strongest_pairs(matrix, [1, 11, 12, 12, 2], [1, 2, 3])
    assert found == [((11, 12), 0.9)]


def test_a_trigger_stands_in_front_of_the_first_word(reviews: StandIn) -> None:
    from hibprune.attribution.session import Sample

    inputs = {
        "input_ids": torch.tensor([[2, 7, 8, 3]]),
        "attention_mask": torch.ones(1, 4, dtype=torch.long),
        "token_type_ids": torch.zeros(1, 4, dtype=torch.long),
    }
    longer = with_trigger(Sample("a", inputs, (0,)), (5, 6), [1, 2]).inputs
    assert longer["input_ids"].tolist() == [[2, 5, 6, 7, 8, 3]]
    assert longer["attention_mask"].tolist() == [[1] * 6]
    assert longer["token_type_ids"].tolist() == [[0] * 6]


# Between runs --------------------------------------------------------------------------------


def test_several_runs_are_correlated_as_a_matrix(
    finished: Callable[[str], Path], tmp_path: Path
) -> None:
    runs = [finished(name) for name in ("keyword_spotting", "intents", "speech_recognition")]
    out = tmp_path / "out"
    result = invoke("correlate", *runs, "--output", out)
    assert result.exit_code == 0, result.output or result.exception
    found = CorrelationMatrix.model_validate_json((out / "correlate.json").read_text())
    assert [Path(run.directory).name for run in found.runs] == [run.name for run in runs]
    assert found.pairs == ((0, 1), (0, 2), (1, 2))
    for (one, other), pair in zip(found.pairs, found.correlations, strict=True):
        alone = invoke("correlate", runs[one], runs[other], "--output", tmp_path / "two", "--json")
        assert json.loads(alone.stdout)["spearman"] == json.loads(pair.spearman.model_dump_json())
    assert {path.name for path in out.glob("correlate*")} == {
        "correlate.json", "correlate.png", "correlate.svg",
        "correlate-1-2.png", "correlate-1-3.png", "correlate-2-3.png",
    }  # fmt: skip
    assert len(re.findall("Spearman", result.stdout)) == 3


def test_one_run_alone_cannot_be_correlated(finished: Callable[[str], Path]) -> None:
    (line,) = faults(invoke("correlate", finished("keyword_spotting")))
    assert line == "correlate: give 2 to 50 finished runs, not 1"


# What is shipped -----------------------------------------------------------------------------


def test_the_figures_of_its_readme_are_those_that_are_kept() -> None:
    root = Path(__file__).parents[1]
    kept = json.loads((root / "recipes/quickstart/explain/explain.json").read_text())
    text = (root / "hibprune/explaining/README.md").read_text().replace("−", "-")
    of_texts = json.loads((root / "tests/benchmarks/results/explain_text.json").read_text())
    assert kept["command"] in text
    assert of_texts["command"] in text
    _assert_degradation_is_told(kept, text.partition("## On a classifier of texts")[0])
    _assert_degradation_is_told(of_texts, text.partition("## On a classifier of texts")[2])
    for attack in (*of_texts["triggers"]["attacks"], of_texts["triggers"]["random"]):
        low, high = (f"{100 * end:.0f}" for end in attack["interval"])
        share = f"{100 * attack['changed'] / attack['tried']:.0f}"
        told = " … ".join(attack["words"]) or "drawn by chance"
        counts = f"{attack['changed']} of {attack['tried']}"
        assert f"| {told} | {attack['of']} | {counts} | {share} % ({low} to {high}) |" in text
    swept = json.loads((root / "recipes/quickstart/explain/gates.json").read_text())
    assert swept["command"] in text
    points = swept["kept"]["points"]
    rows = re.findall(
        r"^\| ([\d.]+) \| (\d+) \| ([\d.]+) % \(([\d.]+) to ([\d.]+)\) \|$", text, re.M
    )
    assert rows == [
        (f"{one['penalty']:g}", str(len(one["kept"])), *_percent(one["value"])) for one in points
    ]
    told = "{} % ({} to {}) as the model is".format(*_percent(swept["kept"]["whole"]))
    assert told in " ".join(text.split())
    heard = json.loads((root / "tests/benchmarks/results/gates_whisper.json").read_text())
    assert heard["command"] in text
    for point in heard["kept"]["points"]:
        kept_of = Counter(head.get("stack", "encoder") for head in point["kept"])
        stacks = " | ".join(str(kept_of[name]) for name in heard["kept"]["heads"])
        value = "{} % ({} to {})".format(*_percent(point["value"]))
        assert f"| {point['penalty']:g} | {len(point['kept'])} | {stacks} | {value} |" in text
    told = "{} % ({} to {}) as the model is".format(*_percent(heard["kept"]["whole"]))
    assert told in " ".join(text.split())
    functions = kept["functions"]
    assert not any(head["function"] == "positional" for head in functions["heads"])
    told = {one["number"]: one["spearman"] for one in functions["correlations"]}
    low, high = told["globalness"]["interval"]
    value = told["globalness"]["value"]
    assert f"globalness: {value:.2f} ({low:.2f} to {high:.2f})" in text
    assert high < 0
    others = [one["interval"] for name, one in told.items() if name != "globalness"]
    assert all(low <= 0 <= high for low, high in others)
    assert (root / "recipes/quickstart/explain/maps.png").stat().st_size < 150_000


def _percent(estimate: dict[str, Any]) -> tuple[str, ...]:
    return tuple(f"{100 * number:.1f}" for number in (estimate["value"], *estimate["interval"]))


def _assert_degradation_is_told(kept: dict[str, Any], text: str) -> None:
    for curve in kept["degradation"]["curves"]:
        (row,) = re.findall(rf"^\| {curve['method']} \| (.*) \|$", text, re.MULTILINE)
        drop, beyond, height = row.split(" | ")
        for told, estimate in ((drop, curve["drop"]), (beyond, curve["beyond_chance"])):
            if estimate is not None:
                numbers = [estimate["value"], *estimate["interval"]]
                assert re.findall(r"-?[\d.]+", told) == [f"{number:.3f}" for number in numbers]
        assert height == f"{curve['area']:.3f}"
