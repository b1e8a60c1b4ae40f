"""What each head does over many clips or texts: where its weights lie, whatever they are worth.

Positional heads and heads on rare tokens after Voita et al. 2019 (The Story of Heads), the three
kinds of attention over speech after Yang et al. 2020 (arXiv 2006.03265).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from hibprune.attribution.base import Sample
from hibprune.attribution.batches import read_unmodified
from hibprune.errors import UserError
from hibprune.execution.progress import StepNarration
from hibprune.execution.steps import Done, Step
from hibprune.explaining.room import COPIES_READ, require_room
from hibprune.explaining.subjects import follows_time
from hibprune.models.attention import (
    attention_sites,
    frame_count,
    frozen,
    heads_of,
    input_length,
    positions_fitted,
)
from hibprune.records.base import Interval
from hibprune.records.comparison import Estimate
from hibprune.records.explanation import HeadFunction, HeadFunctions, Kind, ScoreCorrelation
from hibprune.records.ranking import scores_equal
from hibprune.records.statistics import bootstrap_interval, rank_pearson, spearman
from hibprune.records.units import Head, Scores
from hibprune.stages.load import calibration_inputs
from hibprune.stages.run import Run, once

POSITIONAL = 0.9
"""Share of largest weights at one offset from which a head is called positional."""
RARE = 0.5
"""Share of largest weights on the rarest token from which a head is said to look for it."""
OTHER = "other"
NUMBERS = ("positional", "globalness", "verticality", "diagonality", "rarest")
"""What is held against the score."""
FEWEST_HEADS = 3
"""Two always agree fully or not at all."""


@dataclass
class HeadStatistics:
    """Sums over clips for the heads of one layer. Attention is (heads, positions, positions)."""

    heads: int
    clips: int = 0
    queries: int = 0
    rare_queries: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    offsets: list[Counter[int]] = field(default_factory=list)
    on_rarest: Tensor | None = None

    def add(self, attention: Tensor, words: Sequence[int], rarest: int | None = None) -> None:
        """Take in a clip. `words` are the positions that are no special tokens, all of a clip of
        speech; `rarest` is the place of a text's rarest token, None where several are as rare."""
        for name, value in kinds(attention).items():
            self.sums[name] = self.sums.get(name, torch.zeros(self.heads)) + value.cpu()
        self.clips += 1
        places = torch.tensor(words, device=attention.device)
        within = attention[:, places][:, :, places]
        largest = places[within.argmax(-1)]
        self.offsets = self.offsets or [Counter() for _ in range(self.heads)]
        for counter, offsets in zip(self.offsets, (largest - places).tolist(), strict=True):
            counter.update(offsets)
        self.queries += len(words)
        if rarest is not None:
            found = (largest == rarest).sum(1).cpu()
            self.on_rarest = found if self.on_rarest is None else self.on_rarest + found
            self.rare_queries += len(words)

    def of(self, place: int) -> tuple[dict[str, float], int]:
        """The numbers of the head at a place, and the offset that most of its queries share."""
        counts = self.offsets[place]
        offset = max(counts, key=lambda one: (counts[one], -abs(one)))
        numbers = {name: float(value[place]) / self.clips for name, value in self.sums.items()}
        numbers["positional"] = counts[offset] / self.queries
        if self.on_rarest is not None:
            numbers["rarest"] = int(self.on_rarest[place]) / self.rare_queries
        return numbers, offset


def kinds(attention: Tensor) -> dict[str, Tensor]:
    """Globalness, verticality (nats) and diagonality of heads on one clip, each (heads,).

    Of attention A (heads, positions, positions): the mean entropy of its rows; the entropy of their
    mean, negative; and the mean distance of a weight from the diagonal by the length, negative.
    """
    weights = attention.double()
    length = weights.shape[-1]
    place = torch.arange(length, device=weights.device)
    distance = (place[:, None] - place).abs()
    return {
        "globalness": torch.special.entr(weights).sum(-1).mean(-1),
        "verticality": -torch.special.entr(weights.mean(1)).sum(-1),
        "diagonality": -(weights * distance).sum((-1, -2)) / length**2,
    }


def ranked_kinds(numbers: Sequence[Mapping[str, float]]) -> list[Kind]:
    """The kind of each head: of three lists of all heads, falling, the one where it stands highest.

    A head that stands as high in two is of the first of them: global, vertical, diagonal.
    """
    names: tuple[Kind, ...] = ("global", "vertical", "diagonal")
    ranks = []
    for name in ("globalness", "verticality", "diagonality"):
        order = np.argsort([-own[name] for own in numbers], kind="stable")
        ranks.append(np.argsort(order, kind="stable"))
    return [names[number] for number in np.argmin(np.stack(ranks), axis=0)]


def functions_of(
    statistics: Mapping[int, HeadStatistics], heads: Mapping[int, Sequence[Head]], in_time: bool
) -> tuple[HeadFunction, ...]:
    """What all heads do, by layer and head."""
    found = [
        (head, *statistics[layer].of(place))
        for layer, own in heads.items()
        for place, head in enumerate(own)
    ]
    kind = ranked_kinds([numbers for _, numbers, _ in found])
    return tuple(
        HeadFunction(
            head=head,
            **numbers,
            offset=offset,
            kind=own if in_time else None,
            function=_function(numbers, own if in_time else None),
        )
        for (head, numbers, offset), own in zip(found, kind, strict=True)
    )


