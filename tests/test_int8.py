"""int8 graphs: the weights numpy makes, every family, and what cannot be quantized told plainly."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from pydantic import ValidationError
from tiny_exports import Exports, TinyExport, change, distance, nodes_of, run, stored_in
from tiny_models import TINY_MODELS, TinyModel

from hibprune.compression.quantize.graphs import layer_groups, read_graph
from hibprune.compression.quantize.int8 import quantize_int8, write_int8
from hibprune.compression.quantize.settings import QuantizeSettings
from hibprune.deployment.export import write_metadata
from hibprune.errors import UserError
from hibprune.records.precision import Precision, graph_name

NEAR = 0.1
"""Largest difference, as a share, that 7 bits made of the logits of any tiny model: 0.073."""

WAV2VEC2 = TINY_MODELS[0]
every_family = pytest.mark.parametrize("tiny", TINY_MODELS, ids=lambda tiny: tiny.name)


def named(name: str) -> TinyModel:
    return next(tiny for tiny in TINY_MODELS if tiny.name == name)


@pytest.mark.parametrize(
    ("graph", "precision", "name"),
    [
        ("model.onnx", "fp32", "model.onnx"),
        ("model.onnx", "int8", "model_quantized.onnx"),
        ("encoder_model.onnx", "int8", "encoder_model_quantized.onnx"),
        ("decoder_model_merged.onnx", "int8", "decoder_model_merged_quantized.onnx"),
        ("decoder_with_past_model.onnx", "fp16", "decoder_with_past_model_fp16.onnx"),
        ("model.onnx", "fp16", "model_fp16.onnx"),
    ],
)
def test_names_are_those_that_optimum_and_transformers_js_look_for(
    graph: str, precision: Precision, name: str
) -> None:
    assert graph_name(graph, precision) == name


@every_family
def test_every_family_and_every_graph(
    tiny: TinyModel, tiny_exports: Exports, tmp_path: Path
) -> None:
    """Without the heads of a whole layer, whose projections have no elements."""
    exported = tiny_exports(tiny, plan="first emptied")
    feeds = exported.feeds()
    for graph in exported.graphs:
        source, target = exported.path(graph), tmp_path / graph_name(graph, "int8")
        quantize_int8(source, target)
        before, after = onnx.load(source), onnx.load(target)
        onnx.checker.check_model(after)
        assert target.stat().st_size < source.stat().st_size
        assert list(after.graph.input) == list(before.graph.input)
        assert list(after.graph.output) == list(before.graph.output)
        assert list(after.metadata_props) == list(before.metadata_props)
        assert len(nodes_of(after, "Conv")) == len(nodes_of(before, "Conv"))
        assert not nodes_of(after, "ConvInteger", "Gemm")
        groups = layer_groups([(graph, read_graph(source))])
        names = {name for group in groups.values() for name in group[graph]}
        assert _quantized_nodes(after) == names
        # In branches, too, weights are stored once, and not in float32 any more.
        weights = {one.input[1] for one in nodes_of(after, "MatMulInteger")}
        int8 = {name for name, value in stored_in(after).items() if value.dtype == np.int8}
        assert {name for name in int8 if stored_in(after)[name].ndim == 2} == weights
        replaced = {one.input[1] for one in nodes_of(before, "MatMul", "Gemm") if one.name in names}
        assert not replaced & stored_in(after).keys()
        for feed in feeds[graph]:
            wanted, found = run(source, feed), run(target, feed)
            assert wanted.keys() == found.keys()
            assert 0 < distance(wanted, found) < NEAR
    assert {path.name for path in tmp_path.iterdir()} == {
        graph_name(graph, "int8") for graph in exported.graphs
    }


def _quantized_nodes(model: Any) -> set[str]:
    """Nodes of the original that became products of int8."""
    names = (one.name.removesuffix("_quant") for one in nodes_of(model, "MatMulInteger"))
    return {name.removesuffix("_MatMul") if "Gemm" in name else name for name in names}


@pytest.mark.parametrize(("full_range", "steps"), [(False, 64), (True, 127)])
@pytest.mark.parametrize("name", ["wav2vec2", "bert", "moonshine"])
def test_weights_are_rounded_to_steps_of_their_channels_largest(
    name: str, full_range: bool, steps: int, tiny_exports: Exports, tmp_path: Path
) -> None:
    exported = tiny_exports(named(name))
    source, target = exported.path(exported.graphs[-1]), tmp_path / "q.onnx"
    quantize_int8(source, target, full_range)
    before, after = onnx.load(source), onnx.load(target)
    weights, made = stored_in(before), stored_in(after)
    # The output projection of Moonshine is its table of embeddings.
    for node in nodes_of(before, "Transpose"):
        if node.input[0] in weights:
            weights[node.output[0]] = weights[node.input[0]].T
    originals = {
        node.name: weights[node.input[1]].T if node.op_type == "Gemm" else weights[node.input[1]]
        for node in nodes_of(before, "MatMul", "Gemm")
        if node.input[1] in weights
    }
    products = nodes_of(after, "MatMulInteger")
    assert len(products) >= 14
    for node in products:
        original = originals[_quantized_nodes_name(node)]
        scale = (np.abs(original.astype(np.float64)).max(0) / steps).astype(np.float32)
        scale[scale == 0] = 1  # where heads are padded, any does
        found = made[node.input[1]]
        np.testing.assert_array_equal(found, np.rint(original / scale))
        assert found.min() >= -steps
        assert found.max() <= steps
        assert not made[node.input[3]].any()  # zero points
        found_scale = made[node.input[1].removesuffix("_quantized") + "_scale"]
        np.testing.assert_array_equal(found_scale, scale)
        assert (np.abs(found * found_scale - original) <= scale * 0.5001).all()


def _quantized_nodes_name(node: Any) -> str:
    name = str(node.name).removesuffix("_quant")
    return name.removesuffix("_MatMul") if "Gemm" in name else name


def test_nodes_left_in_float_keep_their_weights(tiny_exports: Exports, tmp_path: Path) -> None:
    """A Gemm among them, which ONNX Runtime gives another name."""
    exported = tiny_exports(WAV2VEC2)
    source, target = exported.path("model.onnx"), tmp_path / "q.onnx"
    left = {"/classifier/Gemm", "/wav2vec2/encoder/layers.1/attention/q_proj/MatMul"}
    quantize_int8(source, target, in_float=left)
    everything = {
        name for group in layer_groups([("m", read_graph(source))]).values() for name in group["m"]
    }
    assert _quantized_nodes(onnx.load(target)) == everything - left


LAYERED = ("attention", "feed-forward")
GROUPS = {
    **dict.fromkeys(("wav2vec2", "wavlm", "conformer-rotary"), ("input layers", "encoder")),
    **dict.fromkeys(("ast", "bert", "roberta"), ("", "encoder")),
    "distilbert": ("", "transformer"),
}


@pytest.mark.parametrize("name", GROUPS)
def test_groups_are_layers_and_what_is_before_and_after(name: str, tiny_exports: Exports) -> None:
    first, stack = GROUPS[name]
    groups = layer_groups([("m", read_graph(tiny_exports(named(name)).path("model.onnx")))])
    layers = {f"{stack} layer {layer} {part}" for layer in (0, 1) for part in LAYERED}
    assert set(groups) == {*layers, "output layers", *filter(None, [first])}
    sizes = {len(group["m"]) for group in (groups[f"{stack} layer 1 {part}"] for part in LAYERED)}
    assert sizes == {"wavlm": {5, 2}, "conformer-rotary": {4}}.get(name, {4, 2})


@pytest.mark.parametrize("name", ["whisper", "moonshine"])
def test_groups_of_an_encoder_and_a_decoder(name: str, tiny_exports: Exports) -> None:
    exported = tiny_exports(named(name))
    groups = layer_groups((graph, read_graph(exported.path(graph))) for graph in exported.graphs)
    encoder, decoder = exported.graphs
    assert set(groups) == {
        *(f"encoder layer {layer} {part}" for layer in (0, 1) for part in LAYERED),
        *(f"decoder layer {n} {part}" for n in (0, 1) for part in (*LAYERED, "cross-attention")),
        "decoder output layers",
    }
    for group, nodes in groups.items():
        assert set(nodes) == {encoder if group.startswith("encoder") else decoder}


INT64 = TensorProto.INT64


def _graph(nodes: list[Any], stored: dict[str, np.ndarray], takes: Any = None) -> Any:
    takes = takes or helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16])
    gives = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    tensors = [numpy_helper.from_array(value, name) for name, value in stored.items()]
    graph = helper.make_graph(nodes, "g", [takes], [gives], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def _weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_weights_that_several_nodes_share(tmp_path: Path) -> None:
    """A table of embeddings that is the last layer's weights, twice, as it lies and turned."""
    source, target = tmp_path / "m.onnx", tmp_path / "q.onnx"
    nodes = [
        helper.make_node("Gather", ["table", "x"], ["embedded"], "embed"),
        helper.make_node("Gemm", ["embedded", "table"], ["one"], "one/Gemm", transB=1),
        helper.make_node("Gemm", ["embedded", "table"], ["two"], "two/Gemm", transB=1),
        helper.make_node("MatMul", ["one", "table"], ["three"], "three/MatMul"),
        helper.make_node("MatMul", ["two", "table"], ["four"], "four/MatMul"),
        helper.make_node("Add", ["three", "four"], ["y"], "add"),
    ]
    takes = helper.make_tensor_value_info("x", TensorProto.INT64, ["n"])
    table = _weights(600, 16)
    onnx.save(_graph(nodes, {"table": table}, takes), source)
    write_int8(source, target, full_range=False, in_float=())
    feed = {"x": np.arange(0, 600, 7)}
    assert np.allclose(run(source, feed)["y"], 2 * (table[feed["x"]] @ table.T) @ table, rtol=1e-3)
    assert 0 < distance(run(source, feed), run(target, feed)) < NEAR
    kinds = [(value.dtype, value.shape) for value in stored_in(onnx.load(target)).values()]
    assert kinds.count((np.dtype(np.int8), (600, 16))) == 1
    assert kinds.count((np.dtype(np.int8), (16, 600))) == 1
    assert kinds.count((np.dtype(np.float32), (600, 16))) == 0
    assert kinds.count((np.dtype(np.float32), (16, 600))) == 0


