"""Normalised transcripts: what a script writes stays, what is only written differently goes."""

from __future__ import annotations

import unicodedata

import jiwer
import pytest
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

from hibprune.tasks.error_rate import character_errors, error_rate, is_unspaced, word_errors
from hibprune.tasks.languages import spoken_language
from hibprune.tasks.normalising import (
    as_written,
    english_normaliser,
    folded,
    lowered,
    normalised,
    uppered,
)

ZWNJ, ZWJ = "\u200c", "\u200d"
VIRAMA = "\u0d4d"

DIFFERENT = [
    # Language, one text, another, errors and words of the other.
    ("hi", "हिन्दी में बात करो", "हिन्दू में बात करो", (1, 4)),
    ("th", "ไม้ใหม่", "ไม่ใหม่", (1, 1)),
    ("ar", "كَتَبَ الوَلَدُ", "كُتِبَ الوَلَدُ", (1, 2)),
    ("yo", "ọkọ̀ ni", "ọkọ ni", (1, 2)),
    ("he", "שָׁלוֹם", "שַׁלוּם", (1, 1)),
    ("vi", "ma má mà", "ma ma mà", (1, 3)),
    ("de", "für alle", "fur alle", (1, 2)),
    ("es", "un año", "un ano", (1, 2)),
    ("ja", "がくせい", "かくせい", (1, 1)),
    ("tr", "ILIK", "ilik", (1, 1)),
    ("fa", f"می{ZWNJ}خواهم بروم", f"می{ZWNJ}خواهم بخورم", (1, 2)),
    ("bn", "কলম কই", "কলাম কই", (1, 2)),
    ("ta", "கல் பல்", "கால் பல்", (1, 2)),
    ("ko", "밥을 먹어", "밥을 막아", (1, 2)),
    ("pl", "łaska", "laska", (1, 1)),
    ("cs", "dal být", "dál byt", (2, 2)),
    (None, "ΝΌΜΟΣ", "νομός", (1, 1)),
]

SAME = [
    ("tr", "İSTANBUL'DA ISPARTA", "istanbul'da ısparta"),
    ("az", "BAKI", "bakı"),
    (None, "İstanbul", "istanbul"),
    ("lt", "LIŪTAS Į̇ ir i̇́", "liūtas į ir í"),
    ("de", "STRASSE ẞ", "straße ß"),
    ("el", "Ο ΔΡΌΜΟΣ", "ο δρόμος"),
    ("ka", "ᲗᲑᲘᲚᲘᲡᲘ", "თბილისი"),
    (None, "１２３ ＡＢＣ", "123 abc"),
    ("ko", unicodedata.normalize("NFD", "한국어"), "한국어"),
    ("vi", unicodedata.normalize("NFD", "tiếng Việt"), "Tiếng Việt"),
    ("ja", "ﾊﾞｶ カ゛", "バカ ガ"),
    ("th", "น\u0e49\u0e33", "น\u0e49\u0e4d\u0e32"),
    # The ring typed before the tone, and AE as two E, look the same.
    ("th", "น\u0e49\u0e33", "น\u0e4d\u0e49\u0e32"),
    ("lo", "ນ\u0ec9\u0eb3", "ນ\u0ecd\u0ec9\u0eb2"),
    ("th", "\u0e41ม\u0e48", "\u0e40\u0e40ม\u0e48"),
    ("lo", "\u0ec1ມ\u0ec8", "\u0ec0\u0ec0ມ\u0ec8"),
    ("fa", f"کتاب{ZWNJ} ها", "کتاب ها"),
    ("fa", f"می{ZWNJ}{ZWNJ}روم", f"می{ZWNJ}روم"),
    ("ml", f"അവന{VIRAMA}{ZWJ}", "അവൻ"),
    ("ar", "كـــتاب", "كتاب"),
    ("ar", "\ufee3\ufea3\ufee4\ufeaa", "محمد"),
    ("uk", "п’ять пʼять п`ять", "п'ять п'ять п'ять"),
    ("uz", "oʻzbek o‘zbek", "o'zbek o'zbek"),
    ("he", "ג׳ירפה צה״ל", "ג'ירפה צה\"ל"),
    ("hy", "ի՞նչ", "ինչ"),
    ("ca", "col·lecció", "coŀlecció"),
    ("hi", "नमस्ते।", "नमस्ते"),
    ("zh", "你好，世界。", "你好 世界"),
    (None, "co\u00adoperate \ufeffnow\u200e", "cooperate now"),
    (None, "‘don’t’ ‘stop’", "don't stop"),
    (None, "❤️ yes 1️⃣ 👍🏽", "yes 1"),
    (None, "a ´ b ¨ c", "a b c"),
    (None, "rock ' roll — \u0301", "rock roll"),
]


@pytest.mark.parametrize(("language", "one", "other", "expected"), DIFFERENT)
def test_what_tells_words_apart_stays(
    language: str | None, one: str, other: str, expected: tuple[int, int]
) -> None:
    assert word_errors(normalised(one, language), normalised(other, language)) == expected


@pytest.mark.parametrize(("language", "one", "other"), SAME)
def test_what_is_only_written_differently_goes(language: str | None, one: str, other: str) -> None:
    assert normalised(one, language) == normalised(other, language) != ""


@pytest.mark.parametrize(("language", "one", "other"), [*SAME, *[row[:3] for row in DIFFERENT]])
def test_normalised_texts_stay_as_they_are(language: str | None, one: str, other: str) -> None:
    for text in (normalised(one, language), normalised(other, language)):
        assert normalised(text, language) == text
        assert unicodedata.normalize("NFC", text) == text


