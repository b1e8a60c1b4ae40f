"""Lower precisions, repair and neurons: directories and settings that were tampered with."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
from battery import Case
from cases_directories import PREDICT, RUN
from commands import let_it_have_found
from spoiling import Spoil, content, no_file, recipe, setting, weights
from standin import StandIn

INT8_RUN = (
    *RUN, "--set=export.variants=[fp32, int8]", "--set=quantize.max_drop=100",
    "--set=benchmark.rivals=true",
)  # fmt: skip
INT8 = "out/onnx/model_quantized.onnx"
NO_FILES = ("pipe", "zeros", "directory", "loop", "nowhere")

NO_VARIANTS = {
    "nope": "no variant 'nope'",
    "": "no variant ''",
    "int4": "no variant 'int4'",
    "INT8": "no variant 'INT8'",
    "original": "measured for comparison",
    "original-int8": "measured for comparison",
    "fp16": "pruned-fp16 is not in it",
    "pruned-fp16": "pruned-fp16 is not in it",
    "../out": "no variant",
    "a\nerror: b": "no variant",
    "\x1b[2J": "no variant",
    "x" * 10**5: "no variant",
}

PRUNED_NEURONS = (
    "x",
    3,
    [[37, "1"]],
    {"0": "x"},
    {"0": 3},
    {"0": [[37]]},
    {"0": [[37, "1", "2"]]},
    {"0": [[37, 3]]},
    {"0": [["37", "1"]]},
    {"0": [[37.5, "1"]]},
    {"0": [[37, None]]},
    {"0": [[-37, "1"]]},
    {"0": [[37, "-1"]]},
    {"0": [[37, "zz"]]},
    {"0": [[37, "0x1"]]},
    {"0": [[37, "1_0"]]},
    {"0": [[37, " 1"]]},
    {"0": [[37, ""]]},
    {"0": [[10**9, "1"]]},
    {"0": [[10**400, "1"]]},
    {"0": [[37, "f" * 10**6]]},
    {"0": [[37, "3fffffffff"]]},
    {"0": [[36, "1"]]},
    {"0": [[37, "1"]]},
    {"0": [[37, "1"], [37, "1"]]},
    {"0": []},
    {"99": [[37, "1"]]},
    {"-1": [[37, "1"]]},
    {"x": [[37, "1"]]},
    {"\x1b[2J": [[37, "1"]]},
)
"""The model has two layers of 37 neurons, all of them in its file."""


def found(step: str, edit: Callable[[dict[str, Any]], object]) -> Spoil:
    """Let a step have come to another result, with a digest that fits."""

    def spoil(stand_in: StandIn) -> None:
        let_it_have_found(
            stand_in.root / f"out/steps/{step}.json", lambda kept: edit(kept["result"])
        )

    return spoil


def _sublayer(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda result: result["repair"]["sublayers"][0].update(values)


def _guard(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda result: result["guard"].update(values)


FORGED: dict[str, dict[str, Callable[[dict[str, Any]], object]]] = {
    "repair": {
        "no repair": lambda result: result.update(repair=None),
        "no sublayers": lambda result: result["repair"].update(sublayers=[]),
        "clips below 0": lambda result: result["repair"].update(clips=-5),
        "another kind": lambda result: result["repair"].update(kind="\x1b[2J"),
        "a sublayer of text": lambda result: result["repair"].update(sublayers=["x"]),
        "an error below 0": _sublayer(before=-1.0),
        "an error of 1e308": _sublayer(before=1e308, after=1e308),
        "an error that is text": _sublayer(before="x"),
        "layer -1": _sublayer(layer=-1),
        "layer 10^9": _sublayer(layer=10**9),
        "a name of pages": _sublayer(name="x" * 10**5),
        "more kept than there are": _sublayer(kept=10**6),
        "no files": lambda result: result.update(files=[]),
        "files elsewhere": lambda result: result.update(files=["../recipe.yaml"]),
    },
    "convert-pruned-int8": {
        "a fault": lambda result: result.update(fault="\x1b[2J forged", guard=None, files=[]),
        "a fault of pages": lambda result: result.update(fault="x" * 10**5, guard=None, files=[]),
        "no guard": lambda result: result.update(guard=None),
        "no files": lambda result: result.update(files=[]),
        "files elsewhere": lambda result: result.update(files=["../model/config.json"]),
        "groups nobody knows": _guard(in_float=["\x1b[2J", "x" * 10**4]),
        "a guard of text": lambda result: result.update(guard="x"),
    },
    "convert-original-int8": {
        "a fault": lambda result: result.update(fault="forged", guard=None),
        "groups nobody knows": _guard(in_float=["nobody", "/etc"]),
        "groups nobody knows, tried": _guard(in_float=["nobody"], drops={"nobody": 1.0}),
    },
    "measure-pruned-int8": {
        "a metric of 7": lambda result: result["evaluation"].update(value=7.0),
        "fewer inputs": lambda result: result["evaluation"].update(errors=[0.0], counted=[1.0]),
        "no graphs": lambda result: result.update(graphs=[]),
        "a graph elsewhere": lambda result: result["graphs"][0].update(path="../x", size_bytes=-1),
    },
    "prune": {
        "weights below 0": lambda result: result["after"].update(parameters=-1),
        "no multiply-adds": lambda result: result["after"].update(macs=0),
    },
    "benchmark": {
        "times below 0": lambda result: result["latencies"][0]["times"]["model"].update(
            pruned=[-1.0, -1.0, -1.0]
        ),
        "no times": lambda result: result["latencies"][0]["times"]["model"].update(pruned=[]),
        "no lengths": lambda result: result.update(latencies=[]),
        "times of no variant": lambda result: result["latencies"][0]["times"].update(
            model={"nobody": [1.0]}
        ),
    },
}


def _of_another(stand_in: StandIn) -> None:
    """The int8 graph of a classifier of three classes where this one has five."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.ones((1, 3), "float32"), "weight")
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["input_values"], ["mean"], keepdims=1),
            helper.make_node("MatMul", ["mean", "weight"], ["logits"]),
        ],
        "other",
        [helper.make_tensor_value_info("input_values", TensorProto.FLOAT, ["batch", "samples"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [weight],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), stand_in.root / INT8)


def _linked(stand_in: StandIn) -> None:
    victim = stand_in.root / "elsewhere.onnx"
    shutil.move(stand_in.root / INT8, victim)
    (stand_in.root / INT8).symlink_to(victim)


def _too_large(stand_in: StandIn) -> None:
    """A sparse file, which promises more than it takes."""
    os.truncate(stand_in.root / INT8, 2**40)


BAD_GRAPHS: dict[str, Spoil] = {
    **{f"a {kind}": no_file(INT8, kind) for kind in NO_FILES},
    "empty": content(INT8, ""),
    "noise": content(INT8, bytes(range(256)) * 4),
    "too large": _too_large,
    "of another model": _of_another,
}


def _scaled(factor: float) -> Spoil:
    def change(tensors: dict[str, Any]) -> None:
        for name, tensor in tensors.items():
            if "feed_forward" in name and tensor.dim() == 2:
                tensor.mul_(factor)

    return weights(change)


CASES: list[Case] = [
    *[
        Case(
            f"predict --variant {name[:20]!r}",
            lambda s: None,
            command=(*PREDICT, "--variant", name),
            finished="int8",
            says=(words,),
        )
        for name, words in NO_VARIANTS.items()
    ],
    *[
        Case(
            f"predict --variant {name}: there is only fp32",
            lambda s: None,
            command=(*PREDICT, "--variant", name),
            finished=True,
            says=(f"{name} is not in it", "pruned-int8 is not in it"),
        )
        for name in ("int8", "pruned-int8")
    ],
    Case(
        "predict --variant without a name",
        lambda s: None,
        command=(*PREDICT, "--variant"),
        finished=True,
        says=("requires an argument",),
    ),
    *[
        Case(
            f"predict --variant int8: the graph is {what}",
            spoil,
            command=(*PREDICT, "--variant", "int8"),
            finished="int8",
            says=("out",),
        )
        for what, spoil in BAD_GRAPHS.items()
    ],
    Case(
        "predict --variant int8: the graph is a link",
        _linked,
        command=(*PREDICT, "--variant", "int8"),
        finished="int8",
        must_refuse=False,
    ),
    *[
        Case(
            f"rerun in int8: the graph is {what}",
            spoil,
            command=INT8_RUN,
            finished="int8",
            must_refuse=False,
        )
        for what, spoil in {**BAD_GRAPHS, "a link": _linked}.items()
    ],
    *[
        Case(
            f"predict --variant int8: {what}",
            spoil,
            command=(*PREDICT, "--variant", "int8"),
            finished="int8",
            says=("manifest", "is not in it"),
        )
        for what, spoil in (
            ("no variants in the manifest", setting("out/manifest.json", variants=[])),
            ("variants that are text", setting("out/manifest.json", variants="x")),
            ("variants that are null", setting("out/manifest.json", variants=[None])),
            ("a manifest of schema 1", setting("out/manifest.json", schema_version=1)),
            ("a manifest of schema 99", setting("out/manifest.json", schema_version=99)),
            ("a manifest of schema x", setting("out/manifest.json", schema_version="x")),
        )
    ],
    *[
        Case(
            f"rerun: {step} has found {what}",
            found(step, edit),
            command=INT8_RUN,
            finished="int8",
            must_refuse=False,
        )
        for step, edits in FORGED.items()
        for what, edit in edits.items()
    ],
    *[
        Case(
            f"rerun: steps/{step}.json is {what}",
            content(f"out/steps/{step}.json", data),
            command=INT8_RUN,
            finished="int8",
            must_refuse=False,
        )
        for step in ("repair", "convert-pruned-int8", "measure-pruned-int8")
        for what, data in (
            ("noise", bytes(range(256))),
            ("a list", "[]"),
            ("NaN", '{"result": NaN}'),
        )
    ],
    *[
        Case(
            f"config.json: pruned_neurons = {json.dumps(value)[:40]}",
            setting("model/config.json", pruned_neurons=value),
            says=("pruned_neurons", "weights do not have the shapes"),
        )
        for value in PRUNED_NEURONS
    ],
    *[
        Case(
            f"predict: pruned_neurons = {json.dumps(value)[:40]}",
            setting("out/config.json", pruned_neurons=value),
            command=PREDICT,
            finished=True,
            must_refuse=False,
        )
        for value in PRUNED_NEURONS[::3]
    ],
    *[
        Case(f"weights times {factor:g}", _scaled(factor), must_refuse=False)
        for factor in (1e4, 1e8, 1e9, 1e15, 1e37)
    ],
    *[
        Case(
            f"weights times 1e8: {method}",
            lambda s, method=method: (
                _scaled(1e8)(s),
                recipe(attribution={"method": method}, budget__neurons=0.3)(s),
            ),
            must_refuse=False,
        )
        for method in ("reconstruction", "taylor", "gates", "lrp")
    ],
]
