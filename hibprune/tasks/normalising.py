"""Normalised texts, so that two spellings of the same words compare equal, and no others.

The rules for any language follow Unicode's NFKC and caseless matching (The Unicode Standard, 3.13)
and keep what a script writes: letters, marks and numbers. Nothing is stripped that tells words
apart: für is not fur, हिन्दी is not हिन्दू.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import cache
from typing import Any

from hibprune.tasks.languages import DOTTED_I

JOINERS = "\u200c\u200d"
"""Zero width non-joiner and joiner: part of the spelling of Persian and of Indic scripts."""

INVISIBLE = frozenset(
    # Combining grapheme joiner, Hangul fillers, inherent vowels of Khmer, variation selectors.
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u3164\uffa0"
    + "".join(map(chr, range(0xFE00, 0xFE10)))
    + "".join(map(chr, range(0xE0100, 0xE01F0)))
    # The box around a digit of an emoji, and the stroke that lengthens Arabic words.
    + "\u20e3\u0640"
    # Armenian writes the marks of questions, cries and stress over a vowel within the word.
    + "՛՜՞՟"
)
"""What stands within words, spells nothing and parts nothing."""

BREAK = "\u200b"
"""Zero width space, which parts words where no space is written."""

APOSTROPHES = str.maketrans(dict.fromkeys("’ʼʻꞌ＇׳՚", "'"))
"""Typographic ones, and letters and signs in their shape: of Ukrainian, Hawaiian, Hebrew, …"""

WITHIN = re.compile(r"(?<=l)·(?=l)|(?<=[א-ת])[\"״](?=[א-ת])")
"""Signs that part no words: the dot of Catalan's long l, the mark of Hebrew's acronyms."""

OLD_LETTERS = {
    "ണ്\u200d": "ൺ", "ന്\u200d": "ൻ", "ര്\u200d": "ർ", "ല്\u200d": "ൽ", "ള്\u200d": "ൾ",
    "ക്\u200d": "ൿ", "ত্\u200d": "ৎ",
}  # fmt: skip
"""Letters of Malayalam and Bengali as they were written before Unicode 5.1 and 4.1 had them."""

SOUTH_EAST = re.compile(
    r"\u0e4d([\u0e48-\u0e4b]?)\u0e32|\u0ecd([\u0ec8-\u0ecb]?)\u0eb2|\u0e40\u0e40|\u0ec0\u0ec0"
)
"""The AM of Thai and Lao, which NFKC takes apart and people type and count as one letter, also
where its ring stands before the tone; and their AE in the shape of two E."""

COMPOSED = str.maketrans({"゛": "\u3099", "゜": "\u309a"})
"""Sound marks of kana written after the letter rather than on it."""

LETTER = r"[^\W_]"


def normalised(text: str, language: str | None = None, annotations: bool = True) -> str:
    """A text as words are compared in any language, words parted by single spaces.

    Compatibility forms are unified (NFKC), capitals folded as in `language`; what is no letter,
    mark, number or apostrophe parts words. Joiners stay within a word. Without `annotations`, what
    stands in brackets is left out, as Whisper's normalisers have it.
    """
    text = text.translate(COMPOSED)
    # Accents that stand alone are spaces with an accent to NFKC.
    text = "".join(
        letter if unicodedata.category(letter) != "Sk" else " " for letter in _apostrophes(text)
    )
    text = unicodedata.normalize("NFKC", text)
    if not annotations:
        text = re.sub(r"[<\[][^>\]]*[>\]]|\([^)]+\)", "", text)
    text = WITHIN.sub("", folded(text, language).translate(APOSTROPHES))
    text = "".join(map(_kept, text))
    return " ".join(word for word in map(_word, text.split()) if word)


def folded(text: str, language: str | None = None) -> str:
    """A text without the difference of capital and small letters, in NFKC.

    Full case folding, so that STRASSE is straße and ΟΔΟΣ is οδός up to the accent; in languages
    with a dotless i, I is ı. A dot on an i or j is none beside the one it has.
    """
    text = unicodedata.normalize("NFKC", text)
    if language in DOTTED_I:
        text = text.replace("İ", "i").replace("I", "ı")
    text = re.sub("([ijį])\u0307", r"\1", text.casefold())
    text = unicodedata.normalize("NFKC", text)
    for old, letter in OLD_LETTERS.items():
        text = text.replace(old, letter)
    return SOUTH_EAST.sub(_as_typed, text)


def _as_typed(found: re.Match[str]) -> str:
    """A vowel of Thai or Lao as one letter, behind the tone."""
    is_lao = found[0][0] >= "\u0e80"
    if len(set(found[0])) == 1:
        return "\u0ec1" if is_lao else "\u0e41"
    return f"{found[2]}\u0eb3" if is_lao else f"{found[1]}\u0e33"


def lowered(text: str, language: str | None = None) -> str:
    """A text in small letters of a language."""
    if language in DOTTED_I:
        text = text.replace("İ", "i").replace("I", "ı")
    return re.sub("([ijį])\u0307", r"\1", text.lower())


def uppered(text: str, language: str | None = None) -> str:
    """A text in capitals of a language."""
    return (text.replace("i", "İ") if language in DOTTED_I else text).upper()


def as_written(text: str) -> str:
    """A text with its capitals and signs; white space and equivalent characters are unified."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def english_normaliser(tokenizer: Any) -> Callable[[str], str]:
    """Whisper's English normaliser after hyphens became spaces, without the periods it leaves.

    With the tokenizer's own table of spellings where it has one. Of an ellipsis the normaliser
    leaves a period, which would be counted as a word; it knows contractions by the typewriter's
    apostrophe alone.
    """
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    spellings = getattr(tokenizer, "english_spelling_normalizer", None) or {}
    normaliser = EnglishTextNormalizer(spellings)

    def normalise(text: str) -> str:
        words = normaliser(_apostrophes(text).replace("-", " ")).split()
        return " ".join(word for word in words if word.strip("."))

    return normalise


