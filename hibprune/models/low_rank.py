"""Projections of an encoder as two thinner matrices, and where they lie."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from hibprune.errors import UserError
from hibprune.models.attention import stack_layers
from hibprune.models.families import family_of
from hibprune.records.units import Kind


class LowRankLinear(nn.Module):
    """A linear layer y = outer · (inner · x) + bias of a rank below that of the whole matrix.

    The inner matrix (rank, columns) is stored under `weight`, where a whole one would be: without
    hibprune, loading then stops at its shape, instead of making up what is not there. The outer one
    (rows, rank) is a layer of its own, with the bias if there is one.
    """

    def __init__(self, columns: int, rows: int, rank: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(rank, columns))
        self.outer = nn.Linear(rank, rows, bias)

    @classmethod
    def of_shape(cls, linear: nn.Linear, rank: int) -> LowRankLinear:
        """One that can take the place of a linear layer; its inner matrix is nothing yet."""
        old = linear.weight
        made = cls(linear.in_features, linear.out_features, rank, linear.bias is not None)
        made = made.to(old.device, old.dtype)
        for weight in made.parameters():
            weight.requires_grad_(old.requires_grad)
        return made.train(linear.training)

    def narrowed(self, kept: Tensor, dim: int) -> LowRankLinear:
        """The same with some rows (`dim` 0) or columns (1) of the whole matrix alone."""
        rows, columns = (len(kept) if dim == axis else size for axis, size in enumerate(self.shape))
        made = LowRankLinear(columns, rows, self.rank, self.bias is not None)
        made = made.to(self.weight.device, self.weight.dtype)
        old = {"weight": self.weight, "outer.weight": self.outer.weight, "outer.bias": self.bias}
        axes = {"weight": 1, "outer.weight": 0, "outer.bias": 0}
        for name, weight in made.named_parameters():
            whole, axis = old[name], axes[name]
            assert whole is not None
            chosen = whole if axis != dim else whole.index_select(axis, kept.to(whole.device))
            weight.data.copy_(chosen.detach())
            weight.requires_grad_(whole.requires_grad)
        return made.train(self.training)

    def forward(self, inputs: Tensor) -> Tensor:
        """Both products, one after the other."""
        outputs: Tensor = self.outer(functional.linear(inputs, self.weight))
        return outputs

    @property
    def bias(self) -> Tensor | None:
        """What is added to both products."""
        return self.outer.bias

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the whole matrix."""
        return self.out_features, self.in_features

    @property
    def rank(self) -> int:
        """How wide it is between its two matrices."""
        return self.weight.shape[0]

    @property
    def in_features(self) -> int:
        """Columns of the whole matrix."""
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        """Rows of the whole matrix."""
        return self.outer.out_features


Projection = nn.Linear | LowRankLinear


def projection(layer: nn.Module, path: str) -> Projection:
    """A projection of a layer by its path, whole or as two matrices."""
    found = layer.get_submodule(path)
    assert isinstance(found, nn.Linear | LowRankLinear)
    return found


def thinner(layer: nn.Module, path: str, rank: int) -> LowRankLinear:
    """Put two matrices of a rank, of no particular values, in the place of a projection.

    One that is two matrices already is left.
    """
    whole = projection(layer, path)
    if isinstance(whole, LowRankLinear):
        return whole
    made = LowRankLinear.of_shape(whole, rank)
    parent, _, name = path.rpartition(".")
    setattr(layer.get_submodule(parent), name, made)
    return made


ProjectionPlace = tuple[int, str]
"""A layer of the encoder, and the path of a projection within it."""


def readers_and_writer(model: PreTrainedModel, kind: Kind, part: int) -> tuple[list[str], str]:
    """The paths of the projections of a sublayer of the encoder's layers: of those that read the
    stream for it, and of the one that writes what comes of it."""
    family = family_of(model.config.model_type)
    if kind == "neuron":
        layout = family.feed_forwards[part]
        return [layout.first], layout.second
    own = family.encoder
    return [f"{own.attention}.{name}" for name in (own.query, own.key, own.value)], own.output


def projections_of(model: PreTrainedModel) -> dict[ProjectionPlace, Projection]:
    """The projections of an encoder, by layer and path."""
    family = family_of(model.config.model_type)
    layers = stack_layers(model.base_model, family.encoder)
    return {
        (number, path): projection(layer, path)
        for number, layer in enumerate(layers)
        for path in family.projections
    }


def require_whole_projections(model: PreTrainedModel, source: str) -> None:
    """See that a model's projections are whole, as scores, removal and repair want them.

    Raises:
        UserError: some are two matrices already.
    """
    if any(isinstance(module, LowRankLinear) for module in model.modules()):
        raise UserError(
            f"{source}: its projections were made two thinner ones each by an earlier run "
            "(budget.ranks), and a run starts from whole ones: take the checkpoint that it was "
            "made of"
        )


def rank_within(rows: int, columns: int, share: float) -> int | None:
    """The largest rank at which two matrices have at most 1 − `share` of the weights of one.

    At least 1. None where two would not be fewer weights than one: it stays one.
    """
    if not rows or not columns:
        return None
    # Rounding first keeps 0.3 × 10 = 2.9999… from losing a rank.
    rank = max(1, int(round((1 - share) * rows * columns / (rows + columns), 9)))
    return rank if rank * (rows + columns) < rows * columns else None


def ranks_within(model: PreTrainedModel, share: float) -> dict[ProjectionPlace, int]:
    """The rank of every projection that two matrices are cheaper for, by layer and path."""
    ranks = {
        place: rank_within(one.out_features, one.in_features, share)
        for place, one in projections_of(model).items()
    }
    return {place: rank for place, rank in ranks.items() if rank is not None}


def ranks_by_layer(model: PreTrainedModel) -> Mapping[str, Mapping[str, int]]:
    """The ranks of projections that are two matrices: `{layer: {path: rank}}`."""
    found: dict[str, dict[str, int]] = {}
    for (layer, path), one in projections_of(model).items():
        if isinstance(one, LowRankLinear):
            found.setdefault(str(layer), {})[path] = one.rank
    return found
