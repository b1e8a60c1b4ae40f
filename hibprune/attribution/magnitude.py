"""Weight norms: what can be said of a head without any data."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from transformers import PreTrainedModel

from hibprune.attribution.base import Loss, Sample, Session, scores_of
from hibprune.attribution.methods import Magnitude
from hibprune.models.attention import attention_sites, heads_of
from hibprune.models.feed_forward import feed_forward_sites, neurons_of
from hibprune.models.front_end import channels_of, front_end_parts
from hibprune.records.units import POOLS, Pool, Scores


def attribute(
    method: Magnitude,
    model: PreTrainedModel,
    samples: Sequence[Sample],
    loss: Loss,
    session: Session,
    pool: Pool = "head",
) -> Scores:
    """Norms of every unit still there; samples and loss are not looked at."""
    norms: list[float] = []
    if pool == "channel":
        parts = front_end_parts(model)
        for part, reader in pairwise(parts):
            rows = part.writer.weight.detach().float().flatten(1).norm(dim=1)
            columns = reader.writer.weight.detach().float().flatten(1)
            columns = columns.unflatten(1, (-1, reader.size))
            norms.extend((rows * columns.square().sum((0, 2)).sqrt()).tolist())
        return scores_of(method, model, (), [tuple(norms)], channels_of(model))
    kind, stack = POOLS[pool]
    if kind == "neuron":
        for layer in feed_forward_sites(model, stack):
            own = layer.first.weight.detach().float().unflatten(0, (layer.layout.rows, -1))
            rows = own.square().sum((0, 2)).sqrt()
            norms.extend((rows * layer.second.weight.detach().float().norm(dim=0)).tolist())
        return scores_of(method, model, (), [tuple(norms)], neurons_of(model, stack))
    for site in attention_sites(model, [stack]):
        rows = site.value.weight.detach().unflatten(0, (-1, site.head_size))
        columns = site.output.get_parameter("weight").detach().unflatten(1, (-1, site.head_size))
        value_norms = rows.float().square().sum((1, 2)).sqrt()
        output_norms = columns.float().square().sum((0, 2)).sqrt()
        norms.extend((value_norms * output_norms).tolist())
    return scores_of(method, model, (), [tuple(norms)], heads_of(model, [stack]))
