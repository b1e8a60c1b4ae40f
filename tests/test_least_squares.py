"""Closed forms of repair, against numpy, scikit-learn and brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import sklearn.covariance
import torch

from hibprune.attribution.reconstruction import believable, removal_order
from hibprune.compression.least_squares import fitted, scaled
from hibprune.models.moments import Moments

FRAMES, COLUMNS, ROWS = 400, 12, 5


def drawn(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs that depend on each other, targets, and weights to be drawn to."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    z = normal(FRAMES, COLUMNS) @ normal(COLUMNS, COLUMNS) + 3 * normal(COLUMNS)
    u = z @ normal(COLUMNS, ROWS) + normal(ROWS) + normal(FRAMES, ROWS)
    return z, u, normal(ROWS, COLUMNS)


def test_without_a_ridge_it_is_numpys_least_squares() -> None:
    z, u, anchor = drawn()
    weight, bias = fitted(Moments.of(z, u), anchor, 0.0, with_bias=True)
    design = np.column_stack([z.numpy(), np.ones(FRAMES)])
    expected, *_ = np.linalg.lstsq(design, u.numpy(), rcond=None)
    assert bias is not None
    assert np.allclose(weight.numpy(), expected[:-1].T, atol=1e-6)
    assert np.allclose(bias.numpy(), expected[-1], atol=1e-5)
    weight, bias = fitted(Moments.of(z, u), anchor, 0.0, with_bias=False)
    expected, *_ = np.linalg.lstsq(z.numpy(), u.numpy(), rcond=None)
    assert bias is None
    assert np.allclose(weight.numpy(), expected.T, atol=1e-6)


def test_the_ridge_is_scikit_learns_about_the_old_weights() -> None:
    """Ridge about W of u is ridge about 0 of u − W z, with W added back."""
    ridge = pytest.importorskip("sklearn.linear_model").Ridge
    z, u, anchor = drawn()
    for alpha in (1e-3, 0.1, 10.0):
        weight, bias = fitted(Moments.of(z, u), anchor, alpha, with_bias=True)
        strength = alpha * float(((z - z.mean(0)) ** 2).sum()) / COLUMNS
        model = ridge(alpha=strength).fit(z.numpy(), (u - z @ anchor.T).numpy())
        assert bias is not None
        assert np.allclose(weight.numpy(), model.coef_ + anchor.numpy(), atol=1e-8)
        assert np.allclose(bias.numpy(), model.intercept_, atol=1e-6)
    far, _ = fitted(Moments.of(z, u), anchor, 1e12, with_bias=True)
    assert torch.allclose(far, anchor, atol=1e-6)


def test_frames_may_weigh_and_sums_may_be_merged() -> None:
    z, u, anchor = drawn()
    weights = torch.rand(FRAMES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    root = weights.sqrt()[:, None].numpy()
    design = np.column_stack([z.numpy(), np.ones(FRAMES)])
    expected, *_ = np.linalg.lstsq(design * root, u.numpy() * root, rcond=None)
    parts = [Moments.of(z[s], u[s], weights[s]) for s in (slice(0, 100), slice(100, None))]
    whole = Moments.nothing(ROWS, COLUMNS, torch.device("cpu"))
    for part in parts:
        whole = whole + part
    weight, bias = fitted(whole, anchor, 0.0, with_bias=True)
    assert np.allclose(weight.numpy(), expected[:-1].T, atol=1e-6)
    residual = u - z @ weight.T - bias
    error = float((weights @ residual.square().sum(1)) / weights.sum())
    assert whole.error(weight, bias) == pytest.approx(error, rel=1e-9)
    other = torch.randn(ROWS, COLUMNS, dtype=torch.float64)
    error = float((weights @ (u - z @ other.T).square().sum(1)) / weights.sum())
    assert whole.error(other, None) == pytest.approx(error, rel=1e-9)


def test_columns_that_never_vary_or_repeat_do_not_break_it() -> None:
    z, u, anchor = drawn()
    z[:, 3] = z[:, 4]
    z[:, 5] = 0
    z[:, 6] = 2.5
    weight, bias = fitted(Moments.of(z, u), anchor, 0.0, with_bias=True)
    assert weight.isfinite().all()
    design = np.column_stack([z.numpy(), np.ones(FRAMES)])
    expected, *_ = np.linalg.lstsq(design, u.numpy(), rcond=None)
    best = np.square(u.numpy() - design @ expected).sum(1).mean()
    assert Moments.of(z, u).error(weight, bias) == pytest.approx(best, rel=1e-5)


def test_with_no_columns_left_the_bias_is_the_mean() -> None:
    _, u, _ = drawn()
    moments = Moments.of(torch.zeros(FRAMES, 0), u)
    weight, bias = fitted(moments, torch.zeros(ROWS, 0), 0.1, with_bias=True)
    assert weight.shape == (ROWS, 0)
    assert bias is not None
    assert torch.allclose(bias, u.mean(0))
    assert moments.error(weight, bias) == pytest.approx(moments.spread())


def test_factors_are_those_of_a_regression_on_what_blocks_write() -> None:
    z, u, anchor = drawn()
    blocks = [range(0, 4), range(4, 8), range(8, 12)]
    weight, bias = scaled(Moments.of(z, u), anchor, blocks, with_bias=True)
    written = [z[:, list(block)] @ anchor[:, list(block)].T for block in blocks]
    centred = [(one - one.mean(0)).flatten().numpy() for one in written]
    factors, *_ = np.linalg.lstsq(
        np.column_stack(centred), (u - u.mean(0)).flatten().numpy(), rcond=None
    )
    expected = torch.cat([f * anchor[:, list(b)] for f, b in zip(factors, blocks, strict=True)], 1)
    assert torch.allclose(weight, expected, atol=1e-6)
    assert bias is not None
    assert torch.allclose(bias, u.mean(0) - weight @ z.mean(0), atol=1e-6)


@pytest.mark.parametrize("size", [1, 3])
def test_the_surgeons_score_is_what_removing_and_refitting_costs(size: int) -> None:
    """By brute force: take a block out, refit the rest to the whole output, and measure."""
    z, _, weight = drawn()
    centred = z - z.mean(0)
    blocks = [list(range(start, start + size)) for start in range(0, COLUMNS, size)]
    whole = centred @ weight.T

    def cost(gone: set[int]) -> float:
        left = [c for n, block in enumerate(blocks) if n not in gone for c in block]
        if not left:
            return float(whole.square().sum())
        fit, *_ = np.linalg.lstsq(centred[:, left].numpy(), whole.numpy(), rcond=None)
        return float(np.square(whole.numpy() - centred[:, left].numpy() @ fit).sum())

    order = removal_order(centred.T @ centred, weight, blocks, damping=1e-12)
    gone: set[int] = set()
    before = 0.0
    for step in order:
        costs = {n: cost(gone | {n}) - before for n in range(len(blocks)) if n not in gone}
        assert step.block == min(costs, key=costs.__getitem__)
        assert step.error == pytest.approx(costs[step.block], rel=1e-5, abs=1e-6)
        gone.add(step.block)
        before = cost(gone)
    assert sorted(step.block for step in order) == list(range(len(blocks)))


def test_a_block_that_others_can_replace_goes_first_and_for_nothing() -> None:
    z, _, weight = drawn()
    mixing = torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    z[:, 4:8] = z[:, [0, 1, 2, 3, 8, 9, 10, 11]] @ mixing
    centred = z - z.mean(0)
    blocks = [list(range(start, start + 4)) for start in (0, 4, 8)]
    order = removal_order(centred.T @ centred, weight, blocks, damping=1e-10)
    total = float((centred @ weight.T).square().sum())
    assert order[0].error < 1e-6 * total
    assert all(step.error > 1e-3 * total for step in order[1:])
    # And least squares on what is left gives the whole output back.
    left = [c for block in blocks if block != blocks[order[0].block] for c in block]
    moments = Moments.of(z[:, left], z @ weight.T)
    repaired, bias = fitted(moments, weight[:, left], 0.0, with_bias=True)
    assert moments.error(repaired, bias) < 1e-9 * moments.spread()


def test_greedy_is_no_worse_than_a_random_order() -> None:
    z, _, weight = drawn(3)
    centred = z - z.mean(0)
    second = centred.T @ centred
    blocks = [[column] for column in range(COLUMNS)]
    chosen = sum(step.error for step in removal_order(second, weight, blocks)[:4])
    whole = centred @ weight.T
    costs = []
    for gone in itertools.islice(itertools.combinations(range(COLUMNS), 4), 0, None, 25):
        left = [c for c in range(COLUMNS) if c not in gone]
        fit, *_ = np.linalg.lstsq(centred[:, left].numpy(), whole.numpy(), rcond=None)
        costs.append(np.square(whole.numpy() - centred[:, left].numpy() @ fit).sum())
    assert chosen < np.median(costs)


def few(frames: int, columns: int, seed: int = 0) -> np.ndarray:
    """Observations of columns that vary each as much as they like, mixed a little."""
    generator = np.random.default_rng(seed)
    mixing = np.eye(columns) + 0.3 * generator.normal(size=(columns, columns)) / columns**0.5
    return (generator.normal(size=(frames, columns)) * generator.uniform(0.5, 2, columns)) @ mixing


@pytest.mark.parametrize("frames", [15, 60, 119])
def test_a_moment_of_few_observations_is_scikit_learns_shrunk_one(frames: int) -> None:
    drawn = few(frames, 60)
    expected, share = sklearn.covariance.oas(drawn)
    assert 0 < share < 1
    centred = torch.from_numpy(drawn - drawn.mean(0))
    second = centred.T @ centred
    found = believable(second, frames) / frames
    torch.testing.assert_close(found, torch.from_numpy(expected))


def test_a_moment_of_many_observations_is_left_as_it_is() -> None:
    second = torch.eye(4, dtype=torch.float64) + 1
    assert believable(second, 8) is second
    assert not torch.equal(believable(second, 7), second)
    # Of columns that never vary there is nothing to shrink.
    assert not believable(torch.zeros(4, 4, dtype=torch.float64), 3).any()


def test_few_observations_do_not_promise_that_columns_make_up_for_others() -> None:
    """With 40 of 60 columns, any 40 would restore all; other observations tell what is lost."""
    frames, columns, gone = 40, 60, 15
    both = few(frames + 20_000, columns, 1)
    seen, other = (torch.from_numpy(part - part.mean(0)) for part in np.split(both, [frames]))
    weight = torch.from_numpy(np.random.default_rng(2).normal(size=(5, columns)))
    blocks = [[column] for column in range(columns)]
    second = seen.T @ seen
    order = removal_order(believable(second, frames), weight, blocks)[:gone]
    left = [column for column in range(columns) if column not in {step.block for step in order}]
    whole = (other @ weight.T).numpy()
    fit, *_ = np.linalg.lstsq(other[:, left].numpy(), whole, rcond=None)
    lost = float(np.square(whole - other[:, left].numpy() @ fit).sum()) / len(other)
    foretold = sum(step.error for step in order) / frames
    assert 0.5 * lost < foretold < 2 * lost
    assert sum(step.error for step in removal_order(second, weight, blocks)[:gone]) < 1e-3 * lost
