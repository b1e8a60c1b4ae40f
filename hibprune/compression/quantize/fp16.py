"""Makes fp16 graphs for GPUs and browsers, by ONNX Runtime's converter.

Inputs and outputs stay float32, and so do nodes whose numbers float16 cannot hold: those that
overflow on example inputs, and those that count (positions of 2049 and more are not exact).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hibprune.compression.quantize.branches import is_merged, parts_of, put_back
from hibprune.compression.quantize.graphs import (
    branches,
    read_graph,
    restore_description,
    self_description,
)
from hibprune.compression.quantize.value_ranges import (
    Feed,
    Range,
    plain_session,
    value_ranges,
)
from hibprune.errors import UserError, first_line
from hibprune.execution.files import write_via_temporary

MAX = 65504.0 / 4
"""Numbers beyond this stay float32: float16 ends at 65504, and other inputs may be louder."""
MIN = 2.0**-14
"""Below this float16 loses digits; tensors that lie below it as a whole stay float32."""
MASK = -1e8
"""Below this a number only says "minus infinity" to a softmax, as float16's own lowest does."""

COUNTING = ("Sin", "Cos")
"""What positions are computed for; also conversions to whole numbers."""
NORMALISING = ("InstanceNormalization",)
"""Sums over a whole clip, once per model."""


def convert_fp16(source: Path, target: Path, feeds: Sequence[Feed]) -> tuple[str, ...]:
    """Write a graph with weights and computation in float16; returns nodes left in float32.

    `feeds` are example inputs, by name; of a merged decoder, some with past and some without.
    Named are the nodes that stay float32 for the size of their numbers. The same source and feeds
    give the same bytes.

    Raises:
        UserError: the source cannot be read or converted, or overflows all the same.
    """
    import onnx

    model = read_graph(source)
    original = self_description(model)
    if not is_merged(model) and any(branches(node) for node in model.graph.node):
        raise UserError(
            f"{source}: it has branches that cannot be converted to float16: "
            "take fp16 out of export.variants"
        )
    converted, overflowing = [], {}
    for part in parts_of(model):
        examples = [feed for feed in feeds if part.takes(feed)]
        ranges = value_ranges(part.model, source, examples)
        beyond = _nodes_beyond(part.model, ranges)
        overflowing.update(dict.fromkeys(beyond))
        converted.append(_converted(part.model, [*beyond, *_counting(part.model, ranges)], source))
        _require_finite(converted[-1], source, examples)
    if is_merged(model):
        put_back(model, converted)
    else:
        model = converted[0]
    restore_description(model, *original)
    write_via_temporary(target, lambda temporary: onnx.save(model, temporary))
    return tuple(overflowing)


def _nodes_beyond(model: Any, ranges: Mapping[str, Range]) -> list[str]:
    """Nodes that give out or take numbers that float16 cannot hold."""
    from onnx import numpy_helper

    constants = {
        name for node in model.graph.node if node.op_type == "Constant" for name in node.output
    }
    tensors = {
        name
        for name, found in ranges.items()
        if _beyond(found) or (_vanishing(found) and name not in constants)
    }
    for stored in model.graph.initializer:
        values = numpy_helper.to_array(stored)
        if values.dtype != np.float32 or not values.size:
            continue
        if _beyond(Range(float(values.min()), float(values.max()))):
            tensors.add(stored.name)
    return [
        node.name
        for node in model.graph.node
        if not tensors.isdisjoint(node.output) or not tensors.isdisjoint(node.input)
    ]


def _beyond(found: Range) -> bool:
    return not (found.high <= MAX and (found.low >= -MAX or found.low <= MASK))


def _vanishing(found: Range) -> bool:
    return 0 < max(-found.low, found.high) < MIN


def _counting(model: Any, floats: Collection[str]) -> list[str]:
    """Nodes on the way to angles of positions, and to whole numbers, along float32 tensors."""
    makers = {name: node for node in model.graph.node for name in node.output}
    waiting = [
        node
        for node in model.graph.node
        if node.op_type in COUNTING
        or (node.op_type == "Cast" and node.input[0] in floats and node.output[0] not in floats)
    ]
    found: dict[str, None] = {}
    while waiting:
        node = waiting.pop()
        if node.name not in found:
            found[node.name] = None
            waiting += [makers[name] for name in node.input if name in floats and name in makers]
    return list(found)


def _converted(model: Any, kept: list[str], source: Path) -> Any:
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    own = {node.name for node in model.graph.node}
    try:
        converted = convert_float_to_float16(
            model,
            keep_io_types=True,
            op_block_list=[*DEFAULT_OP_BLOCK_LIST, *NORMALISING],
            node_block_list=kept,
        )
    except Exception as error:  # it raises whatever its parts raise
        raise UserError(
            f"{source}: cannot be converted to float16: {first_line(error)}: "
            "take fp16 out of export.variants"
        ) from error
    _tidy_casts(converted.graph, own)
    OnnxModel(converted).topological_sort(is_deterministic=True)
    return converted


def _tidy_casts(graph: Any, own: set[str]) -> None:
    """Mend what the converter leaves around float32 nodes.

    It turns what such a node gives out into float16, and back again once for every such node that
    takes it. Instead, numbers go from one to the next as they are.
    """
    from onnx import TensorProto, helper

    added = [node for node in graph.node if node.op_type == "Cast" and node.name not in own]
    narrowed = {
        node.output[0]: node.input[0]
        for node in added
        if node.attribute[0].i == TensorProto.FLOAT16
    }
    nodes = {node.output[0]: node for node in added}
    for name, node in nodes.items():
        if name not in narrowed and node.input[0] in narrowed:
            nodes[name] = helper.make_node("Identity", [narrowed[node.input[0]]], [name], node.name)
    mended = [*(node for node in graph.node if node.name in own), *nodes.values()]
    used = {name for node in mended for name in node.input} | {one.name for one in graph.output}
    mended = [node for node in mended if node.name in own or node.output[0] in used]
    graph.ClearField("node")
    graph.node.extend(mended)


def _require_finite(model: Any, source: Path, feeds: Sequence[Feed]) -> None:
    """See that a graph gives out numbers on the example inputs.

    The last resort: a CPU does not round all that a GPU does, and lets some overflows pass.
    """
    session = plain_session(model.SerializeToString(), source)
    taken = [one.name for one in session.get_inputs()]
    for feed in feeds:
        outputs = session.run(None, {name: feed[name] for name in taken})
        if not all(np.isfinite(output).all() for output in outputs):
            raise UserError(
                f"{source}: its numbers do not fit float16: take fp16 out of export.variants"
            )
