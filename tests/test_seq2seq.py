"""Encoder–decoder recognition: the loss against Hugging Face's, and a whole run on a stand-in."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jiwer
import numpy as np
import onnx
import pytest
import soundfile
import torch
import transformers
from commands import invoke
from optimum.onnxruntime import ORTModelForSpeechSeq2Seq
from pydantic import TypeAdapter
from standin import StandIn
from tiny_models import HEADS, LAYERS
from transformers import GenerationConfig

from hibprune.errors import UserError
from hibprune.models.attention import heads_of
from hibprune.models.checkpoint import Checkpoint, load_checkpoint
from hibprune.models.source import ModelSource
from hibprune.records.manifest import Manifest
from hibprune.records.measurements import paired_change
from hibprune.records.units import Scores
from hibprune.tasks import Batch, Task, Vocabulary
from hibprune.tasks.decoder_prompt import steering_tokens
from hibprune.tasks.generation import generate_with, timed_parts
from hibprune.tasks.normalising import english_normaliser


def task(**fields: Any) -> Any:
    settings = {"kind": "asr-seq2seq", "max_new_tokens": 12, **fields}
    return TypeAdapter(Task).validate_python(settings)


def load(stand_in: StandIn, asr: Any) -> Checkpoint:
    source = ModelSource(source=str(stand_in.model))
    return load_checkpoint(source, asr, stand_in.root, torch.device("cpu"))


@pytest.fixture(scope="module")
def checkpoint(stand_ins: Callable[[str], Path]) -> Checkpoint:
    return load(StandIn(stand_ins("encoder_decoder")), task())


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


class TestSteering:
    @pytest.mark.parametrize("name", ["encoder_decoder", "encoder_decoder_of_languages"])
    @pytest.mark.parametrize("language", ["en", "de", "German", "fr"])
    def test_the_loss_feeds_what_generate_feeds(
        self, stand_ins: Callable[[str], Path], name: str, language: str
    ) -> None:
        stand_in = StandIn(stand_ins(name))
        asr = task(language=language) if name == "encoder_decoder_of_languages" else task()
        own = load(stand_in, asr)
        fed: list[list[int]] = []
        own.model.get_decoder().register_forward_pre_hook(
            lambda _, __, named: fed.append(named["input_ids"][0].tolist()), with_kwargs=True
        )
        clip = {"input_features": torch.randn(1, 16, 100)}
        asr.torch_predict(own.model)(clip)
        generated = fed[0]
        fed.clear()
        target = asr.encode("one", own.vocabulary)
        asr.loss(own.model, Batch(("a",), clip, (target,), (50,)))
        # The last token is never fed: only the text itself follows what steers.
        assert fed[0][: len(generated)] == generated
        assert own.vocabulary.tokenizer.decode(fed[0][len(generated) :]) == " one"

        told = own.vocabulary.tokenizer.convert_ids_to_tokens(generated)
        code = {"German": "de"}.get(language, language)
        steered = [f"<|{code}|>", "<|transcribe|>"] if asr.language else []
        assert told == ["<|startoftranscript|>", *steered, "<|notimestamps|>"]

    def test_ids_forced_by_an_older_configuration(self) -> None:
        """As whisper-tiny.en has them; a language that is told takes their place."""
        older = GenerationConfig(
            forced_decoder_ids=[[1, None], [2, 9], [3, 12]],
            no_timestamps_token_id=12,
            lang_to_id={"<|de|>": 7},
            task_to_id={"transcribe": 8},
        )
        assert steering_tokens(None, older) == (9, 12)
        assert steering_tokens("de", older) == (7, 8, 12)
        assert steering_tokens(None, GenerationConfig()) == steering_tokens(None, None) == ()

    def test_what_is_said_is_limited_by_the_seconds_heard(self) -> None:
        """2.4 s at 6.5 tokens a second are 15.6 tokens, and never more than `max_new_tokens`."""
        given: list[int] = []

        class Model(torch.nn.Linear):
            device = torch.device("cpu")

            def generate(self, **options: Any) -> torch.Tensor:
                given.append(options["max_new_tokens"])
                return torch.zeros(1, 1)

        clips = [torch.zeros(1, round(16_000 * seconds)) for seconds in (0.1, 2.4, 20)]
        for limit in (None, 6.5):
            predict = task(max_new_tokens=50, max_tokens_per_second=limit).torch_predict(
                Model(1, 1)
            )
            for clip in clips:
                predict({"input_values": clip})
            predict({"input_features": torch.zeros(1, 80, 200)})
        assert given == [50, 50, 50, 50, 1, 15, 50, 13]

    def test_inputs_go_where_the_graphs_run(self) -> None:
        """Optimum hands ONNX Runtime bare addresses, good on one device alone."""
        elsewhere, given = torch.device("meta"), []

        class Graphs:
            device = elsewhere
            config = SimpleNamespace(decoder_start_token_id=1)

            def generate(self, **options: Any) -> torch.Tensor:
                given.extend(one.device for one in options.values() if torch.is_tensor(one))
                return torch.zeros(1, 1)

            def __call__(self, **options: Any) -> Any:
                given.extend(one.device for one in options.values() if torch.is_tensor(one))
                return SimpleNamespace(
                    encoder_last_hidden_state=torch.zeros(1, 2, 3, device=elsewhere),
                    past_key_values=None,
                )

            def encoder(self, **options: Any) -> None:
                given.extend(one.device for one in options.values() if torch.is_tensor(one))

        clip = {"input_values": torch.zeros(1, 1600)}
        settings = task().generation
        generate_with(Graphs(), settings)(clip)
        for work in timed_parts(Graphs(), settings, 4)(clip).values():
            work()
        assert len(given) > 6
        assert set(given) == {elsewhere}


class TestTargets:
    TEXTS = ("one <|endoftext|> two", "one</s>", "<s>", "<|notimestamps|>")

    @pytest.mark.parametrize("name", ["encoder_decoder", "encoder_decoder_on_waveforms"])
    @pytest.mark.parametrize("text", TEXTS)
    def test_special_tokens_in_a_transcript_are_text(
        self, stand_ins: Callable[[str], Path], name: str, text: str
    ) -> None:
        vocabulary = load(StandIn(stand_ins(name)), task()).vocabulary
        *said, end = (token for token in task().encode(text, vocabulary) if token >= 0)
        special = set(vocabulary.tokenizer.all_special_ids)
        assert end == vocabulary.tokenizer.eos_token_id
        assert not special & set(said)

    def test_letters_never_seen_are_bytes(self, stand_ins: Callable[[str], Path]) -> None:
        own = load(StandIn(stand_ins("encoder_decoder_on_waveforms")), task())
        *said, _ = task().encode("Zoë 日本", own.vocabulary)
        assert own.vocabulary.tokenizer.decode(said) == "Zoë 日本"

    def test_an_empty_transcript_is_said_so(self, checkpoint: Checkpoint) -> None:
        with pytest.raises(ValueError, match="the transcript is empty"):
            task().encode("  ", checkpoint.vocabulary)


class TestNormaliser:
    def test_hyphens_numbers_spellings_and_fillers(self) -> None:
        normalise = english_normaliser(None)
        assert normalise("Well-known: twenty-one colours, hmm!") == "well known 21 colours"

    def test_ellipses_are_no_words(self) -> None:
        """Whisper's own leaves '.' of three periods; numbers keep theirs."""
        normalise = english_normaliser(None)
        said = ["Well... $3.50… I", "...", ". . .", "wait.. what", "…"]
        assert [normalise(text) for text in said] == ["well $3.50 i", "", "", "wait what", ""]

    def test_wer_is_jiwers_on_normalised_text(self, checkpoint: Checkpoint) -> None:
        references = ["Twenty-one cats.", "I can't see you"]
        predictions = ["21 cats", "i can't see her"]
        evaluation = task().evaluate(predictions, references, checkpoint.vocabulary)
        expected = jiwer.wer(["21 cats", "i can not see you"], ["21 cats", "i can not see her"])
        assert evaluation.value == pytest.approx(expected)

    def test_other_languages_are_not_spelt_as_english(self) -> None:
        """Whisper's English normaliser makes 'colour' 'color' and drops 'um'; the rules for other
        languages do neither, but take the same signs and cases away."""
        spellings = SimpleNamespace(english_spelling_normalizer={"colour": "color"})
        for language, multilingual, wrong in (
            ("en", True, 0), ("English", True, 0), (None, False, 0),
            ("de", True, 2), ("german", True, 2), (None, None, 2),
        ):  # fmt: skip
            generation = GenerationConfig()
            if multilingual is not None:
                generation.is_multilingual = multilingual
            vocabulary = Vocabulary((), spellings, generation)
            asr = task(language=language)
            evaluation = asr.evaluate(["Colour, [laughs] um"], ["color"], vocabulary)
            assert evaluation.value == wrong, language


