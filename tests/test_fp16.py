"""fp16 graphs: every family, and float32 kept where float16 cannot hold the numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16
from tiny_exports import (
    Exports,
    TinyExport,
    all_graphs,
    change,
    distance,
    nodes_of,
    run,
    stored_in,
    weight_name,
)
from tiny_models import TINY_MODELS, TinyModel

from hibprune.compression.quantize.examples import graph_feeds
from hibprune.compression.quantize.fp16 import convert_fp16
from hibprune.compression.quantize.value_ranges import Feed, plain_session, value_ranges
from hibprune.deployment.export import write_metadata
from hibprune.errors import UserError
from hibprune.records.precision import graph_name

NEAR = 5e-3
"""11 bits a number: 0.0023, as a share, was the most for a tiny model."""

every_family = pytest.mark.parametrize("tiny", TINY_MODELS, ids=lambda tiny: tiny.name)


def named(name: str) -> TinyModel:
    return next(tiny for tiny in TINY_MODELS if tiny.name == name)


def converted_as_it_is(source: Path, target: Path) -> None:
    """What the converter makes of a graph with nothing left in float32 for its numbers."""
    onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), target)


def run_plainly(path: Path, feed: Feed) -> dict[str, np.ndarray]:
    """As `run`, but in float16 what ONNX Runtime has in float16 for a CPU."""
    session = plain_session(path, path)
    given = session.run(None, {one.name: feed[one.name] for one in session.get_inputs()})
    return dict(zip((one.name for one in session.get_outputs()), given, strict=True))


@every_family
def test_every_family_and_every_graph(
    tiny: TinyModel, tiny_exports: Exports, tmp_path: Path
) -> None:
    exported = tiny_exports(tiny, plan="first emptied")
    feeds = exported.feeds()
    for graph in exported.graphs:
        source, target = exported.path(graph), tmp_path / graph_name(graph, "fp16")
        assert convert_fp16(source, target, feeds[graph]) == ()
        before, after = onnx.load(source), onnx.load(target)
        onnx.checker.check_model(after)
        assert list(after.graph.input) == list(before.graph.input)
        assert list(after.graph.output) == list(before.graph.output)
        assert list(after.metadata_props) == list(before.metadata_props)
        sizes = {
            kind: sum(one.size for one in stored_in(after).values() if one.dtype == kind)
            for kind in (np.float16, np.float32)
        }
        assert sizes[np.float32] < 0.01 * sizes[np.float16]
        assert sum(sizes.values()) <= sum(one.size for one in stored_in(before).values())
        for feed in feeds[graph]:
            wanted, found = run(source, feed), run(target, feed)
            assert wanted.keys() == found.keys()
            assert 0 < distance(wanted, found) < NEAR
    assert len(list(tmp_path.iterdir())) == len(exported.graphs)


PLANTED = [
    ("wav2vec2", "layers.1/feed_forward/intermediate_dense", 1e7),
    pytest.param("wav2vec2-stable", "layers.0/attention/q_proj", 1e6, marks=pytest.mark.slow),
    ("conformer-relative", "layers.0/ffn1/intermediate_dense", -1e6),
    ("ast", "layer.1/output/dense", 1e6),
    ("bert", "/classifier", 1e8),
    ("whisper", "layers.0/fc1", 1e5),
    pytest.param("moonshine", "layers.1/mlp/fc2", 1e6, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "node", "factor"), PLANTED)
def test_what_overflows_stays_float32(
    name: str, node: str, factor: float, tiny_exports: Exports, tmp_path: Path
) -> None:
    """Within the graph, at its end (where outputs themselves do) and in its weights."""
    exported = tiny_exports(named(name))
    graph = exported.graphs[0]
    source, target = tmp_path / graph, tmp_path / "fp16.onnx"
    model = onnx.load(exported.path(graph))
    weights = weight_name(model, node)
    change(model, weights, lambda values: values * factor)
    onnx.save(model, source)
    (feed,) = exported.feeds(graph)[graph]
    wanted = run(source, feed)
    converted_as_it_is(source, tmp_path / "naive.onnx")
    assert distance(wanted, run_plainly(tmp_path / "naive.onnx", feed)) > 0.5
    kept = convert_fp16(source, target, [feed])
    products = [one.name for one in nodes_of(model, "MatMul", "Gemm") if one.input[1] == weights]
    assert set(products) < set(kept) if len(kept) > 1 else products == list(kept)
    assert distance(wanted, run_plainly(target, feed)) < NEAR
    assert distance(wanted, run(target, feed)) < NEAR
    # Little else stays float32.
    assert len(kept) < 0.15 * len(model.graph.node)
    onnx.checker.check_model(onnx.load(target))


@pytest.mark.parametrize("name", ["whisper", pytest.param("moonshine", marks=pytest.mark.slow)])
def test_branches_of_a_merged_decoder_keep_what_overflows(
    name: str, tiny_exports: Exports, tmp_path: Path
) -> None:
    exported = tiny_exports(named(name))
    graph = "decoder_model_merged.onnx"
    source, target = tmp_path / graph, tmp_path / "fp16.onnx"
    model = onnx.load(exported.path(graph))
    weights = weight_name(model, "decoder/layers.1/self_attn/q_proj")
    change(model, weights, lambda values: values * 1e6)
    onnx.save(model, source)
    write_metadata(source, {"hibprune.recipe": "tiny"})
    feeds = exported.feeds()[graph]
    assert [bool(feed["use_cache_branch"]) for feed in feeds] == [False, True]
    kept = convert_fp16(source, target, feeds)
    assert "/model/decoder/layers.1/self_attn/q_proj/MatMul" in kept
    assert not any("layers.0" in node for node in kept)
    for feed in feeds:
        wanted = run(source, feed)
        assert distance(wanted, {k: run_plainly(target, feed)[k] for k in wanted}) < NEAR
    after = onnx.load(target)
    # Both branches find the same weights beside them; as before, they are stored once.
    assert stored_in(after)[weights].dtype == np.float32
    assert stored_in(after).keys() == stored_in(model).keys()
    assert {one.key: one.value for one in after.metadata_props} == {"hibprune.recipe": '"tiny"'}


def test_what_overflows_in_one_branch_alone(tiny_exports: Exports, tmp_path: Path) -> None:
    """Its weights are stored in both precisions then, since the other branch shares them."""
    exported = tiny_exports(named("whisper"))
    graph = "decoder_model_merged.onnx"
    source, target = tmp_path / graph, tmp_path / "fp16.onnx"
    model = onnx.load(exported.path(graph))
    onnx.save(model, source)
    feeds = [dict(feed) for feed in exported.feeds()[graph]]
    past = "past_key_values.1.decoder.value"
    feeds[1][past] = feeds[1][past] * 1e6
    kept = convert_fp16(source, target, feeds)
    assert kept
    for feed in feeds:
        wanted = run(source, feed)
        assert distance(wanted, {k: run_plainly(target, feed)[k] for k in wanted}) < NEAR
    before, after = stored_in(model), stored_in(onnx.load(target))
    doubled = after.keys() - before.keys()
    assert f"{weight_name(model, 'layers.1/self_attn/out_proj')}_" in doubled
    for name in doubled:
        kinds = {after[name].dtype, after[name.removesuffix("_")].dtype}
        assert kinds == {np.dtype(np.float16), np.dtype(np.float32)}


@pytest.mark.parametrize(("name", "seconds"), [("conformer-rotary", 24.0), ("wavlm", 16.0)])
def test_positions_are_counted_in_float32(
    name: str, seconds: float, tiny_exports: Exports, tmp_path: Path
) -> None:
    """float16 has no odd numbers above 2048; angles and buckets are computed from positions."""
    exported = tiny_exports(named(name))
    source, target = exported.path("model.onnx"), tmp_path / "fp16.onnx"
    (short,), (long,) = (exported.feeds(seconds=n)["model.onnx"] for n in (0.25, seconds))
    assert convert_fp16(source, target, [short]) == ()
    converted_as_it_is(source, tmp_path / "naive.onnx")
    wanted, found, naive = (
        _counted(path, long) for path in (source, target, tmp_path / "naive.onnx")
    )
    assert max(np.abs(wanted[one] - found[one]).max() for one in wanted) < 1e-3
    assert max(np.abs(wanted[one] - naive[one]).max() for one in wanted) > 0.02


def _counted(path: Path, feed: Feed) -> dict[str, np.ndarray]:
    """Sines and cosines of positions, and the numbers of their buckets."""
    model = onnx.load(path)
    buckets = [one for one in nodes_of(model, "Cast") if "layers.0/attention/Cast_5" in one.name]
    names = [one.output[0].removesuffix("_cast_to_fp16") for one in nodes_of(model, "Sin", "Cos")]
    names += [one.output[0] for one in buckets]
    model.graph.output.extend(map(helper.make_empty_tensor_value_info, names))
    session = plain_session(model.SerializeToString(), path)
    taken = {one.name: feed[one.name] for one in session.get_inputs()}
    return dict(zip(names, session.run(names, taken), strict=True))


def test_masks_say_minus_infinity_in_any_precision(tiny_exports: Exports, tmp_path: Path) -> None:
    """The lowest float32 is no overflow: what masks is float16's own lowest, or its infinity."""
    exported = tiny_exports(named("bert"))
    source, target = exported.path("model.onnx"), tmp_path / "fp16.onnx"
    feed = dict(exported.feeds()["model.onnx"][0])
    feed["attention_mask"] = (np.arange(25) < np.array([[25], [11]])).astype(np.int64)
    ranges = value_ranges(onnx.load(source), source, [feed])
    assert min(found.low for found in ranges.values()) < -3e38
    assert convert_fp16(source, target, [feed]) == ()
    assert distance(run(source, feed), run_plainly(target, feed)) < NEAR


