"""Gradient steps on a repaired layer, towards the residual stream of the original.

Least squares fit what a sublayer writes; here all matrices of the layer move, those in front of
the softmax and of the activation as well (as in Guo et al. 2025). No labels are needed: what is
made small is the error of the stream behind each sublayer, as a share of the stream's variance.
Clips held out tell how many steps are good, and are then learned from as well.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from hibprune.compression.layer_work import LayerWork, held_out
from hibprune.models.layerwise import ClipBatch
from hibprune.models.sublayers import Sublayer
from hibprune.records.repair import LayerRefinement

LEARNING_RATE = 0.2
"""First length of a step, as a share of a matrix's root mean square times the root of the error: a
layer that is nearly right is moved little. It falls to nothing in half a cosine."""
MAX_NORM = 1.0
CHECKS = 4
"""How often, in equal parts of the steps, the held-out error is looked at."""


def tried(work: LayerWork, parts: Sequence[Sublayer], steps: int) -> LayerRefinement:
    """Take steps without the clips held out, and see after how many those are met best.

    `parts` are the layer's sublayers, in order. The clips held out must not have been fitted on
    before; without any, those learned from tell. The weights have moved by all steps afterwards.
    """
    spreads = _spreads(work, parts)
    apart = bool(work.processes.summed(torch.tensor(float(_has_clips(work.batches, apart=True)))))
    before = best = _error(work, parts, spreads, apart)
    descent = _Descent(work, parts, spreads, before, steps)
    checks = {-(-steps * check // CHECKS) for check in range(1, CHECKS + 1)}
    taken = 0
    for step in descent.walk(everything=False):
        if step in checks:
            error = _error(work, parts, spreads, apart)
            if error < best:
                best, taken = error, step
    return LayerRefinement(layer=work.layer, before=before, after=best, steps=taken)


def refine_layer(
    work: LayerWork, parts: Sequence[Sublayer], found: LayerRefinement, steps: int
) -> None:
    """Move the layer's weights by as many of the steps as were best, on all clips."""
    if found.steps:
        descent = _Descent(work, parts, _spreads(work, parts), found.before, steps)
        walk = descent.walk(everything=True)
        deque(islice(walk, found.steps), maxlen=0)
        walk.close()


@dataclass(frozen=True)
class _Descent:
    """A layer on its way down the error, from `error` at the start, in `steps` as planned."""

    work: LayerWork
    parts: Sequence[Sublayer]
    spreads: Sequence[float]
    error: float
    steps: int

    def walk(self, everything: bool) -> Generator[int]:
        """Move the layer's weights by Adam, a batch of clips a step; tells of each that was taken.

        Of several processes each takes the gradient on a batch of its own. `everything` learns from
        the clips held out as well.
        """
        rates = self._rates()
        if not rates:
            return
        moving = [weight for weight, _ in rates]
        optimiser = torch.optim.Adam([{"params": [weight], "lr": rate} for weight, rate in rates])
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, self.steps)
        usable = [one for one in self.work.batches if everything or _has_clips([one], apart=False)]
        for weight in moving:
            weight.requires_grad_(True)
        try:
            for step in range(1, self.steps + 1):
                batch = usable[(step - 1) % len(usable)] if usable else None
                self._put_gradients(moving, batch, everything)
                nn.utils.clip_grad_norm_(moving, MAX_NORM)
                optimiser.step()
                schedule.step()
                yield step
        finally:
            for weight in moving:
                weight.requires_grad_(False)
                weight.grad = None

    def _rates(self) -> list[tuple[Tensor, float]]:
        """What moves, with steps of a length that fits the matrix; its bias takes the same.

        Norms stay, and tables of positions, which other layers are handed as well.
        """
        share = LEARNING_RATE * math.sqrt(self.error)
        found: list[tuple[Tensor, float]] = []
        for module in self.work.pruned.modules():
            if isinstance(module, nn.Linear | nn.Conv1d) and module.weight.numel():
                size = float(module.weight.detach().square().mean().sqrt())
                found += [(weight, share * size) for weight in module.parameters(False)]
        return found

    def _put_gradients(
        self, moving: Sequence[Tensor], batch: ClipBatch | None, everything: bool
    ) -> None:
        """Leave with each weight the gradient of the mean error over frames of all processes."""
        gradients = [torch.zeros_like(weight) for weight in moving]
        frames = 0
        if batch is not None:
            chosen = batch.counts if everything else batch.counts & ~held_out(batch)[:, None]
            frames = int(chosen.sum())
            with torch.enable_grad():
                misses = self.work.misses(self.parts, batch)
                errors = [
                    miss[chosen.to(miss.device)].square().sum() / spread
                    for miss, spread in zip(misses, self.spreads, strict=True)
                ]
                found = torch.autograd.grad(
                    torch.stack(errors).sum(), moving, allow_unused=True, materialize_grads=True
                )
            gradients = list(found)
        processes = self.work.processes
        total = float(processes.summed(torch.tensor(float(frames), dtype=torch.float64)))
        for weight, gradient in zip(moving, gradients, strict=True):
            weight.grad = processes.summed(gradient) / max(1.0, total)


def _has_clips(batches: Sequence[ClipBatch], apart: bool) -> bool:
    return any(bool((held_out(batch) == apart).any()) for batch in batches)


def _spreads(work: LayerWork, parts: Sequence[Sublayer]) -> list[float]:
    """Variance of the original's stream behind each sublayer, per frame."""
    found = []
    for part, sublayer in enumerate(parts):
        # Count, sum of squares, and sum.
        sums = torch.zeros(2 + sublayer.writer.out_features, dtype=torch.float64)
        for batch in work.batches:
            target = work.target(part, batch)
            frames = target[batch.counts.to(target.device)].double()
            sums[0] += len(frames)
            sums[1] += frames.square().sum().cpu()
            sums[2:] += frames.sum(0).cpu()
        sums = work.processes.summed(sums)
        count, squares = float(sums[0]), float(sums[1])
        found.append(max(0.0, squares - float(sums[2:] @ sums[2:]) / count) / count or 1.0)
    return found


def _error(
    work: LayerWork, parts: Sequence[Sublayer], spreads: Sequence[float], apart: bool
) -> float:
    """Share of the streams' variance that is missed, on the clips held out or on the others."""
    sums = torch.zeros(2, dtype=torch.float64)
    for batch in work.batches:
        chosen = batch.counts & (held_out(batch) == apart)[:, None]
        if not chosen.any():
            continue
        sums[1] += int(chosen.sum())
        for miss, spread in zip(work.misses(parts, batch), spreads, strict=True):
            own = miss[chosen.to(miss.device)].double().square().sum()
            sums[0] += own.cpu() / spread
    total = work.processes.summed(sums)
    return float(total[0] / total[1].clamp(min=1))
