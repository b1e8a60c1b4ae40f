"""Pairs of words that fool a classifier of texts: AttAttr's adversarial patterns (section 5).

The pairs between which the model's answer rests most, over all heads, are set in front of texts of
other classes. An attack succeeds where the answer changes, to whatever.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from hibprune.attribution.base import Sample
from hibprune.attribution.methods import AttAttr
from hibprune.data import ContentFault
from hibprune.errors import UserError
from hibprune.execution.progress import StepNarration
from hibprune.execution.steps import Done, Step
from hibprune.explaining.attribution_tree import attributions
from hibprune.explaining.subjects import Subject, subject_of
from hibprune.records.base import Interval
from hibprune.records.explanation import Attack, Triggers
from hibprune.records.statistics import wilson_interval
from hibprune.stages.run import Run, once
from hibprune.tasks import answer_text

PATTERNS = 3
"""For each class."""
PAIRS_OF_A_TEXT = 3
"""The strongest of each text that count."""
RANDOM_DRAWS = 10

Pair = tuple[int, int]
"""Two tokens in the order they come in a text."""


def strongest_pairs(
    matrix: np.ndarray, numbers: Sequence[int], words: Sequence[int]
) -> list[tuple[Pair, float]]:
    """The strongest pairs of different words of a text, by what its heads attribute to them.

    `matrix` (positions, positions) is the largest over layers of the sum over heads; a pair counts
    what either direction has at the most. `words` are the positions that are no special tokens.
    """
    found: dict[Pair, float] = {}
    for place, one in enumerate(words):
        for other in words[place + 1 :]:
            if numbers[one] != numbers[other]:
                pair = (numbers[one], numbers[other])
                worth = float(max(matrix[one, other], matrix[other, one]))
                found[pair] = max(worth, found.get(pair, -np.inf))
    return sorted(found.items(), key=lambda one: (-one[1], one[0]))[:PAIRS_OF_A_TEXT]


def patterns(worth: Mapping[Pair, float]) -> list[Pair]:
    """The strongest pairs of a class, by their sum over its texts."""
    return sorted(worth, key=lambda pair: (-worth[pair], pair))[:PATTERNS]


def with_trigger(sample: Sample, pair: Pair, words: Sequence[int]) -> Sample:
    """A text with a pair of tokens in front of its first word."""
    first = words[0]

    def longer(name: str) -> torch.Tensor:
        value = sample.inputs[name]
        if name == "input_ids":
            put = torch.tensor([pair], dtype=value.dtype)
        else:
            # What the mask and the types say of the first word holds for the trigger.
            put = value[:, first : first + 1].repeat(1, 2)
        return torch.cat([value[:, :first], put, value[:, first:]], dim=1)

    return replace(sample, inputs={name: longer(name) for name in sample.inputs})


def found_triggers(run: Run, number: int) -> Done[Triggers]:
    """Look for triggers in calibration texts and try them on validation texts.

    Raises:
        UserError: the task classifies no texts, or there is nothing to attack.
    """
    if run.recipe.task.kind != "text-classification":
        raise UserError("triggers are looked for in text classification alone")
    source, target = run.material.calibration, run.material.validation
    if number:
        source, target = source.first(number), target.first(number)

    def compute(_: Step[Triggers], narration: StepNarration) -> Triggers:
        total = len(source.utterances)

        def progress(done: int) -> None:
            narration.advance(done, total, f"{done} of {total} texts")

        texts = [subject_of(run, clip.id, clip.content) for clip in source.utterances]
        by_class = _worth_by_class(run, texts, progress)
        attacked = []
        for clip in target.utterances:
            try:
                attacked.append(subject_of(run, clip.id, clip.content))
            except ContentFault:
                continue
        return _attacks(run, texts, attacked, by_class)

    return once(
        run,
        "explain/triggers",
        {
            "calibration": source.identity,
            "validation": target.identity,
            "patterns": [PATTERNS, PAIRS_OF_A_TEXT, RANDOM_DRAWS],
            "seed": run.recipe.seed,
        },
        Triggers,
        compute,
        lambda found: f"{len(found.attacks)} patterns tried on {found.texts} texts",
        credible=lambda kept: all(0 <= one.changed <= one.tried for one in kept.attacks),
        said="triggers",
    )


def _worth_by_class(
    run: Run, texts: Sequence[Subject], progress: Callable[[int], None]
) -> dict[str, dict[Pair, float]]:
    """What pairs are worth to each answer, summed over the texts that are answered so."""
    method = AttAttr(method="attattr").for_task(run.recipe.task.kind)
    found: dict[str, dict[Pair, float]] = {}
    for done, text in enumerate(texts, start=1):
        layers = attributions(method, run.checkpoint.model, text.sample, run.recipe.task.loss)
        matrix = torch.stack([one.sum(0) for one in layers]).amax(0).numpy()
        numbers, words = _tokens(run, text)
        own = found.setdefault(text.clip.said, {})
        for pair, worth in strongest_pairs(matrix, numbers, words):
            own[pair] = own.get(pair, 0.0) + worth
        progress(done)
    return found


def _tokens(run: Run, text: Subject) -> tuple[list[int], list[int]]:
    """The numbers of a text's tokens, and the positions of those that are words."""
    numbers = text.sample.inputs["input_ids"][0].tolist()
    special = set(run.checkpoint.preprocessor.part.all_special_ids)
    return numbers, [place for place, one in enumerate(numbers) if one not in special]