def test_inputs_that_float16_cannot_hold(tmp_path: Path) -> None:
    """Sound that was not brought to between -1 and 1."""
    nodes = [
        helper.make_node("Mul", ["x", "small"], ["scaled"], "scale"),
        helper.make_node("MatMul", ["scaled", "w"], ["y"], "product"),
    ]
    stored = {"small": np.float32(1e-6), "w": np.eye(4, dtype=np.float32)}
    source, target = tmp_path / "m.onnx", tmp_path / "fp16.onnx"
    onnx.save(_graph(nodes, stored), source)
    feed = {"x": np.array([[1e6, -2e6, 3e6, 4e5]], np.float32)}
    assert convert_fp16(source, target, [feed]) == ("scale",)
    assert np.allclose(run_plainly(target, feed)["y"], feed["x"] * 1e-6, rtol=1e-3)


def test_numbers_too_small_for_float16(tmp_path: Path) -> None:
    """The power of a quiet clip, all of it below the smallest number with 11 bits."""
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["power"], "square"),
        helper.make_node("Mul", ["power", "large"], ["y"], "scale"),
    ]
    source, target = tmp_path / "m.onnx", tmp_path / "fp16.onnx"
    onnx.save(_graph(nodes, {"large": np.float32(1e4)}), source)
    feed = {"x": np.array([[1e-4, 2e-4, -3e-4, 0]], np.float32)}
    assert convert_fp16(source, target, [feed]) == ("square", "scale")
    assert np.allclose(run_plainly(target, feed)["y"], feed["x"] ** 2 * 1e4, rtol=2e-3)


