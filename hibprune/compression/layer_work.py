"""Passes of all clips through one layer of the original and of the pruned model, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from hibprune.execution.processes import ALONE, Processes
from hibprune.models.hidden_states import HiddenStates
from hibprune.models.layerwise import ClipBatch, Enough, Layerwise
from hibprune.models.moments import Moments
from hibprune.models.replay import heads_replayed
from hibprune.models.sublayers import Sublayer, Written, writing_recorded

HELD_OUT_EVERY = 5
"""Of the clips, one in so many tells which fit is good and is not fitted on."""


def held_out(batch: ClipBatch) -> Tensor:
    """Which clips of a batch are not fitted on."""
    return torch.tensor([place % HELD_OUT_EVERY == HELD_OUT_EVERY - 1 for place in batch.places])


@dataclass(frozen=True)
class LayerWork:
    """Passes of this process's batches through one layer of both models."""

    layer: int
    through: Layerwise
    pruned: nn.Module
    batches: Sequence[ClipBatch]
    states: HiddenStates
    processes: Processes = ALONE
    """Others have batches of their own, so that what is summed over frames is summed over them."""
    ends_plainly: bool = False
    """Whether the layer gives out the stream behind its last sublayer as it is."""
    counts: dict[nn.Module, int] = field(default_factory=dict)
    """How many things each attention of the pruned model hands back."""

    def part_ways(self) -> None:
        """Below the first removal, both models are one."""
        for batch in self.batches:
            states = self.states.get(f"original/{batch.number}")
            self.states.put(f"pruned/{batch.number}", states)

    def pass_original(self, parts: Sequence[Sublayer]) -> bool:
        """Keep what the stream is behind each sublayer of the original, and behind the layer.

        Says whether the last two are the same.
        """
        same = bool(parts)
        for batch in self.batches:
            before = self.states.get(f"original/{batch.number}")
            with writing_recorded(parts) as written:
                states = self.through(batch, self.layer, before)
            self.states.put(f"original/{batch.number}", states)
            for part, sublayer in enumerate(parts):
                stream = _stream(written[part], sublayer)
                self.states.put(f"target/{part}/{batch.number}", stream)
            same = same and torch.equal(states, stream)
        return same

    def moments(
        self, part: int, sublayer: Sublayer, earlier: Mapping[int, Sublayer] | None = None
    ) -> tuple[Moments, Moments]:
        """Sums over the fitted and over the held-out clips of units' output and what to write.

        Those of all processes. `earlier` are sublayers in front of it for which this was asked
        before, and of which no more than the writer was changed since then.
        """
        rows, columns = sublayer.writer.weight.shape
        device = sublayer.writer.weight.device
        fit, held = (Moments.nothing(rows, columns, device) for _ in range(2))
        for batch in self.batches:
            with writing_recorded([sublayer], then_stop=True) as written:
                self._pass_pruned(batch, earlier)
            one = written[0]
            self.states.offer(f"units/{part}/{batch.number}", one.units)
            self.states.offer(f"stream/{batch.number}", one.residual)
            wanted = (self.target(part, batch) - one.residual) / sublayer.scale
            apart = held_out(batch)[:, None]
            fit = _with_frames(fit, one.units, wanted, batch.counts & ~apart)
            held = _with_frames(held, one.units, wanted, batch.counts & apart)
        return total(fit, self.processes), total(held, self.processes)

    def input_moments(self, modules: Sequence[nn.Linear]) -> list[tuple[Moments, Moments]]:
        """Sums over the fitted and over the held-out clips of what goes into each of some modules.

        There are no targets. What is one tensor to several is summed up once. Those of all
        processes.
        """
        sums = [_no_targets(module) for module in modules]
        owner = list(range(len(modules)))
        for batch in self.batches:
            with inputs_recorded(modules) as inputs:
                self._pass_pruned(batch)
            apart = held_out(batch)[:, None]
            for place in range(len(modules)):
                states = inputs[place]
                owner[place] = next(n for n in range(place + 1) if inputs[n] is states)
                if owner[place] == place:
                    fit, held = sums[place]
                    sums[place] = (
                        _with_frames(fit, states, states[..., :0], batch.counts & ~apart),
                        _with_frames(held, states, states[..., :0], batch.counts & apart),
                    )
        # A process without batches does not know what is one tensor, so that each is added up.
        found = [sums[place] for place in owner]
        return [(total(fit, self.processes), total(held, self.processes)) for fit, held in found]

    def misses(self, parts: Sequence[Sublayer], batch: ClipBatch) -> list[Tensor]:
        """What the stream behind each sublayer misses of the original's (clips, frames, width)."""
        with writing_recorded(parts, then_stop=True) as written:
            self._pass_pruned(batch)
        return [
            _stream(written[part], sublayer) - self.target(part, batch)
            for part, sublayer in enumerate(parts)
        ]

    def target(self, part: int, batch: ClipBatch) -> Tensor:
        """The original's stream behind a sublayer (clips, frames, width)."""
        return self.states.get(f"target/{part}/{batch.number}")

    def pass_repaired(self, writers: Mapping[int, Sublayer] | None = None) -> None:
        """What the fitted layer gives out is what the next one of the pruned model sees.

        `writers` are all sublayers from one of the layer's on, in order, where moments were asked
        of each and no more than its writer was changed since then.
        """
        for batch in self.batches:
            self.states.put(f"pruned/{batch.number}", self._repaired(batch, writers or {}))

    def _repaired(self, batch: ClipBatch, writers: Mapping[int, Sublayer]) -> Tensor:
        last = max(writers, default=None)
        units, stream = f"units/{last}/{batch.number}", f"stream/{batch.number}"
        kept = units in self.states and stream in self.states
        if last is None or not self.ends_plainly or not kept:
            return self._pass_pruned(batch, writers)
        sublayer = writers[last]
        written: Tensor = sublayer.writer(self.states.get(units))
        return self.states.get(stream) + sublayer.scale * written

    def drop_kept(self, parts: int) -> None:
        """Give back the room of what both models do within a layer that is done."""
        for batch in self.batches:
            self.states.drop(f"stream/{batch.number}")
            for part in range(parts):
                self.states.drop(f"target/{part}/{batch.number}")
                self.states.drop(f"units/{part}/{batch.number}")

    def _pass_pruned(
        self, batch: ClipBatch, earlier: Mapping[int, Sublayer] | None = None
    ) -> Tensor:
        states = self.states.get(f"pruned/{batch.number}")
        names = {part: f"units/{part}/{batch.number}" for part in earlier or ()}
        given = [
            (sublayer, self.states.get(names[part]))
            for part, sublayer in (earlier or {}).items()
            if names[part] in self.states
        ]
        with heads_replayed(given, self.counts):
            return self.through(batch, self.layer, states, self.pruned)


