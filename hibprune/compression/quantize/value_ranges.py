"""Runs a graph on example inputs and notes what each of its float32 tensors ranges over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hibprune.errors import UserError, first_line
from hibprune.execution.runtime import session_options

Feed = Mapping[str, np.ndarray]
"""What a graph is given, by the names of its inputs."""


class Range(NamedTuple):
    """Smallest and largest number of a tensor; 0 counts as one of its numbers."""

    low: float
    high: float


def value_ranges(model: Any, source: Path, feeds: Sequence[Feed]) -> dict[str, Range]:
    """What each float32 tensor that goes in or between nodes ranges over, for one input or more.

    The graph itself computes the two numbers: kept whole, all tensors of a long clip would take
    gigabytes.

    Raises:
        UserError: the graph, which came from `source`, cannot be loaded.
        ValueError: there are no inputs.
    """
    if not feeds:
        raise ValueError(f"{source}: no example inputs")
    names = _float_outputs(model, source)
    with _extremes_given_out(model, names):
        session = plain_session(model.SerializeToString(), source)
    taken = {one.name: one.type for one in session.get_inputs()}
    # One row for each input: low, high, low, high …
    found = np.array(
        [session.run(None, {name: feed[name] for name in taken}) for feed in feeds], np.float64
    )
    low, high = found[:, ::2].min(0), found[:, 1::2].max(0)
    ranges = {name: Range(*map(float, ends)) for name, *ends in zip(names, low, high, strict=True)}
    for name in (name for name, kind in taken.items() if kind == "tensor(float)"):
        values = [feed[name] for feed in feeds]
        ranges[name] = Range(
            min(float(one.min(initial=0)) for one in values),
            max(float(one.max(initial=0)) for one in values),
        )
    return ranges


def plain_session(content: Path | bytes, source: Path) -> Any:
    """A session on the CPU that runs a graph as it is written.

    Optimized for a CPU, one of float16 would be computed in float32 for the most part; as it is,
    for some.

    Raises:
        UserError: the graph, which came from `source`, cannot be loaded.
    """
    import onnxruntime

    options = session_options("cpu")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own types, without a common base
        raise UserError(f"{source}: ONNX Runtime cannot load it: {first_line(error)}") from error


def _float_outputs(model: Any, source: Path) -> list[str]:
    """Tensors of float32 that nodes give out, as ONNX Runtime types them."""
    named = dict.fromkeys(name for node in model.graph.node for name in node.output if name)
    with _outputs_replaced(model.graph, list(named)):
        outputs = plain_session(model.SerializeToString(), source).get_outputs()
    return [one.name for one in outputs if one.type == "tensor(float)"]


@contextmanager
def _extremes_given_out(model: Any, names: Sequence[str]) -> Iterator[None]:
    """Let a model give out the smallest and the largest number of some tensors in turn."""
    from onnx import helper, numpy_helper

    graph, prefix = model.graph, "value_ranges/"
    nodes, stored = len(graph.node), len(graph.initializer)
    # Joined to each tensor, so that one without elements has an extreme, too.
    zero, flat = f"{prefix}zero", f"{prefix}flat"
    graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), zero))
    graph.initializer.append(numpy_helper.from_array(np.array([-1]), flat))
    outputs = []
    for name in names:
        values, joined = f"{prefix}values/{name}", f"{prefix}joined/{name}"
        graph.node.append(helper.make_node("Reshape", [name, flat], [values]))
        graph.node.append(helper.make_node("Concat", [values, zero], [joined], axis=0))
        for kind in ("ReduceMin", "ReduceMax"):
            outputs.append(f"{prefix}{kind}/{name}")
            graph.node.append(helper.make_node(kind, [joined], [outputs[-1]], keepdims=0))
    try:
        with _outputs_replaced(graph, outputs):
            yield
    finally:
        del graph.node[nodes:]
        del graph.initializer[stored:]


@contextmanager
def _outputs_replaced(graph: Any, names: Sequence[str]) -> Iterator[None]:
    from onnx import helper

    kept = list(graph.output)
    graph.ClearField("output")
    graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    try:
        yield
    finally:
        graph.ClearField("output")
        graph.output.extend(kept)
