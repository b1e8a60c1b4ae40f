"""Timing: models and their parts in turn, on the work that the figures name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hibprune.report.summary import summary_rows
from standin import StandIn
from torch import Tensor
from transformers import AutoTokenizer

from hibprune.evaluation import latency
from hibprune.evaluation.latency import BenchmarkSettings, measure_latency
from hibprune.execution.runtime import Timed
from hibprune.records.manifest import Manifest
from hibprune.records.medium import SOUND, TEXT, Length

SPEAKERS = ("encoder_decoder", "encoder_decoder_on_waveforms")


class Clock:
    """Time that passes only where work is done."""

    def __init__(self) -> None:
        self.now = 0.0
        self.done: list[str] = []

    def perf_counter(self) -> float:
        return self.now

    def model(self, name: str, **milliseconds: float) -> Timed:
        """Whose parts take so long for an input of one second, the first call of each ten times."""

        def timed(inputs: dict[str, Tensor]) -> dict[str, Callable[[], object]]:
            return {
                part: self.work(name, part, each * inputs["length"].value)  # type: ignore[attr-defined]
                for part, each in milliseconds.items()
            }

        return timed

    def work(self, name: str, part: str, milliseconds: float) -> Callable[[], object]:
        calls: list[None] = []

        def run() -> None:
            self.now += milliseconds / 1000 * (1 if calls else 10)
            calls.append(None)
            self.done.append(f"{name} {part}")

        return run


def example(length: Length, batch: int) -> dict[str, Any]:
    assert batch == 1
    return {"length": length}


def test_every_part_of_every_model_is_timed_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(latency.time, "perf_counter", clock.perf_counter)
    models = {
        name: clock.model(name, whole=factor * 8, encoder=factor * 2)
        for name, factor in (("a", 1), ("b", 2), ("c", 4))
    }
    settings = BenchmarkSettings(seconds=(1, 3), repetitions=3, warmup=1)
    shares: list[float] = []
    found = dict(measure_latency(models, example, settings, SOUND, shares.append))
    assert [length.seconds for length in found] == [1, 3]
    for length, parts in found.items():
        for part, each in (("whole", 8), ("encoder", 2)):
            for name, factor in (("a", 1), ("b", 2), ("c", 4)):
                wanted = pytest.approx(3 * (each * factor * length.value,))
                assert parts[part][name] == wanted
    order = [done.split()[0] for done in clock.done]
    # Warm-up and three rounds: those that go one way as often as those that go the other.
    assert order == list("abccbaabccba") * 4
    assert shares == [0.25, 0.5, 0.75, 1.0]


def test_texts_have_lengths_in_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(latency.time, "perf_counter", clock.perf_counter)
    settings = BenchmarkSettings(tokens=(4, 8), repetitions=2, warmup=1)
    found = dict(measure_latency({"a": clock.model("a", whole=1)}, example, settings, TEXT))
    assert [str(length) for length in found] == ["4 tokens", "8 tokens"]


class TestWorkOfADecoder:
    @pytest.fixture(params=SPEAKERS)
    def name(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture
    def output(self, finished: Callable[[str], Path], name: str) -> Path:
        return finished(name)

    @pytest.fixture
    def manifest(self, output: Path) -> Manifest:
        return Manifest.model_validate_json((output / "manifest.json").read_text())

    def test_tokens_are_those_of_a_validation_transcript_of_median_length(
        self, output: Path, manifest: Manifest, stand_ins: Callable[[str], Path], name: str
    ) -> None:
        """Letters of a Whisper and its space in front, or word pieces; with the end of text."""
        tokenizer = AutoTokenizer.from_pretrained(output)
        texts = [row["text"] for row in StandIn(stand_ins(name)).rows("validation")]
        space = " " if name == "encoder_decoder" else ""
        lengths = sorted(
            len(tokenizer(space + text, add_special_tokens=False).input_ids) + 1 for text in texts
        )
        median = (lengths[14] + lengths[15]) / 2
        assert len(lengths) == 30
        assert manifest.macs.decoded_tokens == round(median)
        assert {one.decoded_tokens for one in manifest.latency} == {round(median)}

    def test_the_window_stands_beside_the_figures(self, manifest: Manifest, name: str) -> None:
        window = 1.0 if name == "encoder_decoder" else None
        assert manifest.macs.window_seconds == window
        assert {one.window_seconds for one in manifest.latency} == {window}
        rows = {row.label: row for row in summary_rows(manifest)}
        tokens = f"{manifest.macs.decoded_tokens} tokens"
        work = f"1 s window, {tokens}" if window else tokens
        assert rows["Latency, 0.5 s clip"].label_detail == work
        macs = rows["Multiply-adds" if window else "Multiply-adds, 0.5 s"]
        assert macs.label_detail == work

    def test_encoder_and_decoder_step_are_timed_apart(
        self, output: Path, manifest: Manifest
    ) -> None:
        for one in manifest.latency:
            assert [part.part for part in one.parts] == ["encoder", "one decoder step"]
            assert all(part.before.p50 < one.before.p50 for part in one.parts)
        kept = json.loads((output / "steps/benchmark.json").read_text())["result"]["latencies"]
        assert all(len(part["before_ms"]) == 3 for one in kept for part in one["parts"])

    def test_the_files_are_named_with_their_sizes(self, output: Path, manifest: Manifest) -> None:
        report = (output / "report.md").read_text()
        for name in ("encoder_model.onnx", "decoder_model_merged.onnx"):
            size = (output / "onnx" / name).stat().st_size
            assert re.search(rf"\| {name} \| [\d.]+ MB \| {size / 1e6:.2f} MB \|", report)
        row = next(row for row in summary_rows(manifest) if row.label == "ONNX files")
        assert row.label_detail == "encoder + decoder"


def test_a_model_without_decoder_and_window_says_nothing_of_them(
    finished: Callable[[str], Path],
) -> None:
    manifest = Manifest.model_validate_json(
        (finished("keyword_spotting") / "manifest.json").read_text()
    )
    for figure in (manifest.macs, *manifest.latency):
        assert (figure.window_seconds, figure.decoded_tokens) == (None, None)
    assert all(not one.parts for one in manifest.latency)
    assert list(manifest.graph_bytes) == ["model.onnx"]
    assert manifest.generation is None
