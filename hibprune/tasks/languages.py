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


ENGLISH_NAMES = """\
en:english zh:chinese de:german es:spanish ru:russian ko:korean fr:french ja:japanese pt:portuguese
tr:turkish pl:polish ca:catalan nl:dutch ar:arabic sv:swedish it:italian id:indonesian hi:hindi
fi:finnish vi:vietnamese he:hebrew uk:ukrainian el:greek ms:malay cs:czech ro:romanian da:danish
hu:hungarian ta:tamil no:norwegian th:thai ur:urdu hr:croatian bg:bulgarian lt:lithuanian la:latin
mi:maori ml:malayalam cy:welsh sk:slovak te:telugu fa:persian lv:latvian bn:bengali sr:serbian
az:azerbaijani sl:slovenian kn:kannada et:estonian mk:macedonian br:breton eu:basque is:icelandic
hy:armenian ne:nepali mn:mongolian bs:bosnian kk:kazakh sq:albanian sw:swahili gl:galician
mr:marathi pa:punjabi si:sinhala km:khmer sn:shona yo:yoruba so:somali af:afrikaans oc:occitan
ka:georgian be:belarusian tg:tajik sd:sindhi gu:gujarati am:amharic yi:yiddish lo:lao uz:uzbek
fo:faroese ht:haitian_creole ps:pashto tk:turkmen nn:nynorsk mt:maltese sa:sanskrit
lb:luxembourgish my:myanmar bo:tibetan tl:tagalog mg:malagasy as:assamese tt:tatar haw:hawaiian
ln:lingala ha:hausa ba:bashkir jw:javanese su:sundanese yue:cantonese my:burmese ca:valencian
nl:flemish ht:haitian lb:letzeburgesch ps:pushto pa:panjabi ro:moldavian ro:moldovan si:sinhalese
es:castilian zh:mandarin
"""
CODES_BY_NAME = {
    name.replace("_", " "): code
    for code, name in (entry.split(":") for entry in ENGLISH_NAMES.split())
}
"""Codes of languages by their English names, as Whisper's tokenizer in transformers knows them.
Kept here because transformers takes a second to import; a test holds them against its own."""


def language_code(language: str) -> str:
    """The code of a language given by code or by English name, as `generate` reads it.

    What is neither comes back in small letters.
    """
    lowered = language.lower()
    return lowered if len(lowered) == 2 else CODES_BY_NAME.get(lowered, lowered)


def spoken_language(language: str) -> str:
    """The code of a language without script and region: `zh` of zh-Hant-TW, of cmn, of Chinese.

    Raises:
        ValueError: it is neither a code nor a name.
    """
    code = re.split("[-_]", language_code(language.strip()))[0]
    code = SHORTER.get(code, code)
    if code in TWO_LETTERS or re.fullmatch(r"[a-z]{3}", code):
        return code
    hint = did_you_mean(language.lower(), list(CODES_BY_NAME))
    raise ValueError(f"'{language}' is no language{hint}: give its code, e.g. de, ja or tur")
