"""How transcripts are compared: the rules a recipe and a checkpoint come to, and who is told."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from commands import invoke
from pydantic import TypeAdapter
from standin import StandIn
from transformers import GenerationConfig

import hibprune
from hibprune.errors import UserError
from hibprune.recipe import load_recipe
from hibprune.records.manifest import Manifest
from hibprune.records.transcripts import TranscriptRules
from hibprune.report.transcripts import transcripts_sentence
from hibprune.tasks import Task, Vocabulary

NOTHING = Vocabulary(())


def task(kind: str, **fields: Any) -> Any:
    return TypeAdapter(Task).validate_python({"kind": kind, **fields})


def spoken(language: str) -> dict[str, Any]:
    return {"text": {"language": language}}


def rules(kind: str, multilingual: bool | None = None, **fields: Any) -> TranscriptRules:
    generation = GenerationConfig()
    if multilingual is not None:
        generation.is_multilingual = multilingual
    found = task(kind, **fields).transcript_rules(Vocabulary((), generation=generation))
    assert isinstance(found, TranscriptRules)
    return found


class TestRules:
    @pytest.mark.parametrize(
        ("kind", "multilingual", "fields", "expected"),
        [
            ("asr-ctc", None, {}, ("word", "unicode", None)),
            ("asr-ctc", None, {"text": {"language": "en"}}, ("word", "unicode", "en")),
            ("asr-ctc", None, spoken("Thai"), ("character", "unicode", "th")),
            ("asr-ctc", None, {"metric": "cer"}, ("character", "unicode", None)),
            ("asr-ctc", None, {**spoken("ja"), "metric": "wer"}, ("word", "unicode", "ja")),
            ("asr-ctc", None, {"text": {"normaliser": "none"}}, ("word", "none", None)),
            ("asr-seq2seq", False, {}, ("word", "whisper-english", "en")),
            ("asr-seq2seq", True, {"language": "en"}, ("word", "whisper-english", "en")),
            ("asr-seq2seq", True, {"language": "German"}, ("word", "unicode", "de")),
            ("asr-seq2seq", True, {"language": "yue"}, ("character", "unicode", "yue")),
            ("asr-seq2seq", None, {}, ("word", "unicode", None)),
            ("asr-seq2seq", None, {"text": {"language": "eng"}}, ("word", "whisper-english", "en")),
            ("asr-seq2seq", False, {"text": {"language": "fr"}}, ("word", "unicode", "fr")),
            ("asr-seq2seq", False, {"text": {"normaliser": "unicode"}}, ("word", "unicode", "en")),
        ],
    )  # fmt: skip
    def test_follow_task_text_and_checkpoint(
        self, kind: str, multilingual: bool | None, fields: Any, expected: tuple[str, str, str]
    ) -> None:
        found = rules(kind, multilingual, **fields)
        assert (found.counted, found.normaliser, found.language) == expected

    @pytest.mark.parametrize(
        ("code", "name"),
        [("zh", "CER"), ("ja", "CER"), ("th", "CER"), ("lo", "CER"), ("my", "CER"), ("km", "CER"),
         ("bo", "CER"), ("dz", "CER"), ("yue", "CER"), ("ko", "WER"), ("vi", "WER"), ("hi", "WER")],
    )  # fmt: skip
    def test_languages_without_spaces_are_counted_by_characters(self, code: str, name: str) -> None:
        for kind in ("asr-ctc", "asr-seq2seq"):
            asr = task(kind, text={"language": code})
            assert asr.metric_name == asr.evaluate(["a"], ["a"], NOTHING).metric == name

    @pytest.mark.parametrize(
        ("language", "said", "true", "errors", "counted"),
        [
            ("hi", "हिन्दू में बात करो", "हिन्दी में बात करो", 1, 4),
            ("de", "fur Straße", "FÜR STRASSE", 1, 2),
            ("tr", "istanbul ılık", "İSTANBUL ILIK", 0, 2),
            ("ja", "かくせい", "がくせい", 1, 4),
            ("es", "un ano", "un año.", 1, 2),
            (None, "fur", "für", 1, 1),
        ],
    )
    @pytest.mark.parametrize("kind", ["asr-ctc", "asr-seq2seq"])
    def test_of_words_and_characters(
        self, kind: str, language: str | None, said: str, true: str, errors: int, counted: int
    ) -> None:
        fields = {} if language is None else {"text": {"language": language}}
        evaluation = task(kind, **fields).evaluate([said], [true], NOTHING)
        assert (evaluation.errors, evaluation.counted) == ((errors,), (counted,))

    def test_as_written_when_asked_for(self) -> None:
        asr = task("asr-ctc", text={"normaliser": "none"})
        assert asr.evaluate(["Hello, you"], ["hello you"], NOTHING).errors == (1.0,)

    def test_nothing_to_count_is_told_by_what_is_counted(self) -> None:
        asr = task("asr-ctc", metric="cer")
        fault = "no transcript has a character in it once normalised: there is no character error"
        assert asr.references_fault(["。", "…"], NOTHING).startswith(fault)
        assert asr.references_fault(["。", "あ"], NOTHING) is None
        with pytest.raises(UserError, match=fault):
            asr.evaluate(["あ"], ["。"], NOTHING)

    def test_scripts_without_spaces_are_noted_where_nobody_decided(self) -> None:
        references = ["今日はいい天気", "hello"]
        note = task("asr-ctc").references_note(references, NOTHING)
        assert "set task.metric: cer" in note
        for fields in ({"metric": "wer"}, {"metric": "cer"}, {"text": {"language": "ja"}}):
            assert task("asr-ctc", **fields).references_note(references, NOTHING) is None
        assert task("asr-ctc").references_note(["नमस्ते जी"], NOTHING) is None


def write_recipe(path: Path, task: dict[str, Any], **gates: float) -> Path:
    source = {"source": {"kind": "manifest", "path": "a.jsonl"}}
    content = {
        "model": {"source": "owner/name"}, "task": task, "calibration": source,
        "validation": source, "budget": {"fraction": 0.4}, "gates": gates,
    }  # fmt: skip
    path.write_text(yaml.safe_dump(content))
    return path


class TestRecipe:
    @pytest.mark.parametrize(
        ("task", "told"),
        [
            ("{kind: asr-ctc, text: {language: jp}}", "task.text.language: 'jp' is no language"),
            ("{kind: asr-ctc, text: {language: no}}", "task.text.language: should be a language, "
             "not false: YAML reads a bare no or off as false: write it in quotes"),
            ("{kind: asr-seq2seq, language: no}", "task.language: should be a language, not false"),
            ("{kind: asr-ctc, text: {normaliser: english}}", "task.text.normaliser: 'english' is "
             "not one of 'unicode', 'whisper-english' or 'none'"),
            ("{kind: asr-ctc, text: {language: de, normaliser: whisper-english}}",
             "task.text: normaliser: whisper-english is for English, not for 'de'"),
            ("{kind: asr-seq2seq, language: German, text: {normaliser: whisper-english}}",
             "task: text.normaliser: whisper-english is for English, not for 'de'"),
            ("{kind: asr-seq2seq, language: de, text: {language: fr}}",
             "task: text.language: 'fr', but language is 'de': leave text.language out"),
            ("{kind: asr-ctc, metric: mer}", "task.metric: 'mer' is not one of 'wer' or 'cer'"),
            ("{kind: keyword-spotting, metric: cer}", "task.metric: not a setting of"),
        ],
    )  # fmt: skip
    def test_what_contradicts_is_told(self, tmp_path: Path, task: str, told: str) -> None:
        path = write_recipe(tmp_path / "r.yaml", yaml.safe_load(task))
        with pytest.raises(UserError) as caught:
            load_recipe(path)
        (line,) = str(caught.value).splitlines()
        assert line.removeprefix(f"{path}: ").startswith(told)

    def test_one_language_by_two_names_is_no_contradiction(self, tmp_path: Path) -> None:
        for text in ("de", "deu", "German", "de-AT"):
            asr = {"kind": "asr-seq2seq", "language": "german", "text": {"language": text}}
            load_recipe(write_recipe(tmp_path / "r.yaml", asr))

    @pytest.mark.parametrize(
        ("fields", "right"),
        [({}, "max_wer_rise"), ({"metric": "cer"}, "max_cer_rise"),
         ({"text": {"language": "ja"}}, "max_cer_rise")],
    )  # fmt: skip
    def test_gates_are_on_what_is_counted(
        self, tmp_path: Path, fields: dict[str, Any], right: str
    ) -> None:
        asr = {"kind": "asr-ctc", **fields}
        load_recipe(write_recipe(tmp_path / "r.yaml", asr, **{right: 0.01}))
        for wrong in {"max_wer_rise", "max_cer_rise", "max_accuracy_drop"} - {right}:
            with pytest.raises(UserError, match=f"gates.{wrong}: .* use {right}"):
                load_recipe(write_recipe(tmp_path / "r.yaml", asr, **{wrong: 0.01}))


class TestSentence:
    @pytest.mark.parametrize(
        ("rules", "expected"),
        [
            (None, ""),
            (
                TranscriptRules(counted="word", normaliser="none", language="de", annotations=True),
                "Transcripts were compared word by word (language de), as they are, with capitals "
                "and punctuation.",
            ),
            (
                TranscriptRules(
                    counted="character", normaliser="unicode", language=None, annotations=False
                ),
                "Transcripts were compared character by character (language not given), without "
                "regard to capitals, punctuation and Unicode's compatibility forms; accents, vowel "
                "signs and other marks count; what stands in brackets is left out.",
            ),
        ],
    )
    def test_says_what_counts(self, rules: TranscriptRules | None, expected: str) -> None:
        assert transcripts_sentence(rules) == expected

    @pytest.mark.parametrize(
        ("name", "part"),
        [
            ("speech_recognition", "word by word (language not given)"),
            ("encoder_decoder", "(language en), after Whisper's English normaliser"),
            ("encoder_decoder_of_languages", "word by word (language de), without regard to"),
        ],
    )
    def test_stands_in_manifest_report_and_card(
        self, finished: Callable[[str], Path], name: str, part: str
    ) -> None:
        output = finished(name)
        manifest = Manifest.model_validate_json((output / "manifest.json").read_text())
        sentence = transcripts_sentence(manifest.metric.transcripts)
        assert part in sentence
        for page in ("report.md", "README.md"):
            assert sentence in (output / page).read_text()

    def test_stands_in_none_without_transcripts(self, finished: Callable[[str], Path]) -> None:
        output = finished("keyword_spotting")
        manifest = Manifest.model_validate_json((output / "manifest.json").read_text())
        assert manifest.metric.transcripts is None
        assert "Transcripts were" not in (output / "report.md").read_text()


def test_characters_are_counted_from_check_to_report(
    stand_in_of: Callable[[str], StandIn],
) -> None:
    """One set of transcripts, once counted in words and noted, once in characters."""
    stand_in = stand_in_of("encoder_decoder_on_waveforms")
    rows = [{**row, "text": "今日は"} for row in stand_in.rows("validation")]
    stand_in.write_rows("validation", rows)
    noted = invoke("check", stand_in.recipe)
    assert noted.exit_code == 0, noted.stderr
    assert "note: validation: the transcripts are in a script without spaces" in noted.stdout
    silent = invoke("check", stand_in.recipe, "--set", "task.text.language=ja")
    assert (silent.exit_code, "note: " in silent.stdout) == (0, False)


def test_settings_of_tasks_load_without_torch() -> None:
    program = (
        "import sys, hibprune.tasks as tasks; from pydantic import TypeAdapter; "
        "TypeAdapter(tasks.Task).validate_python({'kind': 'asr-seq2seq', 'language': 'ja'}); "
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    told = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(hibprune.__file__).parent.parent,
        timeout=60,
    )
    assert told.stdout.strip() == "[]"


def test_spellings_are_the_tokenizers_own() -> None:
    tokenizer = SimpleNamespace(english_spelling_normalizer={"colour": "color"})
    asr = task("asr-seq2seq", text={"language": "en"})
    assert asr.evaluate(["colour"], ["color"], Vocabulary((), tokenizer)).value == 0
