"""Walks ONNX graphs, branches included, and tells which layer of the model a node belongs to."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hibprune.errors import UserError

MULTIPLICATIONS = ("MatMul", "Gemm")

_LAYER = re.compile(r"(?:layers?|blocks?)\.(\d+)")
_CROSS_ATTENTION = re.compile(r"encoder_attn|cross_?att", re.IGNORECASE)
_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)


@dataclass(frozen=True)
class Multiplication:
    """A node that multiplies by stored weights, and those (an ONNX tensor)."""

    node: Any
    weight: Any

    @property
    def name(self) -> str:
        return str(self.node.name)


def read_graph(path: Path) -> Any:
    """The ONNX model in a file; every node has a name.

    Raises:
        UserError: it cannot be read as one.
    """
    import onnx

    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf raises its own types
        raise UserError(f"{path}: cannot be read as an ONNX file: export it again") from error
    taken = {node.name for graph, _ in scopes(model.graph) for node in graph.node}
    for graph, _ in scopes(model.graph):
        for number, node in enumerate(graph.node):
            if not node.name:
                node.name = _free_name(f"{node.op_type}_{number}", taken)
    return model


def _free_name(wanted: str, taken: set[str]) -> str:
    name = wanted
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def scopes(
    graph: Any, outer: Mapping[str, Any] | None = None
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Every graph in a graph, itself first, with the stored tensors its nodes can name."""
    stored = {**(outer or {}), **{tensor.name: tensor for tensor in graph.initializer}}
    yield graph, stored
    for node in graph.node:
        for inner in branches(node):
            yield from scopes(inner, stored)


def branches(node: Any) -> list[Any]:
    """The graphs within a node, such as those of an If."""
    return [
        inner
        for attribute in node.attribute
        for inner in ([attribute.g] if attribute.HasField("g") else attribute.graphs)
    ]


def self_description(model: Any) -> tuple[list[Any], list[Any]]:
    """Copies of what a model says about itself, its metadata and its outputs."""
    return copy.deepcopy((list(model.metadata_props), list(model.graph.output)))


def restore_description(model: Any, properties: list[Any], outputs: list[Any]) -> None:
    """Let a converted model say what the original said, and take inferred shapes out again."""
    model.ClearField("metadata_props")
    model.metadata_props.extend(properties)
    model.graph.ClearField("output")
    model.graph.output.extend(outputs)
    for graph, _ in scopes(model.graph):
        graph.ClearField("value_info")


def multiplications(model: Any) -> list[Multiplication]:
    """Products with a stored float32 matrix, but for those that an emptied layer left.

    The matrix may be turned on the way, as where the output projection is the table of embeddings.
    """
    from onnx import TensorProto

    return [
        Multiplication(node, weight)
        for graph, stored in scopes(model.graph)
        for turned in [turns(graph, stored)]
        for node in graph.node
        if _is_plain_product(node)
        if (weight := turned.get(node.input[1], stored.get(node.input[1]))) is not None
        if weight.data_type == TensorProto.FLOAT and len(weight.dims) == 2 and 0 not in weight.dims
    ]


def turns(graph: Any, stored: Mapping[str, Any]) -> dict[str, Any]:
    """Stored matrices by the names under which nodes of a graph give them out transposed."""
    return {
        node.output[0]: stored[node.input[0]]
        for node in graph.node
        if node.op_type == "Transpose" and node.input[0] in stored
        if len(stored[node.input[0]].dims) == 2
        if all(list(one.ints) == [1, 0] for one in node.attribute)
    }


def _is_plain_product(node: Any) -> bool:
    """A MatMul, or a Gemm that is one but for its bias and how its weights are stored."""
    factors = {one.name: one.f for one in node.attribute if one.name in ("alpha", "beta")}
    turned = any(one.name == "transA" and one.i for one in node.attribute)
    return node.op_type in MULTIPLICATIONS and set(factors.values()) <= {1.0} and not turned


def layer_groups(models: Iterable[tuple[str, Any]]) -> dict[str, dict[str, list[str]]]:
    """Multiplications by what they are part of: `{"encoder layer 3 attention": {file: [nodes]}}`.

    `models` are graphs with the names of their files. Those of one stack, as decoders with and
    without past, share its groups. What lies before the first layer are input layers, what lies
    after it output layers.
    """
    groups: dict[str, dict[str, list[str]]] = {}
    for file, model in models:
        stack = next((part for part in ("encoder", "decoder") if file.startswith(part)), "")
        for name, group in _grouped([one.name for one in multiplications(model)], stack):
            names = groups.setdefault(group, {}).setdefault(file, [])
            if name not in names:
                names.append(name)
    return groups


def _grouped(names: Iterable[str], stack: str) -> Iterator[tuple[str, str]]:
    side = "input"
    for name in names:
        group = _layer_part(name.strip("/").split("/"), stack)
        if group is not None:
            side = "output"
        yield name, group or f"{stack} {side} layers".strip()


def _layer_part(path: list[str], stack: str) -> str | None:
    """`encoder layer 3 attention` for encoder, layers.3, attention, q_proj; None outside layers."""
    for place, component in enumerate(path):
        layer = _LAYER.fullmatch(component)
        if layer is None:
            continue
        within = "/".join(path[place + 1 :])
        if _CROSS_ATTENTION.search(within):
            part = "cross-attention"
        else:
            part = "attention" if _ATTENTION.search(within) else "feed-forward"
        return f"{path[place - 1] if place else stack} layer {layer[1]} {part}".strip()
    return None