@pytest.mark.parametrize(
    ("name", "in_float"),
    [
        ("whisper", ()),
        ("whisper", ("/proj_out/MatMul",)),
        ("moonshine", ()),
        pytest.param("moonshine", ("/proj_out/MatMul",), marks=pytest.mark.slow),
    ],
)
def test_a_decoders_table_of_embeddings_is_stored_once(
    name: str, in_float: tuple[str, ...], tiny_exports: Exports, tmp_path: Path
) -> None:
    """It is the output projection, too, and belongs to both branches."""
    exported, target = tiny_exports(named(name)), tmp_path / "q.onnx"
    source = exported.path("decoder_model_merged.onnx")
    quantize_int8(source, target, in_float=in_float)
    vocabulary = exported.tiny.config().vocab_size
    tables = [one for one in stored_in(onnx.load(target)).values() if vocabulary in one.shape]
    kinds = [one.dtype for one in tables if one.ndim == 2]
    assert kinds == [np.float32 if in_float else np.int8]
    for feed in exported.feeds()[source.name]:
        assert 0 < distance(run(source, feed), run(target, feed)) < NEAR


@pytest.mark.parametrize("shape", [(3,), (2, 4), (1, 2, 3)])
@pytest.mark.parametrize("shared", [False, True])
def test_rows_looked_up_are_those_of_the_int8_weights(
    shape: tuple[int, ...], shared: bool, tmp_path: Path
) -> None:
    """Unless the table is needed in float32 all the same."""
    source, target = tmp_path / "m.onnx", tmp_path / "q.onnx"
    nodes = [
        helper.make_node("Gather", ["table", "x"], ["embedded"], "embed"),
        helper.make_node("Transpose", ["table"], ["turned"], "turn", perm=[1, 0]),
        helper.make_node("MatMul", ["embedded", "turned"], ["y"], "project"),
    ]
    model = _graph(
        nodes, {"table": _weights(600, 16)}, helper.make_tensor_value_info("x", INT64, None)
    )
    model.graph.output.append(helper.make_tensor_value_info("embedded", TensorProto.FLOAT, None))
    if shared:
        model.graph.node.append(helper.make_node("ReduceMax", ["table"], ["max"], "max"))
        model.graph.output.append(helper.make_tensor_value_info("max", TensorProto.FLOAT, None))
    onnx.save(model, source)
    write_int8(source, target, full_range=False, in_float=())
    feed = {"x": np.random.default_rng(0).integers(-600, 600, shape)}
    rows = _weights(600, 16)[feed["x"]]
    scale = np.abs(rows).max(-1, keepdims=True) / 64
    wanted = rows if shared else np.rint(rows / scale) * scale
    found = run(target, feed)
    np.testing.assert_allclose(found["embedded"], wanted, rtol=1e-6)
    assert distance(run(source, feed), found) < NEAR


