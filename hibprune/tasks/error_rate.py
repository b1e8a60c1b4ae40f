"""Word and character error rates, the metrics of speech recognition."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from hibprune.errors import UserError
from hibprune.records.base import Interval
from hibprune.records.measurements import Evaluation
from hibprune.records.statistics import error_rate_interval
from hibprune.records.transcripts import Counted

NAMES: dict[Counted, str] = {"word": "WER", "character": "CER"}

UNSPACED_LETTER = (
    "["
    # Thai, Lao, Tibetan, Burmese, Khmer.
    "\u0e01-\u0eff\u0f00-\u109f\u1780-\u17ff\u19e0-\u19ff\ua9e0-\ua9ff\uaa60-\uaa7f"
    # Chinese and Japanese.
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u9fff\uf900-\ufaff"
    "\U0001aff0-\U0001b16f\U00020000-\U0003ffff"
    "]"
)
"""A letter or mark of a script that is written without spaces between words."""

BESIDE_UNSPACED = re.compile(f"(?<={UNSPACED_LETTER}) | (?={UNSPACED_LETTER})")


def unmeasurable(
    references: Sequence[str], normalise: Callable[[str], str], counted: Counted
) -> str | None:
    """Why there is no error rate over these references, or None when there is one."""
    if any(normalise(reference) for reference in references):
        return None
    return (
        f"no transcript has a {counted} in it once normalised: "
        f"there is no {counted} error rate without"
    )


def error_rate(
    predictions: Sequence[str],
    references: Sequence[str],
    normalise: Callable[[str], str],
    counted: Counted,
) -> Evaluation:
    """WER or CER over all clips after `normalise`, with a 95 % bootstrap interval over utterances.

    References that `normalise` leaves nothing of count nothing; what is said there is an error.

    Raises:
        UserError: nothing is left of any of them.
    """
    fault = unmeasurable(references, normalise, counted)
    if fault is not None:
        raise UserError(f"validation: {fault}")
    count = {"word": word_errors, "character": character_errors}[counted]
    errors, totals = [], []
    for prediction, reference in zip(predictions, references, strict=True):
        wrong, total = count(normalise(prediction), normalise(reference))
        errors.append(wrong)
        totals.append(total)

    return Evaluation(
        metric=NAMES[counted],
        value=sum(errors) / sum(totals),
        interval=Interval(*error_rate_interval(errors, totals)),
        n=len(references),
        higher_is_better=False,
        errors=tuple(map(float, errors)),
        counted=tuple(map(float, totals)),
    )


def word_errors(prediction: str, reference: str) -> tuple[int, int]:
    """Substitutions, deletions and insertions together, and the words of the reference."""
    import jiwer

    if not reference:
        return len(prediction.split()), 0
    counts = jiwer.process_words(reference, prediction)
    wrong = counts.substitutions + counts.deletions + counts.insertions
    return wrong, counts.hits + counts.substitutions + counts.deletions


def character_errors(prediction: str, reference: str) -> tuple[int, int]:
    """The same of characters; spaces count between words of scripts that have them."""
    import jiwer

    prediction, reference = (BESIDE_UNSPACED.sub("", text) for text in (prediction, reference))
    if not reference:
        return len(prediction), 0
    counts = jiwer.process_characters(reference, prediction)
    wrong = counts.substitutions + counts.deletions + counts.insertions
    return wrong, counts.hits + counts.substitutions + counts.deletions


def is_unspaced(references: Sequence[str]) -> bool:
    """Whether most letters are of scripts that are written without spaces between words."""
    letters = "".join(letter for text in references for letter in text if letter.isalnum())
    return 2 * len(re.findall(UNSPACED_LETTER, letters)) > len(letters)
