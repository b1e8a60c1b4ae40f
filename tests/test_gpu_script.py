"""The script for machines with a GPU: its dry run on the CPU, and parts that fail alone."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent / "benchmarks"))
import gpu
from parts import Finding, Part, context, run_part

SCRIPT = Path(gpu.__file__)
EIGHT_MINUTES = 480


# A dry run -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("gpu") / "gpu.json"
    command = (sys.executable, SCRIPT, "--dry", "--output", output)
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return dict(json.loads(output.read_text()))


def found(result: dict[str, Any], part: str) -> Any:
    return result["parts"][part]["found"]


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from numbers(each)
    elif isinstance(value, int | float):
        yield value


def test_every_part_passes_within_eight_minutes(result: dict[str, Any]) -> None:
    assert list(result["parts"]) == [
        "machine", "tests", "run", "attribution", "quickstart", "base", "repair",
    ]  # fmt: skip
    assert {part["outcome"] for part in result["parts"].values()} == {"passed"}
    assert result["failed"] == []
    assert result["dry"] is True
    assert sum(part.limit_seconds for part in gpu.PARTS) <= EIGHT_MINUTES
    assert all(map(math.isfinite, numbers(result)))
    assert result["seconds"] >= sum(part["seconds"] for part in result["parts"].values()) - 1


def test_machine_and_versions_are_told(result: dict[str, Any]) -> None:
    told = found(result, "machine")
    assert told["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert told["machine"].keys() >= {"processor", "gpu", "gpu_driver", "system"}
    assert {"torch", "onnx", "transformers", "hibprune"} <= told["versions"].keys()


def test_the_tests_marked_gpu_are_all_there(result: dict[str, Any]) -> None:
    """As many as pytest itself finds; none sees a GPU in a dry run."""
    tests = found(result, "tests")["tests"]
    names = [test["name"].rpartition("::")[2].partition("[")[0] for test in tests]
    own = Path(__file__).with_name("test_gpu.py").read_text()
    assert list(dict.fromkeys(names)) == [
        line[4:].partition("(")[0] for line in own.splitlines() if line.startswith("def test_")
    ]
    for test in tests:
        assert (test["outcome"], test["reason"]) == ("skipped", "torch sees no CUDA device")


def test_attribution_is_held_against_the_loop(result: dict[str, Any]) -> None:
    told = found(result, "attribution")
    assert told["device"] == "cpu"
    exact, reduced = told["float32"], told["bfloat16"]
    assert (exact["precision"], reduced["precision"]) == ("float32", "bfloat16")
    assert exact["largest_difference"] < 1e-4 * exact["largest_score"]
    assert exact["largest_difference"] < reduced["largest_difference"]


@pytest.mark.parametrize("part", ["quickstart", "base"])
def test_variants_run_where_they_should_and_are_timed_in_turn(
    part: str, result: dict[str, Any]
) -> None:
    told = found(result, part)
    variants = ["original", "original-fp16"]
    assert list(told["nodes"]) == variants
    for variant in told["nodes"].values():
        assert variant["provider"] == "CPUExecutionProvider"
        (nodes,) = variant["nodes"].values()
        assert nodes["MatMul"] > 1
        assert nodes["Conv"] > 1
    sizes = told["graphs"]["bytes"]
    assert 0.4 < sizes["original-fp16"] / sizes["original"] < 0.7
    assert told["agreement"]["n"] == (4 if part == "quickstart" else 3)
    assert 0 < told["agreement"]["relative_diff"] < 5e-3
    assert [row["variant"] for row in told["latency"]] == variants
    original, fp16 = told["latency"]
    assert {row["provider"] for row in (original, fp16)} == {"CPUExecutionProvider"}
    assert fp16["ratio"] == pytest.approx(original["times"]["p50"] / fp16["times"]["p50"])


def test_a_run_leaves_what_verify_finds_in_order(result: dict[str, Any]) -> None:
    told = found(result, "run")
    assert (told["device"], told["missing"]) == ("cpu", [])
    names = [one["name"] for one in told["variants"]]
    assert names == ["original", "pruned", "pruned-int8", "pruned-fp16"]
    assert told["verified"][0].startswith("files: ")


def test_repair_tells_seconds_and_memory(result: dict[str, Any]) -> None:
    told = found(result, "repair")
    assert list(told) == ["least-squares", "refined"]
    for row in told.values():
        assert row["device"] == "cpu"
        assert row["seconds"] > 0
        assert row["error_after"] < row["error_before"]
        # A tiny model's hidden states: 20 clips of 25 frames of 32 numbers, kept for both models.
        assert row["peak_bytes"] > 2 * 20 * 25 * 32 * 4
    assert told["refined"]["refine_steps"] > told["least-squares"]["refine_steps"] == 0


# Parts that fail -----------------------------------------------------------------------------


def works(dry: bool) -> Iterator[Finding]:
    yield "dry", dry


def raises(dry: bool) -> Iterator[Finding]:
    yield "before", 1
    raise ValueError("no such shape")


def hangs(dry: bool) -> Iterator[Finding]:
    started = subprocess.Popen(["sleep", "600"])
    yield "started", started.pid
    time.sleep(600)


def dies(dry: bool) -> Iterator[Finding]:
    yield "before", 1
    os.kill(os.getpid(), signal.SIGSEGV)


def exits(dry: bool) -> Iterator[Finding]:
    yield "before", 1
    sys.exit(0)


def test_a_part_that_fails_is_told_and_the_others_still_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "PRELOADED", ())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    parts = [Part(one.__name__, 60, one) for one in (raises, dies, exits, works)]
    output = tmp_path / "gpu.json"
    assert gpu.main(["--dry", "--output", str(output)], parts) == 1
    result = json.loads(output.read_text())
    assert result["failed"] == ["raises", "dies", "exits"]
    told = {name: part["error"] for name, part in result["parts"].items()}
    assert told["raises"].startswith("Traceback")
    assert told["raises"].endswith("ValueError: no such shape")
    assert told["dies"] == f"its process ended with exit code {-signal.SIGSEGV}"
    assert told["exits"].endswith("SystemExit: 0")
    assert told["works"] is None
    assert found(result, "works") == {"dry": True}
    # What was found before a failure stays.
    assert [found(result, name) for name in result["failed"]] == [{"before": 1}] * 3
    assert "raises: failed" in capsys.readouterr().out
    assert gpu.main(["--dry", "--output", str(output), "--parts", "works"], parts) == 0
    with pytest.raises(SystemExit):
        gpu.main(["--parts", "works,nothing"], parts)


def test_a_part_that_hangs_ends_with_all_it_started() -> None:
    start = time.monotonic()
    told = run_part(Part("hangs", 3, hangs), True, context())
    assert time.monotonic() - start < 30
    assert (told["outcome"], told["error"]) == ("failed", "took longer than 3 s")
    status = Path(f"/proc/{told['found']['started']}/status")
    # Gone, or waiting for whoever collects orphans.
    assert not status.exists() or "State:\tZ" in status.read_text()


@pytest.mark.parametrize("part", [one for one in gpu.PARTS if one.name not in ("machine", "tests")])
def test_without_a_gpu_nothing_passes_for_measured(
    part: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing falls back to the CPU without `--dry`."""
    import torch
    from speed_cases import waveforms

    from hibprune.errors import UserError

    monkeypatch.setattr("speed_cases.quickstart", lambda number: (None, waveforms(number, 0.1)))
    monkeypatch.setattr(gpu, "base_model", lambda dry: torch.nn.Linear(1, 1))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"^device: cuda is asked for, but torch sees no GPU"):
        next(iter(part.find(False)))


