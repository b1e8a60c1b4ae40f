"""HIB's engine against the plain reference, side by side in one run, and how its time grows.

    python tests/benchmarks/attribution_speed.py            # every part; ten minutes on 2 cores
    python tests/benchmarks/attribution_speed.py --quick    # small sizes, to see that it runs
    python tests/benchmarks/attribution_speed.py --parts base-1s,length --threads 1

The reference (tests/hib_reference.py) runs the whole model forward and back, one sample at a time.
Both learn from the same samples with the same noise. What the reference would take for all samples
and steps is extrapolated linearly from those it was given, which the result states. Multiply-adds
are those of the matrix products that the engine runs in a step, forward and back, as
`torch.utils.flop_counter` counts them; the machine's own throughput is that of a product of two
large square matrices in the same precision, in the same run. Times are those of the clock; those
of the processor, which other work on the machine disturbs less, stand beside them. Writes
tests/benchmarks/results/attribution_speed.json and a plot of time against samples beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from hibprune.attribution import HeadInformationBottleneck
from hibprune.attribution.batches import read_unmodified
from hibprune.attribution.hib import optimise
from hibprune.attribution.noise import SeededNoise
from hibprune.attribution.session import Sample, Session
from hibprune.execution.files import write_text
from hibprune.execution.machine import describe_machine, installed_versions
from hibprune.models.attention import (
    attention_sites,
    frame_count,
    frozen,
    input_length,
    positions_fitted,
)
from hibprune.records.statistics import spearman
from hibprune.tasks import Batch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/benchmarks")]
from hib_reference import agreed_generator, reference_attention  # noqa: E402
from speed_cases import (  # noqa: E402
    Case,
    base_shape,
    class_loss,
    quickstart,
    spectrograms,
    token_loss,
    waveforms,
    whisper_tiny,
)

RESULTS = ROOT / "tests/benchmarks/results"
BETA, NOISE = 1.0, 0.3
SETTINGS = {
    "bottleneck": "mutual-information",
    "score": "information",
    "beta": BETA,
    "noise": NOISE,
}
PAPER_SAMPLES, PAPER_STEPS = 200, 200
PRECISIONS = ("float32", "bfloat16")
PROFILED = 16
"""Operations that a profile names."""

PARTS = (
    "quickstart", "base-1s", "base-10s", "whisper-tiny", "samples", "length", "memory"
)  # fmt: skip


def method(**fields: Any) -> HeadInformationBottleneck:
    """The quickstart's settings of HIB."""
    chosen = HeadInformationBottleneck(method="hib", **{**SETTINGS, **fields})
    return chosen.for_task("keyword-spotting")


@dataclass(frozen=True)
class Took:
    """Seconds on the wall, and of the processor on all threads together."""

    wall: float
    processor: float


def timed(run: Callable[[], Any]) -> tuple[Took, Any]:
    """What it took, and what came out."""
    start, used = time.perf_counter(), time.process_time()
    result = run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return Took(time.perf_counter() - start, time.process_time() - used), result


def reference_scores(case: Case, samples: Sequence[Sample], steps: int) -> list[list[float]]:
    """Each sample's information per head by the plain reference: mean of log(1 + |a|²/λ²)."""
    sites = attention_sites(case.model)
    device = next(case.model.parameters()).device
    rows = []
    for sample in samples:
        inputs = {name: value.to(device) for name, value in sample.inputs.items()}
        frames = frame_count(case.model, input_length(case.model, inputs))
        batch = Batch((sample.id,), inputs, (sample.target,), (frames,), (frames,))
        with positions_fitted(case.model, inputs):
            attention = reference_attention(
                case.model,
                [(site.value, site.output) for site in sites],
                sites[0].head_size,
                frames,
                lambda batch=batch: case.loss(case.model, batch)[0],  # type: ignore[misc]
                agreed_generator(0, sample.id, device.type),
                steps=steps,
                beta=BETA,
                bottleneck="mutual-information",
                noise=NOISE,
            )
        information = [
            (1 + layer.square().sum(-1) / NOISE**2).log().mean(-1) for layer in attention
        ]
        rows.append(torch.cat(information).tolist())
    return rows