def test_nodes_without_names_and_products_that_are_none(tmp_path: Path) -> None:
    """Only x·W is quantized: not W·x, nor of three dimensions, nor a Gemm with factors."""
    source, target = tmp_path / "m.onnx", tmp_path / "q.onnx"
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["1"]),
        helper.make_node("MatMul", ["b", "1"], ["2"]),
        helper.make_node("MatMul", ["2", "c"], ["3"]),
        helper.make_node("ReduceMean", ["3"], ["4"], keepdims=0),
        helper.make_node("Gemm", ["1", "d"], ["5"], alpha=0.5),
        helper.make_node("Add", ["4", "5"], ["y"]),
    ]
    stored = {"a": _weights(16, 64), "b": _weights(8, 4), "c": _weights(1, 64, 8)}
    onnx.save(_graph(nodes, {**stored, "d": _weights(64, 8)}), source)
    quantize_int8(source, target)
    after = onnx.load(target)
    assert [one.input[1] for one in nodes_of(after, "MatMulInteger")] == ["a_quantized"]
    assert len(nodes_of(after, "MatMul")) == 2
    assert [one.input[1] for one in nodes_of(after, "Gemm")] == ["d"]
    feed = {"x": _weights(4, 16, seed=1)}
    assert 0 < distance(run(source, feed), run(target, feed)) < NEAR


