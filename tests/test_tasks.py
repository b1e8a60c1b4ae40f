"""Tasks: losses against torch and Hugging Face, metrics against jiwer and worked examples."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import jiwer
import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from tiny_models import TINY_MODELS
from torch import Tensor
from torch.nn import functional
from transformers import Wav2Vec2CTCTokenizer

from hibprune.tasks import Batch, Task, Vocabulary
from hibprune.tasks.normalising import normalised

NOTHING = Vocabulary(())
LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"]


def task(kind: str, **fields: Any) -> Any:
    return TypeAdapter(Task).validate_python({"kind": kind, **fields})


@dataclass(frozen=True)
class PreparedModel:
    """Answers with prepared logits, whatever it is asked."""

    config: Any
    logits: Tensor

    def __call__(self, **_: Tensor) -> Any:
        return SimpleNamespace(logits=self.logits)


def model_giving(logits: Tensor) -> Any:
    return PreparedModel(None, logits)


def batch(targets: tuple[tuple[int, ...], ...], frames: tuple[int, ...] = ()) -> Batch:
    return Batch(tuple(map(str, range(len(targets)))), {}, targets, (), frames)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path: Path = tmp_path_factory.mktemp("tokenizer") / "vocab.json"
    path.write_text(json.dumps({letter: i for i, letter in enumerate(LETTERS)}))
    return Wav2Vec2CTCTokenizer(str(path))


class TestOneLabel:
    def test_loss_is_the_negative_log_probability_of_the_class(self) -> None:
        logits = torch.randn(2, 5)
        got = task("keyword-spotting").loss(model_giving(logits), batch(((3,), (0,))))
        probabilities = logits.exp() / logits.exp().sum(-1, keepdim=True)
        assert torch.allclose(got, -torch.stack([probabilities[0, 3], probabilities[1, 0]]).log())

    def test_accuracy_with_wilsons_interval(self) -> None:
        """9 of 10: Wilson's interval by the textbook formula is 0.5958 to 0.9821."""
        evaluation = task("speaker-identification").evaluate(["a"] * 10, ["a"] * 9 + ["b"], NOTHING)
        assert evaluation.value == 0.9
        assert evaluation.interval.low == pytest.approx(0.5958, abs=1e-4)
        assert evaluation.interval.high == pytest.approx(0.9821, abs=1e-4)
        assert evaluation.n == 10
        assert evaluation.higher_is_better

    def test_unknown_label_suggests_the_nearest(self) -> None:
        with pytest.raises(ValueError, match=r"no label 'rigth' \(did you mean 'right'\?\)"):
            task("keyword-spotting").encode("rigth", Vocabulary(("left", "right")))

    def test_decodes_the_largest_logit(self) -> None:
        words = Vocabulary(("yes", "no", "up"))
        assert task("keyword-spotting").decode(np.array([0.1, -2.0, 0.3]), words) == "up"


class TestSlots:
    SLOTS: ClassVar = {"action": ["on", "off"], "place": ["none", "kitchen", "hall"]}

    def test_superb_order_against_the_known_answers_of_transformers(self) -> None:
        """The published checkpoint answers (0, 10, 0) and (3, 4, 1) to two clips whose words are
        known: 'change language … Korean' and 'heat up … kitchen'."""
        slots = task("intent-classification").slots
        assert [len(labels) for labels in slots.values()] == [6, 14, 4]
        first = [labels[i] for labels, i in zip(slots.values(), (0, 10, 0), strict=True)]
        second = [labels[i] for labels, i in zip(slots.values(), (3, 4, 1), strict=True)]
        assert first == ["change language", "Korean", "none"]
        assert second == ["increase", "heat", "kitchen"]

    def test_each_slot_is_decoded_in_its_own_range(self) -> None:
        intent = task("intent-classification", slots=self.SLOTS)
        logits = np.array([0.0, 1.0, 9.0, 8.0, 7.0])
        assert intent.decode(logits, Vocabulary(())) == {"action": "off", "place": "none"}
        target = {"action": "on", "place": "hall"}
        assert intent.encode(target, Vocabulary(())) == (0, 2)

    def test_a_clip_is_right_only_when_every_slot_is(self) -> None:
        intent = task("intent-classification", slots=self.SLOTS)
        truth = {"action": "on", "place": "hall"}
        half = {"action": "on", "place": "none"}
        assert intent.evaluate([truth, half], [truth, truth], NOTHING).value == 0.5

    def test_loss_sums_the_cross_entropies_of_the_slots(self) -> None:
        intent = task("intent-classification", slots=self.SLOTS)
        logits = torch.randn(1, 5)
        got = intent.loss(model_giving(logits), batch(((1, 2),)))
        first = -functional.log_softmax(logits[0, :2], -1)[1]
        second = -functional.log_softmax(logits[0, 2:], -1)[2]
        assert torch.allclose(got, (first + second)[None])

    def test_a_model_with_other_logits_is_refused(self) -> None:
        fault = task("intent-classification").vocabulary_fault(Vocabulary(("a", "b")))
        assert fault == "its 2 logits are not the 24 of task.slots together"


