"""Tokens: what is no text stays out of transcripts, and tokenizer and model know the same ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from commands import invoke
from pydantic import TypeAdapter
from standin import StandIn
from tiny_models import TINY_MODELS, TinyModel
from transformers import AddedToken, GenerationConfig, Wav2Vec2CTCTokenizer

from hibprune.models.preprocessing import output_size
from hibprune.tasks import Task, Vocabulary
from hibprune.tasks.tokens import special_tokens

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
LETTERS = [*SPECIAL, "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ", "'"]

Make = Callable[..., Any]


def ctc(**fields: Any) -> Any:
    return TypeAdapter(Task).validate_python({"kind": "asr-ctc", **fields})


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A tokenizer of these tokens, numbered in their order unless they are a mapping."""

    def made(tokens: Any = LETTERS, **settings: Any) -> Any:
        numbers = tokens if isinstance(tokens, dict) else {t: n for n, t in enumerate(tokens)}
        path = tmp_path / "vocab.json"
        path.write_text(json.dumps(numbers))
        return Wav2Vec2CTCTokenizer(str(path), **settings)

    return made


def said(path: list[str], tokenizer: Any, **fields: Any) -> str:
    """What is decoded where these tokens are the likeliest, frame by frame."""
    tokens = tokenizer.get_vocab()
    logits = np.zeros((len(path), max(tokens.values()) + 1))
    for frame, token in enumerate(path):
        logits[frame, tokens[token]] = 9.0
    return str(ctc(**fields).decode(logits, Vocabulary((), tokenizer)))


class TestDecoding:
    def test_special_tokens_are_no_text(self, make: Make) -> None:
        """transformers' own decoding says '<s>HI</s> <unk>A'."""
        path = ["<s>", "H", "I", "</s>", "|", "<unk>", "<unk>", "A", "<pad>"]
        assert said(path, make()) == "HI A"

    def test_they_and_blanks_part_repeated_letters(self, make: Make) -> None:
        path = ["A", "<pad>", "A", "<s>", "A", "A", "|", "|", "B"]
        assert said(path, make()) == "AAA B"

    def test_own_special_tokens_are_no_text(self, make: Make) -> None:
        tokenizer = make([*LETTERS, "<noise>", "<x>", "<y>"])
        tokenizer.add_special_tokens({"additional_special_tokens": ["<noise>"]})
        tokenizer.add_tokens(AddedToken("<x>", special=True), special_tokens=True)
        assert said(["<noise>", "A", "<x>", "B", "<y>"], tokenizer) == "AB<y>"

    def test_settings_that_forget_them_do_not_make_them_text(self, make: Make) -> None:
        tokenizer = make([*LETTERS, "[UNK]"], bos_token=None, eos_token=None)
        assert said(["<s>", "A", "</s>", "[UNK]"], tokenizer) == "A"

    def test_a_delimiter_among_the_special_tokens_parts_words(self, make: Make) -> None:
        tokenizer = make()
        tokenizer.add_special_tokens({"additional_special_tokens": ["|"]})
        assert said(["A", "|", "B"], tokenizer) == "A B"
        assert ctc().encode("A B", Vocabulary((), tokenizer)) == (5, 4, 6)

    def test_they_count_as_no_words(self, make: Make) -> None:
        """30 frames of <s> and </s> between two words were 30 errors of 2 words."""
        path = ["A", *["<s>", "|", "</s>", "|"] * 15, "B"]
        evaluation = ctc().evaluate([said(path, make())], ["A B"], Vocabulary(()))
        assert evaluation.errors == (0.0,)


