"""An encoder run a layer at a time over many clips, on hidden states kept in between."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten
from transformers import PreTrainedModel

from hibprune.models.attention import frame_count, input_length, run_encoder, stack_layers
from hibprune.models.checkpoint import Checkpoint
from hibprune.models.families import family_of
from hibprune.models.hidden_states import HiddenStates
from hibprune.models.preprocessing import Reading

PADDING_EVERY = 4
"""Of the frames behind a clip's end, in encoders that fill a window, one in so many counts."""
HEARD = "heard"
"""Stands for what a decoder hears among the arguments of its layers."""
CLIPS_AT_ONCE = 16
FRAMES_AT_ONCE = 3000


@dataclass(frozen=True)
class CalibrationClip:
    """A clip as the model is used on it, and its own frames where others are padding.

    `inputs` have a batch dimension of 1. `frames` is None where all of the encoder's frames are the
    clip's. `tokens` (1, tokens) are what a decoder is fed, its start token first; None where no
    decoder is looked at.
    """

    inputs: Mapping[str, Tensor]
    frames: int | None = None
    tokens: Tensor | None = None


def calibration_clip(
    checkpoint: Checkpoint, reading: Reading, tokens: Tensor | None = None
) -> CalibrationClip:
    """A clip or text in the window that the model fills with silence, where it does."""
    inputs = checkpoint.inputs(reading)
    if checkpoint.family.positions is None:
        return CalibrationClip(inputs, None, tokens)
    model = checkpoint.model
    own = input_length(model, checkpoint.calibration_inputs(reading))
    return CalibrationClip(inputs, frame_count(model, own), tokens)


@dataclass(frozen=True)
class ClipBatch:
    """Clips of one shape, by their place among all.

    `counts` (clips, frames) is true on the frames that count.
    """

    number: int
    places: tuple[int, ...]
    shape: int
    """The same number for all batches of the same shape."""
    counts: Tensor

    def inputs(self, clips: Sequence[CalibrationClip]) -> dict[str, Tensor]:
        """The model's inputs for all of them together."""
        own = [clips[place].inputs for place in self.places]
        return {name: torch.cat([inputs[name] for inputs in own]) for name in own[0]}