def test_letters_marks_and_numbers_of_all_of_unicode_stay() -> None:
    """Every character of categories L, M and N that folding leaves as it is, inside a word.

    But what spells nothing: fillers, selectors of variants, the stroke that lengthens Arabic, the
    box of an emoji, letters in the shape of an apostrophe.
    """
    letters = [chr(n) for n in range(0x110000) if unicodedata.category(chr(n))[0] in "LMN"]
    words = {f"b{letter}b": ord(letter) for letter in letters}
    text = " ".join(words)
    kept = set(normalised(text).split())
    lost = {words[word] for word in set(folded(text).split()) & words.keys() if word not in kept}
    assert len(letters) > 130_000
    selectors = {*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0), *range(0x180B, 0x180E), 0x180F}
    assert lost <= {
        *selectors, 0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x640, 0x20E3, 0x2BB, 0x2BC, 0xA78C,
    }  # fmt: skip


def test_what_stands_in_brackets_may_be_left_out() -> None:
    text = "Er (lacht) sagt [Musik] ja （笑）"
    assert normalised(text) == "er lacht sagt musik ja 笑"
    assert normalised(text, annotations=False) == "er sagt ja"


def test_as_written_unifies_equivalent_characters_alone() -> None:
    assert as_written(" Can\u0303on,  Ａ ") == "Cañon, Ａ"


class TestCase:
    def test_of_turkish(self) -> None:
        assert (lowered("IİŞ", "tr"), uppered("iış", "tr")) == ("ıiş", "İIŞ")

    def test_of_other_languages(self) -> None:
        assert (lowered("Iİ", "de"), uppered("iıß", "de")) == ("ii", "IISS")
        assert lowered("ΟΔΌΣ", "el") == "οδός"


class TestEnglish:
    TEXTS = (
        "Mr. Twenty-one can't pay $3.50 for colour, um!",
        "The [noise] 1990s (laughs) weren't bad: 50%",
    )

    @pytest.mark.parametrize("text", TEXTS)
    def test_is_whispers_own_once_hyphens_are_spaces(self, text: str) -> None:
        own = EnglishTextNormalizer({"colour": "color"})
        tokenizer = type("", (), {"english_spelling_normalizer": {"colour": "color"}})
        assert english_normaliser(tokenizer)(text) == own(text.replace("-", " ")).strip()

    def test_typographic_apostrophes_are_apostrophes(self) -> None:
        normalise = english_normaliser(None)
        assert normalise("I can’t, it’s ‘fine’") == normalise("I can't, it's fine")


class TestCharacters:
    @pytest.mark.parametrize(
        ("said", "true"),
        [
            ("今日は天気が良い", "今日は天気がいい"),
            ("สวัสดีคับ", "สวัสดีครับ"),
            ("the cat sad", "the cat sat"),
        ],
    )
    def test_are_counted_by_jiwer(self, said: str, true: str) -> None:
        wrong, counted = character_errors(said, true)
        assert wrong / counted == pytest.approx(jiwer.cer(true, said))

    def test_spaces_count_where_a_script_has_them(self) -> None:
        """A space between Latin or Korean words is one of the characters, beside a kana none."""
        assert character_errors("ab", "a b") == (1, 3)
        assert character_errors("밥을먹어", "밥을 먹어") == (1, 5)
        assert character_errors("ねこ が いる", "ねこがいる") == (0, 5)
        assert character_errors("iphone を買う", "iphoneを買う") == (0, 9)

    def test_punctuation_makes_no_errors(self) -> None:
        evaluation = error_rate(["今日はいい天気"], ["今日は、いい天気。"], normalised, "character")
        assert (evaluation.metric, evaluation.value, evaluation.counted) == ("CER", 0.0, (7.0,))

    def test_over_all_clips(self) -> None:
        """One character of 4 and none of 2: 1 of 6; said into silence: 2 more."""
        evaluation = error_rate(
            ["ねこかい", "いぬ", "はい"], ["ねこがい", "いぬ", "。"], normalised, "character"
        )
        assert evaluation.value == pytest.approx(3 / 6)
        assert evaluation.errors == (1.0, 0.0, 2.0)

    @pytest.mark.parametrize(
        ("texts", "unspaced"),
        [
            (["今日は"], True),
            (["สวัสดี"], True),
            (["hello", "今"], False),
            (["한국"], False),
            ([], False),
        ],
    )
    def test_scripts_without_spaces_are_known(self, texts: list[str], unspaced: bool) -> None:
        assert is_unspaced(texts) == unspaced


class TestLanguages:
    @pytest.mark.parametrize(
        ("given", "code"),
        [
            ("de", "de"), ("German", "de"), ("pt-BR", "pt"), ("zh_Hant_TW", "zh"), ("cmn", "zh"),
            ("eng", "en"), ("tur", "tr"), ("deu", "deu"), ("Mandarin", "zh"), ("burmese", "my"),
            ("lao", "lo"), ("yue", "yue"), (" JA ", "ja"),
        ],
    )  # fmt: skip
    def test_codes_and_names(self, given: str, code: str) -> None:
        assert spoken_language(given) == code

    @pytest.mark.parametrize("given", ["jp", "cn", "", "x", "Germna", "de DE", "none at all"])
    def test_others_are_refused(self, given: str) -> None:
        with pytest.raises(ValueError, match="is no language"):
            spoken_language(given)

    def test_the_nearest_is_suggested(self) -> None:
        with pytest.raises(ValueError, match=r"'Japanes' is no language \(did you mean 'japanese"):
            spoken_language("Japanes")
