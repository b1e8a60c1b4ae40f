"""Weight norms: what can be said of a head without any data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from transformers import PreTrainedModel

from hibprune.attribution.base import Loss, MethodBase, Sample, Session
from hibprune.models.attention import attention_sites
from hibprune.records.units import Scores


class Magnitude(MethodBase):
    """Product of the Frobenius norms of a head's value rows and output columns.

    The product bounds the norm of what the head can write into the residual stream.
    """

    method: Literal["magnitude"]

    by_sample: ClassVar[bool] = False
    title: ClassVar[str] = "Norm of the head's slice of the value and output projections"
    source: ClassVar[str] = "the usual weight-only baseline"
    cost: ClassVar[str] = "none"

    def attribute(
        self, model: PreTrainedModel, samples: Sequence[Sample], loss: Loss, session: Session
    ) -> Scores:
        norms: list[float] = []
        for site in attention_sites(model):
            rows = site.value.weight.detach().unflatten(0, (-1, site.head_size))
            columns = (
                site.output.get_parameter("weight").detach().unflatten(1, (-1, site.head_size))
            )
            value_norms = rows.float().square().sum((1, 2)).sqrt()
            output_norms = columns.float().square().sum((0, 2)).sqrt()
            norms.extend((value_norms * output_norms).tolist())
        return self.scores(model, (), [tuple(norms)])
