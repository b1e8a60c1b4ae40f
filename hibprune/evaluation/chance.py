"""What a metric comes to by chance, and whether a model does better."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from textwrap import shorten

from hibprune.evaluation.metric import metric_line
from hibprune.records.measurements import Evaluation
from hibprune.records.medium import Medium
from hibprune.tasks import Target, answer_text

LONGEST = 40
"""Letters of an answer that are quoted."""

ALLOW = "or set validation.allow_chance_baseline: true"


def chance_level(evaluation: Evaluation, references: Sequence[Target]) -> float | None:
    """The metric of the best answer that does not look at the input; None where it is not known.

    Of accuracy, the share of the commonest label, which is never less than one of all classes; of
    word and character error rates, 100 %, which is that of saying nothing.
    """
    if not evaluation.higher_is_better:
        return 1.0
    if evaluation.metric != "accuracy":
        return None
    return _commonest(references)[1] / len(references)


def chance_fault(
    evaluation: Evaluation, references: Sequence[Target], medium: Medium
) -> str | None:
    """Why a metric is not better than chance, in a line; None where it is or that is not known.

    Accuracy has to be above the share of the commonest label with all of its interval, an error
    rate has to be below 100 %; and of different inputs a model has to say different things.
    """
    level = chance_level(evaluation, references)
    single = single_label_fault(references, medium) if evaluation.higher_is_better else None
    if level is None or single is not None:
        return single
    label, _ = _commonest(references)
    if not evaluation.beats(level):
        reason = (
            f"not above chance: {_quoted(label)}, said of all, is right of {level:.2%}"
            if evaluation.higher_is_better
            else "no better than saying nothing"
        )
    elif evaluation.constant is not None and len(set(map(answer_text, references))) > 1:
        reason = f"of a model that says {_quoted(evaluation.constant)} of all {medium.many}"
    else:
        return None
    return (
        f"validation: the original model's {metric_line(evaluation)} is {reason}: "
        f"look for what is wrong with the model, its labels or the data, {ALLOW}"
    )


def single_label_fault(references: Sequence[Target], medium: Medium) -> str | None:
    """Why labels cannot tell a good model from one that always says the same; None where they can.

    Not of transcripts, which may well be one and the same phrase.
    """
    label, number = _commonest(references)
    if number < len(references):
        return None
    return (
        f"validation: {medium.counted(number)}, all with the label {_quoted(label)}, which a model "
        f"that always says so gets right: add {medium.many} with other labels, {ALLOW}"
    )


def _commonest(references: Sequence[Target]) -> tuple[str, int]:
    return Counter(map(answer_text, references)).most_common(1)[0]


def _quoted(answer: str) -> str:
    return f"'{shorten(answer, LONGEST, placeholder=' …')}'"