def test_the_same_bytes_every_time_and_the_file_says_what_it_said(
    tiny_exports: Exports, tmp_path: Path
) -> None:
    source = tmp_path / "model.onnx"
    source.write_bytes(
        tiny_exports(named("whisper")).path("decoder_model_merged.onnx").read_bytes()
    )
    write_metadata(source, {"hibprune.recipe": "tiny «é»"})
    program = (
        "import sys; from pathlib import Path;"
        "from hibprune.compression.quantize.int8 import quantize_int8;"
        "quantize_int8(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    for seed in "12":
        subprocess.run(
            [sys.executable, "-c", program, source, tmp_path / f"{seed}.onnx"],
            check=True,
            timeout=60,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
    first, second = ((tmp_path / f"{seed}.onnx").read_bytes() for seed in "12")
    assert hashlib.sha256(first).hexdigest() == hashlib.sha256(second).hexdigest()
    says = {one.key: one.value for one in onnx.load_from_string(first).metadata_props}
    assert says == {"hibprune.recipe": '"tiny \\u00ab\\u00e9\\u00bb"'}


def test_the_log_of_others_is_left_alone(tiny_exports: Exports, tmp_path: Path) -> None:
    handlers = list(logging.getLogger().handlers)
    quantize_int8(tiny_exports(WAV2VEC2).path("model.onnx"), tmp_path / "q.onnx")
    assert logging.getLogger().handlers == handlers


def _no_file(_: TinyExport, path: Path) -> None:
    path.write_bytes(b"not a graph")


def _convolutions_alone(_: TinyExport, path: Path) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], "conv")
    takes = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, "n"])
    onnx.save(_graph([node], {"w": _weights(8, 4, 3)}, takes), path)