def throughput(precision: str, device: torch.device, quick: bool) -> float:
    """Multiply-adds a second of a large product, the best of several."""
    # bfloat16 takes a processor without instructions for it minutes.
    size = 256 if quick else 8192 if device.type == "cuda" else 1536
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    first, second = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return size**3 / min(timed(lambda: first @ second)[0].wall for _ in range(6))


def step_multiply_adds(case: Case) -> float:
    """Multiply-adds in the products of one step, forward and back, for a sample of mean length."""
    counts = []
    lengths = {input_length(case.model, sample.inputs): sample for sample in case.samples}
    for sample in lengths.values():
        with frozen(case.model), positions_fitted(case.model, sample.inputs):
            calibration = read_unmodified(case.model, [sample])
            noise = SeededNoise.for_batch(calibration, 0)
            with FlopCounterMode(display=False) as counter:
                optimise(method(steps=1), case.model, calibration, case.loss, noise)
        counts.append(counter.get_total_flops() / 2)
    return sum(counts) / len(counts)


def profile(case: Case, precision: str) -> dict[str, float]:
    """Shares of the processor's time that operations take in the engine's steps, largest first.

    Of as many samples as there are up to 50, in the case's steps up to 20, so that what comes once
    for a sample weighs little.
    """
    settings = method(precision=precision, steps=min(20, case.steps))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as watched:
        settings.attribute(case.model, case.samples[:50], case.loss, Session())
    own: dict[str, float] = {}
    for operation in watched.key_averages():
        name = operation.key.removeprefix("aten::")
        own[name] = own.get(name, 0.0) + operation.self_cpu_time_total
    total = sum(own.values())
    ranked = sorted(own.items(), key=lambda item: -item[1])
    return {name: round(spent / total, 4) for name, spent in ranked[:PROFILED]}


def side_by_side(case: Case, quick: bool) -> dict[str, Any]:
    """Reference, exact engine, and engine in bfloat16 with automatic stopping."""
    found = dict(found_in_turn(case, quick))
    engines = [found.pop(precision) for precision in PRECISIONS]
    return {"name": case.name, **found, "engines": engines}