class TestEncoding:
    @pytest.mark.parametrize(("text", "token"), [("A <s> B", "<s>"), ("A<PAD>", "<pad>")])
    def test_special_tokens_in_a_transcript_are_refused(
        self, make: Make, text: str, token: str
    ) -> None:
        """As targets, blanks have no loss; in small letters they would be <pad>."""
        tokenizer = make([*LETTERS, "b"]) if token == "<s>" else make([t.lower() for t in LETTERS])
        with pytest.raises(ValueError, match=f"'{token}' in '{text}' is no text but a special"):
            ctc().encode(text, Vocabulary((), tokenizer))

    def test_letters_without_any_number_are_named(self, make: Make) -> None:
        tokenizer = make([token for token in LETTERS if token != "<unk>"])
        with pytest.raises(ValueError, match=r"cannot encode \['É'\]"):
            ctc().encode("caFÉ", Vocabulary((), tokenizer))

    def test_an_empty_transcript_is_told(self, make: Make) -> None:
        with pytest.raises(ValueError, match="the transcript is empty"):
            ctc().encode("  ", Vocabulary((), make()))

    def test_letters_take_the_tokenizers_unicode_form(self, make: Make) -> None:
        whole, parts = make([*SPECIAL, "|", "é", "한"]), make([*SPECIAL, "|", "e", "\u0301"])
        assert ctc().encode("e\u0301", Vocabulary((), whole)) == (5,)
        assert ctc().encode("é", Vocabulary((), parts)) == (5, 6)
        jamo = make([*SPECIAL, "|", "\u1112", "\u1161", "\u11ab"])
        assert ctc().encode("한", Vocabulary((), jamo)) == (5, 6, 7)

    def test_the_case_is_the_languages(self, make: Make) -> None:
        turkish = ctc(text={"language": "tr"})
        capitals = make([*SPECIAL, "|", "I", "İ", "Ş"])
        assert turkish.encode("iış", Vocabulary((), capitals)) == (6, 5, 7)
        small = make([*SPECIAL, "|", "ı", "i", "ş"])
        assert turkish.encode("İIŞ", Vocabulary((), small)) == (6, 5, 7)
        assert ctc().encode("İ", Vocabulary((), small)) == (6,)

    def test_no_token_for_spaces_is_told_unless_they_do_not_count(self, make: Make) -> None:
        tokenizer = make([*SPECIAL, "你", "好"])
        with pytest.raises(ValueError, match=r"no token '\|' for the space between words.*'你 好'"):
            ctc().encode("你 好", Vocabulary((), tokenizer))
        chinese = ctc(text={"language": "zh"})
        assert chinese.encode("你 好", Vocabulary((), tokenizer)) == (4, 5)


class TestContradictions:
    @staticmethod
    def fault(tokenizer: Any, pad: Any = 0, outputs: int = len(LETTERS)) -> str:
        configuration = SimpleNamespace(pad_token_id=pad)
        known = Vocabulary((), tokenizer, configuration=configuration, outputs=outputs)
        return str(ctc().vocabulary_fault(known))

    def test_one_checkpoint_is_well(self, make: Make) -> None:
        assert self.fault(make()) == "None"

    @pytest.mark.parametrize("pad", [None, -1, 10**6, 1, "x", True, 0.0, [0]])
    def test_blanks_that_differ_are_told(self, make: Make, pad: Any) -> None:
        assert "by config.json (pad_token_id) and 0, '<pad>', by its tokenizer" in self.fault(
            make(), pad
        )

    def test_special_tokens_beyond_the_outputs_are_none_of_the_models_business(
        self, make: Make
    ) -> None:
        tokenizer = make([t for t in LETTERS if t not in ("<s>", "</s>")])
        assert tokenizer.convert_tokens_to_ids("</s>") == len(LETTERS) - 1
        assert self.fault(tokenizer, outputs=len(LETTERS) - 2) == "None"

    def test_a_blank_beyond_them_is_told(self, make: Make) -> None:
        tokenizer = make([t for t in LETTERS if t != "<pad>"])
        pad = tokenizer.pad_token_id
        assert f"CTC's blank is {pad} (config.json: pad_token_id), but the model has" in self.fault(
            tokenizer, pad, len(LETTERS) - 1
        )

    def test_letters_beyond_them_are_told(self, make: Make) -> None:
        told = self.fault(make(), outputs=len(LETTERS) - 1)
        assert "its tokenizer's number for ''' is 31, but the model has 31 outputs" in told

    def test_outputs_without_a_token_are_told(self, make: Make) -> None:
        told = self.fault(make(), outputs=40)
        assert "has 40 outputs, but its tokenizer has no token for 8 of them, the first 32" in told

    @pytest.mark.parametrize(
        ("number", "told"),
        [
            (5, "one number, 5, for 'A' and 'Z'"),
            (-3, "number for 'Z' is -3"),
            ("30", "number for 'Z' is '30'"),
            (None, "number for 'Z' is null"),
            (30.0, "number for 'Z' is 30.0"),
        ],
    )
    def test_numbers_of_no_token_are_told(self, make: Make, number: Any, told: str) -> None:
        numbers: dict[str, Any] = {token: n for n, token in enumerate(LETTERS)}
        assert told in self.fault(make({**numbers, "Z": number}))

    def test_settings_of_the_tokenizer_that_contradict_are_told(self, make: Make) -> None:
        assert "no pad token" in self.fault(make(pad_token=None))
        assert "'<pad>' is both CTC's blank and the space" in self.fault(
            make(word_delimiter_token="<pad>")
        )
        assert "no word_delimiter_token" in self.fault(make(word_delimiter_token=None))
        small = [token.lower() for token in LETTERS]
        assert "do_lower_case" in self.fault(make(small, do_lower_case=True))
        assert self.fault(make(do_lower_case=True)) == "None"

    def test_check_tells_before_anything_runs(self, stand_in_of: Callable[[str], StandIn]) -> None:
        """Ids beyond the logits ended in a segmentation fault while check said ok."""
        stand_in = stand_in_of("speech_recognition")
        path = stand_in.model / "vocab.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "O": 400}))
        for command in ("check", "run"):
            result = invoke(command, stand_in.recipe)
            assert result.exit_code == 2
            assert "its tokenizer's number for 'O' is 400, but the model has 32" in result.stderr