def _attacks(
    run: Run,
    texts: Sequence[Subject],
    attacked: Sequence[Subject],
    by_class: Mapping[str, Mapping[Pair, float]],
) -> Triggers:
    """Try each class's patterns, and as many drawn by chance, on texts answered otherwise."""
    tokenizer = run.checkpoint.preprocessor.part
    generator = np.random.default_rng(run.recipe.seed)
    known: set[int] = set()
    for text in texts:
        numbers, words = _tokens(run, text)
        known |= {numbers[place] for place in words}
    attacks, drawn = [], []
    for name, worth in sorted(by_class.items()):
        others = [text for text in attacked if text.clip.said != name]
        for pair in patterns(worth):
            changed, tried = _changed(run, others, pair)
            if tried:
                said = tuple(map(str, tokenizer.convert_ids_to_tokens(list(pair))))
                attacks.append(_attack(said, name, changed, tried))
        for _ in range(RANDOM_DRAWS):
            one, other = generator.choice(sorted(known), 2, replace=len(known) < 2).tolist()
            drawn.append(_changed(run, others, (one, other)))
    if not attacks:
        raise UserError("the model gives one answer to all texts: there is nothing to attack")
    changed, tried = (sum(values) for values in zip(*drawn, strict=True))
    return Triggers(
        texts=len(attacked),
        sources=len(texts),
        attacks=tuple(attacks),
        random=_attack((), "", changed, tried),
    )


def _attack(words: tuple[str, ...], name: str, changed: int, tried: int) -> Attack:
    return Attack(
        words=words,
        of=name,
        changed=changed,
        tried=tried,
        interval=Interval(*wilson_interval(changed, tried)),
    )


def _changed(run: Run, texts: Sequence[Subject], pair: Pair) -> tuple[int, int]:
    """How many of the texts are answered otherwise with a pair in front, and how many fit."""
    task, checkpoint = run.recipe.task, run.checkpoint
    predict = task.torch_predict(checkpoint.model)
    changed = tried = 0
    for text in texts:
        _, words = _tokens(run, text)
        sample = with_trigger(text.sample, pair, words)
        if sample.inputs["input_ids"].shape[1] > checkpoint.preprocessor.longest:
            continue
        said = task.decode(predict(sample.inputs)[0], checkpoint.vocabulary)
        changed += answer_text(said) != text.clip.said
        tried += 1
    return changed, tried
