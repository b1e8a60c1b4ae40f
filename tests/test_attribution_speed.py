"""The benchmark of attribution runs, and leaves everything behind that it promises."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parent / "benchmarks"))
import attribution_speed

pytestmark = pytest.mark.slow

PRECISIONS = ["float32", "bfloat16"]
MODELS = ("quickstart", "base-1s", "base-10s", "whisper-tiny")


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("speed") / "speed.json"
    attribution_speed.main(["--quick", "--output", str(output)])
    assert output.with_suffix(".png").stat().st_size > 5000
    return dict(json.loads(output.read_text()))


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from numbers(each)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def test_every_part_is_there_in_finite_numbers(result: dict[str, Any]) -> None:
    assert set(result["part_seconds"]) == {*MODELS, "samples", "length", "memory"}
    for part in result["part_seconds"]:
        assert all(map(math.isfinite, numbers(result[part])))
    assert result["threads"] == torch.get_num_threads()
    assert result["machine"]["processor"]
    assert result["versions"]["torch"]


def test_both_sides_learned_the_same(result: dict[str, Any]) -> None:
    for case in (result[name] for name in MODELS):
        exact, reduced = case["engines"]
        assert [exact["precision"], reduced["precision"]] == PRECISIONS
        assert exact["largest_difference"] < 1e-4 * exact["largest_score"]
        assert exact["largest_difference"] < reduced["largest_difference"]
        assert reduced["steps"] == "auto"


def test_ratios_follow_from_the_times(result: dict[str, Any]) -> None:
    for case in (result[name] for name in MODELS):
        reference = case["reference"]
        part = reference["samples"] * reference["steps"]
        whole = reference["extrapolated_to"]["samples"] * reference["extrapolated_to"]["steps"]
        assert reference["extrapolated_seconds"] == pytest.approx(
            reference["seconds"] * whole / part
        )
        for engine in case["engines"]:
            assert engine["ratio_whole_processor"] == pytest.approx(
                reference["processor_seconds"] * whole / part / engine["processor_seconds"]
            )
            assert engine["ratio_whole"] == pytest.approx(
                reference["extrapolated_seconds"] / engine["seconds"]
            )
            steps = engine["samples"] * engine["steps_taken"]
            assert engine["share_of_matmul_throughput"] == pytest.approx(
                engine["multiply_adds_per_sample_step"]
                * steps
                / engine["seconds"]
                / engine["matmul_multiply_adds_per_second"]
            )


def test_multiply_adds_are_those_of_the_base_shapes_layers(result: dict[str, Any]) -> None:
    """Two projections, the feed-forward part and the classifier's projector, there and back."""
    counted = result["base-1s"]["engines"][0]["multiply_adds_per_sample_step"]
    layers, frames, width, inner = 2, 49, 768, 3072
    forward = layers * frames * (2 * width**2 + 2 * width * inner)
    # Attention times values: once there, twice back, of which the first layer needs one.
    mixing = (3 * layers - 1) * frames**2 * width
    projector = frames * width * 256
    # Nothing goes back through the first layer's V.
    expected = 2 * forward - frames * width**2 + mixing + 2 * projector
    assert counted == pytest.approx(expected, rel=1e-4)


def test_memory_and_length_are_told_for_every_length(result: dict[str, Any]) -> None:
    for row in result["memory"]["peak_mib"]:
        # A process of its own: this one has held more for the models before.
        assert 100 < row["before"] < row["after"] <= attribution_speed.peak_mib()
    for row in (*result["length"]["ms_per_sample_step"], *result["samples"]["seconds"]):
        assert row.keys() >= set(PRECISIONS)
