"""Stores weights as nodes multiply by them, and lets a table of embeddings share them in int8.

The output projection of many decoders is the table of embeddings, turned. Stored once in float32,
it would be stored twice with one of the two in int8, and hardly smaller than before.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from hibprune.compression.quantize.graphs import scopes, turns


def store_as_multiplied(model: Any, quantized: Collection[str]) -> dict[str, str]:
    """Store turned weights turned, for every Gemm and for the products named in `quantized`.

    Returns the new names by the old ones. ONNX Runtime would leave a product with what a Transpose
    gives out in float32, and would transpose the weights of a Gemm in place, also for those that
    share them.
    """
    names: dict[str, str] = {}
    for graph, stored in scopes(model.graph):
        turned = turns(graph, stored)
        for node in graph.node:
            flags = [one for one in node.attribute if one.name == "transB" and one.i]
            if node.op_type == "Gemm" and flags and node.input[1] in stored:
                node.attribute.remove(flags[0])
                weight = stored[node.input[1]]
            elif node.op_type == "MatMul" and node.name in quantized and node.input[1] in turned:
                weight = turned[node.input[1]]
            else:
                continue
            if weight.name not in names:
                names[weight.name] = _store_turned(model, weight)
            node.input[1] = names[weight.name]
        used = {name for node in graph.node for name in node.input}
        for name in turned.keys() - used - {one.name for one in graph.output}:
            graph.node.remove(next(node for node in graph.node if name in node.output))
    return names


def _store_turned(model: Any, weight: Any) -> str:
    import numpy as np
    from onnx import numpy_helper

    name = f"{weight.name}_turned"
    matrix = np.ascontiguousarray(numpy_helper.to_array(weight).T)
    _owner(model, weight.name).initializer.append(numpy_helper.from_array(matrix, name))
    return name


def _owner(model: Any, name: str) -> Any:
    """The graph that stores a tensor."""
    return next(
        graph
        for graph, _ in scopes(model.graph)
        if any(tensor.name == name for tensor in graph.initializer)
    )


def look_up_in_int8(model: Any, turned: dict[str, str]) -> None:
    """Look rows of a table up in the int8 weights that were made of it, where nothing else is left.

    `turned` are names of weights by those of tables.
    """
    stored = {one.name: one for graph, _ in scopes(model.graph) for one in graph.initializer}
    for table, weights in turned.items():
        uses = list(_uses(model, table))
        lookups = [node for _, node in uses if _is_lookup(node, table)]
        if len(lookups) < len(uses) or f"{weights}_quantized" not in stored or table not in stored:
            continue
        for graph, node in uses:
            nodes = list(graph.node)
            place = nodes.index(node)
            nodes[place : place + 1] = _int8_lookup(node, weights, stored[table].dims[1])
            graph.ClearField("node")
            graph.node.extend(nodes)
        owner = next(
            graph for graph, _ in scopes(model.graph) if stored[table] in graph.initializer
        )
        owner.initializer.remove(stored[table])


def _uses(model: Any, name: str) -> Iterator[tuple[Any, Any]]:
    for graph, _ in scopes(model.graph):
        for node in graph.node:
            if name in node.input:
                yield graph, node


def _is_lookup(node: Any, table: str) -> bool:
    axes = [one.i for one in node.attribute if one.name == "axis"]
    return node.op_type == "Gather" and node.input[0] == table and not any(axes)


def _int8_lookup(node: Any, weights: str, width: int) -> list[Any]:
    """Nodes that give out what a Gather of rows did, from columns of int8 and a scale for each."""
    from onnx import helper

    rows, found = node.input[1], node.output[0]
    name = f"{node.name}_int8/"

    def make(kind: str, inputs: list[str], output: str, **more: Any) -> Any:
        return helper.make_node(kind, inputs, [output], f"{name}{output}", **more)

    flat, scales, columns = f"{name}flat", f"{name}scales", f"{name}columns"
    turned, values, shape = f"{name}turned", f"{name}values", f"{name}shape"
    return [
        make("Constant", [], f"{name}any", value_ints=[-1]),
        make("Constant", [], f"{name}width", value_ints=[width]),
        make("Reshape", [rows, f"{name}any"], flat),
        make("Gather", [f"{weights}_quantized", flat], columns, axis=1),
        make("Gather", [f"{weights}_scale", flat], scales, axis=0),
        make("Transpose", [columns], turned, perm=[1, 0]),
        make("DequantizeLinear", [turned, scales], values, axis=0),
        make("Shape", [rows], f"{name}given"),
        make("Concat", [f"{name}given", f"{name}width"], shape, axis=0),
        make("Reshape", [values, shape], found),
    ]