def found_in_turn(case: Case, quick: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """The reference, then each engine by its precision, as it comes.

    Engines on a processor are profiled; on a GPU that would tell of waiting alone.
    """
    device = next(case.model.parameters()).device
    compared = case.samples[: case.compared]
    reference_scores(case, compared[:1], 1)
    reference, rows = timed(lambda: reference_scores(case, compared, case.steps))
    reference_ms = 1e3 * reference.wall / len(compared) / case.steps
    more = len(case.samples) / len(compared)
    yield (
        "reference",
        {
            "samples": len(compared),
            "steps": case.steps,
            "seconds": reference.wall,
            "processor_seconds": reference.processor,
            "ms_per_sample_step": reference_ms,
            "extrapolated_to": {"samples": len(case.samples), "steps": case.steps},
            "extrapolated_seconds": reference.wall * more,
        },
    )
    expected = torch.tensor(rows).mean(0)
    counted = step_multiply_adds(case)
    for precision, steps in zip(PRECISIONS, (case.steps, "auto"), strict=True):
        fields = {"most_steps": case.steps} if steps == "auto" else {}
        settings = method(precision=precision, steps=steps, **fields)

        def attribute(settings: HeadInformationBottleneck = settings) -> Any:
            return settings.attribute(case.model, case.samples, case.loss, Session())

        took, scores = timed(attribute)
        got = torch.tensor(scores.per_sample)[: len(compared)].mean(0)
        taken = scores.steps or case.steps
        step_ms = 1e3 * took.wall / len(case.samples) / taken
        machine = throughput(precision, device, quick)
        achieved = counted / (step_ms / 1e3)
        engine = {
            "precision": precision,
            "steps": steps,
            "steps_taken": taken,
            "samples": len(case.samples),
            "seconds": took.wall,
            "processor_seconds": took.processor,
            "ms_per_sample_step": step_ms,
            "ratio_per_step": reference_ms / step_ms,
            "ratio_whole": reference.wall * more / took.wall,
            "ratio_whole_processor": reference.processor * more / took.processor,
            "spearman": spearman(expected.tolist(), got.tolist()),
            "largest_difference": float((expected - got).abs().max()),
            "largest_score": float(expected.abs().max()),
            "multiply_adds_per_sample_step": counted,
            "multiply_adds_per_second": achieved,
            "matmul_multiply_adds_per_second": machine,
            "share_of_matmul_throughput": achieved / machine,
        }
        if device.type == "cpu":
            engine["profile"] = profile(case, precision)
        yield precision, engine


def on_quickstart(quick: bool) -> dict[str, Any]:
    """The quickstart's model on its own calibration clips, all of its 200 samples and steps."""
    model, clips = quickstart(6 if quick else PAPER_SAMPLES)
    compared, steps = (2, 5) if quick else (8, PAPER_STEPS)
    return side_by_side(Case("quickstart", model, clips, class_loss, compared, steps), quick)


def on_base_1s(quick: bool) -> dict[str, Any]:
    """wav2vec2-base's shape (2 layers of it if quick) on clips of 1 s."""
    layers, number, compared, steps = (2, 2, 1, 2) if quick else (12, 8, 2, 100)
    model, clips = base_shape(layers), waveforms(number, 1)
    return side_by_side(Case("base shape, 1 s", model, clips, class_loss, compared, steps), quick)


def on_base_10s(quick: bool) -> dict[str, Any]:
    """The same on clips of 10 s."""
    layers, number, steps, seconds = (1, 1, 1, 2) if quick else (12, 2, 10, 10)
    model, clips = base_shape(layers), waveforms(number, seconds)
    return side_by_side(Case(f"base shape, {seconds} s", model, clips, class_loss, 1, steps), quick)


def on_whisper(quick: bool) -> dict[str, Any]:
    """whisper-tiny's shape on clips of 2.5, 5 and 10 s, of which the reference does one each."""
    layers, number, lengths, steps = (1, 1, (0.5, 1), 2) if quick else (4, 3, (2.5, 5, 10), 10)
    clips = spectrograms(number, lengths)
    # One of each length first.
    clips = [clip for first in range(number) for clip in clips[first::number]]
    case = Case("whisper-tiny shape", whisper_tiny(layers), clips, token_loss, len(lengths), steps)
    return side_by_side(case, quick)


def over_samples(quick: bool) -> dict[str, Any]:
    """Seconds against the number of clips of 1 s, on the quickstart's model."""
    steps, numbers = (1, (2, 4)) if quick else (20, (10, 25, 50, 100, 200, 400))
    model, _ = quickstart(1)
    clips = waveforms(max(numbers), 1)
    case = Case("quickstart", model, clips, class_loss, 2, steps)
    reference, _ = timed(lambda: reference_scores(case, clips[:2], steps))
    rows = []
    for number in numbers:
        row: dict[str, Any] = {
            "samples": number,
            "reference_extrapolated": reference.wall / 2 * number,
        }
        for precision in ("float32", "bfloat16"):
            chosen = method(precision=precision, steps=steps)
            took, _ = timed(
                lambda chosen=chosen, number=number: chosen.attribute(  # type: ignore[misc]
                    model, clips[:number], class_loss, Session()
                )
            )
            row[precision] = took.wall
        rows.append(row)
    return {"steps": steps, "reference_samples": 2, "seconds": rows}


def over_length(quick: bool) -> dict[str, Any]:
    """Milliseconds per sample and step against the length of a clip, on the quickstart's model."""
    steps, number, lengths = (1, 1, (0.5, 1)) if quick else (5, 4, (1, 2, 5, 10, 20))
    model, _ = quickstart(1)
    rows = []
    for seconds in lengths:
        row: dict[str, Any] = {"seconds": seconds}
        for precision in ("float32", "bfloat16"):
            clips, chosen = waveforms(number, seconds), method(precision=precision, steps=steps)
            took, _ = timed(
                lambda clips=clips, chosen=chosen: chosen.attribute(  # type: ignore[misc]
                    model, clips, class_loss, Session()
                )
            )
            row[precision] = 1e3 * took.wall / number / steps
        rows.append(row)
    return {"steps": steps, "samples": number, "ms_per_sample_step": rows}


def over_memory(quick: bool) -> dict[str, Any]:
    """Peak memory of a process of its own that scores 4 clips of a length for 2 steps."""
    rows = []
    for seconds in (0.5,) if quick else (1, 5, 10, 20):
        child = (sys.executable, __file__, "--peak-memory", str(seconds))
        told = subprocess.run(child, capture_output=True, text=True, check=True)
        rows.append({"seconds": seconds, **json.loads(told.stdout.splitlines()[-1])})
    return {"samples": 4, "steps": 2, "peak_mib": rows}


def print_peak_memory(seconds: float) -> None:
    """Of this process: what it holds before scoring, and the most it held while scoring."""
    model, _ = quickstart(1)
    forget_peak()
    before = memory_mib("VmRSS")
    method(steps=2).attribute(model, waveforms(4, seconds), class_loss, Session())
    print(json.dumps({"before": before, "after": peak_mib()}))


def forget_peak() -> None:
    """Count the peak anew from here: importing and building a model may have held more, once."""
    # Where the system does not allow it, the peak is that since the start.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mib() -> float:
    """Most memory this process has held; `getrusage` would count its parent's on Linux."""
    return memory_mib("VmHWM")


def memory_mib(field: str) -> float:
    """Memory of this process, by its name in /proc; elsewhere the peak, whatever is asked for."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(fields[field].split()[0]) / 1024


def draw(result: dict[str, Any], path: Path) -> None:
    """Time against samples, from the JSON alone."""
    from matplotlib.figure import Figure

    scaling = result["samples"]
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    names = {
        "reference_extrapolated": "reference, extrapolated",
        "float32": "engine, float32",
        "bfloat16": "engine, bfloat16",
    }
    numbers = [row["samples"] for row in scaling["seconds"]]
    for key, name in names.items():
        axes.plot(numbers, [row[key] for row in scaling["seconds"]], marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel="samples", ylabel="seconds")
    axes.set_title(f"{scaling['steps']} steps of HIB, clips of 1 s, quickstart model")
    axes.legend()
    figure.savefig(path, dpi=120)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    parser.add_argument("--output", type=Path, default=RESULTS / "attribution_speed.json")
    parser.add_argument("--peak-memory", type=float, metavar="SECONDS", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.threads is not None:
        torch.set_num_threads(chosen.threads)
    if chosen.peak_memory is not None:
        print_peak_memory(chosen.peak_memory)
        return
    measure: dict[str, Callable[[bool], Any]] = {
        "quickstart": on_quickstart,
        "base-1s": on_base_1s,
        "base-10s": on_base_10s,
        "whisper-tiny": on_whisper,
        "samples": over_samples,
        "length": over_length,
        "memory": over_memory,
    }
    result: dict[str, Any] = {
        "machine": describe_machine().model_dump(mode="json"),
        "versions": installed_versions(),
        "threads": torch.get_num_threads(),
        "quick": chosen.quick,
        "settings": SETTINGS,
    }
    for part in chosen.parts.split(","):
        took, result[part] = timed(lambda part=part: measure[part](chosen.quick))  # type: ignore[misc]
        result.setdefault("part_seconds", {})[part] = took.wall
        write_text(chosen.output, json.dumps(result, indent=1) + "\n")
        print(f"{part}: {took.wall:.0f} s")
    if "samples" in result:
        draw(result, chosen.output.with_suffix(".png"))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
