"""Closed forms of repair: least squares on moments of what units give out.

A sublayer writes W·z + b into the residual stream. Where units are gone, the columns that stay are
fitted to what the sublayer should write, u, over the frames of the calibration clips:

    minimise over V, c:  Σ w ‖u − V z − c‖² + λ ‖V − W‖²

with λ = α · tr(A) / columns and A the centred second moment of z, so that α has no unit. The ridge
draws towards the old weights W, not towards zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hibprune.models.moments import Moments

SMALLEST_RIDGE = 1e-10
"""Of the mean variance of a column."""
ROUNDING = 1e-13
"""Of the mean square of a column: variances below it are what rounding leaves of nothing."""
DAMPING_GROWTH = 10.0
STRENGTHS = (1e-9, 1e-7, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridges that may be tried, as shares of the mean variance of a column."""
USUAL_STRENGTH = 1e-2

Solution = tuple[Tensor, Tensor | None]
"""Weights (rows, columns) and bias (rows,), in float64; None where there is to be no bias."""


def fitted(moments: Moments, anchor: Tensor, alpha: float, with_bias: bool) -> Solution:
    """Ridge regression about the old weights.

    Without a bias the moments are not centred. Damping grows until the matrix can be decomposed;
    with no columns left the weights are empty and the bias is the mean target.

    Raises:
        ArithmeticError: there is no solution, since the moments are not finite.
    """
    w = anchor.double().to(moments.inputs.device)
    second, cross = about(moments, with_bias)
    if w.shape[1]:
        damping = ridge(moments, second, alpha)
        solution = _solved(second, cross + damping * w, damping)
        while solution is None:
            damping *= DAMPING_GROWTH
            if not damping < torch.inf:
                raise ArithmeticError("second moments that are not finite")
            solution = _solved(second, cross + damping * w, damping)
        w = solution
    return w, best_bias(moments, w) if with_bias else None


def ridge(moments: Moments, second: Tensor, alpha: float) -> float:
    """λ, which α stands for where the second moment is this; never 0."""
    variance = float(second.diagonal().mean())
    rounding = ROUNDING * float(moments.inputs.diagonal().mean())
    return max(alpha, SMALLEST_RIDGE) * max(variance, 0.0) + rounding or 1.0


def about(moments: Moments, with_bias: bool) -> tuple[Tensor, Tensor]:
    """Second moments of inputs, and of targets with inputs: about their means beside a bias."""
    return moments.centred() if with_bias else (moments.inputs, moments.cross)


def _solved(second: Tensor, right: Tensor, damping: float) -> Tensor | None:
    """right · (second + damping · I)⁻¹, or None where that has no Cholesky decomposition."""
    matrix = second.clone()
    matrix.diagonal().add_(damping)
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info):
        return None
    return torch.cholesky_solve(right.T, factor).T


def best_bias(moments: Moments, weight: Tensor) -> Tensor:
    """The bias that leaves least error beside given weights (rows, columns)."""
    return (moments.target_sum - weight.double() @ moments.input_sum) / moments.weight


def scaled(
    moments: Moments, anchor: Tensor, blocks: Sequence[Sequence[int]], with_bias: bool
) -> Solution:
    """One factor for each block of columns of the old weights, by least squares (Kwon et al. 2022).

    A block is a head's columns or a neuron's.
    """
    w = anchor.double().to(moments.inputs.device)
    second, cross = about(moments, with_bias)
    if blocks:
        owner = torch.zeros(w.shape[1], len(blocks), dtype=torch.float64, device=w.device)
        for number, block in enumerate(blocks):
            owner[list(block), number] = 1
        # ‖u − Σ_k s_k W_k z_k‖² is a quadratic form in s with these coefficients.
        quadratic = owner.T @ ((w.T @ w) * second) @ owner
        linear = owner.T @ (w * cross).sum(0)
        ridge = SMALLEST_RIDGE * max(float(quadratic.diagonal().mean()), 0.0) or 1.0
        quadratic.diagonal().add_(ridge)
        w = w * (owner @ torch.linalg.solve(quadratic, linear + ridge))
    return w, best_bias(moments, w) if with_bias else None


def best_strength(
    error: Callable[[float], float], strengths: Sequence[float] = STRENGTHS
) -> tuple[float, float]:
    """The ridge of least error and that error, walking from the usual one as long as it falls.

    Over-fitting grows to one side and under-fitting to the other, so that few are tried.
    """
    errors: dict[int, float] = {}

    def at(place: int) -> float:
        if place not in errors:
            errors[place] = error(strengths[place])
        return errors[place]

    place = min(range(len(strengths)), key=lambda one: abs(strengths[one] - USUAL_STRENGTH))
    for step in (-1, 1):
        while 0 <= place + step < len(strengths) and at(place + step) < at(place):
            place += step
    return strengths[place], at(place)
