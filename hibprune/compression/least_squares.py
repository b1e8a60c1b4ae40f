"""Closed forms of repair: least squares on moments of what units give out.

A sublayer writes W·z + b into the residual stream. Where units are gone, the columns that stay are
fitted to what the sublayer should write, u, over the frames of the calibration clips:

    minimise over V, c:  Σ w ‖u − V z − c‖² + λ ‖V − W‖²

with λ = α · tr(A) / columns and A the centred second moment of z, so that α has no unit. The ridge
draws towards the old weights W, not towards zero. All sums are in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST_RIDGE = 1e-10
"""Of the mean variance of a column: below it, float64 sums are noise."""
DAMPING_GROWTH = 10.0
MOST_DAMPING = 1.0


@dataclass(frozen=True)
class Moments:
    """Weighted sums over frames of inputs z (columns) and targets u (rows), mergeable by adding.

    `inputs` (columns, columns), `cross` (rows, columns), `targets` the sum of ‖u‖².
    """

    weight: float
    input_sum: Tensor
    target_sum: Tensor
    inputs: Tensor
    cross: Tensor
    targets: float

    @classmethod
    def nothing(cls, rows: int, columns: int, device: torch.device) -> Moments:
        """Sums over no frames."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        return cls(
            0.0, zeros(columns), zeros(rows), zeros(columns, columns), zeros(rows, columns), 0.0
        )

    @classmethod
    def of(cls, inputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Moments:
        """Sums over frames of inputs (frames, columns) and targets (frames, rows)."""
        z, u = inputs.double(), targets.double()
        w = z.new_ones(len(z)) if weights is None else weights.to(z)
        weighted = z * w[:, None]
        return cls(
            weight=float(w.sum()),
            input_sum=weighted.sum(0),
            target_sum=w @ u,
            inputs=weighted.T @ z,
            cross=u.T @ weighted,
            targets=float(w @ u.square().sum(1)),
        )

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.weight + other.weight,
            self.input_sum + other.input_sum,
            self.target_sum + other.target_sum,
            self.inputs + other.inputs,
            self.cross + other.cross,
            self.targets + other.targets,
        )

    def centred(self) -> tuple[Tensor, Tensor]:
        """Second moments about the means: of inputs, and of targets with inputs."""
        mean = self.input_sum / self.weight
        return (
            self.inputs - torch.outer(self.input_sum, mean),
            self.cross - torch.outer(self.target_sum, mean),
        )

    def error(self, weight: Tensor, bias: Tensor | None) -> float:
        """Mean over frames of ‖u − V z − c‖², in closed form."""
        v = weight.double()
        c = v.new_zeros(len(v)) if bias is None else bias.double()
        total = (
            self.targets
            - 2 * float((v * self.cross).sum())
            + float(((v @ self.inputs) * v).sum())
            - 2 * float(c @ self.target_sum)
            + 2 * float(c @ (v @ self.input_sum))
            + self.weight * float(c @ c)
        )
        return max(0.0, total / self.weight)

    def spread(self) -> float:
        """Mean over frames of ‖u − ū‖²: the error of the best constant."""
        mean = self.target_sum / self.weight
        return max(0.0, self.targets / self.weight - float(mean @ mean))


def fitted(
    moments: Moments, anchor: Tensor, alpha: float, with_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """V (rows, columns) and c (rows,) by ridge regression about the old weights, in float64.

    Without a bias the moments are not centred, and c is None. Damping grows until the matrix can be
    decomposed; with no columns left V is empty and c the mean target.
    """
    w = anchor.double().to(moments.inputs.device)
    if with_bias:
        second, cross = moments.centred()
    else:
        second, cross = moments.inputs, moments.cross
    if not w.shape[1]:
        return w, moments.target_sum / moments.weight if with_bias else None
    mean_variance = float(second.diagonal().mean())
    damping = max(alpha, SMALLEST_RIDGE) * (mean_variance or 1.0)
    solution = _solved(second, cross + damping * w, damping)
    while solution is None:
        damping *= DAMPING_GROWTH
        solution = _solved(second, cross + damping * w, damping)
    if not with_bias:
        return solution, None
    return solution, (moments.target_sum - solution @ moments.input_sum) / moments.weight


def _solved(second: Tensor, right: Tensor, damping: float) -> Tensor | None:
    """right · (second + damping · I)⁻¹, or None where that has no Cholesky decomposition."""
    matrix = second.clone()
    matrix.diagonal().add_(damping)
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info):
        return None
    return torch.cholesky_solve(right.T, factor).T


