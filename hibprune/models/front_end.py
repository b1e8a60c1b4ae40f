"""The convolutional front end of a live model: its channels, and the weights that read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from hibprune.errors import UserError
from hibprune.models.families import FAMILIES, family_of
from hibprune.models.layouts import Convolutions, FrontEnd, column_blocks
from hibprune.records.units import FRONT_END, Kind, Unit


@dataclass(frozen=True)
class FrontEndPart:
    """One convolution of a front end, or the projection behind the last one.

    `units` are the channels it reads, `writes` those it gives out: none of the first and none of
    the part behind all others, whose inputs and outputs are no units. `module` is the convolution
    with what follows it, or the projection with its norm in front. `units[i]` owns columns i·size
    to (i + 1)·size of the writer's weight seen as a matrix, its windows unfolded.
    """

    layer: int
    module: nn.Module
    writer: nn.Conv1d | nn.Linear
    norm: nn.Module | None
    units: tuple[Unit, ...]
    writes: tuple[Unit, ...]

    @property
    def kind(self) -> Kind:
        """What its units are."""
        return "channel"

    @property
    def stack(self) -> str:
        """What they belong to."""
        return FRONT_END

    @property
    def name(self) -> str:
        """How a report calls it, without its layer."""
        return "feature projection" if self.is_projection else "convolution"

    @property
    def is_projection(self) -> bool:
        """Whether it is the one behind all convolutions."""
        return isinstance(self.writer, nn.Linear)

    @property
    def size(self) -> int:
        """Columns of a unit: a convolution reads as many samples of a channel as its kernel."""
        return self.writer.kernel_size[0] if isinstance(self.writer, nn.Conv1d) else 1

    @property
    def blocks(self) -> list[list[int]]:
        """The columns of each unit."""
        return column_blocks(len(self.units), self.size)

    def windows(self, inputs: Tensor) -> Tensor:
        """What the writer multiplies its columns with: (clips, frames, channels, size), a view.

        Of a convolution that pads its input, of a padded copy.

        `inputs` are the writer's own: (clips, channels, samples) of a convolution, (clips, frames,
        channels) of the projection.
        """
        if isinstance(self.writer, nn.Conv1d):
            stride, padding = self.writer.stride[0], int(self.writer.padding[0])
            if padding:
                inputs = functional.pad(inputs, (padding, padding))
            return inputs.unfold(2, self.size, stride).transpose(1, 2)
        return inputs[..., None]

    def frames(self, samples: int) -> int:
        """How many frames it makes of so many that go in."""
        if isinstance(self.writer, nn.Conv1d):
            padded = samples + 2 * int(self.writer.padding[0])
            return max(0, (padded - self.size) // self.writer.stride[0] + 1)
        return samples


def front_end_parts(model: PreTrainedModel) -> tuple[FrontEndPart, ...]:
    """The convolutions of a model's front end and the projection behind them, in running order.

    Of a family without a front end whose channels can be removed there are none.
    """
    layout = family_of(model.config.model_type).front_end
    if layout is None:
        return ()
    if isinstance(layout, Convolutions):
        return bare_parts(front_end_convolutions(model.base_model, layout))
    parts: list[FrontEndPart] = []
    read: tuple[Unit, ...] = ()
    for number, module in enumerate(front_end_layers(model.base_model, layout)):
        convolution = module.get_submodule(layout.convolution)
        assert isinstance(convolution, nn.Conv1d)
        writes = _written(number, convolution)
        norm = getattr(module, layout.norm, None)
        parts.append(FrontEndPart(number, module, convolution, norm, read, writes))
        read = writes
    projection = model.base_model.get_submodule(layout.projection)
    matrix = projection.get_submodule(layout.matrix)
    assert isinstance(matrix, nn.Linear)
    norm = getattr(projection, layout.norm, None)
    parts.append(FrontEndPart(len(parts), projection, matrix, norm, read, ()))
    return tuple(parts)


def bare_parts(convolutions: Sequence[nn.Conv1d]) -> tuple[FrontEndPart, ...]:
    """Convolutions that follow each other with GELU behind each, as parts of a front end."""
    parts: list[FrontEndPart] = []
    read: tuple[Unit, ...] = ()
    for number, convolution in enumerate(convolutions):
        last = number == len(convolutions) - 1
        writes = () if last else _written(number, convolution)
        module = nn.Sequential(convolution, nn.GELU())
        parts.append(FrontEndPart(number, module, convolution, None, read, writes))
        read = writes
    return tuple(parts)


def _written(number: int, convolution: nn.Conv1d) -> tuple[Unit, ...]:
    """The channels that a convolution still gives out, by their original places."""
    gone = gone_channels(convolution)
    count = convolution.out_channels + len(gone)
    return tuple(
        Unit(number, place, FRONT_END, "channel") for place in range(count) if place not in gone
    )


def front_end_layers(base_model: nn.Module, layout: FrontEnd) -> list[nn.Module]:
    """The layers of a front end, first to last."""
    return list(base_model.get_submodule(layout.layers).children())


def front_end_convolutions(
    base_model: nn.Module, layout: FrontEnd | Convolutions
) -> list[nn.Conv1d]:
    """The convolutions of a front end, first to last."""
    if isinstance(layout, Convolutions):
        found = [base_model.get_submodule(path) for path in layout.paths]
    else:
        layers = front_end_layers(base_model, layout)
        found = [layer.get_submodule(layout.convolution) for layer in layers]
    convolutions = [one for one in found if isinstance(one, nn.Conv1d)]
    assert len(convolutions) == len(found)
    return convolutions


def gone_channels(convolution: nn.Module) -> frozenset[int]:
    """The original places of the channels that were removed from a convolution's output."""
    gone: frozenset[int] = getattr(convolution, "gone_channels", frozenset())
    return gone


def channels_of(model: PreTrainedModel) -> tuple[Unit, ...]:
    """The channels of the front end that are still there, by layer."""
    return tuple(channel for part in front_end_parts(model) for channel in part.writes)


def places_of(units: Iterable[Unit], among: Sequence[Unit]) -> list[int]:
    """Where units stand among others."""
    place = {unit: number for number, unit in enumerate(among)}
    return [place[unit] for unit in units]


def require_front_end(model: PreTrainedModel, place: str = "budget.channels") -> None:
    """See that a model has channels that can be removed, which `place` in a recipe wants.

    Raises:
        UserError: it has not; names the model types that have.
    """
    if not front_end_parts(model):
        types = ", ".join(one.model_type for one in FAMILIES if one.front_end is not None)
        raise UserError(
            f"{place}: model type '{model.config.model_type}' has no convolutional front "
            f"end whose channels can be removed: leave it out (those of {types} can)"
        )
