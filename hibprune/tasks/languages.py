"""Languages by code or English name, and what of them matters to comparing transcripts."""

from __future__ import annotations

import re

from hibprune.errors import did_you_mean

ENGLISH = "en"

DOTTED_I = frozenset({"az", "crh", "gag", "tr"})
"""Whose small letters of I and İ are ı and i."""

UNSPACED = frozenset(
    {
        "bo", "dz", "gan", "hak", "ja", "km", "lo", "lzh", "mnw", "my", "nan", "nod", "shn", "sou",
        "th", "tts", "wuu", "yue", "zh",
    }
)  # fmt: skip
"""Written without spaces between words, so that what a word is is nobody's to count."""

ISO_639_1 = """\
aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv
cy da de dv dz ee el en eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr
ht hu hy hz ia id ie ig ii ik io is it iu iw ja jv jw ka kg ki kj kk kl km kn ko kr ks ku
kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne ng nl nn no
nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg sh si sk sl sm sn
so sq sr ss st su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa
wo xh yi yo za zh zu
"""
TWO_LETTERS = frozenset(ISO_639_1.split())
"""ISO 639-1, and the old codes iw, jw and sh, which some checkpoints still have."""

SHORTER = {
    "eng": "en", "tur": "tr", "aze": "az", "azj": "az", "jpn": "ja", "zho": "zh", "chi": "zh",
    "cmn": "zh", "tha": "th", "lao": "lo", "mya": "my", "bur": "my", "khm": "km", "bod": "bo",
    "tib": "bo", "dzo": "dz",
}  # fmt: skip
"""Codes of ISO 639-2 and 639-3, as MMS has them, where the rules depend on the language."""


def language_code(language: str) -> str:
    """The code of a language given by code or by English name, as `generate` reads it.

    What is neither comes back in small letters.
    """
    lowered = language.lower()
    return lowered if len(lowered) == 2 else _codes_by_name().get(lowered, lowered)


def spoken_language(language: str) -> str:
    """The code of a language without script and region: `zh` of zh-Hant-TW, of cmn, of Chinese.

    Raises:
        ValueError: it is neither a code nor a name.
    """
    code = re.split("[-_]", language_code(language.strip()))[0]
    code = SHORTER.get(code, code)
    if code in TWO_LETTERS or re.fullmatch(r"[a-z]{3}", code):
        return code
    hint = did_you_mean(language.lower(), list(_codes_by_name()))
    raise ValueError(f"'{language}' is no language{hint}: give its code, e.g. de, ja or tur")


def _codes_by_name() -> dict[str, str]:
    """Codes of languages by English names, and by themselves."""
    # Transformers takes a second to import; a code is understood without.
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    return dict(TO_LANGUAGE_CODE)