def _apostrophes(text: str) -> str:
    """All apostrophes as `'`; single quotation marks around words are none."""
    text = re.sub(rf"‘((?:[^‘’]|(?<={LETTER})’(?={LETTER}))+)’(?!{LETTER})", r" \1 ", text)
    text = re.sub(rf"(?<={LETTER})[‘`´](?={LETTER})", "'", text)
    return text.translate(APOSTROPHES)


@cache
def _kept(letter: str) -> str:
    """A letter of a folded text as it is compared; a space for what parts words."""
    if letter in INVISIBLE:
        return ""
    category = unicodedata.category(letter)
    if category[0] in "LMN" or letter == "'" or letter in JOINERS:
        return letter
    # Of marks of format, such as a soft hyphen or a change of direction, nothing is seen.
    return "" if category == "Cf" and letter != BREAK else " "


def _word(word: str) -> str:
    """A word without marks that stand on nothing and joiners that join nothing; or nothing."""
    if not any(unicodedata.category(letter)[0] in "LN" for letter in word):
        return ""
    start = 0
    while unicodedata.category(word[start])[0] == "M" or word[start] in JOINERS:
        start += 1
    word = word[start:]
    return word if word.isascii() else _joined(word)


def _joined(word: str) -> str:
    kept: list[str] = []
    for place, letter in enumerate(word):
        if letter in JOINERS:
            before = kept[-1]
            rest = word[place:].lstrip(JOINERS)
            # At the end of a word, a joiner after a virama makes a letter of Malayalam or Sinhala.
            final = letter == "\u200d" and unicodedata.combining(before) == 9
            if before in (*JOINERS, "'") or not (rest[:1].strip("'") or final):
                continue
        kept.append(letter)
    return "".join(kept)