def scaled(
    moments: Moments, anchor: Tensor, blocks: Sequence[Sequence[int]], with_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """One factor for each block of columns of the old weights, by least squares (Kwon et al. 2022).

    A block is a head's columns or a neuron's.
    """
    w = anchor.double().to(moments.inputs.device)
    if with_bias:
        second, cross = moments.centred()
    else:
        second, cross = moments.inputs, moments.cross
    if not blocks:
        return w, moments.target_sum / moments.weight if with_bias else None
    owner = torch.zeros(w.shape[1], len(blocks), dtype=torch.float64, device=w.device)
    for number, block in enumerate(blocks):
        owner[list(block), number] = 1
    # ‖u − Σ_k s_k W_k z_k‖² is a quadratic form in s with these coefficients.
    quadratic = owner.T @ ((w.T @ w) * second) @ owner
    linear = owner.T @ (w * cross).sum(0)
    ridge = SMALLEST_RIDGE * (float(quadratic.diagonal().mean()) or 1.0)
    quadratic.diagonal().add_(ridge)
    factors = torch.linalg.solve(quadratic, linear + ridge)
    solution = w * (owner @ factors)
    if not with_bias:
        return solution, None
    return solution, (moments.target_sum - solution @ moments.input_sum) / moments.weight


@dataclass(frozen=True)
class Removal:
    """One step of a greedy removal: the block that goes, and the error that adds in closed form.

    `error` is summed over frames, after the best linear repair of what is left.
    """

    block: int
    error: float


def removal_order(
    second: Tensor, weight: Tensor, blocks: Sequence[Sequence[int]], damping: float = 1e-6
) -> list[Removal]:
    """In what order blocks go if each time that one does which repair misses least.

    The surgeon's score of a block P is tr(W_P ([H]_PP)⁻¹ W_Pᵀ) with H = (A + damping)⁻¹ over the
    columns that are left; when it goes, its share of the output moves to the others:
    W ← W − W_P ([H]_PP)⁻¹ H_P, H ← H − H_·P ([H]_PP)⁻¹ H_P· (Hassibi and Stork 1993, by blocks).

    `second` is the centred second moment of the inputs (columns, columns), `weight` (rows,
    columns). Blocks are all of one size.
    """
    if not blocks:
        return []
    w = weight.double().clone().to(second.device)
    matrix = second.double().clone()
    matrix.diagonal().add_(damping * (float(second.diagonal().mean()) or 1.0))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(matrix))
    places = torch.tensor([list(block) for block in blocks], device=second.device)
    size = places.shape[1]
    left = torch.ones(len(blocks), dtype=torch.bool, device=second.device)
    order = []
    for _ in blocks:
        scores = _scores(w, inverse, places, size)
        scores[~left] = torch.inf
        chosen = int(scores.argmin())
        columns = places[chosen]
        order.append(Removal(chosen, max(0.0, float(scores[chosen]))))
        left[chosen] = False
        rows = inverse[columns]
        solved = torch.linalg.solve(inverse[columns][:, columns], rows)
        w -= w[:, columns] @ solved
        inverse -= rows.T @ solved
        # What is gone neither gives nor takes; 1 keeps later inversions defined.
        w[:, columns] = 0
        inverse[columns] = 0
        inverse[:, columns] = 0
        inverse[columns, columns] = 1
    return order


def _scores(w: Tensor, inverse: Tensor, places: Tensor, size: int) -> Tensor:
    if size == 1:
        own = places[:, 0]
        return w[:, own].square().sum(0) / inverse[own, own]
    inner = inverse[places[:, :, None], places[:, None, :]]
    columns = w[:, places].permute(1, 2, 0)
    scores: Tensor = (torch.linalg.solve(inner, columns) * columns).sum((1, 2))
    return scores
