"""Makes int8 graphs: ONNX Runtime's dynamic quantization, of products with stored matrices alone.

Convolutions stay as they are: in int8 they cost speech models both accuracy and speed.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hibprune.compression.quantize.graphs import (
    MULTIPLICATIONS,
    multiplications,
    read_graph,
    restore_description,
    scopes,
    self_description,
)
from hibprune.compression.quantize.weight_layout import look_up_in_int8, store_as_multiplied
from hibprune.errors import UserError, first_line
from hibprune.execution.files import write_via_temporary


def quantize_int8(
    source: Path, target: Path, full_range: bool = False, in_float: Collection[str] = ()
) -> None:
    """Write a graph with the weights of MatMul and Gemm in int8, one scale per output channel.

    Activations are quantized at run time. Weights take 7 bits unless `full_range`; nodes named in
    `in_float` stay as they are. A table of embeddings that is also the output projection is looked
    up in its int8. The same source gives the same bytes.

    Raises:
        UserError: the source cannot be read or quantized, holds nothing to quantize, or would not
            become smaller.
    """

    def write(temporary: Path) -> None:
        write_int8(source, temporary, full_range, in_float)
        require_smaller([source], [temporary])

    write_via_temporary(target, write)


def require_smaller(sources: Sequence[Path], targets: Sequence[Path]) -> None:
    """See that int8 files are smaller than those they were made from, all together.

    Raises:
        UserError: they are not.
    """
    growth = growth_of(sources, targets)
    if growth is not None:
        raise UserError(
            f"{sources[0]}: in int8 it would {growth}: take int8 out of export.variants"
        )


def growth_of(sources: Sequence[Path], targets: Sequence[Path]) -> str | None:
    """How files are not smaller than those they were made from; None where they are."""
    before, after = (sum(path.stat().st_size for path in paths) for paths in (sources, targets))
    return None if after < before else f"grow from {before:,} to {after:,} bytes"


def write_int8(source: Path, target: Path, full_range: bool, in_float: Collection[str]) -> None:
    """As `quantize_int8`, straight to `target` and whatever becomes of the size."""
    import onnx

    model = read_graph(source)
    found = multiplications(model)
    if all(one.name in in_float for one in found):
        raise UserError(
            f"{source}: no float32 weights of MatMul or Gemm to quantize: "
            "take int8 out of export.variants"
        )
    for one in found:
        _require_finite(one.weight, source)
    quantized = {one.name for one in found if one.name not in in_float}
    original = self_description(model)
    turned = store_as_multiplied(model, quantized)
    excluded = [
        name
        for graph, _ in scopes(model.graph)
        for node in graph.node
        if node.op_type in MULTIPLICATIONS and node.name not in quantized
        # ONNX Runtime renames a Gemm when it makes a MatMul of it, before it looks at names.
        for name in (node.name, f"{node.name}_MatMul")
    ]
    _quantize_dynamic(model, target, full_range, excluded, source)
    quantized_model = onnx.load(target)
    look_up_in_int8(quantized_model, turned)
    restore_description(quantized_model, *original)
    onnx.save(quantized_model, target)


def _require_finite(weight: Any, source: Path) -> None:
    import numpy as np
    from onnx import numpy_helper

    if not np.isfinite(numpy_helper.to_array(weight)).all():
        raise UserError(f"{source}: {weight.name} is not finite: the model's weights are damaged")


def _quantize_dynamic(
    model: Any, target: Path, full_range: bool, excluded: list[str], source: Path
) -> None:
    from onnx import TensorProto
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    # Nothing is left to optimize before: exported graphs have their constants folded.
    add_pre_process_metadata(model)
    try:
        with _root_logger_kept():
            quantize_dynamic(
                model,
                target,
                op_types_to_quantize=list(MULTIPLICATIONS),
                per_channel=True,
                reduce_range=not full_range,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=excluded,
                extra_options={
                    # Decoders with and without past are branches of one graph.
                    "EnableSubgraph": True,
                    "MatMulConstBOnly": True,
                    # Types within branches are not always inferred; all that is multiplied is this.
                    "DefaultTensorType": TensorProto.FLOAT,
                },
            )
    except OSError:
        raise
    except Exception as error:  # it raises whatever its parts raise
        raise UserError(
            f"{source}: cannot be quantized to int8: {first_line(error)}: "
            "take int8 out of export.variants"
        ) from error


@contextmanager
def _root_logger_kept() -> Iterator[None]:
    """Keep quantization, which logs through the root logger, from giving it a handler for good."""
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
