"""Recovery: a pruned model is trained towards what the original says, as a whole.

Adam on all clips of a batch, a step a batch, with a rate that rises in the warm-up and then falls
evenly to nothing; one that leads away from the original is lowered. Dropout and the like stay off:
both models answer as they do when deployed, and a training depends on its seed alone. `accelerate`
computes in lower precision where asked to, scales and clips gradients, and adds them up over
processes; how many of those there are, and in how many parts a batch is computed, changes sums by
rounding alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor

from hibprune.compression.distillation import Answer, KeptAnswers
from hibprune.compression.training_clips import (
    TrainingBatch,
    batches_from,
    cut,
    packed,
    passes,
    shares_kept,
)
from hibprune.compression.training_plan import Recovering
from hibprune.compression.training_state import MOMENTS, TrainingState
from hibprune.execution.processes import ALONE, Processes
from hibprune.models.attention import frozen
from hibprune.records.recovery import Ending, Losses, Recovery

BETAS, EPSILON = (0.9, 0.98), 1e-6
"""Of Adam, as wav2vec 2.0 was trained: gradients that are little but rounding move nothing far."""
MAX_NORM = 1.0
DIVERGED, NEXT_TO_NOTHING = 10.0, 0.01
"""A loss that is so many times what it was at first will not come back; one that was below the
second number at first, as many times that."""
ASTRAY, SLOWER = 1.05, 3.0
"""Where clips held out lose so many times what they lost at first, the steps were too long: the
best weights are taken up again, and the rate is divided by the second number from there on."""
AMP = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
"""What accelerate calls the precisions."""


@dataclass(frozen=True)
class Session:
    """What goes on around a training: where it starts, and whom it tells."""

    processes: Processes = ALONE
    state: TrainingState | None = None
    save: Callable[[TrainingState], None] = lambda state: None
    progress: Callable[[int, int, float | None], None] = lambda done, total, loss: None
    clock: Callable[[], float] = time.monotonic


def recover(work: Recovering, session: Session) -> tuple[Recovery, float]:
    """Train; the pruned model is left with the best weights.

    Also returns the seconds it took, those before an interruption included.
    """
    weights = list(work.weights.values())
    device = weights[0].device
    with (
        frozen(work.original),
        frozen(work.pruned),
        torch.enable_grad(),
        _engine(work.settings.precision, device) as engine,
    ):
        for weight in weights:
            weight.requires_grad_(True)
        try:
            training = _Training(work, session, engine)
            return training.run(), training.seconds
        finally:
            for weight in weights:
                weight.requires_grad_(False)
                weight.grad = None


@contextmanager
def _engine(precision: str, device: torch.device) -> Iterator[Accelerator]:
    """accelerate's engine; it keeps its settings in one place for a process, which is cleared."""
    # Both are told to be the library's own affair, which offers no other way to a second training.
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    try:
        yield Accelerator(cpu=device.type == "cpu", mixed_precision=AMP[precision])
    finally:
        AcceleratorState._reset_state(True)
        GradientState._reset_state()