class TestSilence:
    """References that normalise to nothing say that nothing is said."""

    REFERENCES = ("[noise]", "hello", "...", "(door)")

    @staticmethod
    def exact(errors: Sequence[float]) -> Any:
        """Quantiles over all 256 resamples but those without the one word there is."""
        drawn = [draw for draw in itertools.product(range(4), repeat=4) if 1 in draw]
        rates = [sum(errors[i] for i in draw) / draw.count(1) for draw in drawn]
        return pytest.approx(np.quantile(rates, [0.025, 0.975]), abs=0.5)

    def test_words_said_into_silence_are_errors(self, checkpoint: Checkpoint) -> None:
        """2 words too many and 1 wrong of 1."""
        said = ["good day", "help", "", "…"]
        evaluation = task().evaluate(said, self.REFERENCES, checkpoint.vocabulary)
        assert evaluation.value == 3.0
        assert evaluation.errors == (2.0, 1.0, 0.0, 0.0)
        assert evaluation.counted == (0.0, 1.0, 0.0, 0.0)
        assert tuple(evaluation.interval) == self.exact(evaluation.errors)

    def test_a_change_over_them_has_an_interval(self, checkpoint: Checkpoint) -> None:
        before, after = (
            task().evaluate(said, self.REFERENCES, checkpoint.vocabulary)
            for said in (["good day", "hello", "", ""], ["good", "hello", "", ""])
        )
        change = paired_change(before, after)
        assert change is not None
        assert change.low == pytest.approx(-2.0, abs=0.5)
        # One clip of four that changed is no change to an exact test.
        assert 0 <= change.high < 1

    def test_nothing_but_silence_has_no_rate(self, checkpoint: Checkpoint) -> None:
        references = [text for text in self.REFERENCES if text != "hello"]
        fault = (
            "no transcript has a word in it once normalised: there is no word error rate without"
        )
        assert task().references_fault(references, checkpoint.vocabulary) == fault
        assert task().references_fault(self.REFERENCES, checkpoint.vocabulary) is None
        with pytest.raises(UserError, match=f"^validation: {fault}$"):
            task().evaluate(references, references, checkpoint.vocabulary)


