"""Word error rate, the metric of speech recognition."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hibprune.errors import UserError
from hibprune.records.base import Interval
from hibprune.records.measurements import Evaluation
from hibprune.records.statistics import error_rate_interval
from hibprune.tasks.base import Target

WORDLESS = "no transcript has a word in it once normalised: there is no word error rate without"


def wordless_fault(references: Sequence[Target], normalise: Callable[[str], str]) -> str | None:
    """Why there is no WER over these references, or None when there is one."""
    return None if any(normalise(str(reference)) for reference in references) else WORDLESS


def word_error_rate(
    predictions: Sequence[Target],
    references: Sequence[Target],
    normalise: Callable[[str], str],
) -> Evaluation:
    """WER over all words after `normalise`, with a 95 % bootstrap interval over utterances.

    References that `normalise` leaves nothing of count no words; what is said there is an error.

    Raises:
        UserError: nothing is left of any of them.
    """
    errors, words = [], []
    for prediction, reference in zip(predictions, references, strict=True):
        wrong, spoken = word_errors(normalise(str(prediction)), normalise(str(reference)))
        errors.append(wrong)
        words.append(spoken)
    if not sum(words):
        raise UserError(f"validation: {WORDLESS}")

    return Evaluation(
        metric="WER",
        value=sum(errors) / sum(words),
        interval=Interval(*error_rate_interval(errors, words)),
        n=len(references),
        higher_is_better=False,
        errors=tuple(map(float, errors)),
        counted=tuple(map(float, words)),
    )


def word_errors(prediction: str, reference: str) -> tuple[int, int]:
    """Substitutions, deletions and insertions together, and the words of the reference."""
    import jiwer

    if not reference:
        return len(prediction.split()), 0
    counts = jiwer.process_words(reference, prediction)
    wrong = counts.substitutions + counts.deletions + counts.insertions
    return wrong, counts.hits + counts.substitutions + counts.deletions