def _function(numbers: Mapping[str, float], kind: Kind | None) -> str:
    if numbers["positional"] >= POSITIONAL:
        return "positional"
    if numbers.get("rarest", 0.0) >= RARE:
        return "rare tokens"
    return kind or OTHER


def with_scores(functions: HeadFunctions, scores: Scores) -> HeadFunctions:
    """The functions with a score for every head, and how far each number goes with it."""
    values = scores.values
    told = [values[one.head] for one in functions.heads]
    correlations = []
    for name in NUMBERS:
        numbers = [getattr(one, name) for one in functions.heads]
        if None not in numbers:
            correlations.append(ScoreCorrelation(number=name, spearman=_estimate(numbers, told)))
    heads = tuple(
        one.model_copy(update={"score": score})
        for one, score in zip(functions.heads, told, strict=True)
    )
    return functions.model_copy(
        update={"heads": heads, "method": scores.method, "correlations": tuple(correlations)}
    )


def _estimate(numbers: Sequence[float], scores: Sequence[float]) -> Estimate | None:
    if len(numbers) < FEWEST_HEADS or scores_equal(numbers) or scores_equal(scores):
        return None
    interval = bootstrap_interval([numbers, scores], rank_pearson)
    return Estimate(value=spearman(numbers, scores), interval=Interval(*interval))


def found_functions(run: Run) -> Done[HeadFunctions]:
    """What heads do over the calibration clips.

    Raises:
        UserError: no clip is short enough for its maps.
    """
    crop = run.recipe.calibration.crop_seconds

    def compute(_: Step[HeadFunctions], narration: StepNarration) -> HeadFunctions:
        return over_clips(run, narration.advance)

    return once(
        run,
        "explain/functions",
        {"calibration": run.material.calibration.identity, "crop_seconds": crop},
        HeadFunctions,
        compute,
        lambda found: counted_functions(found.heads),
        credible=lambda kept: (
            tuple(one.head for one in kept.heads) == heads_of(run.checkpoint.model)
        ),
        said="functions",
    )


def counted_functions(heads: Sequence[HeadFunction]) -> str:
    """How many heads do what: `3 positional, 20 global`."""
    counts = Counter(one.function for one in heads)
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


def over_clips(run: Run, progress: Callable[[float, float], None]) -> HeadFunctions:
    """Look at the attention of every head on the calibration clips, one at a time.

    Raises:
        UserError: no clip is left.
    """
    checkpoint, clips = run.checkpoint, run.material.calibration.utterances
    model = checkpoint.model
    method = run.recipe.method_of("head")
    own = {site.layer: site.heads for site in attention_sites(model) if site.heads}
    statistics = {layer: HeadStatistics(len(heads)) for layer, heads in own.items()}
    frequency = _frequencies(run)
    rare_texts, skipped = 0, []
    with frozen(model):
        for number, clip in enumerate(clips):
            sample = Sample(clip.id, calibration_inputs(run.recipe, checkpoint, clip), ())
            positions = frame_count(model, input_length(model, sample.inputs))
            try:
                require_room(method, model, positions, COPIES_READ)
            except UserError as error:
                skipped.append(f"functions: {sample.id}: left out: {error}")
                continue
            words, rarest = list(range(positions)), None
            if frequency is not None:
                words, rarest = _words(run, sample, frequency)
                rare_texts += rarest is not None
            with positions_fitted(model, sample.inputs):
                attention = read_unmodified(model, [sample]).attention
            for layer, found in statistics.items():
                found.add(attention[layer][0], words, rarest)
            progress(number + 1, len(clips))
    looked_at = next(iter(statistics.values())).clips
    if not looked_at:
        raise UserError("no calibration clip is short enough for its maps")
    return HeadFunctions(
        heads=functions_of(statistics, own, follows_time(checkpoint)),
        clips=looked_at,
        rare_texts=None if frequency is None else rare_texts,
        skipped=tuple(skipped),
    )


def _frequencies(run: Run) -> Counter[int] | None:
    """How often each token comes in the calibration texts; None where it is sound."""
    if run.recipe.task.medium.name != "text":
        return None
    counts: Counter[int] = Counter()
    for clip in run.material.calibration.utterances:
        inputs = calibration_inputs(run.recipe, run.checkpoint, clip)
        counts.update(inputs["input_ids"][0].tolist())
    return counts


def _words(run: Run, sample: Sample, frequency: Counter[int]) -> tuple[list[int], int | None]:
    """The positions of a text that are no special tokens, and that of the rarest of them."""
    special = set(run.checkpoint.preprocessor.part.all_special_ids)
    numbers = sample.inputs["input_ids"][0].tolist()
    words = [place for place, number in enumerate(numbers) if number not in special]
    rising = sorted(words, key=lambda place: frequency[numbers[place]])
    if len(rising) > 1 and frequency[numbers[rising[0]]] == frequency[numbers[rising[1]]]:
        return words, None
    return words, rising[0]
