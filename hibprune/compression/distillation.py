"""How far a pruned model is from the original on some clips: what recovery makes small.

Both are given the same. Each part of the loss is one number a clip, whatever other clips are beside
it in a batch, so that how clips are put together changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from hibprune.compression.recover_settings import LossWeights
from hibprune.compression.training_clips import TrainingBatch
from hibprune.errors import UserError
from hibprune.models.layerwise import encoder_layers
from hibprune.models.layerwise_decoder import decoder_layers
from hibprune.models.replay import outputs_recorded
from hibprune.tasks import TaskBase
from hibprune.tasks.base import Choice


@dataclass(frozen=True)
class Answer:
    """What a model gives out for a batch: logits, and the hidden states behind its layers."""

    logits: Tensor
    states: tuple[Tensor, ...]

    def of(self, place: int) -> Answer:
        """That of one clip."""
        rows = slice(place, place + 1)
        return Answer(self.logits[rows].clone(), tuple(one[rows].clone() for one in self.states))

    @classmethod
    def together(cls, answers: Sequence[Answer]) -> Answer:
        """Those of several clips of one shape."""
        states = zip(*(one.states for one in answers), strict=True)
        return cls(torch.cat([one.logits for one in answers]), tuple(map(torch.cat, states)))

    @property
    def size_bytes(self) -> int:
        """Memory that it takes up."""
        return sum(one.nbytes for one in (self.logits, *self.states))


class KeptAnswers:
    """What the original says of clips that come again, in memory up to `room_bytes`."""

    def __init__(self, room_bytes: int) -> None:
        self._room = room_bytes
        self._kept: dict[object, Answer] = {}

    def __call__(self, batch: TrainingBatch, compute: Callable[[], Answer]) -> Answer:
        """The answer to a batch, computed if any of its clips is not known in this shape."""
        names = [(name, *batch.heard.shape[1:], *batch.length) for name in batch.batch.ids]
        if all(name in self._kept for name in names):
            return Answer.together([self._kept[name] for name in names])
        found = compute()
        for place, name in enumerate(names):
            own = found.of(place)
            if name not in self._kept and own.size_bytes <= self._room:
                self._room -= own.size_bytes
                self._kept[name] = own
        return found


@dataclass(frozen=True)
class Distillation:
    """The loss of a pruned model against the original, by the weights of its parts."""

    task: TaskBase
    weights: LossWeights
    temperature: float

    def answer(self, model: PreTrainedModel, batch: TrainingBatch) -> Answer:
        """What a model gives out, with gradients where it has any.

        Raises:
            UserError: it gives out no logits.
        """
        layers = self._layers(model)
        with outputs_recorded(layers) as recorded:
            try:
                logits = self.task.logits(model, batch.batch)
            except AttributeError as error:
                if getattr(error, "name", None) != "logits":
                    raise
                raise UserError(
                    "recover: the model gives out no logits to learn from: leave recover out"
                ) from error
        states = (_first(recorded[number]) for number in range(len(layers)))
        return Answer(logits, tuple(states))

    def losses(
        self, model: PreTrainedModel, wanted: Answer, found: Answer, batch: TrainingBatch
    ) -> Tensor:
        """The loss of each clip (clips,)."""
        total = torch.zeros(len(batch.batch.ids), device=found.logits.device)
        if self.weights.logits:
            pairs = zip(
                self.task.choices(wanted.logits, batch.batch),
                self.task.choices(found.logits, batch.batch),
                strict=True,
            )
            for teacher, student in pairs:
                total = total + self.weights.logits * divergence(teacher, student, self.temperature)
        if self.weights.hidden:
            counts = batch.counts(len(encoder_layers(model)), len(found.states))
            apart = state_distance(wanted.states, found.states, counts)
            total = total + self.weights.hidden * apart
        if self.weights.task:
            own = self.task.loss_of(model, found.logits, batch.batch)
            total = total + self.weights.task * own
        return total

    def _layers(self, model: PreTrainedModel) -> list[nn.Module]:
        """Those whose hidden states are matched."""
        if not self.weights.hidden:
            return []
        spoken = decoder_layers(model) if self.task.generation is not None else []
        return [*encoder_layers(model), *spoken]


def divergence(teacher: Choice, student: Choice, temperature: float = 1.0) -> Tensor:
    """Kullback–Leibler divergence of a student's choices from a teacher's (clips,), in nats.

    A mean over the places that count, of distributions softened by the temperature T, times T²,
    which keeps gradients as large as at T = 1 (Hinton et al. 2015).
    """
    wanted = functional.log_softmax(teacher.logits / temperature, dim=-1)
    found = functional.log_softmax(student.logits / temperature, dim=-1)
    apart = functional.kl_div(found, wanted, reduction="none", log_target=True).sum(-1)
    return temperature**2 * _mean(apart, teacher.counts)


def state_distance(
    wanted: Sequence[Tensor], found: Sequence[Tensor], counts: Sequence[Tensor]
) -> Tensor:
    """How far hidden states (clips, frames, width) are from others (clips,): a mean over layers.

    Of each layer Σ|t − s| / Σ|t| over the frames that count, plus their mean 1 − cos(t, s): L1 and
    cosine as in DPHuBERT (Peng et al. 2023), L1 as a share so that layers of large numbers weigh no
    more, and the cosine's part without the logarithm of a sigmoid around it, so that equal states
    are 0 apart.
    """
    total = torch.zeros(len(found[0]), device=found[0].device)
    for teacher, student, own in zip(wanted, found, counts, strict=True):
        t, s = teacher.float(), student.float()
        there = own[..., None].to(t.dtype)
        size = (t.abs() * there).sum((1, 2)).clamp(min=1e-12)
        share = ((t - s).abs() * there).sum((1, 2)) / size
        # ½ ‖t/‖t‖ − s/‖s‖‖², which is exactly 0 for equal states.
        turned = functional.normalize(t, dim=-1) - functional.normalize(s, dim=-1)
        total = total + share + _mean(turned.square().sum(-1) / 2, own)
    return total / len(found)


def _mean(values: Tensor, counts: Tensor) -> Tensor:
    """Mean of values (clips, places) over the places that count (clips,)."""
    there = counts.to(values.dtype)
    return (values * there).sum(1) / there.sum(1).clamp(min=1)


def _first(outputs: object) -> Tensor:
    found = outputs[0] if isinstance(outputs, tuple) else outputs
    assert isinstance(found, Tensor)
    return found
