"""What is saved says by itself what was measured, whatever the checkpoint's own settings say."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
import transformers
from commands import invoke
from optimum.onnxruntime import ORTModelForSpeechSeq2Seq
from standin import StandIn
from tiny_models import WITH_DECODER

from hibprune.records.generation import GenerationSettings
from hibprune.tasks.generation import with_settings

QUICK = (
    "--quiet", "--set", "attribution={method: magnitude}", "--set", "validation.limit=4",
    "--set", "calibration.samples=4",
    "--set", "export.seconds=[0.5]", "--set", "export.batches=[1]",
    "--set", "benchmark.repetitions=2", "--set", "removal.repair=none",
)  # fmt: skip


def change(path: Path, **settings: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def said_by(model: Any, output: Path, stand_in: StandIn, clips: int = 4) -> list[str]:
    """What a model says of clips if it is asked without arguments."""
    processor = transformers.AutoProcessor.from_pretrained(output)
    texts = []
    for row in stand_in.rows("validation")[:clips]:
        sound, rate = soundfile.read(stand_in.root / row["audio"], dtype="float32")
        inputs = processor(sound, sampling_rate=rate, return_tensors="pt")
        texts += processor.batch_decode(model.generate(**inputs), skip_special_tokens=True)
    return [text.strip() for text in texts]


def predictions(output: Path, model: str) -> dict[str, str]:
    lines = (output / f"predictions/{model}.jsonl").read_text().splitlines()
    return {line["id"]: line["prediction"] for line in map(json.loads, lines)}


def require_that_all_say_what_was_measured(output: Path, stand_in: StandIn) -> None:
    """The pruned model under PyTorch and the exported one under Optimum, without arguments."""
    exported = predictions(output, "pruned")
    measured = [row for row in stand_in.rows("validation") if row["audio"] in exported][:4]
    stand_in.write_rows("validation", measured)
    wanted = [exported[row["audio"]] for row in measured]
    for model in (
        ORTModelForSpeechSeq2Seq.from_pretrained(output, subfolder="onnx"),
        transformers.AutoModelForSpeechSeq2Seq.from_pretrained(output).eval(),
    ):
        assert said_by(model, output, stand_in) == wanted


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("encoder_decoder_on_waveforms",
         {"do_sample": True, "top_k": 3, "num_beams": 4, "num_return_sequences": 2,
          "return_dict_in_generate": True, "length_penalty": 2.0}),
    ],
)  # fmt: skip
def test_other_ways_to_decode_are_not_shipped(
    stand_in_of: Callable[[str], StandIn], name: str, settings: dict[str, Any]
) -> None:
    stand_in = stand_in_of(name)
    change(stand_in.model / "generation_config.json", **settings)
    output = stand_in.root / "out"
    result = invoke("run", stand_in.recipe, "--output", output, *QUICK)
    assert result.exit_code == 0, result.output
    require_that_all_say_what_was_measured(output, stand_in)


@pytest.mark.parametrize("heads", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_settings_do_not_come_back_and_a_decoder_may_have_other_heads(
    stand_in_of: Callable[[str], StandIn], heads: int
) -> None:
    """PyTorch heeds generation_config.json; saving, and Optimum, let config.json overrule it."""
    stand_in = stand_in_of("encoder_decoder")
    # What transformers refuses to save beside greedy decoding.
    settings = {"temperature": 0.3, "early_stopping": True}
    change(stand_in.model / "generation_config.json", **settings)
    change(
        stand_in.model / "config.json",
        suppress_tokens=list(range(20)),
        max_length=3,
        decoder_attention_heads=heads,
    )
    output = stand_in.root / "out"
    result = invoke("run", stand_in.recipe, "--output", output, *QUICK)
    assert result.exit_code == 0, result.output
    for place in (stand_in.model, output, output / "onnx"):
        suppressed = json.loads((place / "generation_config.json").read_text())["suppress_tokens"]
        assert suppressed == [57, 58]
    require_that_all_say_what_was_measured(output, stand_in)
    config = json.loads((output / "config.json").read_text())
    assert (config["encoder_attention_heads"], config["decoder_attention_heads"]) == (4, heads)


@pytest.mark.parametrize("name", ["encoder_decoder", "encoder_decoder_on_waveforms"])
def test_a_batch_says_what_its_clips_say_one_by_one(
    finished: Callable[[str], Path], stand_ins: Callable[[str], Path], name: str
) -> None:
    """Clips of equal length, since filling up changes what a Moonshine says."""
    output, stand_in = finished(name), StandIn(stand_ins(name))
    model = ORTModelForSpeechSeq2Seq.from_pretrained(output, subfolder="onnx")
    processor = transformers.AutoProcessor.from_pretrained(output)
    sounds = [soundfile.read(stand_in.clip("validation", n))[0][:4000] for n in range(5)]

    def texts(clips: list[Any]) -> list[str]:
        inputs = processor(clips, sampling_rate=16_000, return_tensors="pt")
        tokens = model.generate(**inputs)
        return list(processor.batch_decode(tokens, skip_special_tokens=True))

    together = texts(sounds)
    assert together == [text for sound in sounds for text in texts([sound])]
    assert len(set(together)) > 1


@pytest.mark.slow
def test_extractors_that_give_no_mask_are_saved_giving_one(
    stand_in_of: Callable[[str], StandIn],
) -> None:
    """Moonshine's graphs insist on one; PyTorch does not."""
    stand_in = stand_in_of("encoder_decoder_on_waveforms")
    change(stand_in.model / "preprocessor_config.json", return_attention_mask=False)
    output = stand_in.root / "out"
    result = invoke("run", stand_in.recipe, "--output", output, *QUICK)
    assert result.exit_code == 0, result.output
    require_that_all_say_what_was_measured(output, stand_in)


@pytest.mark.parametrize("tiny", WITH_DECODER, ids=lambda tiny: tiny.name)
def test_the_model_given_is_not_touched(tiny: Any) -> None:
    model = tiny.build()
    model.config.no_repeat_ngram_size = 2
    before = [copy.deepcopy(each.to_dict()) for each in (model.config, model.generation_config)]
    settings = GenerationSettings(language="de", max_new_tokens=7)
    same = with_settings(model, settings)
    assert [each.to_dict() for each in (model.config, model.generation_config)] == before
    assert same.get_encoder() is model.get_encoder()
    told = same.generation_config
    assert (told.language, told.task, told.max_new_tokens) == ("de", "transcribe", 7)
    told.validate(strict=True)


def test_seconds_limit_tokens_but_never_to_none() -> None:
    """2.4 s at 6.5 tokens a second are 15.6 tokens."""
    limited = GenerationSettings(max_new_tokens=50, max_tokens_per_second=6.5)
    assert [limited.max_tokens(seconds) for seconds in (0.1, 2.4, 20)] == [1, 15, 50]
    assert GenerationSettings(max_new_tokens=50).max_tokens(0.1) == 50
