"""Gradient steps on a repaired layer, towards the residual stream of the original.

Least squares fit what a sublayer writes; here all matrices of the layer move, those in front of
the softmax and of the activation as well (as in Guo et al. 2025). No labels are needed: what is
made small is the error of the stream behind each sublayer, as a share of the stream's variance.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hibprune.compression.layer_work import LayerWork, held_out
from hibprune.models.sublayers import Sublayer
from hibprune.records.repair import LayerRefinement

LEARNING_RATE = 0.01
"""Of a matrix's root mean square, at first; it falls to nothing in half a cosine."""
LARGEST_NORM = 1.0


def refine_layer(work: LayerWork, parts: Mapping[int, Sublayer], steps: int) -> LayerRefinement:
    """Move the layer's weights by Adam, a batch of clips a step, and keep them if that helped.

    `parts` are the sublayers whose streams count. Clips held out of the fit decide; without any,
    those fitted on do.
    """
    spreads = _spreads(work, parts)
    apart = any(bool(held_out(batch).any()) for batch in work.batches)
    before = _error(work, parts, spreads, apart)
    moving = [weight for weight in work.pruned.parameters() if weight.is_floating_point()]
    old = [weight.detach().clone() for weight in moving]
    optimiser = torch.optim.Adam(_groups(work.pruned))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    usable = [batch for batch in work.batches if bool((~held_out(batch)).any())]
    for weight in moving:
        weight.requires_grad_(True)
    try:
        with torch.enable_grad():
            for step in range(steps):
                batch = usable[step % len(usable)]
                frames = batch.counts & ~held_out(batch)[:, None]
                misses = work.misses(parts, batch)
                own = frames.to(next(iter(misses.values())).device)
                optimiser.zero_grad()
                torch.stack(
                    [
                        miss[own].square().sum(1).mean() / spreads[part]
                        for part, miss in misses.items()
                    ]
                ).sum().backward()
                nn.utils.clip_grad_norm_(moving, LARGEST_NORM)
                optimiser.step()
                schedule.step()
    finally:
        for weight in moving:
            weight.requires_grad_(False)
            weight.grad = None
    after = _error(work, parts, spreads, apart)
    kept = after < before
    if not kept:
        for weight, earlier in zip(moving, old, strict=True):
            weight.copy_(earlier)
    layer = next(iter(parts.values())).layer
    return LayerRefinement(layer=layer, before=before, after=min(before, after), kept=kept)


def _groups(layer: nn.Module) -> list[dict[str, object]]:
    """Steps of a size that fits the matrix; its bias takes the same."""
    groups: list[dict[str, object]] = []
    for module in layer.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() > 1 and weight.numel():
            size = float(weight.detach().square().mean().sqrt())
            groups.append({"params": list(module.parameters(False)), "lr": LEARNING_RATE * size})
    return groups


def _spreads(work: LayerWork, parts: Mapping[int, Sublayer]) -> dict[int, float]:
    """Variance of the original's stream behind each sublayer, per frame."""
    found = {}
    for part in parts:
        count, squares, total = 0, 0.0, torch.zeros(())
        for batch in work.batches:
            target = work.states.get(f"target/{part}/{batch.number}")
            frames = target[batch.counts.to(target.device)].double()
            count, squares = count + len(frames), squares + float(frames.square().sum())
            total = frames.sum(0) + total.to(frames)
        found[part] = (squares - float(total @ total) / count) / count or 1.0
    return found


def _error(
    work: LayerWork, parts: Mapping[int, Sublayer], spreads: Mapping[int, float], apart: bool
) -> float:
    """Share of the streams' variance that is missed, on the clips held out or on the others."""
    total, frames = 0.0, 0
    for batch in work.batches:
        chosen = batch.counts & (held_out(batch) == apart)[:, None]
        if not chosen.any():
            continue
        frames += int(chosen.sum())
        for part, miss in work.misses(parts, batch).items():
            total += float(miss[chosen.to(miss.device)].double().square().sum()) / spreads[part]
    return total / max(1, frames)
