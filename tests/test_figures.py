"""Pictures that are what they say: heads, spread of scores, latency."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from manifests import make_latency, make_plan, make_scores, make_variant, make_variants

from hibprune.records.units import Head, Plan, Scores
from hibprune.report.figures import head_grid, head_map, latency_figure, score_spread
from hibprune.report.spread import cut_of, heads_near_cut, spread_of

pytestmark = pytest.mark.draws


def test_grid_marks_removed_heads_and_leaves_absent_ones_blank() -> None:
    heads = (Head(0, 0), Head(0, 2), Head(2, 1))
    scores = Scores(
        method="hib", heads=heads, samples=("a", "b"), per_sample=((1, 2, 3), (3, 2, 1))
    )
    grid = head_grid(scores, Plan(removed=(Head(0, 2),), kept=(Head(0, 0), Head(2, 1))))
    expected = np.full((3, 3), np.nan)
    expected[0, 0] = expected[0, 2] = expected[2, 1] = 2
    np.testing.assert_array_equal(grid.scores, expected)
    assert np.argwhere(grid.removed).tolist() == [[0, 2]]


def test_standard_errors_and_the_cut() -> None:
    heads = tuple(Head(0, i) for i in range(3))
    scores = Scores(
        method="hib", heads=heads, samples=("a", "b"), per_sample=((5, 1, 2), (7, 1, 4))
    )
    spread = spread_of(scores, Plan(removed=(heads[1],), kept=(heads[0], heads[2])))
    assert spread.heads == (heads[1], heads[2], heads[0])
    assert spread.errors is not None
    np.testing.assert_allclose(spread.errors, [0, 1, 1])
    assert cut_of(spread) == 2
    assert heads_near_cut(spread) == 0


def test_no_cut_where_a_kept_head_scores_below_a_removed_one() -> None:
    scores = make_scores(1, 3)
    order = sorted(scores.heads, key=scores.values.__getitem__)
    spread = spread_of(scores, Plan(removed=(order[1],), kept=(order[0], order[2])))
    assert cut_of(spread) is None
    assert heads_near_cut(spread) is None


@pytest.mark.parametrize(("layers", "heads"), [(1, 1), (2, 4), (12, 12), (48, 25)])
def test_pictures_of_any_model_keep_a_page_size(layers: int, heads: int, tmp_path: Path) -> None:
    scores = make_scores(layers, heads, samples=3)
    plan = make_plan(scores)
    head_map(scores, plan, tmp_path / "heads.png")
    score_spread(scores, plan, tmp_path / "spread.png")
    for name in ("heads.png", "spread.png"):
        width, height = png_size(tmp_path / name)
        assert 600 <= width <= 1100
        assert 250 <= height <= 1700


def test_a_method_without_samples_has_no_error_bars(tmp_path: Path) -> None:
    scores = make_scores(2, 3, samples=1)
    score_spread(scores, make_plan(scores), tmp_path / "spread.png")
    assert spread_of(scores, make_plan(scores)).errors is None


def test_latency_picture_grows_with_lengths_and_variants(tmp_path: Path) -> None:
    one = [make_variant(name) for name in ("original", "pruned")]
    short = [variant.model_copy(update={"latency": (make_latency(),)}) for variant in one]
    latency_figure(short, tmp_path / "short.png")
    latency_figure(one, tmp_path / "long.png")
    latency_figure(make_variants(), tmp_path / "many.png")
    heights = [png_size(tmp_path / f"{name}.png")[1] for name in ("short", "long", "many")]
    assert heights[0] < heights[1] < heights[2]


def png_size(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    return width, height
