"""Low rank in closed form: the two thin matrices that come closest to what one gives out.

With inputs of second moment C, the product of rank r that leaves least error,

    minimise over V of rank r:  Σ ‖(W − V) z‖² = ‖(W − V) C^½‖²

is V = U Uᵀ W, with U the first r left singular vectors of W C^½; what is lost is the sum of the
squares of the other singular values (Eckart and Young 1936; whitening as in SVD-LLM, Wang et al.
2024). Any root will do, so Cholesky's L, C = L Lᵀ, stands for C^½. Where the target is not W z,
W is first fitted to it with the same ridge: then the same V is the reduced-rank regression
(Izenman 1975), whose error is the ridge's and that of the truncation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hibprune.compression.least_squares import (
    DAMPING_GROWTH,
    about,
    best_bias,
    best_strength,
    fitted,
    ridge,
)
from hibprune.compression.settings import RepairKind
from hibprune.models.moments import Moments

STRENGTHS = (1e-9, 1e-6, 1e-4, 1e-2, 1.0)
"""Ridges that may be tried; each takes a decomposition."""
SMALLEST_SCALE = 1e-12
"""Of the largest singular value: of what is smaller, rounding has its say."""


@dataclass(frozen=True)
class Factors:
    """Two matrices (rows, rank) and (rank, columns), in float64, and a bias where there is one."""

    outer: Tensor
    inner: Tensor
    bias: Tensor | None

    @property
    def product(self) -> Tensor:
        """The matrix that they stand for."""
        return self.outer @ self.inner


def truncated(weight: Tensor, rank: int, root: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The two factors of a matrix (rows, columns) that lose least of it, weighed by `root`.

    Without one, least of the matrix itself. What lies between the two is scaled alike on both
    sides, which keeps int8 and float16 from losing the small of it.
    """
    w = weight.double()
    left, values, _ = torch.linalg.svd(w if root is None else w @ root, full_matrices=False)
    left, values = left[:, :rank], values[:rank]
    largest = float(values[0]) if len(values) else 0.0
    scale = values.clamp_min(SMALLEST_SCALE * largest or 1.0).sqrt()
    return left * scale, (left / scale).T @ w


def root_of(second: Tensor, damping: float) -> Tensor:
    """L with L Lᵀ = second + damping · I; damping grows until there is one.

    Raises:
        ArithmeticError: there is none, since the moments are not finite.
    """
    while damping < torch.inf:
        matrix = second.clone()
        matrix.diagonal().add_(damping)
        factor: Tensor
        factor, info = torch.linalg.cholesky_ex(matrix)
        if not int(info):
            return factor
        damping *= DAMPING_GROWTH
    raise ArithmeticError("second moments that are not finite")


def plain_factors(weight: Tensor, bias: Tensor | None, rank: int) -> Factors:
    """The factors without a look at data."""
    return Factors(*truncated(weight, rank), None if bias is None else bias.double())


def fitted_factors(
    weight: Tensor,
    with_bias: bool,
    moments: tuple[Moments, Moments],
    rank: int,
    kind: RepairKind,
    refit: bool,
) -> tuple[Factors, float]:
    """Factors that come close to the targets of moments, and the share of those that they miss.

    `moments` are of clips that are fitted on and of clips held out, which tell how strong the ridge
    is to be; then all are fitted on. With the repair `mean`, data decide of the bias alone.
    `refit`: the matrix is fitted to the targets first, with the repair `least-squares`.
    """
    fit, held = moments
    judge = held if held.weight else fit

    def solved(own: Moments, strength: float) -> Factors:
        if kind == "mean":
            outer, inner = truncated(weight, rank)
        else:
            second, _ = about(own, with_bias)
            refitted = refit and kind == "least-squares"
            whole = fitted(own, weight, strength, with_bias)[0] if refitted else weight
            outer, inner = truncated(whole, rank, root_of(second, ridge(own, second, strength)))
        return Factors(outer, inner, best_bias(own, outer @ inner) if with_bias else None)

    def error(strength: float) -> float:
        found = solved(fit, strength)
        return judge.error(found.product, found.bias)

    if kind == "mean":
        strength, missed = 0.0, error(0.0)
    else:
        strength, missed = best_strength(error, STRENGTHS)
    return solved(fit + held, strength), missed / (judge.spread() or 1.0)