def layer_by_layer(
    through: Layerwise,
    before: Sequence[Sequence[Sublayer]],
    pruned: Sequence[nn.Module],
    batches: Sequence[ClipBatch],
    states: HiddenStates,
    processes: Processes = ALONE,
    first: int = 0,
    parted: bool = True,
    layer_done: Callable[[], None] = lambda: None,
) -> Iterator[LayerWork]:
    """The layers of both models from `first` on, with what the original does in each.

    `before` are the original's sublayers. Whoever changes a layer of the pruned model, in place,
    passes it on to the next one. Below `first` both models are one, unless they
    are `parted` before.
    """
    for layer, own in enumerate(before):
        work = LayerWork(layer, through, pruned[layer], batches, states, processes)
        if layer < first:
            work.pass_original(())
            layer_done()
            continue
        if layer == first and not parted:
            work.part_ways()
        yield replace(work, ends_plainly=work.pass_original(own))
        work.drop_kept(len(own))
        layer_done()


@contextmanager
def inputs_recorded(
    modules: Sequence[nn.Module], then_stop: bool = True
) -> Iterator[dict[int, Tensor]]:
    """Collect what goes into some modules, by place.

    `then_stop` leaves the rest of a pass alone once all is there.
    """
    recorded: dict[int, Tensor] = {}

    def keeping(place: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            recorded[place] = inputs[0]
            if then_stop and len(recorded) == len(modules):
                raise Enough

        return hook

    with suppress(Enough), ExitStack() as stack:
        for place, module in enumerate(modules):
            stack.callback(module.register_forward_pre_hook(keeping(place)).remove)
        yield recorded


def _no_targets(module: nn.Linear) -> tuple[Moments, Moments]:
    nothing = Moments.nothing(0, module.in_features, module.weight.device)
    return nothing, nothing


def total(own: Moments, processes: Processes) -> Moments:
    """What all processes have summed up."""
    scalars = processes.summed(torch.tensor([own.weight, own.targets], dtype=torch.float64))
    weight, targets = scalars.tolist()
    return Moments(
        weight=weight,
        input_sum=processes.summed(own.input_sum),
        target_sum=processes.summed(own.target_sum),
        inputs=processes.summed(own.inputs),
        cross=processes.summed(own.cross),
        targets=targets,
    )


def _stream(written: Written, sublayer: Sublayer) -> Tensor:
    return written.residual + sublayer.scale * written.written


def _with_frames(moments: Moments, units: Tensor, wanted: Tensor, chosen: Tensor) -> Moments:
    """`chosen` (clips, frames) is true on the frames that are added."""
    if not chosen.any():
        return moments
    own = chosen.to(units.device)
    return moments + Moments.of(units[own], wanted[own])
