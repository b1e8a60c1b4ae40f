"""The guard of int8: what ruins a model is found by measuring and left in float32, and no more."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tiny_exports import Exports, TinyExport, change, distance, nodes_of, run, weight_name
from tiny_models import TINY_MODELS

from hibprune.compression.quantize.graphs import layer_groups, read_graph
from hibprune.compression.quantize.guard import Reading, quantize_guarded
from hibprune.compression.quantize.settings import QuantizeSettings
from hibprune.errors import UserError

WAV2VEC2, WHISPER = TINY_MODELS[0], next(tiny for tiny in TINY_MODELS if tiny.name == "whisper")
OUTLIER = 3000.0
"""7 bits of a channel that holds it have steps of 47, where all other weights are below 2."""


@pytest.fixture
def exported(tiny_exports: Exports, tmp_path: Path) -> TinyExport:
    """A tiny wav2vec2 in a directory of its own, to be spoiled."""
    return _own(tiny_exports(WAV2VEC2), tmp_path)


def _own(made: TinyExport, root: Path) -> TinyExport:
    return TinyExport(made.tiny, Path(shutil.copytree(made.directory, root / "run")))


def _plant(path: Path, layer: int, part: str) -> None:
    """An outlier in every channel of a projection, by which it multiplies an input that is 0."""
    first, second = {
        "attention": ("attention/v_proj", "attention/out_proj"),
        "feed-forward": ("feed_forward/intermediate_dense", "feed_forward/output_dense"),
    }[part]
    model = onnx.load(path)
    bias = f"wav2vec2.encoder.layers.{layer}.{first.replace('/', '.')}.bias"

    def silence(values: np.ndarray) -> np.ndarray:
        values[..., 0] = 0
        return values

    def outlier(values: np.ndarray) -> np.ndarray:
        values[0] = OUTLIER
        return values

    # gelu(0) and the average of zeros are 0.
    change(model, weight_name(model, f"layers.{layer}/{first}"), silence)
    change(model, bias, silence)
    change(model, weight_name(model, f"layers.{layer}/{second}"), outlier)
    onnx.save(model, path)


def _closeness(exported: TinyExport) -> Callable[[Path], Reading]:
    """1 where logits are those of fp32, less the further they are from them."""
    (feed,) = exported.feeds()["model.onnx"]
    wanted = run(exported.path("model.onnx"), feed)

    def measure(directory: Path) -> Reading:
        found = run(directory / "onnx" / "model.onnx", feed)
        return Reading(1 - min(1.0, distance(wanted, found)))

    return measure


def _guarded(exported: TinyExport, max_drop: float = 0.05) -> Any:
    return quantize_guarded(
        exported.directory,
        ["model.onnx"],
        QuantizeSettings(max_drop=max_drop),
        reference=1.0,
        higher_is_better=True,
        measure=_closeness(exported),
    )


@pytest.mark.parametrize(
    "planted",
    [
        [(1, "feed-forward")],
        [(0, "attention")],
        # Leaving one of them alone in float32 would help nothing.
        [(0, "feed-forward"), (1, "attention")],
    ],
)
def test_planted_outliers_are_found_and_nothing_else(
    planted: list[tuple[int, str]], exported: TinyExport
) -> None:
    for layer, part in planted:
        _plant(exported.path("model.onnx"), layer, part)
    guard = _guarded(exported)
    assert set(guard.in_float) == {f"encoder layer {layer} {part}" for layer, part in planted}
    assert guard.quantized < 0.9 < 0.95 < guard.guarded < guard.reference == 1
    assert list(guard.drops)[: len(planted)] == list(guard.in_float)
    assert len(guard.drops) == 6
    assert guard.measurements <= 1 + 6 + 3
    measured = _closeness(exported)
    again = exported.directory / "again" / "onnx" / "model.onnx"
    again.parent.mkdir(parents=True)
    shutil.copy(exported.path("model_quantized.onnx"), again)
    assert measured(exported.directory / "again").metric == guard.guarded


def test_one_measurement_where_int8_is_good_enough(exported: TinyExport) -> None:
    guard = _guarded(exported)
    assert (guard.in_float, guard.drops, guard.measurements) == ((), {}, 1)
    assert guard.quantized == guard.guarded
    names = sorted(path.name for path in exported.path("").iterdir())
    assert names == ["model.onnx", "model_quantized.onnx"]


def _in_int8(directory: Path, groups: dict[str, dict[str, list[str]]]) -> set[str]:
    """The groups that the graphs in a directory have in int8, in every graph they are part of."""
    found: dict[str, set[bool]] = {group: set() for group in groups}
    for path in (directory / "onnx").iterdir():
        products = nodes_of(onnx.load(path), "MatMulInteger")
        names = {node.name.removesuffix("_quant").removesuffix("_MatMul") for node in products}
        for group, nodes in groups.items():
            found[group] |= {
                name.removesuffix("_MatMul") in names or name in names
                for name in nodes.get(path.name, ())
            }
    assert all(len(answers) == 1 for answers in found.values())
    return {group for group, answers in found.items() if answers == {True}}


def _tabled(
    exported: TinyExport, drops: dict[str, float], distances: dict[str, float] | None = None
) -> tuple[Callable[[Path], Reading], list[set[str]]]:
    """An error rate that is 10 % more what a table says of the groups in int8; and what was tried.

    Tables name the ends of groups.
    """
    groups = layer_groups((name, read_graph(exported.path(name))) for name in exported.graphs)
    tried: list[set[str]] = []

    def total(table: dict[str, float], groups: Collection[str]) -> float:
        return sum(value for end, value in table.items() for group in groups if group.endswith(end))

    def measure(directory: Path) -> Reading:
        tried.append(_in_int8(directory, groups))
        return Reading(0.1 + total(drops, tried[-1]), total(distances or {}, tried[-1]))

    return measure, tried


def _guarded_by(exported: TinyExport, measure: Any, max_drop: float, **more: Any) -> Any:
    return quantize_guarded(
        exported.directory,
        exported.graphs,
        QuantizeSettings(max_drop=max_drop),
        reference=0.1,
        higher_is_better=False,
        measure=measure,
        **more,
    )


DROPS = {
    "input layers": 0.004,
    "layer 0 attention": 0.02,
    "layer 0 feed-forward": 0.001,
    "layer 1 attention": 0.007,
    "layer 1 feed-forward": 0.03,
    "output layers": 0.003,
}


@pytest.mark.parametrize("max_drop", [0.07, 0.065, 0.04, 0.02, 0.01, 0.004, 0.001])
def test_the_fewest_groups_are_left(max_drop: float, exported: TinyExport) -> None:
    measure, tried = _tabled(exported, DROPS)
    seen: list[tuple[int, int]] = []
    guard = _guarded_by(
        exported, measure, max_drop, progress=lambda done, total: seen.append((done, total))
    )
    fewest = next(
        number
        for number in range(7)
        for left in itertools.combinations(DROPS.values(), number)
        if sum(DROPS.values()) - sum(left) <= max_drop + 1e-12
    )
    assert len(guard.in_float) == fewest
    assert guard.guarded - 0.1 <= max_drop + 1e-12
    assert guard.quantized == pytest.approx(0.165)
    assert guard.measurements == len(tried) <= 10
    assert all(0 < done < total == 10 for done, total in seen)
    if fewest:
        ends = sorted(DROPS, key=lambda end: -DROPS[end])
        assert [next(end for end in ends if group.endswith(end)) for group in guard.drops] == ends
        assert tuple(guard.drops)[:fewest] == guard.in_float
        assert guard.drops["encoder layer 1 feed-forward"] == pytest.approx(0.03)


def test_where_the_guard_leaves_too_little_to_gain_it_is_told_as_the_reason(
    exported: TinyExport,
) -> None:
    """All but the input layers, whose nodes and scales take as much as their weights give."""
    costly = dict.fromkeys([end for end in DROPS if end != "input layers"], 0.02)
    measure, _ = _tabled(exported, costly)
    with pytest.raises(UserError) as caught:
        _guarded_by(exported, measure, 0.001)
    assert re.fullmatch(
        r".*/onnx/model\.onnx: it would grow from [\d,]+ to [\d,]+ bytes, as 5 of 6 groups of "
        r"layers had to stay in float32 to lose no more than quantize\.max_drop \(0\.001\): raise "
        r"quantize\.max_drop or take int8 out of export\.variants",
        str(caught.value),
    )
    assert not exported.path("model_quantized.onnx").exists()


def test_outputs_tell_groups_apart_that_the_metric_does_not(exported: TinyExport) -> None:
    distances = {"layer 1 attention": 0.3, "output layers": 0.2, "layer 0 attention": 0.1}
    ends = ("input layers", *distances)
    measure, _ = _tabled(exported, dict.fromkeys(ends, 0.01), distances)
    guard = _guarded_by(exported, measure, 0.02)
    assert guard.in_float == ("encoder layer 1 attention", "output layers")


def test_both_branches_of_a_decoder_keep_the_same(tiny_exports: Exports, tmp_path: Path) -> None:
    exported = _own(tiny_exports(WHISPER), tmp_path)
    measure, tried = _tabled(exported, {"decoder layer 1 cross-attention": 0.5})
    guard = _guarded_by(exported, measure, 0.01)
    assert guard.in_float == ("decoder layer 1 cross-attention",)
    groups = set(guard.drops)
    assert {frozenset(one) for one in tried[1:12]} == {frozenset({group}) for group in groups}
    (tmp_path / "check" / "onnx").mkdir(parents=True)
    for graph in exported.graphs:
        quantized = exported.path(graph.replace(".onnx", "_quantized.onnx"))
        assert quantized.stat().st_size < exported.path(graph).stat().st_size
        shutil.move(quantized, tmp_path / "check" / "onnx" / graph)
    measure(tmp_path / "check")
    assert tried[-1] == groups - set(guard.in_float)


def test_a_graph_left_in_float_as_a_whole_is_there_too(
    tiny_exports: Exports, tmp_path: Path
) -> None:
    exported = _own(tiny_exports(WHISPER), tmp_path)
    spoilers = {f"encoder layer {n} {part}": 0.1 for n in (0, 1) for part in PARTS}
    measure, _ = _tabled(exported, spoilers)
    guard = _guarded_by(exported, measure, 0.01)
    assert set(guard.in_float) == set(spoilers)
    encoder, kept = exported.path("encoder_model.onnx"), "encoder_model_quantized.onnx"
    assert exported.path(kept).read_bytes() == encoder.read_bytes()


PARTS = ("attention", "feed-forward")


@pytest.mark.parametrize("ruin", [dict.fromkeys(DROPS, 0.2), {"": float("nan")}])
def test_a_model_that_int8_ruins_everywhere_is_told(
    ruin: dict[str, float], exported: TinyExport
) -> None:
    measure, tried = _tabled(exported, ruin)
    with pytest.raises(UserError, match=r"than quantize\.max_drop \(0\.01\) whatever stays in"):
        _guarded_by(exported, measure, 0.01)
    assert len(tried) <= 10
    assert [path.name for path in exported.path("").iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("ending", [UserError("no clips"), KeyboardInterrupt()])
def test_nothing_is_left_when_measuring_fails(ending: BaseException, exported: TinyExport) -> None:
    def measure(_: Path) -> Reading:
        raise ending

    with pytest.raises(type(ending)):
        _guarded_by(exported, measure, 0.01)
    assert [path.name for path in exported.path("").iterdir()] == ["model.onnx"]
