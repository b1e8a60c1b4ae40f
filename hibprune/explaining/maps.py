"""Four views of a head on one clip: its attention, what HIB learns of it twice, and AttAttr's.

As in the HIB paper's figures 3, 4 and 7.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from hibprune.attribution.attattr import attributed
from hibprune.attribution.base import Loss
from hibprune.attribution.batches import CalibrationBatch, Report, read_unmodified
from hibprune.attribution.hib import optimise
from hibprune.attribution.hib_settings import HeadInformationBottleneck
from hibprune.attribution.methods import AttAttr
from hibprune.attribution.noise import SeededNoise
from hibprune.attribution.noisy_channel import pearson
from hibprune.execution.files import digest
from hibprune.execution.progress import StepNarration
from hibprune.execution.steps import Done, Step
from hibprune.explaining.room import COPIES_LEARNT, require_room
from hibprune.explaining.subjects import Subject
from hibprune.models.attention import attention_sites, frozen, positions_fitted
from hibprune.records.explanation import ClipMaps, HeadMap, Matrix
from hibprune.records.units import Head
from hibprune.stages.run import Run, once

STANDING_OUT = 4
"""Heads drawn where none is named."""
CELLS = 96
"""Of a map's side; of longer clips, neighbours are averaged."""
DIGITS = 4
CELLS_AT_ONCE = 20_000_000
"""Of one layer's attention that AttAttr's passes of a batch may have together."""


def maps_of(run: Run, subject: Subject, heads: Sequence[Head]) -> Done[ClipMaps]:
    """The maps of some heads, or of those that AttAttr finds most on, on a clip.

    Raises:
        UserError: they do not fit into memory.
    """
    task = run.recipe.task
    own = run.recipe.method_of("head")
    usual = HeadInformationBottleneck(method="hib")
    hib = own if isinstance(own, HeadInformationBottleneck) else usual
    hib = hib.model_copy(update={"steps": None, "most_steps": None} if hib.steps == "auto" else {})
    hib = hib.for_task(task.kind)
    attattr = AttAttr(method="attattr").for_task(task.kind)
    settings = hib.model_dump(mode="json", exclude={*hib.resources, "activation", "score"})
    inputs = {
        "clip": subject.identity,
        "target": list(subject.sample.target),
        "heads": [[head.layer, head.index] for head in heads],
        "hib": settings,
        "attattr": attattr.model_dump(mode="json", exclude=set(attattr.resources)),
        "seed": run.recipe.seed,
    }

    def compute(_: Step[ClipMaps], narration: StepNarration) -> ClipMaps:
        def report(share: float, loss: float) -> None:
            narration.advance(share, 1, f"loss {loss:.3f}")

        return clip_maps(
            hib, attattr, run.checkpoint.model, subject, task.loss, heads, run.recipe.seed, report
        )

    return once(
        run,
        f"explain/maps-{digest(subject.clip.id, str(inputs['heads']))[:16]}",
        inputs,
        ClipMaps,
        compute,
        lambda found: f"{len(found.heads)} heads of {subject.clip.id}",
        credible=lambda kept: kept.clip == subject.clip.id and len(kept.heads) > 0,
        said="maps",
    )


def clip_maps(
    hib: HeadInformationBottleneck,
    attattr: AttAttr,
    model: PreTrainedModel,
    subject: Subject,
    loss: Loss,
    heads: Sequence[Head],
    seed: int,
    report: Report = lambda share, value: None,
) -> ClipMaps:
    """Learn and attribute the attention of all heads on one clip, and keep the maps of some.

    Raises:
        UserError: they do not fit into memory.
    """
    require_room(hib, model, subject.axis.positions, COPIES_LEARNT)
    assert hib.beta is not None
    assert hib.noise is not None
    sample = subject.sample

    def part(number: int) -> Report:
        return lambda share, value: report((number + share) / 3, value)

    with frozen(model), positions_fitted(model, sample.inputs):
        calibration = read_unmodified(model, [sample])
        learnt = {}
        for number, activation in enumerate(("softmax", "sigmoid")):
            method = hib.model_copy(update={"activation": activation})
            noise = SeededNoise.for_batch(calibration, seed)
            learnt[activation] = optimise(method, model, calibration, loss, noise, part(number))
        found = attributed(
            attattr, model, calibration, loss, passes_at_once(attattr, calibration), part(2)
        )
    places = {
        head: (site.layer, place)
        for site in attention_sites(model)
        for place, head in enumerate(site.heads)
    }
    chosen = heads or standing_out(found, places)
    alike = {
        layer: pearson(learnt["softmax"][layer], own, calibration.valid)[0]
        for layer, own in calibration.attention.items()
    }
    maps = []
    for head in chosen:
        layer, place = places[head]
        maps.append(
            HeadMap(
                head=head,
                own=_cells(calibration.attention[layer][0, place]),
                softmax=_cells(learnt["softmax"][layer][0, place]),
                sigmoid=_cells(learnt["sigmoid"][layer][0, place]),
                attribution=_cells(found[layer][0, place]),
                similarity=float(alike[layer][place]),
                largest=float(found[layer][0, place].max()),
            )
        )
    return ClipMaps(
        clip=subject.clip.id,
        heads=tuple(maps),
        beta=hib.beta,
        noise=hib.noise,
        steps=hib.limit,
        answer=str(attattr.answer),
    )


def passes_at_once(method: AttAttr, calibration: CalibrationBatch) -> int:
    """How many of AttAttr's steps go through the model together."""
    largest = max(weights[0].numel() for weights in calibration.attention.values())
    return max(1, min(method.steps, CELLS_AT_ONCE // largest))


def standing_out(found: Mapping[int, Tensor], places: Mapping[Head, tuple[int, int]]) -> list[Head]:
    """The heads with the largest entries of AttAttr on a clip, the largest first."""
    largest = {head: float(found[layer][0, place].max()) for head, (layer, place) in places.items()}
    return sorted(largest, key=lambda head: (-largest[head], head))[:STANDING_OUT]


def _cells(matrix: Tensor) -> Matrix:
    """A square matrix, beyond `CELLS` a side pooled to their mean, in a few digits."""
    size = min(CELLS, len(matrix))
    pooled = functional.adaptive_avg_pool2d(matrix.detach()[None].float(), size)[0].cpu()
    return tuple(tuple(float(f"{value:.{DIGITS}g}") for value in row) for row in pooled.tolist())