def test_the_same_bytes_every_time(tiny_exports: Exports, tmp_path: Path) -> None:
    exported = tiny_exports(named("wavlm"))
    for number in (1, 2):
        feeds = exported.feeds()["model.onnx"]
        convert_fp16(exported.path("model.onnx"), tmp_path / f"{number}.onnx", feeds)
    digests = [hashlib.sha256((tmp_path / f"{n}.onnx").read_bytes()) for n in (1, 2)]
    assert digests[0].hexdigest() == digests[1].hexdigest()


def _graph(nodes: list[Any], stored: dict[str, Any]) -> Any:
    takes, gives = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"
    )
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()]
    graph = helper.make_graph(nodes, "g", [takes], [gives], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def _differences_too_small(path: Path) -> None:
    # 1.0001 is 1 in float16: nothing is left to divide by.
    node = helper.make_node("LayerNormalization", ["x", "ones"], ["y"], "norm", epsilon=0.0)
    onnx.save(_graph([node], {"ones": np.ones(4, np.float32)}), path)


def _branches_within(path: Path) -> None:
    gives = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 4])
    inner = [
        helper.make_graph([helper.make_node(kind, ["x"], ["z"], kind)], kind, [], [gives])
        for kind in ("Abs", "Neg")
    ]
    nodes = [
        helper.make_node("If", ["yes"], ["z"], "if", then_branch=inner[0], else_branch=inner[1]),
        helper.make_node("Exp", ["z"], ["y"], "exp"),
    ]
    onnx.save(_graph(nodes, {"yes": np.array([True])}), path)


def _unknown_operation(path: Path) -> None:
    onnx.save(_graph([helper.make_node("Gargle", ["x"], ["y"], "gargle")], {}), path)