def _already_int8(exported: TinyExport, path: Path) -> None:
    quantize_int8(exported.path("model.onnx"), path)


def _emptied(_: TinyExport, path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["z"], "in"),
        helper.make_node("MatMul", ["z", "v"], ["y"], "out"),
    ]
    onnx.save(_graph(nodes, {"w": _weights(16, 0), "v": _weights(0, 8)}), path)


def _damaged(exported: TinyExport, path: Path) -> None:
    model = onnx.load(exported.path("model.onnx"))
    change(model, "classifier.weight", lambda weights: np.where(weights > 0, np.nan, weights))
    onnx.save(model, path)


def _too_small(_: TinyExport, path: Path) -> None:
    onnx.save(_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": _weights(16, 2)}), path)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_no_file, "cannot be read as an ONNX file: export it again"),
        (lambda *_: None, "cannot be read as an ONNX file: export it again"),
        (_convolutions_alone, "no float32 weights of MatMul or Gemm to quantize: take int8 out"),
        (_already_int8, "no float32 weights of MatMul or Gemm to quantize: take int8 out"),
        (_emptied, "no float32 weights of MatMul or Gemm to quantize: take int8 out"),
        (_damaged, "classifier.weight is not finite: the model's weights are damaged"),
        (_too_small, r"in int8 it would grow from \d+ to [\d,]+ bytes: take int8 out of export.v"),
    ],
)
def test_what_cannot_be_quantized_is_told_in_a_line(
    spoil: Callable[[TinyExport, Path], None], told: str, tiny_exports: Exports, tmp_path: Path
) -> None:
    source = tmp_path / "model.onnx"
    spoil(tiny_exports(WAV2VEC2), source)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=told) as failure:
        quantize_int8(source, tmp_path / "model_quantized.onnx")
    assert str(failure.value).startswith(f"{source}: ")
    assert "\n" not in str(failure.value)
    assert sorted(tmp_path.iterdir()) == before


def test_a_fault_of_the_quantizer_is_told_in_a_line(
    tiny_exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime.quantization

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("Unable to find data type\nof something")

    monkeypatch.setattr(onnxruntime.quantization, "quantize_dynamic", fail)
    with pytest.raises(UserError, match="cannot be quantized to int8: Unable to find data type: t"):
        quantize_int8(tiny_exports(WAV2VEC2).path("model.onnx"), tmp_path / "q.onnx")
    assert not list(tmp_path.iterdir())


def test_settings() -> None:
    assert QuantizeSettings().model_dump() == {"full_range": False, "max_drop": 0.01}
    for wrong in ({"max_drop": -0.1}, {"full_range": "perhaps"}, {"bits": 4}):
        with pytest.raises(ValidationError):
            QuantizeSettings(**wrong)
    with pytest.raises(ValidationError):
        QuantizeSettings().full_range = True  # type: ignore[misc]


def test_settings_load_without_what_is_heavy() -> None:
    heavy = ("torch", "onnx", "onnxruntime", "transformers", "numpy")
    program = (
        "import sys, hibprune.compression.quantize.settings, hibprune.records.precision;"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    told = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert told.stdout.strip() == "[]"
