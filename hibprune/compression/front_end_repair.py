"""Repair of a convolutional front end: what reads its channels is fitted to what it read before.

Part by part from the input up, the matrix of a convolution, or of the projection behind the last
one, is fitted by least squares on unfolded windows of what the pruned model gives it, to what the
original's gives out in front of norm and activation, channels that are gone aside. Where a
convolution has no bias, none is made and moments are not centred.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hibprune.compression.layer_work import held_out, total
from hibprune.compression.matrix_fit import first_affected, fit_writer, require_frames
from hibprune.compression.settings import RepairKind
from hibprune.execution.processes import Processes
from hibprune.models.front_end import FrontEndPart, front_end_parts, places_of
from hibprune.models.front_end_passes import (
    Passed,
    frames_by_part,
    passed,
    waveforms,
    window_moments,
    window_step,
)
from hibprune.models.hidden_states import HiddenStates
from hibprune.models.layerwise import CalibrationClip, ClipBatch
from hibprune.models.moments import Moments
from hibprune.records.repair import SublayerRepair


@dataclass(frozen=True)
class _PartWork:
    """Passes of this process's batches through one part of both front ends."""

    whole: FrontEndPart
    smaller: FrontEndPart
    step: int
    batches: Sequence[ClipBatch]
    states: HiddenStates

    def pass_original(self) -> None:
        for batch in self.batches:
            self._original(batch)

    def moments(self) -> tuple[Moments, Moments]:
        """Sums over the fitted and over the held-out clips; the original goes on by a part."""
        rows = places_of(self.smaller.writes, self.whole.writes)
        weight = self.smaller.writer.weight.flatten(1)
        height, width = weight.shape
        fit, held = (Moments.nothing(height, width, weight.device) for _ in range(2))
        for batch in self.batches:
            wanted = self._original(batch).written
            if self.smaller.writes:
                wanted = wanted[..., rows]
            windows = passed(self.smaller, self._before(batch)).windows
            apart = held_out(batch)
            fit = fit + window_moments(windows, wanted, batch, self.step, ~apart)
            held = held + window_moments(windows, wanted, batch, self.step, apart)
        return fit, held

    def pass_pruned(self) -> None:
        for batch in self.batches:
            after = passed(self.smaller, self._before(batch)).after
            self.states.put(f"front/pruned/{batch.number}", after)

    def _original(self, batch: ClipBatch) -> Passed:
        done = passed(self.whole, self.states.get(f"front/original/{batch.number}"))
        self.states.put(f"front/original/{batch.number}", done.after)
        return done

    def _before(self, batch: ClipBatch) -> Tensor:
        return self.states.get(f"front/pruned/{batch.number}")


def front_end_affected(original: PreTrainedModel, pruned: PreTrainedModel) -> bool:
    """Whether channels are gone from a front end."""
    return first_affected(front_end_parts(original), front_end_parts(pruned)) is not None


def require_windows(
    original: PreTrainedModel,
    pruned: PreTrainedModel,
    kind: RepairKind,
    batches: Sequence[ClipBatch],
    clips: Sequence[CalibrationClip],
) -> None:
    """See that there are more windows than any part that is to be fitted has unknowns.

    Raises:
        UserError: there are not.
    """

    def fitted_on(batch: ClipBatch) -> int:
        return int((~held_out(batch)).sum())

    parts = front_end_parts(pruned)
    first = first_affected(front_end_parts(original), parts)
    frames = frames_by_part(pruned, parts, batches, clips, fitted_on)
    for part, count in list(zip(parts, frames, strict=True))[first:]:
        require_frames(part, kind, count, sum(map(fitted_on, batches)))


@torch.no_grad()
def repair_front_end(
    original: PreTrainedModel,
    pruned: PreTrainedModel,
    clips: Sequence[CalibrationClip],
    batches: Sequence[ClipBatch],
    kind: RepairKind,
    states: HiddenStates,
    processes: Processes,
    progress: Callable[[], None] = lambda: None,
) -> list[SublayerRepair]:
    """Fit the front end of a model that lost channels, in place; `progress` hears of each part.

    Several processes that are given the same `batches` take a share of them each.

    Raises:
        UserError: a part gives out NaN or infinite values.
    """
    before, after = front_end_parts(original), front_end_parts(pruned)
    first = first_affected(before, after)
    assert first is not None
    own = processes.share(batches)
    frames = frames_by_part(original, before, batches, clips)
    for batch in own:
        states.put(f"front/original/{batch.number}", waveforms(original, batch, clips))
    found = []
    for place, (whole, smaller) in enumerate(zip(before, after, strict=True)):
        if place == first - 1:
            # Both models are one up to here.
            for batch in own:
                both = states.get(f"front/original/{batch.number}")
                states.put(f"front/pruned/{batch.number}", both)
        work = _PartWork(whole, smaller, window_step(frames[place], smaller), own, states)
        if place < first:
            work.pass_original()
        else:
            fit, held = (total(sums, processes) for sums in work.moments())
            removed = len(whole.units) - len(smaller.units)
            found.append(fit_writer(smaller, removed, fit, held, kind, everything=True))
        if place >= first - 1:
            work.pass_pruned()
        progress()
    for batch in own:
        states.drop(f"front/original/{batch.number}")
        states.drop(f"front/pruned/{batch.number}")
    return found
