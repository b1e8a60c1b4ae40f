"""Computes once what passes over the same inputs have in common: all that no change reaches.

Everything is recorded in one pass and given out in later ones, in the place of the modules that
computed it; the model is left as it was found, also after an exception.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

from torch import Tensor, nn
from transformers import PreTrainedModel

from hibprune.models.families import family_of
from hibprune.models.layerwise import encoder_layers
from hibprune.models.sublayers import Sublayer

Prefix = Mapping[str, tuple[Tensor, ...]]
"""Outputs of the modules that no attention reaches, by path; a module may return several."""


@contextmanager
def prefix_recorded(model: PreTrainedModel) -> Iterator[dict[str, tuple[Tensor, ...]]]:
    """Collect, in a forward pass, what the modules in front of the first attention give out."""
    family = family_of(model.config.model_type)
    recorded: dict[str, tuple[Tensor, ...]] = {}

    def keep(path: str) -> Callable[[nn.Module, object, Tensor | tuple[Tensor, ...]], None]:
        def hook(_module: nn.Module, _inputs: object, outputs: Tensor | tuple[Tensor, ...]) -> None:
            parts = outputs if isinstance(outputs, tuple) else (outputs,)
            recorded[path] = tuple(part.detach().clone() for part in parts)

        return hook

    with ExitStack() as stack:
        for path, _ in family.prefix:
            module = model.base_model.get_submodule(path)
            stack.callback(module.register_forward_hook(keep(path)).remove)
        yield recorded


@contextmanager
def prefix_replayed(model: PreTrainedModel, prefix: Prefix) -> Iterator[None]:
    """Give out recorded values in the place of the modules in front of the first attention."""
    family = family_of(model.config.model_type)
    replacements = {path: _replaying_forward(prefix[path]) for path, _ in family.prefix}
    replacements.update(dict.fromkeys(family.bypassed, _nothing))
    with ExitStack() as stack:
        for path, forward in replacements.items():
            module = model.base_model.get_submodule(path)
            module.forward = forward
            stack.callback(delattr, module, "forward")
        yield


def _replaying_forward(parts: tuple[Tensor, ...]) -> Callable[..., object]:
    def forward(*_: object, **__: object) -> object:
        # Copies, since the encoders zero padded frames in place.
        copies = tuple(part.clone() for part in parts)
        return copies[0] if len(copies) == 1 else copies

    return forward


def _nothing(states: Tensor) -> Tensor:
    """An empty tensor, which costs the functions between bypassed modules nothing."""
    return states[..., :0]


Layers = Mapping[int, object]
"""What layers of the encoder give out, by number: a tensor, or a tuple that begins with it."""


def layers_recorded(model: PreTrainedModel) -> AbstractContextManager[dict[int, object]]:
    """Collect, in a forward pass, what each layer of the encoder gives out."""
    return outputs_recorded(encoder_layers(model))


@contextmanager
def outputs_recorded(modules: Sequence[nn.Module]) -> Iterator[dict[int, object]]:
    """Collect, in a forward pass, what some modules give out, by their place; gradients pass."""
    recorded: dict[int, object] = {}

    def keep(number: int) -> Callable[[nn.Module, object, object], None]:
        def hook(_module: nn.Module, _inputs: object, outputs: object) -> None:
            recorded[number] = outputs

        return hook

    with ExitStack() as stack:
        for number, module in enumerate(modules):
            stack.callback(module.register_forward_hook(keep(number)).remove)
        yield recorded


@contextmanager
def layers_replayed(model: PreTrainedModel, recorded: Layers, before: int) -> Iterator[None]:
    """Give out recorded values in the place of the encoder's layers below layer `before`.

    For passes over the inputs of the recording, batched alike, that change nothing below it.
    """
    with ExitStack() as stack:
        for number, layer in enumerate(encoder_layers(model)[:before]):
            layer.forward = _giving_out(recorded[number])
            stack.callback(delattr, layer, "forward")
        yield


def layers_repeated(recorded: Layers, samples: int, times: int) -> dict[int, object]:
    """What the layers would give out if each of the samples came `times` times in a row."""
    return {layer: _repeated(outputs, samples, times) for layer, outputs in recorded.items()}


def _repeated(outputs: object, samples: int, times: int) -> object:
    if isinstance(outputs, tuple):
        return tuple(_repeated(part, samples, times) for part in outputs)
    if isinstance(outputs, Tensor):
        # A position bias has samples times heads in front.
        return outputs.unflatten(0, (samples, -1)).repeat_interleave(times, 0).flatten(0, 1)
    return outputs


def _giving_out(outputs: object) -> Callable[..., object]:
    def forward(*_: object, **__: object) -> object:
        return outputs

    return forward


@contextmanager
def encoder_kept(model: PreTrainedModel) -> Iterator[None]:
    """Run an encoder in front of a decoder once, and let later passes have what it gave out.

    For passes over the same inputs that differ in the decoder alone.
    """
    encoder = model.get_encoder()
    compute = encoder.forward
    kept: list[object] = []

    def forward(*inputs: object, **named: object) -> object:
        if not kept:
            kept.append(compute(*inputs, **named))
        return kept[0]

    encoder.forward = forward
    try:
        yield
    finally:
        del encoder.forward


@contextmanager
def heads_replayed(
    given: Sequence[tuple[Sublayer, Tensor]], counts: dict[nn.Module, int]
) -> Iterator[None]:
    """Let attention write what its heads gave out (batch, frames, units · size) in an earlier pass.

    Of all that leads to it, only the writer may have changed since. `counts` keeps how many things
    an attention hands back, so that its first pass with the same `counts` computes all; beside the
    first of them, None is handed back later.
    """
    with ExitStack() as stack:
        for sublayer, units in given:
            attention = sublayer.attention
            if attention is not None and sublayer.units:
                attention.forward = _writing(sublayer, attention, units, counts)
                stack.callback(delattr, attention, "forward")
        yield


def _writing(
    sublayer: Sublayer, attention: nn.Module, units: Tensor, counts: dict[nn.Module, int]
) -> Callable[..., object]:
    compute = attention.forward

    def forward(*inputs: object, **named: object) -> object:
        if attention not in counts:
            found = compute(*inputs, **named)
            counts[attention] = len(found) if isinstance(found, tuple) else 0
            return found
        first = sublayer.writer(units) if sublayer.writes_inside else units
        return (first, *[None] * (counts[attention] - 1)) if counts[attention] else first

    return forward