@dataclass
class _Training:
    """A training under way."""

    work: Recovering
    session: Session
    engine: Accelerator
    curve: list[Losses] = field(default_factory=list)
    step: int = 0
    best_step: int = 0
    worse: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.weights = list(self.work.weights.values())
        plain = torch.optim.AdamW(self.weights, lr=0.0, betas=BETAS, eps=EPSILON, weight_decay=0.0)
        self.optimiser: Any = self.engine.prepare(plain)
        self.updates = 0
        self.best = self._copied()
        self.kept = KeptAnswers(self.work.kept_bytes)

    def run(self) -> Recovery:
        work, steps, began = self.work, self.work.steps, self.session.clock()
        ended: Ending = "all steps"
        if self.session.state is None:
            self.curve.append(Losses(step=0, held_out=self._held_out()))
        else:
            self._take_up(self.session.state)
        before, first = self.seconds, self._first_loss()
        waiting = batches_from(work.lengths, work.room, work.seed, self.step)
        since: list[float] = []
        while self.step < steps and self.worse < work.settings.patience:
            batch = [work.learned[place] for place in next(waiting)]
            loss = self._learn(batch, work.rate(self.step) / SLOWER**self._setbacks)
            if not math.isfinite(loss):
                ended = "not finite"
                break
            since.append(loss)
            first = loss if first is None else first
            self.step += 1
            if self.step % work.check_steps == 0 or self.step == steps:
                held = self._held_out()
                mean = math.fsum(since) / len(since)
                if held is not None and not math.isfinite(held):
                    ended = "not finite"
                    break
                self.curve.append(Losses(step=self.step, training=mean, held_out=held))
                if (mean if held is None else held) > DIVERGED * max(first, NEXT_TO_NOTHING):
                    ended = "diverged"
                    break
                since = []
                self._judge(held)
                if self._astray(held):
                    self._go_back()
                self.seconds = before + self.session.clock() - began
                self.session.save(self._state())
            self.session.progress(self.step, steps, loss)
        else:
            ended = "all steps" if self.step == steps else "no better"
        self.seconds = before + self.session.clock() - began
        self._put(self.best)
        return Recovery(
            clips=len(work.learned),
            held_out=len(work.held),
            seen_elsewhere=work.seen_elsewhere,
            planned=steps,
            steps=self.step,
            best_step=self.best_step,
            ended=ended,
            trained=work.settings.train,
            parameters=sum(weight.numel() for weight in self.weights),
            precision=work.settings.precision,
            curve=tuple(self.curve),
        )

    def _first_loss(self) -> float | None:
        """What a loss is held against to see that it diverges; that of training where it must."""
        held = self.curve[0].held_out
        if held is not None or len(self.curve) == 1:
            return held
        return self.curve[1].training

    def _judge(self, held: float | None) -> None:
        """Keep the weights where they are the best so far; the last where no clips tell."""
        earlier = self.curve_at(self.best_step).held_out
        if held is None or (earlier is not None and held < earlier):
            self.best, self.best_step, self.worse = self._copied(), self.step, 0
        else:
            self.worse += 1

    def _astray(self, held: float | None) -> bool:
        start = self.curve[0].held_out
        return held is not None and start is not None and held > ASTRAY * start

    @property
    def _setbacks(self) -> int:
        return sum(self._astray(one.held_out) for one in self.curve)

    def _go_back(self) -> None:
        """Go on from the best weights, with nothing known of gradients."""
        self._put(self.best)
        self.optimiser.optimizer.state.clear()
        self.updates = 0

    def curve_at(self, step: int) -> Losses:
        """The losses after a step."""
        return next(one for one in self.curve if one.step == step)

    def _learn(self, batch: Sequence[int], rate: float) -> float:
        """Take a step on a batch of all processes; returns its loss, a mean over clips."""
        self.optimiser.zero_grad()
        # Of like lengths, in the order of lengths, so that every process has as much to do.
        own = self.session.processes.share(self._kept_of(batch))
        parts = self.work.settings.accumulation
        found = torch.zeros((), dtype=torch.float64)
        for number in range(parts):
            for losses in self._losses(own[number::parts], self.step):
                found += losses.detach().double().sum().cpu()
                self.engine.backward(losses.sum() / len(batch))
        self._add_up()
        self.engine.clip_grad_norm_(self.weights, MAX_NORM)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        self.updates += not self.optimiser.step_was_skipped
        return self._total(found) / len(batch)

    def _kept_of(self, batch: Sequence[int]) -> list[tuple[int, float]]:
        """The clips of a batch, each with the share of it that is kept."""
        shares = [1.0] * len(batch)
        if self.work.may_cut:
            shares = shares_kept([self.work.clips.lengths[place] for place in batch])
        return list(zip(batch, shares, strict=True))

    def _losses(self, chosen: Sequence[tuple[int, float]], draw: int | None) -> Iterator[Tensor]:
        """The loss of each clip, clips of equal shape together; `draw` varies what is heard."""
        work = self.work
        clips = [cut(work.pruned, work.clips.read(place, draw), kept) for place, kept in chosen]
        for batch in passes(work.pruned, clips):
            with self.engine.autocast():
                wanted = self._wanted(batch, draw)
                found = work.loss.answer(work.pruned, batch)
            yield work.loss.losses(work.pruned, wanted, found, batch)

    @torch.no_grad()
    def _wanted(self, batch: TrainingBatch, draw: int | None) -> Answer:
        """What the original says; a decoder's answers are as large as they are many."""
        work = self.work
        varied = draw is not None and work.settings.augment.changes
        if varied or work.loss.task.generation is not None:
            return work.loss.answer(work.original, batch)
        return self.kept(batch, lambda: work.loss.answer(work.original, batch))

    def _held_out(self) -> float | None:
        """The loss on the clips held out, a mean over clips; None where there are none."""
        work = self.work
        if not work.held:
            return None
        found = torch.zeros((), dtype=torch.float64)
        with torch.no_grad():
            for batch in packed(work.held, work.clips.lengths, work.room):
                own = self.session.processes.share(self._kept_of(batch))
                for losses in self._losses(own, None):
                    found += losses.double().sum().cpu()
        return self._total(found) / len(work.held)

    def _add_up(self) -> None:
        """Let each weight have the gradient of the clips of all processes."""
        for weight in self.weights:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            if self.session.processes.count > 1:
                weight.grad = self.engine.reduce(weight.grad, reduction="sum")

    def _total(self, own: Tensor) -> float:
        """The sum over all processes."""
        return float(self.session.processes.summed(own))

    def _copied(self) -> dict[str, Tensor]:
        return {name: one.detach().clone() for name, one in self.work.weights.items()}

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, weight in self.work.weights.items():
            weight.copy_(values[name])

    def _state(self) -> TrainingState:
        adam = self.optimiser.optimizer.state
        moments = {
            moment: {
                name: adam[weight].get(moment, torch.zeros_like(weight)).detach()
                for name, weight in self.work.weights.items()
            }
            for moment in MOMENTS
        }
        scaler = self.engine.scaler
        return TrainingState(
            step=self.step,
            current=self._copied(),
            best=self.best,
            moments=moments,
            best_step=self.best_step,
            worse=self.worse,
            curve=list(self.curve),
            updates=self.updates,
            scaler={} if scaler is None else _numbers(scaler.state_dict()),
            seconds=self.seconds,
        )

    def _take_up(self, state: TrainingState) -> None:
        """Go on where an interrupted training stopped."""
        self._put(state.current)
        adam = self.optimiser.optimizer.state
        for name, weight in self.work.weights.items():
            if state.updates:
                adam[weight] = {
                    "step": torch.tensor(float(state.updates)),
                    **{moment: state.moments[moment][name].to(weight) for moment in MOMENTS},
                }
        if self.engine.scaler is not None and state.scaler:
            self.engine.scaler.load_state_dict(dict(state.scaler))
        self.best = {name: value.to(self.weights[0].device) for name, value in state.best.items()}
        self.curve, self.updates, self.seconds = list(state.curve), state.updates, state.seconds
        self.step, self.best_step, self.worse = state.step, state.best_step, state.worse


def _numbers(state: Mapping[str, Any]) -> dict[str, int | float]:
    return {name: value for name, value in state.items() if isinstance(value, int | float)}
