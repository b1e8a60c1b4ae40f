"""What a reader has to know before trusting a run's figures."""

from __future__ import annotations

from textwrap import shorten

from hibprune.records.manifest import Manifest
from hibprune.records.statistics import FEW
from hibprune.report.numbers import capitalised, listing, percent
from hibprune.report.ranking import empty_ranking_sentence
from hibprune.report.recovery import recovery_caveats
from hibprune.report.wording import metric_name

LONGEST = 40
"""Letters of an answer that are quoted."""


def caveats(manifest: Manifest) -> list[str]:
    """A sentence for each reason why figures say less than they seem to; the gravest first."""
    return [
        *_no_better_than_chance(manifest),
        *_constant(manifest),
        *_derailed(manifest),
        *filter(None, [empty_ranking_sentence(manifest)]),
        *recovery_caveats(manifest),
        *_few(manifest),
    ]


def _no_better_than_chance(manifest: Manifest) -> list[str]:
    metric, given = manifest.metric, manifest.medium.counted(manifest.metric.n)
    if metric.chance is None:
        return []
    name = metric_name(metric.name)
    if metric.higher_is_better and metric.chance == 1:
        return [
            f"All {given} of the validation have one label: {name} cannot tell a good model from "
            "one that always says so."
        ]
    by_chance = (
        f"the commonest label, said of all, is right on {percent(metric.chance, 1)}"
        if metric.higher_is_better
        else f"saying nothing has a {name} of 100 %"
    )
    guessing = [
        f"the {one.name}" for one in manifest.variants if not one.metric.beats(metric.chance)
    ]
    if not guessing:
        return []
    sentence = f"{_models(guessing)} no better than chance ({by_chance})"
    if manifest.original.metric.beats(metric.chance):
        return [f"{sentence}."]
    return [f"{sentence}: no difference between the models says what removal costs."]


def _models(names: list[str]) -> str:
    """`The original model is`, `The pruned and the exported model are`."""
    subject = listing(names)
    verb = "is" if len(names) == 1 else "are"
    return f"{capitalised(subject)} model {verb}"


def _constant(manifest: Manifest) -> list[str]:
    given = manifest.medium.counted(manifest.metric.n)
    models: dict[str, list[str]] = {}
    for one in manifest.variants:
        if one.constant is not None:
            models.setdefault(one.constant, []).append(f"the {one.name}")
    sentences = []
    for answer, names in models.items():
        shown = "".join(letter if letter.isprintable() else "�" for letter in answer)
        said = f"‘{shorten(shown, LONGEST, placeholder=' …')}’" if shown.strip() else "nothing"
        sentences.append(f"{_models(names)} constant: of all {given} said is {said}.")
    return sentences


def _derailed(manifest: Manifest) -> list[str]:
    """Of which deployable variants more transcripts went wrong altogether than of the original."""
    whole, sentences = manifest.original.faults, []
    for one in manifest.variants:
        if whole is None or one.faults is None or one.is_rival:
            continue
        for share, before, what in (
            (one.faults.empty, whole.empty, "empty"),
            (one.faults.looping, whole.looping, "looping, one phrase over and over"),
        ):
            if share > before:
                sentences.append(
                    f"{percent(share, 1)} of the transcripts of {one.name} are {what}; of the "
                    f"original's {percent(before, 1)}."
                )
    return sentences


def _few(manifest: Manifest) -> list[str]:
    sentences = []
    if manifest.metric.n < FEW:
        given = manifest.medium.counted(manifest.metric.n)
        subject = f"{given} is" if manifest.metric.n == 1 else f"{given} are"
        sentences.append(
            f"{subject} few to measure on: the intervals of the metric are wide and rough; "
            f"take at least {FEW}, better hundreds."
        )
    pairs = min((one.repetitions for one in manifest.original.latency), default=FEW)
    if pairs < FEW:
        subject = "1 pair of times is" if pairs == 1 else f"{pairs} pairs of times are"
        sentences.append(
            f"{subject} few: the intervals of the speed-up are rough; "
            f"set benchmark.repetitions to at least {FEW}."
        )
    return sentences
