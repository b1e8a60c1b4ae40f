"""What heads do, told from their attention: on matrices whose numbers are known beforehand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from hibprune.explaining.attribution_tree import by_word, grown
from hibprune.explaining.head_functions import (
    HeadStatistics,
    functions_of,
    kinds,
    ranked_kinds,
    with_scores,
)
from hibprune.explaining.subjects import spectrogram
from hibprune.explaining.words import word_spans
from hibprune.records.explanation import HeadFunctions, Span
from hibprune.records.units import Head, Scores

LN2 = math.log(2)


def softmaxed(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).softmax(-1)


@pytest.mark.parametrize(
    ("rows", "globalness", "verticality", "diagonality"),
    [
        # Each query attends to itself: rows are sure, their mean is even, nothing is far.
        ([[1, 0], [0, 1]], 0, -LN2, 0),
        # Every row even: half of each row is one step off, over 2².
        ([[0.5, 0.5], [0.5, 0.5]], LN2, -LN2, -0.25),
        # All on the first key: their mean is sure.
        ([[1, 0], [1, 0]], 0, 0, -0.25),
        ([[0, 0, 1], [0, 1, 0], [1, 0, 0]], 0, -math.log(3), -4 / 9),
    ],
)
def test_the_three_numbers_by_hand(
    rows: list[list[float]], globalness: float, verticality: float, diagonality: float
) -> None:
    found = kinds(torch.tensor(rows, dtype=torch.float32)[None])
    told = [float(found[name]) for name in ("globalness", "verticality", "diagonality")]
    assert told == pytest.approx([globalness, verticality, diagonality], abs=1e-9)


def test_the_three_numbers_are_those_of_loops_over_queries_and_keys() -> None:
    attention = softmaxed(0, 3, 7, 7)
    found = kinds(attention)
    for head, weights in enumerate(attention.double().numpy()):
        length = len(weights)
        entropies = [-sum(a * math.log(a) for a in row) for row in weights]
        mean = weights.sum(0) / length
        far = sum(abs(q - k) * weights[q, k] for q in range(length) for k in range(length))
        assert float(found["globalness"][head]) == pytest.approx(sum(entropies) / length)
        assert float(found["verticality"][head]) == pytest.approx(
            sum(a * math.log(a) for a in mean)
        )
        assert float(found["diagonality"][head]) == pytest.approx(-far / length**2)


def test_a_head_is_of_the_kind_that_ranks_it_highest() -> None:
    even = torch.full((6, 6), 1 / 6)
    own = torch.eye(6)
    first = torch.zeros(6, 6)
    first[:, 2] = 1
    found = kinds(torch.stack([first, own, even]))
    numbers = [{name: float(value[head]) for name, value in found.items()} for head in range(3)]
    assert ranked_kinds(numbers) == ["vertical", "diagonal", "global"]


def positional(length: int, offset: int, rest: Tensor) -> Tensor:
    """Attention whose largest weight lies at an offset wherever that is within the clip."""
    weights = 0.1 * rest
    for query in range(length):
        if 0 <= query + offset < length:
            weights[query] = 0.1 * weights[query]
            weights[query, query + offset] = 1 - float(weights[query].sum())
    return weights / weights.sum(-1, keepdim=True)


@pytest.mark.parametrize("offset", [-1, 0, 1, 2])
def test_a_head_that_is_made_positional_is_named_so(offset: int) -> None:
    statistics = HeadStatistics(2)
    for seed, length in ((1, 40), (2, 56)):
        others = softmaxed(seed, 2, length, length)
        attention = torch.stack([positional(length, offset, others[0]), others[1]])
        statistics.add(attention, range(length))
    planted, other = functions_of({0: statistics}, {0: (Head(0, 0), Head(0, 3))}, in_time=True)
    assert (planted.function, planted.offset, planted.head) == ("positional", offset, Head(0, 0))
    # All queries but those whose offset would lead out of the clip.
    assert planted.positional >= (96 - 2 * abs(offset)) / 96
    assert other.function == other.kind != "positional"
    assert other.positional < 0.2


def test_eighty_per_cent_at_one_offset_are_not_enough() -> None:
    statistics = HeadStatistics(1)
    weights = torch.eye(20)
    weights[:4] = torch.eye(20)[[7, 9, 11, 13]]
    statistics.add(weights[None], range(20))
    (found,) = functions_of({0: statistics}, {0: (Head(0, 0),)}, in_time=False)
    assert (found.positional, found.offset, found.function) == (0.8, 0, "other")


def test_a_head_on_the_rarest_token_and_special_tokens_that_do_not_count() -> None:
    """Nine of ten weights go to [CLS], which neither asks nor answers."""
    statistics = HeadStatistics(1)
    for rarest in (2, 4):
        weights = torch.zeros(6, 6)
        weights[:, 0], weights[:, rarest] = 0.9, 0.1
        statistics.add(weights[None], [1, 2, 3, 4], rarest)
    statistics.add(torch.eye(6)[None], [1, 2, 3, 4], None)
    (found,) = functions_of({0: statistics}, {0: (Head(0, 0),)}, in_time=False)
    assert (found.function, found.rarest, found.kind) == ("rare tokens", 1.0, None)


def test_scores_are_correlated_with_what_heads_do() -> None:
    heads = tuple(Head(0, index) for index in range(6))
    statistics = HeadStatistics(6)
    shares = torch.linspace(0.0, 1.0, 6)
    attention = torch.stack(
        [a * torch.eye(8) + (1 - a) * torch.full((8, 8), 1 / 8) for a in shares]
    )
    statistics.add(attention, range(8))
    rows = functions_of({0: statistics}, {0: heads}, in_time=True)
    functions = HeadFunctions(heads=rows, clips=1, rare_texts=None)
    scores = Scores(method="x", heads=heads, samples=("a",), per_sample=((1, 2, 3, 5, 8, 13),))
    found = with_scores(functions, scores)
    told = {one.number: one.spearman for one in found.correlations}
    assert [one.score for one in found.heads] == [1, 2, 3, 5, 8, 13]
    # Nearer to the diagonal and less spread, the higher; verticality is one and the same.
    assert told["diagonality"].value == 1
    assert told["globalness"].value == -1
    assert set(told) == {"positional", "globalness", "verticality", "diagonality"}


# Trees ---------------------------------------------------------------------------------------


def edges(layers: list[np.ndarray], **how: object) -> tuple[int, list[tuple[int, int, int]]]:
    tree = grown(layers, **how)
    return tree.top, [(edge.layer, edge.parent, edge.child) for edge in tree.edges]


def matrix(size: int, **entries: float) -> np.ndarray:
    """Zero but for entries named by query and key: `_21=0.5`."""
    found = np.zeros((size, size))
    for place, value in entries.items():
        found[int(place[1]), int(place[2])] = value
    return found


def test_a_tree_by_hand() -> None:
    """Token 0 is read off. Layer 2 only hands on to it; below, edges above 0.4 of the largest."""
    lowest = matrix(5, _12=1.0, _13=0.3, _34=0.9, _01=9.0)
    middle = matrix(5, _21=1.0, _23=0.5, _24=0.39, _31=0.8, _02=9.0)
    upper = matrix(5, _41=1.0)
    # Sums off the diagonal: 1 has 1.3, 2 has 1.89, 3 has 1.7, 4 has 1.0: 2 is the top.
    top, found = edges([lowest, middle, upper], terminal=0)
    assert top == 2
    # Middle: 2→1 and 2→3; 2→4 has too little; 3→1 comes too late. Lowest: 1→2 leads back, 1→3 and
    # 3→1 are there; 3→4 is new.
    assert found == [(1, 2, 1), (1, 2, 3), (0, 3, 4)]


def test_without_a_terminal_the_last_layer_counts_too() -> None:
    top, found = edges([matrix(3, _12=1.0), matrix(3, _01=3.0)])
    assert (top, found) == (0, [(1, 0, 1), (0, 1, 2)])


def test_a_word_that_has_appeared_gets_no_second_parent_and_nothing_grows_from_the_rest() -> None:
    top, found = edges([matrix(4, _01=1.0, _21=0.9, _32=0.9), matrix(4, _02=2.0)])
    assert (top, found) == (0, [(1, 0, 2), (0, 0, 1)])


def test_frames_are_summed_by_word_and_others_left_out() -> None:
    frames = np.arange(36.0).reshape(6, 6)
    words = (Span(text="A", start=1, end=3), Span(text="B", start=4, end=5))
    (found,) = by_word([frames], words)
    np.testing.assert_array_equal(
        found,
        [[frames[1:3, 1:3].sum(), frames[1:3, 4].sum()], [frames[4, 1:3].sum(), frames[4, 4]]],
    )


class Letters:
    """As much of a tokenizer as tells words apart."""

    word_delimiter_token = "|"
    all_special_ids: tuple[int, ...] = (0,)
    all_special_tokens: tuple[str, ...] = ("<pad>",)
    added_tokens_decoder: dict[int, str] = {}  # noqa: RUF012

    def get_vocab(self) -> dict[str, int]:
        return {"<pad>": 0, "|": 1, "A": 2, "B": 3}

    def convert_ids_to_tokens(self, number: int) -> str:
        return ["<pad>", "|", "A", "B"][number]


def test_words_lie_where_their_letters_are_said() -> None:
    path = [0, 2, 2, 0, 3, 1, 1, 0, 3, 0]
    logits = np.eye(4)[path]
    spans = word_spans(logits, Letters(), positions=20)
    assert [(one.text, one.start, one.end) for one in spans] == [("AB", 2, 10), ("B", 16, 18)]


def test_a_tone_is_seen_at_its_pitch() -> None:
    rate = 16_000
    tone = np.sin(2 * np.pi * 3000 * np.arange(rate) / rate)
    tone[: rate // 2] = 0
    heard = spectrogram(tone.astype(np.float32), rate)
    power = np.array(heard.decibels)
    rows, columns = power.shape
    assert heard.highest_hertz == 8000
    # Pitch within a row of the picture, and silence in its first half.
    assert abs(power[:, -10].argmax() / rows * 8000 - 3000) < 2 * 8000 / rows
    assert power[:, : columns // 3].max() == -80
