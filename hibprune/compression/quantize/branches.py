"""Takes the branches of a merged decoder apart into models of their own, and puts them back.

A merged decoder is one If: the decoder without past, or with it, over the same stored weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hibprune.compression.quantize.graphs import branches


@dataclass(frozen=True)
class Part:
    """A graph that can be converted on its own, as a model; and when it runs.

    `condition` is the input of the whole that chooses it by being `chosen`; a whole that has no
    branches is one part, without a condition.
    """

    model: Any
    condition: str | None = None
    chosen: bool = True

    def takes(self, feed: Mapping[str, Any]) -> bool:
        """Whether these inputs of the whole reach it."""
        return self.condition is None or bool(feed[self.condition].all()) == self.chosen


def is_merged(model: Any) -> bool:
    """Whether a model is a choice between two graphs and nothing else."""
    nodes = list(model.graph.node)
    inputs = {one.name for one in model.graph.input}
    return (
        len(nodes) == 1
        and nodes[0].op_type == "If"
        and nodes[0].input[0] in inputs
        and not any(branches(node) for inner in branches(nodes[0]) for node in inner.node)
    )


def parts_of(model: Any) -> list[Part]:
    """The branches of a merged model as models of their own; otherwise the model itself."""
    if not is_merged(model):
        return [Part(model)]
    node = model.graph.node[0]
    return [
        Part(_standalone(model, attribute.g), node.input[0], attribute.name == "then_branch")
        for attribute in node.attribute
    ]


def _standalone(model: Any, branch: Any) -> Any:
    import onnx

    named = {name for node in branch.node for name in node.input}
    graph = onnx.helper.make_graph(
        branch.node,
        branch.name,
        [one for one in model.graph.input if one.name in named],
        branch.output,
        [*branch.initializer, *(one for one in model.graph.initializer if one.name in named)],
    )
    return onnx.helper.make_model(
        graph, opset_imports=model.opset_import, ir_version=model.ir_version
    )


def put_back(model: Any, parts: list[Any]) -> None:
    """Replace the branches of a merged model by models, which have the same inputs and outputs.

    What several of them store alike stands once beside the choice, as before.
    """
    stored: dict[str, Any] = {}
    for attribute, part in zip(model.graph.node[0].attribute, parts, strict=True):
        own = {one.name for one in attribute.g.initializer}
        renamed = {}
        kept = []
        for tensor in part.graph.initializer:
            if tensor.name in own:
                kept.append(tensor)
                continue
            name = next(_names(tensor, stored))
            if name != tensor.name:
                renamed[tensor.name] = name
                tensor.name = name
            stored[name] = tensor
        for node in part.graph.node:
            node.input[:] = [renamed.get(name, name) for name in node.input]
        attribute.g.ClearField("node")
        attribute.g.ClearField("initializer")
        attribute.g.node.extend(part.graph.node)
        attribute.g.initializer.extend(kept)
    model.graph.ClearField("initializer")
    model.graph.initializer.extend(stored.values())


def _names(tensor: Any, stored: dict[str, Any]) -> Iterator[str]:
    """Names under which a tensor may stand: free ones, and that of its equal."""
    name = str(tensor.name)
    while True:
        if name not in stored or _same(stored[name], tensor):
            yield name
        name += "_"


def _same(first: Any, second: Any) -> bool:
    return bool(first.data_type == second.data_type and first.raw_data == second.raw_data)