def test_a_machine_without_a_gpu_is_told_and_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from hibprune.errors import UserError

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    telling = gpu.find_machine(False)
    assert [next(telling)[0], next(telling)[0]] == ["machine", "versions"]
    with pytest.raises(UserError, match="torch sees no GPU"):
        next(telling)


def test_a_skipped_test_is_no_pass_on_a_gpu() -> None:
    passed, skipped = ({"name": name, "outcome": name} for name in ("passed", "skipped"))
    gpu.require_passed([passed], ["passed"])
    gpu.require_passed([passed, skipped], ["passed", "skipped"])
    with pytest.raises(RuntimeError, match=r"^not passed: skipped$"):
        gpu.require_passed([passed, skipped], ["passed"])
    with pytest.raises(RuntimeError, match="found no test"):
        gpu.require_passed([], ["passed"])


@pytest.mark.parametrize(
    ("nodes", "elsewhere"),
    [
        (
            {"CUDAExecutionProvider": {"FusedMatMul": 3}, "CPUExecutionProvider": {"Gather": 2}},
            None,
        ),
        ({"CUDAExecutionProvider": {"Conv": 3}, "CPUExecutionProvider": {"MatMul": 1}}, "MatMul"),
        ({"CPUExecutionProvider": {"FusedGemm": 3}}, "FusedGemm"),
        ({"CUDAExecutionProvider": {"Add": 3}}, "any matrix product"),
        ({}, "any matrix product"),
    ],
)
def test_a_matrix_product_elsewhere_is_a_fallback(
    nodes: dict[str, dict[str, int]], elsewhere: str | None
) -> None:
    if elsewhere is None:
        gpu.require_heavy_nodes(nodes, "CUDAExecutionProvider")
        return
    with pytest.raises(RuntimeError, match=elsewhere):
        gpu.require_heavy_nodes(nodes, "CUDAExecutionProvider")


def test_outcomes_of_tests_are_read_from_pytests_report() -> None:
    report = """<testsuites><testsuite>
      <testcase classname="test_gpu" name="a" time="1.5"/>
      <testcase classname="test_gpu" name="b" time="0"><skipped message="no GPU"/></testcase>
      <testcase classname="test_gpu" name="c" time="2"><failure message="1 != 2">x</failure>
      </testcase><testcase classname="test_gpu" name="d" time="2"><error message="setup"/>
      </testcase></testsuite></testsuites>"""
    told = [(one["name"], one["outcome"], one["reason"]) for one in gpu.test_outcomes(report)]
    assert told == [
        ("test_gpu::a", "passed", None),
        ("test_gpu::b", "skipped", "no GPU"),
        ("test_gpu::c", "failed", "1 != 2"),
        ("test_gpu::d", "error", "setup"),
    ]