@pytest.mark.parametrize("place", ["benchmark", "export"])
def test_examples_longer_than_the_window_are_refused(
    stand_ins: Callable[[str], Path], place: str
) -> None:
    """The extractor would cut them to the window, and figures would stand beside a wrong length."""
    speaker = StandIn(stand_ins("encoder_decoder"))
    recipe = invoke("check", speaker.recipe, f"--set={place}.seconds=[2]")
    assert recipe.exit_code == 2
    assert recipe.stderr == (
        f"error: {place}.seconds: 2 s is more than the 1 s that the model takes: set shorter ones\n"
    )


@pytest.mark.parametrize(
    "name",
    ["encoder_decoder", "encoder_decoder_of_languages", "encoder_decoder_on_waveforms"],
    scope="class",
)
class TestRun:
    @pytest.fixture(scope="class")
    def speaker(self, stand_ins: Callable[[str], Path], name: str) -> StandIn:
        return StandIn(stand_ins(name))

    @pytest.fixture(scope="class")
    def output(self, finished: Callable[[str], Path], name: str) -> Path:
        return finished(name)

    @pytest.fixture(scope="class")
    def manifest(self, output: Path) -> Manifest:
        return Manifest.model_validate_json((output / "manifest.json").read_text())

    def test_word_errors_of_all_variants_are_counted(self, manifest: Manifest) -> None:
        assert manifest.metric.name == "WER"
        assert [one.metric.metric for one in manifest.variants] == ["WER", "WER"]
        assert manifest.heads.removed_count == 3  # 40 % of 8

    def test_an_encoder_and_a_merged_decoder_with_metadata_are_left(
        self, output: Path, manifest: Manifest
    ) -> None:
        names = ("encoder_model.onnx", "decoder_model_merged.onnx")
        assert {path.name for path in output.rglob("*.onnx")} == set(names)
        for name in names:
            graph = onnx.load(output / "onnx" / name)
            said = {entry.key: json.loads(entry.value) for entry in graph.metadata_props}
            removed = {layer: list(heads) for layer, heads in manifest.heads.removed.items()}
            assert {int(k): v for k, v in said["hibprune.removed_heads"].items()} == removed
        sizes = {name: (output / "onnx" / name).stat().st_size for name in names}
        original, pruned = manifest.variants
        assert {graph.name: graph.size_bytes for graph in pruned.files} == sizes
        for one in (original, pruned):
            assert one.size_bytes == sum(graph.size_bytes for graph in one.files)

    def test_the_decoder_keeps_keys_and_values_of_all_its_heads(self, output: Path) -> None:
        graph = onnx.load(output / "onnx/decoder_model_merged.onnx").graph
        kept = [given for given in graph.input if given.name.startswith("past_key")]
        past = [given.type.tensor_type.shape.dim[1].dim_value for given in kept]
        # Keys and values, of the decoder itself and of what it hears, in every layer.
        assert past == [HEADS] * 4 * LAYERS

    def test_embedding_and_projection_are_stored_once(self, output: Path) -> None:
        """They are one matrix in PyTorch, of tokens by features."""
        pruned = transformers.AutoModelForSpeechSeq2Seq.from_pretrained(output)
        embedding = pruned.get_input_embeddings().weight
        assert pruned.get_output_embeddings().weight is embedding
        graph = onnx.load(output / "onnx/decoder_model_merged.onnx").graph
        branches = [a.g for node in graph.node for a in node.attribute if a.type == a.GRAPH]
        assert len(branches) == 2
        stored = [each for part in (graph, *branches) for each in part.initializer]
        assert [list(each.dims) for each in stored if np.prod(each.dims) == embedding.numel()] == [
            list(embedding.shape)
        ]

    def test_optimum_and_transformers_say_the_same_of_every_clip(
        self, output: Path, speaker: StandIn
    ) -> None:
        """Loaded as their users would, fed by the saved feature extractor, decoded as saved."""
        extractor = transformers.AutoFeatureExtractor.from_pretrained(output)
        tokenizer = transformers.AutoTokenizer.from_pretrained(output)
        exported = ORTModelForSpeechSeq2Seq.from_pretrained(output, subfolder="onnx")
        pruned = transformers.AutoModelForSpeechSeq2Seq.from_pretrained(output).eval()
        settings = speaker.content()["task"]
        steer = {"language": settings["language"]} if "language" in settings else {}
        said: list[list[str]] = [[], []]
        for number in range(len(speaker.rows("validation"))):
            sound, rate = soundfile.read(speaker.clip("validation", number), dtype="float32")
            inputs = extractor(sound, sampling_rate=rate, return_tensors="pt")
            for model, texts in zip((exported, pruned), said, strict=True):
                tokens = model.generate(**inputs, max_new_tokens=12, **steer)
                texts.append(tokenizer.decode(tokens[0], skip_special_tokens=True))
        assert said[0] == said[1]
        assert len(set(said[0])) > 3, "the stand-in says the same whatever it hears"

    def test_pytorch_reloads_a_smaller_encoder(self, output: Path, manifest: Manifest) -> None:
        pruned = transformers.AutoModelForSpeechSeq2Seq.from_pretrained(output)
        left = [(head.layer, head.index) for head in heads_of(pruned)]
        gone = [(layer, i) for layer, heads in manifest.heads.removed.items() for i in heads]
        assert sorted(left + gone) == [(layer, i) for layer in range(LAYERS) for i in range(HEADS)]
        assert sum(weight.numel() for weight in pruned.parameters()) == manifest.held.parameters

    def test_predict_prints_text(self, output: Path, speaker: StandIn) -> None:
        clips = [speaker.clip("validation", number) for number in range(5)]
        result = invoke("predict", output, *clips, "--json")
        assert result.exit_code == 0, result.output
        told = [json.loads(line) for line in result.stdout.splitlines()]
        assert [line["file"] for line in told] == list(map(str, clips))
        assert any(line["prediction"] for line in told)
        assert result.stderr == ""


@pytest.mark.slow
def test_occlusion_scores_the_heads_of_a_model_on_waveforms(
    stand_ins: Callable[[str], Path], tmp_path: Path
) -> None:
    """Clips of 0.25 to 0.32 s share batches as half seconds."""
    speaker = StandIn(stand_ins("encoder_decoder_on_waveforms"))
    method = "attribution={method: occlusion}"
    result = invoke("run", speaker.recipe, "--output", tmp_path / "out", "--quiet", "--set", method)
    assert result.exit_code == 0, result.output
    scores = Scores.model_validate(
        json.loads((tmp_path / "out/steps/attribute.json").read_text())["result"]
    )
    assert len(scores.heads) == LAYERS * HEADS
    assert len({round(score, 6) for score in scores.values.values()}) == len(scores.heads)
