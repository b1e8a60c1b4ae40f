"""Gradient steps on a repaired layer, towards the residual stream of the original.

Least squares fit what a sublayer writes; here all matrices of the layer move, those in front of
the softmax and of the activation as well (as in Guo et al. 2025). No labels are needed: what is
made small is the error of the stream behind each sublayer, as a share of the stream's variance.
Clips held out of the fit are not learned from either, and say after which of the steps to stop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hibprune.compression.layer_work import LayerWork, held_out
from hibprune.models.layerwise import ClipBatch
from hibprune.models.sublayers import Sublayer
from hibprune.records.repair import LayerRefinement

LEARNING_RATE = 0.01
"""Of a matrix's root mean square, at first; it falls to nothing in half a cosine."""
MAX_NORM = 1.0
CHECKS = 4
"""How often, in equal parts of the steps, the held-out error is looked at."""


def refine_layer(work: LayerWork, parts: Mapping[int, Sublayer], steps: int) -> LayerRefinement:
    """Move the layer's weights by Adam, a batch of clips a step, and keep them if that helped.

    `parts` are the sublayers whose streams count. Clips held out of the fit decide; without any,
    those fitted on do. Of several processes each takes the gradient on a batch of its own.
    """
    spreads = _spreads(work, parts)
    apart = bool(work.ranks.summed(torch.tensor(float(_has_clips(work.batches, apart=True)))))
    before = best = _error(work, parts, spreads, apart)
    groups = _groups(work.pruned)
    moving = [weight for weight, _ in groups]
    kept = [weight.detach().clone() for weight in moving]
    taken = 0
    if not moving:
        return LayerRefinement(layer=work.layer, before=before, after=best, steps=taken)
    optimiser = torch.optim.Adam([{"params": [weight], "lr": rate} for weight, rate in groups])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    usable = [batch for batch in work.batches if _has_clips([batch], apart=False)]
    checks = {-(-steps * check // CHECKS) for check in range(1, CHECKS + 1)}
    for weight in moving:
        weight.requires_grad_(True)
    try:
        for step in range(1, steps + 1):
            batch = usable[(step - 1) % len(usable)] if usable else None
            _put_gradients(work, parts, spreads, moving, batch)
            nn.utils.clip_grad_norm_(moving, MAX_NORM)
            optimiser.step()
            schedule.step()
            if step in checks:
                error = _error(work, parts, spreads, apart)
                if error < best:
                    best, taken = error, step
                    kept = [weight.detach().clone() for weight in moving]
    finally:
        for weight in moving:
            weight.requires_grad_(False)
            weight.grad = None
    for weight, value in zip(moving, kept, strict=True):
        weight.copy_(value)
    return LayerRefinement(layer=work.layer, before=before, after=best, steps=taken)


def _put_gradients(
    work: LayerWork,
    parts: Mapping[int, Sublayer],
    spreads: Mapping[int, float],
    moving: Sequence[Tensor],
    batch: ClipBatch | None,
) -> None:
    """Leave with each weight the gradient of the mean error over the frames of all processes."""
    gradients = [torch.zeros_like(weight) for weight in moving]
    frames = 0
    if batch is not None:
        chosen = batch.counts & ~held_out(batch)[:, None]
        frames = int(chosen.sum())
        with torch.enable_grad():
            error = sum(
                miss[chosen.to(miss.device)].square().sum() / spreads[part]
                for part, miss in work.misses(parts, batch).items()
            )
            assert isinstance(error, Tensor)
            found = torch.autograd.grad(error, moving, allow_unused=True)
        gradients = [
            zero if one is None else one for zero, one in zip(gradients, found, strict=True)
        ]
    total = float(work.ranks.summed(torch.tensor(float(frames), dtype=torch.float64)))
    for weight, gradient in zip(moving, gradients, strict=True):
        weight.grad = work.ranks.summed(gradient) / max(1.0, total)


def _groups(layer: nn.Module) -> list[tuple[Tensor, float]]:
    """What moves, with steps of a size that fits the matrix; its bias takes the same.

    Norms stay, and tables of positions, which other layers are handed as well.
    """
    found: list[tuple[Tensor, float]] = []
    for module in layer.modules():
        if isinstance(module, nn.Linear | nn.Conv1d) and module.weight.numel():
            size = float(module.weight.detach().square().mean().sqrt())
            found += [(weight, LEARNING_RATE * size) for weight in module.parameters(False)]
    return found


def _has_clips(batches: Sequence[ClipBatch], apart: bool) -> bool:
    return any(bool((held_out(batch) == apart).any()) for batch in batches)


def _spreads(work: LayerWork, parts: Mapping[int, Sublayer]) -> dict[int, float]:
    """Variance of the original's stream behind each sublayer, per frame."""
    found = {}
    for part, sublayer in parts.items():
        width = sublayer.writer.out_features
        # Count, sum of squares, and sum.
        sums = torch.zeros(2 + width, dtype=torch.float64)
        for batch in work.batches:
            target = work.states.get(f"target/{part}/{batch.number}")
            frames = target[batch.counts.to(target.device)].double()
            sums[0] += len(frames)
            sums[1] += frames.square().sum().cpu()
            sums[2:] += frames.sum(0).cpu()
        count, squares, *_ = (sums := work.ranks.summed(sums)).tolist()
        found[part] = max(0.0, squares - float(sums[2:] @ sums[2:]) / count) / count or 1.0
    return found


def _error(
    work: LayerWork, parts: Mapping[int, Sublayer], spreads: Mapping[int, float], apart: bool
) -> float:
    """Share of the streams' variance that is missed, on the clips held out or on the others."""
    sums = torch.zeros(2, dtype=torch.float64)
    for batch in work.batches:
        chosen = batch.counts & (held_out(batch) == apart)[:, None]
        if not chosen.any():
            continue
        sums[1] += int(chosen.sum())
        for part, miss in work.misses(parts, batch).items():
            own = miss[chosen.to(miss.device)].double().square().sum()
            sums[0] += own.cpu() / spreads[part]
    total = work.ranks.summed(sums)
    return float(total[0] / total[1].clamp(min=1))