def clip_batches(model: PreTrainedModel, clips: Sequence[CalibrationClip]) -> tuple[ClipBatch, ...]:
    """Put clips of equal shape together, as many as may be computed on at once."""
    alike: dict[tuple[Any, ...], list[tuple[int, Tensor]]] = {}
    for place, clip in enumerate(clips):
        frames = frame_count(model, input_length(model, clip.inputs))
        mask = clip.inputs.get("attention_mask")
        padded = None if mask is None or bool(mask.all()) else mask.numpy(force=True).tobytes()
        key = (tuple(clip.inputs[model.main_input_name].shape), padded)
        alike.setdefault(key, []).append((place, counting_frames(frames, clip.frames)))
    shapes: dict[tuple[Any, ...], int] = {}
    batches: list[ClipBatch] = []
    for key, members in alike.items():
        size = max(1, min(CLIPS_AT_ONCE, FRAMES_AT_ONCE // max(1, len(members[0][1]))))
        for begin in range(0, len(members), size):
            places, counts = zip(*members[begin : begin + size], strict=True)
            shape = shapes.setdefault((key, len(places)), len(shapes))
            batches.append(ClipBatch(len(batches), places, shape, torch.stack(counts)))
    return tuple(batches)


def counting_frames(frames: int, own: int | None) -> Tensor:
    """True on frames that count: a clip's own, and some of the padding behind it."""
    place = torch.arange(frames)
    if own is None:
        return torch.ones(frames, dtype=torch.bool)
    return (place < own) | ((place - own) % PADDING_EVERY == 0)


@contextmanager
def unchunked(model: nn.Module) -> Iterator[None]:
    """Let feed-forwards take all frames at once, also where the configuration cuts them up."""
    chunked = {
        module: vars(module)["chunk_size_feed_forward"]
        for module in model.modules()
        if "chunk_size_feed_forward" in vars(module)
    }
    try:
        for module in chunked:
            vars(module)["chunk_size_feed_forward"] = 0
        yield
    finally:
        for module, size in chunked.items():
            vars(module)["chunk_size_feed_forward"] = size


def encoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The layers of a model's encoder, first to last."""
    return stack_layers(model.base_model, family_of(model.config.model_type).encoder)


@dataclass(frozen=True)
class LayerCall:
    """How the encoder called one of its layers, hidden states apart."""

    rest: tuple[Any, ...]
    named: Mapping[str, Any]
    by_name: str | None
    """What the hidden states are called, where they are not the first argument."""

    def __call__(self, layer: nn.Module, states: Tensor) -> Tensor:
        """The layer's output on other hidden states (batch, frames, width)."""
        if self.by_name is None:
            outputs = layer(states, *self.rest, **self.named)
        else:
            outputs = layer(*self.rest, **{**self.named, self.by_name: states})
        found: Tensor = outputs[0] if isinstance(outputs, tuple) else outputs
        return found


@torch.no_grad()
def entering_states(
    model: PreTrainedModel, batch: ClipBatch, clips: Sequence[CalibrationClip]
) -> Tensor:
    """The hidden states (batch, frames, width) that enter the first layer of the encoder."""
    with layer_calls_caught(encoder_layers(model), only_first=True) as caught:
        run_encoder(model, batch.inputs(clips))
    return caught[0][0]


class Layerwise(Protocol):
    """The layers of a stack, each of which can be run alone on hidden states."""

    def __call__(
        self, batch: ClipBatch, layer: int, states: Tensor, instead: nn.Module | None = None
    ) -> Tensor:
        """What a layer, or that of a pruned model in its place, makes of hidden states."""
        ...


class LayerwiseEncoder:
    """The layers of an encoder, and what it hands each of them beside hidden states.

    That depends on the shape of a batch alone, so it is found out once for each.
    """

    def __init__(self, model: PreTrainedModel, states: HiddenStates) -> None:
        self._model = model
        self._states = states
        self._calls: dict[int, list[KeptCall]] = {}
        self.layers = encoder_layers(model)

    @torch.no_grad()
    def start(self, batch: ClipBatch, clips: Sequence[CalibrationClip]) -> Tensor:
        """The hidden states (batch, frames, width) that enter the first layer."""
        known = batch.shape in self._calls
        with layer_calls_caught(self.layers, only_first=known) as caught:
            run_encoder(self._model, batch.inputs(clips))
        if not known:
            calls = [call for _, call in caught]
            self._calls[batch.shape] = kept_calls(calls, f"call/{batch.shape}", self._states)
        return caught[0][0]

    def __call__(
        self, batch: ClipBatch, layer: int, states: Tensor, instead: nn.Module | None = None
    ) -> Tensor:
        """What a layer, or another module in its place, makes of hidden states."""
        call = self._calls[batch.shape][layer].call(self._states)
        return call(self.layers[layer] if instead is None else instead, states)


@dataclass(frozen=True)
class KeptCall:
    """A call whose tensors lie among the hidden states, by their place among its arguments."""

    structure: TreeSpec
    plain: Sequence[Any]
    tensors: Mapping[int, str]
    by_name: str | None

    def call(self, states: HiddenStates, heard: str = "") -> LayerCall:
        """The call again; `heard` is the name of what takes the place of what was named `HEARD`."""
        leaves = [
            states.get(self.tensors[place].replace(HEARD, heard)) if place in self.tensors else leaf
            for place, leaf in enumerate(self.plain)
        ]
        rest, named = tree_unflatten(leaves, self.structure)
        return LayerCall(rest, named, self.by_name)


def kept_calls(
    calls: Sequence[LayerCall], name: str, states: HiddenStates, heard: Tensor | None = None
) -> list[KeptCall]:
    """Keep calls with their tensors, which are named by `name`, once each.

    `heard` is not kept but left open, since it is another for every batch.
    """
    # A position bias may be large, and all layers are handed the same one.
    names: dict[int, str] = {} if heard is None else {id(heard): HEARD}
    kept = []
    for call in calls:
        leaves, structure = tree_flatten((call.rest, dict(call.named)))
        for leaf in leaves:
            if isinstance(leaf, Tensor) and id(leaf) not in names:
                names[id(leaf)] = f"{name}/{len(names)}"
                states.put(names[id(leaf)], leaf)
        own = {
            place: names[id(leaf)] for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)
        }
        plain = [None if place in own else leaf for place, leaf in enumerate(leaves)]
        kept.append(KeptCall(structure, plain, own, call.by_name))
    return kept


class Enough(Exception):  # noqa: N818 - not an error: the rest of a pass is not asked for
    """All that was to be caught has been."""


@contextmanager
def layer_calls_caught(
    layers: Sequence[nn.Module], only_first: bool
) -> Iterator[list[tuple[Tensor, LayerCall]]]:
    """Collect what each layer is called with; `only_first` leaves the rest of the pass alone."""
    caught: list[tuple[Tensor, LayerCall]] = []

    def keep(_module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        if positional:
            caught.append((positional[0].detach(), LayerCall(positional[1:], named, None)))
        else:
            name = name_of_states(named)
            others = {key: value for key, value in named.items() if key != name}
            caught.append((named[name].detach(), LayerCall((), others, name)))
        if only_first:
            raise Enough

    with suppress(Enough), ExitStack() as stack:
        for layer in layers:
            handle = layer.register_forward_pre_hook(keep, with_kwargs=True)
            stack.callback(handle.remove)
        yield caught


def name_of_states(named: Mapping[str, Any]) -> str:
    """What a module is told its hidden states by, where not as the first argument."""
    return next(name for name in ("hidden_states", "x") if name in named)