@pytest.mark.parametrize(
    ("write", "told"),
    [
        (_differences_too_small, "its numbers do not fit float16: take fp16 out of export.v"),
        (_branches_within, "it has branches that cannot be converted to float16: take fp16 out"),
        (_unknown_operation, "ONNX Runtime cannot load it: "),
        (lambda path: path.write_bytes(b"no graph"), "cannot be read as an ONNX file"),
    ],
)
def test_what_cannot_be_converted_is_told_in_a_line(
    write: Callable[[Path], None], told: str, tmp_path: Path
) -> None:
    source = tmp_path / "m.onnx"
    write(source)
    with pytest.raises(UserError, match=told) as failure:
        convert_fp16(source, tmp_path / "fp16.onnx", [{"x": np.array([[1, 1, 1, 1.0001]], "f4")}])
    assert str(failure.value).startswith(f"{source}: ")
    assert "\n" not in str(failure.value)
    assert list(tmp_path.iterdir()) == [source]


def test_examples_are_needed(tiny_exports: Exports, tmp_path: Path) -> None:
    exported = tiny_exports(named("whisper"))
    graph = "decoder_model_merged.onnx"
    without_past = exported.feeds()[graph][:1]
    for feeds in ([], without_past):
        with pytest.raises(ValueError, match="no example inputs"):
            convert_fp16(exported.path(graph), tmp_path / "fp16.onnx", feeds)
    assert not list(tmp_path.iterdir())


class TestRanges:
    def test_they_are_those_of_every_tensor_and_input(self, tmp_path: Path) -> None:
        nodes = [
            helper.make_node("Constant", [], ["c"], value_float=-7.0),
            helper.make_node("Mul", ["x", "c"], ["z"]),
            helper.make_node("Cast", ["z"], ["whole"], to=TensorProto.INT64),
            helper.make_node("Cast", ["whole"], ["y"], to=TensorProto.FLOAT),
        ]
        model = _graph(nodes, {})
        content = model.SerializeToString()
        feeds = [{"x": np.array([row], np.float32)} for row in ([1, 2, 3, 4], [-5, 1, 1, 1])]
        assert value_ranges(model, tmp_path, feeds) == {
            "x": (-5, 4),
            "c": (-7, 0),
            "z": (-28, 35),
            "y": (-28, 35),
        }
        assert model.SerializeToString() == content

    def test_of_a_tensor_without_elements(self, tmp_path: Path) -> None:
        model = _graph([helper.make_node("Exp", ["x"], ["y"])], {})
        empty = {"x": np.zeros((0, 4), np.float32)}
        assert value_ranges(model, tmp_path, [empty]) == {"x": (0, 0), "y": (0, 0)}


class TestExamples:
    @pytest.mark.parametrize("name", ["whisper", "moonshine"])
    def test_decoders_are_told_what_the_encoder_heard_and_what_was_said(
        self, name: str, tiny_exports: Exports
    ) -> None:
        """In its first step and in the one that follows, its logits are PyTorch's."""
        import torch

        exported = tiny_exports(named(name))
        model, clip = exported.tiny.build(), exported.tiny.inputs()
        clip["decoder_input_ids"] = torch.tensor([[1, 4, 9, 7, 5]] * 2)
        with torch.no_grad():
            wanted = model(**clip).logits.numpy()
        merged = exported.path("decoder_model_merged.onnx")
        parts = (slice(None, -1), slice(-1, None))
        for feed, part in zip(exported.feeds()[merged.name], parts, strict=True):
            np.testing.assert_allclose(run(merged, feed)["logits"], wanted[:, part], atol=1e-4)

    def test_what_nothing_gives_is_told(self, tiny_exports: Exports) -> None:
        exported: TinyExport = tiny_exports(named("whisper"))
        directory = exported.path("")
        clip = {"input_features": np.zeros((1, 16, 80), np.float32)}
        with pytest.raises(UserError, match=r"takes 'encoder_hidden_.*', which nothing gives it"):
            graph_feeds(directory, ["decoder_model_merged.onnx"], [clip], (1, 2))
        with pytest.raises(UserError, match="takes 'input_features', which nothing gives it"):
            graph_feeds(directory, ["encoder_model.onnx"], [{"input_values": np.zeros((1, 9))}])


def test_no_graph_is_left_in_branches(tiny_exports: Exports, tmp_path: Path) -> None:
    """Inferred shapes, which the converter adds, are taken out again."""
    exported = tiny_exports(named("moonshine"))
    graph = "decoder_model_merged.onnx"
    convert_fp16(exported.path(graph), tmp_path / "m.onnx", exported.feeds()[graph])
    assert all(not one.value_info for one in all_graphs(onnx.load(tmp_path / "m.onnx")))