class TestRecognition:
    def test_loss_is_that_of_hugging_face_with_mean_reduction(self) -> None:
        """Per clip and padded together, against the model's own loss on each clip alone."""
        model = TINY_MODELS[0].build("AutoModelForCTC")
        model.config.ctc_loss_reduction = "mean"
        clips = [TINY_MODELS[0].inputs(1, seconds)["input_values"] for seconds in (0.25, 0.4)]
        targets = ((5, 6, 7), (8, 9, 9, 4))
        frames = tuple(int(model._get_feat_extract_output_lengths(c.shape[1])) for c in clips)
        expected = [
            model(clip, labels=torch.tensor([target])).loss
            for clip, target in zip(clips, targets, strict=True)
        ]
        # Unpadded logits, so that only the loss is compared and not what padding does to features.
        logits = torch.zeros(2, frames[1], model.config.vocab_size)
        for place, clip in enumerate(clips):
            logits[place, : frames[place]] = model(clip).logits[0]
        got = task("asr-ctc").loss(
            PreparedModel(model.config, logits), Batch(("a", "b"), {}, targets, (), frames)
        )
        assert torch.allclose(got, torch.stack(expected), atol=1e-4)

    def test_wer_is_jiwers_over_all_words(self) -> None:
        references = ["the cat sat on the mat", "hello there", "one two three"]
        predictions = ["the cat sat mat", "hello their friend", "one two three"]
        evaluation = task("asr-ctc").evaluate(predictions, references, NOTHING)
        assert evaluation.value == pytest.approx(jiwer.wer(references, predictions))
        assert evaluation.interval.low <= evaluation.value <= evaluation.interval.high
        assert not evaluation.higher_is_better

    def test_normaliser(self) -> None:
        assert normalised("  Don’t STOP—now, 3 times! ") == "don't stop now 3 times"
        assert normalised("ﬁne_print") == "fine print"

    def test_case_and_punctuation_do_not_count_as_errors(self) -> None:
        assert task("asr-ctc").evaluate(["it's FINE"], ["It's fine."], NOTHING).value == 0.0

    def test_references_of_signs_alone_have_no_rate(self, tokenizer: Any) -> None:
        asr, vocabulary = task("asr-ctc"), Vocabulary((), tokenizer)
        assert asr.references_fault(["-", "..."], vocabulary) is not None
        assert asr.references_fault(["-", "A"], vocabulary) is None

    def test_letters_take_the_case_the_tokenizer_knows(self, tokenizer: Any) -> None:
        vocabulary = Vocabulary((), tokenizer)
        numbers = task("asr-ctc").encode("hi  you", vocabulary)
        assert [LETTERS[i] for i in numbers] == ["H", "I", "|", "Y", "O", "U"]

    def test_letters_the_tokenizer_lacks_are_named(self, tokenizer: Any) -> None:
        with pytest.raises(ValueError, match=r"cannot encode \['É'\] in 'café'"):
            task("asr-ctc").encode("café", Vocabulary((), tokenizer))

    def test_greedy_decoding_merges_repeats_and_drops_blanks(self, tokenizer: Any) -> None:
        path = ["H", "H", "<pad>", "E", "L", "<pad>", "L", "O", "|", "|", "A"]
        logits = np.full((len(path), len(LETTERS)), -9.0)
        for frame, letter in enumerate(path):
            logits[frame, LETTERS.index(letter)] = 9.0
        assert task("asr-ctc").decode(logits, Vocabulary((), tokenizer)) == "HELLO A"
