"""Sums over frames from which least squares follow: second moments of what units give out.

All sums are in float64, and those of several batches or processes are added up.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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

    def of_outputs(self, weight: Tensor, bias: Tensor | None) -> Moments:
        """The same inputs with what a matrix makes of them, W z + b, as targets."""
        w = weight.double()
        b = w.new_zeros(len(w)) if bias is None else bias.double()
        through = w @ self.inputs
        product = w @ self.input_sum
        squares = float((through * w).sum()) + 2 * float(b @ product) + self.weight * float(b @ b)
        return Moments(
            weight=self.weight,
            input_sum=self.input_sum,
            target_sum=product + self.weight * b,
            inputs=self.inputs,
            cross=through + torch.outer(b, self.input_sum),
            targets=squares,
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

    @property
    def finite(self) -> bool:
        """Whether there is neither NaN nor infinity in what was summed up."""
        sums = self.inputs.diagonal().sum() + self.target_sum.sum() + self.targets
        return bool(torch.isfinite(sums))

    def to(self, device: torch.device | str) -> Moments:
        """The same sums on another device."""
        return Moments(
            self.weight,
            self.input_sum.to(device),
            self.target_sum.to(device),
            self.inputs.to(device),
            self.cross.to(device),
            self.targets,
        )
