"""Tiny models of every family as graphs, with inputs for each, made once and not to be changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from tiny_models import PLANS, READING, SPEAKING, TAGGING, TinyModel

from hibprune.compression.quantize.examples import graph_feeds
from hibprune.compression.quantize.value_ranges import Feed
from hibprune.deployment.export import export_onnx
from hibprune.execution.runtime import onnx_session

TASKS = {
    TAGGING: "audio-classification",
    READING: "text-classification",
    SPEAKING: "automatic-speech-recognition-with-past",
}
GRAPHS = {SPEAKING: ("encoder_model.onnx", "decoder_model_merged.onnx")}
TOKENS = (1, 4, 9, 7, 5)


@dataclass(frozen=True)
class TinyExport:
    """The graphs of a tiny model in `directory`/onnx."""

    tiny: TinyModel
    directory: Path

    @property
    def graphs(self) -> tuple[str, ...]:
        return GRAPHS.get(self.tiny.auto_class, ("model.onnx",))

    def path(self, graph: str) -> Path:
        return self.directory / "onnx" / graph

    def feeds(self, *graphs: str, seconds: float = 0.25) -> dict[str, list[Feed]]:
        """Inputs of these graphs, all where none is named."""
        example = self.tiny.inputs(seconds=seconds)
        example.pop("decoder_input_ids", None)
        return graph_feeds(self.directory / "onnx", graphs or self.graphs, [example], TOKENS)


def export_tiny(tiny: TinyModel, directory: Path, plan: str | None) -> TinyExport:
    """Export a tiny model, without the heads of one of the PLANS."""
    made = TinyExport(tiny, directory)
    model = tiny.build()
    if plan is not None:
        model.prune_heads(PLANS[plan])
    made.path("").mkdir(parents=True)
    export_onnx(model, made.path(""), TASKS[tiny.auto_class], 18, made.graphs)
    return made


Exports = Callable[..., TinyExport]
"""Takes a tiny model and, as `plan`, one of the PLANS."""


def run(path: Path, feed: Feed) -> dict[str, np.ndarray]:
    """What a graph gives out by name, tensors without elements left out."""
    session = onnx_session(path, "cpu", threads=1)
    given = session.run(None, {one.name: feed[one.name] for one in session.get_inputs()})
    names = [one.name for one in session.get_outputs()]
    return {name: value for name, value in zip(names, given, strict=True) if value.size}


def distance(wanted: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> float:
    """Largest difference of an output as a share of its largest number; NaN counts as infinite."""
    shares = [
        np.abs(wanted[name] - found[name]).max() / np.abs(wanted[name]).max() for name in found
    ]
    return float(np.nan_to_num(max(shares, key=lambda share: (np.isnan(share), share)), nan=np.inf))


def all_graphs(model: Any) -> Iterator[Any]:
    """A model's graph and the branches in it."""
    waiting = [model.graph]
    while waiting:
        graph = waiting.pop()
        yield graph
        waiting += [
            attribute.g
            for node in graph.node
            for attribute in node.attribute
            if attribute.type == onnx.AttributeProto.GRAPH
        ]


def nodes_of(model: Any, *kinds: str) -> list[Any]:
    return [node for graph in all_graphs(model) for node in graph.node if node.op_type in kinds]


def stored_in(model: Any) -> dict[str, np.ndarray]:
    """The stored tensors of a model by name."""
    return {
        one.name: numpy_helper.to_array(one)
        for graph in all_graphs(model)
        for one in graph.initializer
    }


def weight_name(model: Any, node: str) -> str:
    """The name of the weights that a node, named in part, multiplies by."""
    products = nodes_of(model, "MatMul", "Gemm")
    return next(str(one.input[1]) for one in products if node in one.name)


def change(model: Any, name: str, how: Callable[[np.ndarray], np.ndarray]) -> None:
    """Replace a stored tensor by what `how` makes of it."""
    for graph in all_graphs(model):
        for one in graph.initializer:
            if one.name == name:
                changed = np.asarray(how(numpy_helper.to_array(one).copy()), np.float32)
                one.CopyFrom(numpy_helper.from_array(changed, name))
                return
    raise KeyError(name)
