"""Number formats that graphs come in, and what going to a lower one changed."""

from __future__ import annotations

from pathlib import PurePath
from typing import Literal

from hibprune.records.base import Record

Precision = Literal["fp32", "int8", "fp16"]

_SUFFIXES: dict[Precision, str] = {"fp32": "", "int8": "_quantized", "fp16": "_fp16"}

FIRST_GRAPHS = ("model.onnx", "encoder_model.onnx")
"""The graph that runs first, of a model without and of one with a decoder."""


def graph_name(graph: str, precision: Precision) -> str:
    """The name of a graph's file in a precision: `model.onnx` is `model_quantized.onnx` in int8.

    Optimum and transformers.js look for these names.
    """
    path = PurePath(graph)
    return str(path.with_name(f"{path.stem}{_SUFFIXES[precision]}{path.suffix}"))


class Int8Guard(Record):
    """What int8 costs on calibration data, and the groups of layers left in float32 for that.

    `reference` is the metric in fp32, `quantized` with every group in int8, `guarded` as the files
    were written, with `in_float` left in float32. `drops` says by how much the metric is worse with
    one group alone in int8, the worst first; it is empty where there was no need to know.
    `measurements` is how often int8 files were measured.
    """

    reference: float
    quantized: float
    guarded: float
    max_drop: float
    in_float: tuple[str, ...]
    drops: dict[str, float]
    measurements: int


class Agreement(Record):
    """How far a variant's outputs are from those of the same model in fp32.

    `equal` is the share of the `n` predictions that are the same. `max_abs_diff` is the largest
    difference of logits, `relative_diff` the same as a share of the largest logit; None where a
    variant gives out tokens.
    """

    n: int
    equal: float
    max_abs_diff: float | None = None
    relative_diff: float | None = None
