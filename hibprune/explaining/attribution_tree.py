"""The path by which parts of an input reach an answer: AttAttr's attribution tree (algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from hibprune.attribution.attattr import attributed
from hibprune.attribution.base import Loss, Sample
from hibprune.attribution.batches import Report, read_unmodified
from hibprune.attribution.methods import AttAttr
from hibprune.errors import UserError
from hibprune.execution.progress import StepNarration
from hibprune.execution.steps import Done, Step
from hibprune.explaining.maps import passes_at_once
from hibprune.explaining.room import COPIES_READ, require_room
from hibprune.explaining.subjects import Subject
from hibprune.models.attention import frozen, positions_fitted
from hibprune.records.explanation import AttributionTree, Span, TreeEdge
from hibprune.stages.run import Run, once

THRESHOLD = 0.4
"""τ of the paper: an edge stays where it has more than this share of its layer's largest."""
NOT_THERE, OPEN, FIXED = "NotAppear", "Appear", "Fixed"
"""The three states of algorithm 1."""


@dataclass(frozen=True)
class Grown:
    """A tree: its top and its edges, each with the layer it was found in."""

    top: int
    edges: tuple[TreeEdge, ...]


def grown(
    layers: Sequence[np.ndarray], terminal: int | None = None, threshold: float = THRESHOLD
) -> Grown:
    """Grow the tree from attributions, a matrix (queries, keys) a layer, from the input up.

    `terminal` is the place of the token that the answer is read off; it is no node, and its row
    does not count towards a layer's largest, as in the authors' code. The last layer only gathers
    what the terminal hands on, so that edges are looked for in those below it; without a terminal,
    in all. A layer's edges come row by row.
    """
    size = len(layers[0])
    nodes = [place for place in range(size) if place != terminal]
    off_diagonal = ~np.eye(size, dtype=bool)
    totals = np.where(off_diagonal, np.sum(layers, axis=0), 0.0).sum(1)
    top = max(nodes, key=lambda place: (totals[place], -place))
    state = dict.fromkeys(range(size), NOT_THERE)
    state[top] = OPEN
    edges = []
    below = range(len(layers) - (terminal is not None))
    for layer in reversed(below):
        own = layers[layer]
        largest = float(own[nodes].max())
        for i in nodes:
            for j in nodes:
                if i == j or largest <= 0 or own[i, j] <= threshold * largest:
                    continue
                if state[i] != NOT_THERE and state[j] == NOT_THERE:
                    state[i], state[j] = FIXED, OPEN
                    edges.append(TreeEdge(parent=i, child=j, layer=layer, weight=float(own[i, j])))
    return Grown(top, tuple(edges))


def by_word(layers: Sequence[np.ndarray], words: Sequence[Span]) -> list[np.ndarray]:
    """Attributions between words: sums over the frames of both; frames of no word stay out."""
    places = [slice(int(word.start), max(int(word.start) + 1, round(word.end))) for word in words]
    return [
        np.array([[own[one, other].sum() for other in places] for one in places]) for own in layers
    ]


def attributions(
    method: AttAttr,
    model: PreTrainedModel,
    sample: Sample,
    loss: Loss,
    report: Report = lambda share, value: None,
) -> list[Tensor]:
    """Attr(A) (heads, positions, positions) of every layer with heads, on one sample."""
    with frozen(model), positions_fitted(model, sample.inputs):
        calibration = read_unmodified(model, [sample])
        at_once = passes_at_once(method, calibration)
        found = attributed(method, model, calibration, loss, at_once, report)
    return [found[layer][0].cpu() for layer in sorted(found)]


def tree_of(run: Run, subject: Subject) -> Done[AttributionTree]:
    """The attribution tree of a text's tokens or a transcript's words.

    Raises:
        UserError: there are no such parts, or fewer than two.
    """
    model, task = run.checkpoint.model, run.recipe.task
    axis = subject.axis
    if task.kind not in ("text-classification", "asr-ctc"):
        raise UserError("trees are of texts to classify and of words that CTC aligns")
    terminal = None
    names = [word.text for word in axis.words]
    if axis.tokens:
        names = list(axis.tokens)
        special = set(run.checkpoint.preprocessor.part.all_special_tokens)
        terminal = 0 if names[0] in special else None
    if len(names) - (terminal is not None) < 2:
        raise UserError("a tree needs two words, and the model hears fewer")
    method = AttAttr(method="attattr").for_task(task.kind)
    require_room(method, model, axis.positions, COPIES_READ)

    def compute(_: Step[AttributionTree], narration: StepNarration) -> AttributionTree:
        def report(share: float, loss: float) -> None:
            narration.advance(share, 1)

        found = attributions(method, model, subject.sample, task.loss, report)
        layers = [one.sum(0).double().numpy() for one in found]
        if axis.words:
            layers = by_word(layers, axis.words)
        tree = grown(layers, terminal)
        return AttributionTree(
            clip=subject.clip.id,
            names=tuple(names),
            terminal=terminal,
            threshold=THRESHOLD,
            layers=len(layers),
            top=tree.top,
            edges=tree.edges,
        )

    return once(
        run,
        f"explain/tree-{subject.identity[:16]}",
        {
            "clip": subject.identity,
            "target": list(subject.sample.target),
            "attattr": method.model_dump(mode="json", exclude=set(method.resources)),
            "threshold": THRESHOLD,
        },
        AttributionTree,
        compute,
        lambda found: f"{len(found.edges)} edges below {found.names[found.top]}",
        credible=lambda kept: (
            kept.names == tuple(names)
            and all(
                0 <= place < len(names)
                for place in (kept.top, *(p for e in kept.edges for p in (e.parent, e.child)))
            )
        ),
        said="tree",
    )
