"""Encoder–decoder recognition: the loss against Hugging Face's, and a whole run on a stand-in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from pydantic import TypeAdapter
from standin import StandIn

from hibprune.checkpoint import Checkpoint, ModelSource, load_checkpoint
from hibprune.cli import main
from hibprune.data import AudioFile, DurationLimits, read_waveform
from hibprune.errors import UserError
from hibprune.manifest import Manifest
from hibprune.tasks import Batch, Task, Vocabulary
from hibprune.tasks.seq2seq import english_normaliser


def task(**fields: Any) -> Any:
    return TypeAdapter(Task).validate_python({"kind": "asr-seq2seq", **fields})


@pytest.fixture(scope="module")
def speaker(stand_ins: Callable[[str], Path]) -> StandIn:
    return StandIn(stand_ins("encoder_decoder"))


@pytest.fixture(scope="module")
def checkpoint(speaker: StandIn) -> Checkpoint:
    source = ModelSource(source=str(speaker.model))
    return load_checkpoint(source, task(), speaker.root, torch.device("cpu"))


class TestLoss:
    def test_is_hugging_faces_on_each_transcript_alone(self, checkpoint: Checkpoint) -> None:
        """Steered by the no-timestamps token, which is fed to the decoder but not scored."""
        asr = task()
        texts = ("one", "two words")
        targets = tuple(asr.encode(text, checkpoint.vocabulary) for text in texts)
        inputs = {"input_features": torch.randn(2, 16, 100)}
        got = asr.loss(checkpoint.model, Batch(("a", "b"), inputs, targets, (50, 50)))

        tokenizer = checkpoint.vocabulary.tokenizer
        for place, text in enumerate(texts):
            said = tokenizer(f" {text}", add_special_tokens=False).input_ids
            steering = tokenizer.convert_tokens_to_ids("<|notimestamps|>")
            labels = torch.tensor([[-100, *said, tokenizer.eos_token_id]])
            start = checkpoint.model.config.decoder_start_token_id
            expected = checkpoint.model(
                input_features=inputs["input_features"][place : place + 1],
                decoder_input_ids=torch.tensor([[start, steering, *said]]),
                labels=labels,
            ).loss
            assert float(got[place].detach()) == pytest.approx(float(expected.detach()), abs=1e-5)

    def test_an_empty_transcript_is_said_so(self, checkpoint: Checkpoint) -> None:
        with pytest.raises(ValueError, match="the transcript is empty"):
            task().encode("  ", checkpoint.vocabulary)


class TestNormaliser:
    def test_hyphens_numbers_spellings_and_fillers(self) -> None:
        normalise = english_normaliser(None)
        assert normalise("Well-known: twenty-one colours, hmm!") == "well known 21 colours"

    def test_wer_is_jiwers_on_normalised_text(self, checkpoint: Checkpoint) -> None:
        references = ["Twenty-one cats.", "I can't see you"]
        predictions = ["21 cats", "i can't see her"]
        evaluation = task().evaluate(predictions, references, checkpoint.vocabulary)
        expected = jiwer.wer(["21 cats", "i can not see you"], ["21 cats", "i can not see her"])
        assert evaluation.value == pytest.approx(expected)


class TestVocabulary:
    def test_a_multilingual_checkpoint_wants_a_language(self) -> None:
        class Tokenizer:
            def get_vocab(self) -> dict[str, int]:
                return {"<|en|>": 0}

        many = Vocabulary((), Tokenizer(), multilingual=True)
        assert task().vocabulary_fault(many) == "it is multilingual: set task.language, e.g. en"
        assert task(language="en").vocabulary_fault(many) is None

    def test_a_checkpoint_of_one_language_wants_none(self, speaker: StandIn) -> None:
        source = ModelSource(source=str(speaker.model))
        with pytest.raises(UserError, match=r"it is not multilingual: leave task\.language out"):
            load_checkpoint(source, task(language="en"), speaker.root, torch.device("cpu"))


def test_clips_longer_than_the_window_are_refused(
    stand_in_of: Callable[[str], StandIn],
) -> None:
    import soundfile

    spoiled = stand_in_of("encoder_decoder")
    noise = np.random.default_rng(0).normal(scale=0.1, size=24_000)
    soundfile.write(spoiled.clip("validation", 0), noise, 16_000)
    result = CliRunner().invoke(
        main, ["run", str(spoiled.recipe), "--output", str(spoiled.root / "out")]
    )
    assert result.exit_code == 2
    assert "1.5 s" in result.output
    assert not (spoiled.root / "out").exists()


@pytest.mark.parametrize("place", ["benchmark", "export"])
def test_examples_longer_than_the_window_are_refused(speaker: StandIn, place: str) -> None:
    """The extractor would cut them to the window, and figures would stand beside a wrong length."""
    recipe = CliRunner().invoke(main, ["check", str(speaker.recipe), f"--set={place}.seconds=[2]"])
    assert recipe.exit_code == 2
    assert recipe.stderr == (
        f"error: {place}.seconds: 2 s is more than the 1 s that the model takes: set shorter ones\n"
    )


class TestRun:
    @pytest.fixture(scope="class")
    def finished(
        self, speaker: StandIn, tmp_path_factory: pytest.TempPathFactory
    ) -> tuple[Path, Manifest]:
        output = tmp_path_factory.mktemp("run") / "out"
        result = CliRunner().invoke(
            main, ["run", str(speaker.recipe), "--output", str(output), "--quiet"]
        )
        assert result.exit_code == 0, result.output
        return output, Manifest.model_validate_json((output / "manifest.json").read_text())

    def test_exported_and_pruned_say_the_same(self, finished: tuple[Path, Manifest]) -> None:
        _, manifest = finished
        assert manifest.metric.name == "WER"
        assert manifest.metric.exported == manifest.metric.pruned
        assert manifest.heads.removed_count == 3  # 40 % of 8

    def test_three_graphs_with_metadata_are_left(self, finished: tuple[Path, Manifest]) -> None:
        import onnx

        output, manifest = finished
        names = ("encoder_model", "decoder_model", "decoder_with_past_model")
        for name in names:
            graph = onnx.load(output / f"onnx/{name}.onnx")
            said = {entry.key: json.loads(entry.value) for entry in graph.metadata_props}
            removed = {layer: list(heads) for layer, heads in manifest.heads.removed.items()}
            assert {int(k): v for k, v in said["hibprune.removed_heads"].items()} == removed
        sizes = [(output / f"onnx/{name}.onnx").stat().st_size for name in names]
        assert manifest.size_bytes.after == sum(sizes)

    def test_optimum_loads_it_and_says_what_pytorch_says(
        self, finished: tuple[Path, Manifest], speaker: StandIn
    ) -> None:
        from optimum.onnxruntime import ORTModelForSpeechSeq2Seq

        output, _ = finished
        exported = ORTModelForSpeechSeq2Seq.from_pretrained(output, subfolder="onnx")
        own = load_checkpoint(
            ModelSource(source=str(output)), task(), speaker.root, torch.device("cpu")
        )
        clip = AudioFile(speaker.clip("validation", 3))
        inputs = own.inputs(read_waveform(clip, 16_000, DurationLimits()))
        says = [
            model.generate(**inputs, max_new_tokens=8, do_sample=False).tolist()
            for model in (exported, own.model)
        ]
        assert says[0] == says[1]

    def test_predict_prints_text(self, finished: tuple[Path, Manifest], speaker: StandIn) -> None:
        clip = speaker.clip("validation", 0)
        result = CliRunner().invoke(main, ["predict", str(finished[0]), str(clip)])
        assert result.exit_code == 0, result.output
        assert result.output.startswith(f"{clip}: ")

    def test_predict_refuses_what_the_extractor_would_cut(
        self, finished: tuple[Path, Manifest], tmp_path: Path
    ) -> None:
        import soundfile

        noise = np.random.default_rng(0).normal(scale=0.1, size=20_000)
        soundfile.write(tmp_path / "long.wav", noise, 16_000)
        result = CliRunner().invoke(main, ["predict", str(finished[0]), str(tmp_path / "long.wav")])
        assert result.exit_code == 2
        assert result.stderr == f"error: {tmp_path}/long.wav: longer than 1 s (1.2 s)\n"