class TestDecoder:
    @staticmethod
    def fault(settings: dict[str, Any], configured: dict[str, Any] | None = None) -> str:
        usual = {"decoder_start_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
        generation = GenerationConfig(**{**usual, "max_new_tokens": 5})
        for name, value in settings.items():
            setattr(generation, name, value)
        known = Vocabulary(
            (),
            SimpleNamespace(eos_token_id=2),
            generation,
            configuration=SimpleNamespace(**{**usual, **(configured or {})}),
            outputs=10,
        )
        asr = TypeAdapter(Task).validate_python({"kind": "asr-seq2seq"})
        return str(asr.vocabulary_fault(known))

    @pytest.mark.parametrize(
        "settings",
        [
            {}, {"eos_token_id": [2, 3]}, {"suppress_tokens": [0, 9]}, {"pad_token_id": None},
            {"forced_decoder_ids": [[1, None], [2, 4]]}, {"begin_suppress_tokens": [2]},
        ],
    )  # fmt: skip
    def test_tokens_that_there_are_are_well(self, settings: dict[str, Any]) -> None:
        assert self.fault(settings) == "None"

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("eos_token_id", 10), ("eos_token_id", [2, 10]), ("decoder_start_token_id", 10),
            ("bos_token_id", 10**6), ("pad_token_id", 10), ("suppress_tokens", [3, 10]),
            ("begin_suppress_tokens", [10]), ("forced_decoder_ids", [[1, 10]]),
            ("no_timestamps_token_id", 10), ("lang_to_id", {"<|de|>": 10}),
            ("task_to_id", {"transcribe": 10}), ("prev_sot_token_id", 10),
        ],
    )  # fmt: skip
    def test_tokens_beyond_the_outputs_are_told(self, name: str, value: Any) -> None:
        told = self.fault({name: value})
        assert f"{name} in its generation_config.json is 10" in told
        assert "but the model has 10 outputs" in told

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("suppress_tokens", [-1]), ("suppress_tokens", ["x"]), ("pad_token_id", "x"),
            ("forced_decoder_ids", 3.5), ("forced_decoder_ids", [[1]]), ("lang_to_id", [7]),
            ("task_to_id", {"transcribe": None}), ("eos_token_id", True),
        ],
    )  # fmt: skip
    def test_what_is_no_token_is_told(self, name: str, value: Any) -> None:
        assert "the number of no token" in self.fault({name: value})

    def test_config_json_is_looked_at_too(self) -> None:
        assert "eos_token_id in its config.json is 10" in self.fault({}, {"eos_token_id": 10})
        told = self.fault({}, {"decoder_start_token_id": None})
        assert told == "decoder_start_token_id is missing in its config.json"

    def test_settings_that_contradict_are_told(self) -> None:
        assert "decoder_start_token_id is 3 in its config.json and 1 in its" in self.fault(
            {}, {"decoder_start_token_id": 3}
        )
        assert "end of text is 2 by its tokenizer and 3" in self.fault({"eos_token_id": 3})
        assert "suppresses the end of text" in self.fault({"suppress_tokens": [2]})

    def test_transcripts_beyond_the_outputs_are_told(
        self, stand_in_of: Callable[[str], StandIn]
    ) -> None:
        """A tokenizer with more tokens than logits is at fault only where one is said."""
        stand_in = stand_in_of("encoder_decoder")
        path = stand_in.model / "vocab.json"
        numbers = json.loads(path.read_text())
        path.write_text(json.dumps({**numbers, "Q": 300, "w": 400}))
        (stand_in.model / "tokenizer.json").unlink(missing_ok=True)
        result = invoke("check", stand_in.recipe)
        assert result.exit_code == 2
        assert "its tokenizer's number for 'w' is 400, but the model has 59 outputs" in (
            result.stderr
        )


@pytest.mark.parametrize("tiny", TINY_MODELS, ids=lambda tiny: tiny.name)
def test_the_number_of_outputs_is_that_of_the_logits(tiny: TinyModel) -> None:
    model = tiny.build()
    assert output_size(model) == model(**tiny.inputs()).logits.shape[-1]
    if tiny.takes == "waveform" and not tiny.speaks:
        assert output_size(tiny.build("AutoModelForCTC")) == 32


def test_special_tokens_of_a_fast_tokenizer(stand_ins: Callable[[str], Path]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(stand_ins("encoder_decoder_on_waveforms") / "model")
    assert set(special_tokens(tokenizer)) >= set(tokenizer.all_special_ids)
