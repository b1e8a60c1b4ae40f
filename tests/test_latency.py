"""Timing: models and their parts in turn, on the work that the figures name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from manifests import printed, rows_of, section, unwrapped
from standin import SLOWLY_VALIDATED, StandIn
from torch import Tensor
from transformers import AutoTokenizer

from hibprune.evaluation import latency
from hibprune.evaluation.latency import BenchmarkSettings, measure_latency
from hibprune.execution.runtime import Timed
from hibprune.records.manifest import Manifest
from hibprune.records.medium import SOUND, TEXT, Length
from hibprune.records.variants import VariantLatency
from hibprune.report.variants import latency_work

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
        assert len(lengths) == SLOWLY_VALIDATED
        median = (lengths[4] + lengths[5]) / 2
        assert manifest.counted_work.decoded_tokens == round(median)
        assert {one.decoded_tokens for one in latencies(manifest)} == {round(median)}

    def test_the_window_stands_beside_the_figures(
        self, output: Path, manifest: Manifest, name: str
    ) -> None:
        window = 1.0 if name == "encoder_decoder" else None
        assert manifest.counted_work.window_seconds == window
        assert {one.window_seconds for one in latencies(manifest)} == {window}
        tokens = f"{manifest.counted_work.decoded_tokens} tokens"
        work = f"1 s window, {tokens}" if window else tokens
        assert latency_work(manifest.original.latency[0]) == f"0.5 s clip, {work}"
        shown = unwrapped(printed(manifest))
        assert f"(onnxruntime, CPUExecutionProvider, 1 thread, batch 1, {work})" in shown
        report = (output / "report.md").read_text()
        of_what = "a 1 s window" if window else "0.5 s of sound"
        assert f"multiply-adds, {of_what} and {tokens} |" in report

    def test_encoder_and_decoder_step_are_timed_apart(
        self, output: Path, manifest: Manifest
    ) -> None:
        for one in latencies(manifest):
            assert [part.part for part in one.parts] == ["encoder", "one decoder step"]
            assert all(part.times.p50 < one.times.p50 for part in one.parts)
        kept = json.loads((output / "steps/benchmark.json").read_text())["result"]["latencies"]
        names = {one.name for one in manifest.variants}
        for one in kept:
            assert list(one["times"])[1:] == ["encoder", "one decoder step"]
            assert all(times.keys() == names for times in one["times"].values())
            assert all(len(own) == 3 for times in one["times"].values() for own in times.values())

    def test_the_files_are_named_with_their_sizes(self, output: Path, manifest: Manifest) -> None:
        rows = rows_of(section((output / "report.md").read_text(), "Size"))
        sizes = []
        for name in ("encoder_model.onnx", "decoder_model_merged.onnx"):
            size = (output / "onnx" / name).stat().st_size
            sizes.append(f"{name.partition('_')[0]} {size / 1e6:.2f} MB")
        assert rows["pruned"][2] == " + ".join(sizes)


def latencies(manifest: Manifest) -> list[VariantLatency]:
    """Those of all variants."""
    return [latency for one in manifest.variants for latency in one.latency]


def test_a_model_without_decoder_and_window_says_nothing_of_them(
    finished: Callable[[str], Path],
) -> None:
    manifest = Manifest.model_validate_json(
        (finished("keyword_spotting") / "manifest.json").read_text()
    )
    for figure in (manifest.counted_work, *latencies(manifest)):
        assert (figure.window_seconds, figure.decoded_tokens) == (None, None)
    assert all(not one.parts for one in latencies(manifest))
    assert all([file.name for file in one.files] == ["model.onnx"] for one in manifest.variants)
    assert manifest.generation is None
