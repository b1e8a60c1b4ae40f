"""All that needs a GPU, in at most 8 minutes: tests, a run, attribution, graphs in fp16, repair.

    python tests/benchmarks/gpu.py            # on a machine with a GPU
    python tests/benchmarks/gpu.py --dry      # the same code on the CPU, with tiny shapes
    python tests/benchmarks/gpu.py --parts attribution,repair

Every part runs in a process of its own, within its own time limit; one that fails is recorded with
what it had found, and the others still run. The exit code is 1 if any failed. A session of ONNX
Runtime that is not on the GPU, or has a convolution or matrix product elsewhere, is a failure, and
so is a test that was skipped. Latencies hold the copies to the GPU and back. Writes one JSON,
tests/benchmarks/results/gpu.json, after every part.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
sys.path[:0] = [str(ROOT), str(TESTS), str(TESTS / "benchmarks")]
from parts import Finding, Part, context, run_part  # noqa: E402

from hibprune.execution.files import write_text  # noqa: E402

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from hibprune.records.medium import Length

RESULT = TESTS / "benchmarks/results/gpu.json"
QUICKSTART = ROOT / "recipes/quickstart.yaml"
PRELOADED = (
    "hibprune.stages.load",
    "hibprune.attribution",
    "hibprune.compression.repair",
    "optimum.exporters.onnx.convert",
)
HEAVY = ("Conv", "MatMul", "Gemm", "Attention")
"""Operations that are all there for: those that do not run on the GPU count as a fallback."""

LEAST_CORRELATION = 0.99
"""Of exact scores with the per-sample loop's, which learns from the same noise."""
MOST_DIFFERENCE = 0.1
"""Of outputs in fp16 from those in fp32, as a share of the largest; 0.0023 is usual on a CPU."""
CLIPS, SCORED = 200, 64
"""That repair is fitted on, and that HIB scores heads by."""
REFINE_STEPS = 100
DRY_PATIENCE = 4
"""How much longer a part may take where a busy processor does the work of a GPU."""


def device_of(dry: bool) -> str:
    """Where a run computes."""
    return "cpu" if dry else "cuda"


def required_device(dry: bool) -> torch.device:
    """The same for torch.

    Raises:
        UserError: torch sees no GPU.
    """
    from hibprune.execution.runtime import choose_device

    return choose_device(device_of(dry))


def base_model(dry: bool) -> PreTrainedModel:
    """wav2vec2-base's shape with random weights; in a dry run two layers of 32."""
    from speed_cases import base_shape
    from tiny_models import TINY_MODELS

    return TINY_MODELS[0].build() if dry else base_shape()


# Parts ---------------------------------------------------------------------------------------


def find_machine(dry: bool) -> Iterator[Finding]:
    """What everything runs on and with."""
    import torch

    from hibprune.execution.machine import describe_machine, installed_versions

    yield "machine", describe_machine().model_dump(mode="json")
    yield "versions", installed_versions()
    required_device(dry)
    if dry:
        return
    properties = torch.cuda.get_device_properties(0)
    yield (
        "gpu",
        {
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        },
    )


def run_tests(dry: bool) -> Iterator[Finding]:
    """The tests marked `gpu`. On the CPU they are skipped, which a dry run takes for a pass."""
    import pytest

    files = [path for path in sorted(TESTS.glob("test_*.py")) if "pytest.mark.gpu" in text_of(path)]
    with TemporaryDirectory() as scratch:
        told = Path(scratch) / "tests.xml"
        # In the process of this part, which has torch already.
        options = ("-q", "-n0", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={told}")
        with contextlib.redirect_stdout(io.StringIO()) as said:
            ended = pytest.main([*options, *map(str, files)])
        if not told.exists():
            raise RuntimeError(f"pytest ended with {ended}: {said.getvalue()[-2000:]}")
        tests = test_outcomes(told.read_text())
    yield "tests", tests
    require_passed(tests, ("passed", "skipped") if dry else ("passed",))
    if ended:
        raise RuntimeError(f"pytest ended with {ended}: {said.getvalue()[-2000:]}")


def require_passed(tests: Sequence[Mapping[str, Any]], outcomes: Sequence[str]) -> None:
    """See that there are tests, and that all had one of some outcomes.

    Raises:
        RuntimeError: it is not so.
    """
    missed = [test["name"] for test in tests if test["outcome"] not in outcomes]
    if missed or not tests:
        raise RuntimeError(f"not passed: {', '.join(missed) or 'pytest found no test'}")


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_outcomes(junit: str) -> list[dict[str, Any]]:
    """Every test of a JUnit report: name, outcome, seconds, and why it did not pass."""
    tests = []
    for case in ElementTree.fromstring(junit).iter("testcase"):
        found = next((one for one in case if one.tag in ("failure", "error", "skipped")), None)
        outcome = {"failure": "failed", "error": "error", "skipped": "skipped"}
        tests.append(
            {
                "name": f"{case.get('classname')}::{case.get('name')}",
                "outcome": "passed" if found is None else outcome[found.tag],
                "seconds": float(case.get("time", 0)),
                "reason": None if found is None else (found.get("message") or "")[:500],
            }
        )
    return tests


def measure_attribution(dry: bool) -> Iterator[Finding]:
    """HIB, exact and in bfloat16, against the loop that runs the model one sample at a time."""
    from attribution_speed import PAPER_STEPS, PRECISIONS, found_in_turn
    from speed_cases import Case, class_loss, waveforms

    model = base_model(dry).to(required_device(dry))
    number, compared, steps, seconds = (3, 2, 3, 0.25) if dry else (SCORED, 2, PAPER_STEPS, 1)
    name = f"base shape, {seconds:g} s"
    case = Case(name, model, waveforms(number, seconds), class_loss, compared, steps)
    yield "device", str(next(model.parameters()).device)
    found = {}
    for part, figures in found_in_turn(case, dry):
        found[part] = figures
        yield part, figures
    correlation = found[PRECISIONS[0]]["spearman"]
    # A NaN is no pass.
    if not correlation >= LEAST_CORRELATION:
        raise RuntimeError(f"scores correlate by {correlation} with the loop's")


def measure_quickstart(dry: bool) -> Iterator[Finding]:
    """fp32 and fp16 of the quickstart's model, on its own clips."""
    from speed_cases import quickstart

    model, samples = quickstart(4 if dry else 100)
    lengths = (0.5,) if dry else (1.0, 5.0, 15.0)
    yield from measure_variants(dry, model, [sample.inputs for sample in samples], lengths)


def measure_base(dry: bool) -> Iterator[Finding]:
    """fp32 and fp16 of wav2vec2-base's shape, on noise."""
    from speed_cases import waveforms

    samples = waveforms(*((3, 0.25) if dry else (32, 1)))
    lengths = (0.5,) if dry else (1.0, 5.0, 15.0)
    yield from measure_variants(
        dry, base_model(dry), [sample.inputs for sample in samples], lengths
    )


def measure_variants(
    dry: bool,
    model: PreTrainedModel,
    clips: Sequence[Mapping[str, torch.Tensor]],
    lengths: tuple[float, ...],
) -> Iterator[Finding]:
    """A model's graphs in fp32 and fp16: where they run, how they agree, how long they take."""
    from hibprune.compression.quantize.examples import graph_feeds
    from hibprune.compression.quantize.fp16 import convert_fp16
    from hibprune.deployment.export import export_onnx
    from hibprune.deployment.settings import ExportSettings
    from hibprune.evaluation.agreement import agreement, largest_difference
    from hibprune.evaluation.latency import BenchmarkSettings
    from hibprune.execution.runtime import ONNX_DIRECTORY
    from hibprune.records.variants import ORIGINAL
    from hibprune.tasks.classification import KeywordSpotting

    device, task, fp16 = required_device(dry).type, KeywordSpotting(kind="keyword-spotting"), "fp16"
    (graph,), half = task.graphs, f"{ORIGINAL}-{fp16}"
    with TemporaryDirectory() as scratch:
        places = {name: Path(scratch) / name for name in (ORIGINAL, half)}
        paths = {name: place / ONNX_DIRECTORY / graph for name, place in places.items()}
        for path in paths.values():
            path.parent.mkdir(parents=True)
        opset = ExportSettings().opset
        export_onnx(model, paths[ORIGINAL].parent, task.export_task, opset, task.exported_files)
        examples = [{name: part.numpy() for name, part in clip.items()} for clip in clips[:4]]
        feeds = graph_feeds(paths[ORIGINAL].parent, task.graphs, examples)[graph]
        in_float = convert_fp16(paths[ORIGINAL], paths[half], feeds)
        yield (
            "graphs",
            {
                "bytes": {name: path.stat().st_size for name, path in paths.items()},
                "nodes_left_in_float32": list(in_float),
            },
        )
        yield (
            "nodes",
            {name: nodes_by_provider(path, device, feeds[0]) for name, path in paths.items()},
        )

        # Sessions for these and those to time see for themselves that they are where they should.
        predict = {name: task.onnx_predict(place, device) for name, place in places.items()}
        said = {
            name: [int(run(dict(clip)).argmax()) for clip in clips] for name, run in predict.items()
        }
        difference = largest_difference(predict[ORIGINAL], predict[half], map(dict, clips))
        agreed = agreement(said[ORIGINAL], said[half], difference)
        yield "agreement", agreed.model_dump(mode="json")
        repetitions, warmup = (3, 1) if dry else (100, 10)
        settings = BenchmarkSettings(seconds=lengths, repetitions=repetitions, warmup=warmup)
        timed = {
            name: task.onnx_timed(place, device, settings.threads, None)
            for name, place in places.items()
        }
        yield "latency", interleaved(timed, settings, device)
        if not difference.relative <= MOST_DIFFERENCE:
            raise RuntimeError(f"fp16 is {difference.relative:.2g} of the outputs from fp32")


def nodes_by_provider(path: Path, device: str, feed: Mapping[str, Any]) -> dict[str, Any]:
    """How many nodes of a graph ran where, of what kinds, as ONNX Runtime's own profile tells.

    Shapes are computed on the CPU wherever the model runs.

    Raises:
        UserError: the session fell back to another provider as a whole.
        RuntimeError: a convolution or matrix product ran on another.
    """
    import onnxruntime

    from hibprune.execution.runtime import PROVIDERS, require_provider, session_options

    provider = PROVIDERS[device]
    options = session_options(device)
    options.enable_profiling = True
    options.profile_file_prefix = str(path.with_suffix(""))
    session = onnxruntime.InferenceSession(path, options, providers=[provider])
    require_provider(session, provider, path)
    session.run(None, {one.name: feed[one.name] for one in session.get_inputs()})
    events = json.loads(Path(session.end_profiling()).read_text())
    nodes: dict[str, dict[str, int]] = {}
    for event in events:
        ran_on = event.get("args", {}).get("provider")
        if event.get("cat") == "Node" and ran_on:
            kinds = nodes.setdefault(ran_on, {})
            kind = event["args"]["op_name"]
            kinds[kind] = kinds.get(kind, 0) + 1
    require_heavy_nodes(nodes, provider)
    return {"provider": session.get_providers()[0], "nodes": nodes}


def require_heavy_nodes(nodes: Mapping[str, Mapping[str, int]], provider: str) -> None:
    """See that what a model spends its time on ran on one provider.

    Raises:
        RuntimeError: some of it ran elsewhere, or none was seen at all.
    """

    def heavy(kinds: Mapping[str, int]) -> list[str]:
        return [kind for kind in kinds if any(word in kind for word in HEAVY)]

    elsewhere = {
        other: found
        for other, kinds in nodes.items()
        if other != provider
        if (found := heavy(kinds))
    }
    if elsewhere or not heavy(nodes.get(provider, {})):
        raise RuntimeError(f"not on {provider}: {elsewhere or 'any matrix product'}")


def interleaved(
    timed: Mapping[str, Callable[..., Any]], settings: Any, device: str
) -> list[dict[str, Any]]:
    """Latency of models taken in turn, at every length; ratios are against the first."""
    import torch

    from hibprune.evaluation.latency import measure_latency
    from hibprune.execution.runtime import PROVIDERS
    from hibprune.records.measurements import Latency
    from hibprune.records.medium import SOUND
    from hibprune.records.variants import VariantLatency

    generator = torch.Generator().manual_seed(0)

    def noise(length: Length, batch: int) -> dict[str, torch.Tensor]:
        shape = (batch, int(length.value * 16_000))
        return {"input_values": torch.randn(shape, generator=generator)}

    rows = []
    for length, times in measure_latency(timed, noise, settings, SOUND):
        latency = Latency(
            runtime="onnxruntime",
            provider=PROVIDERS[device],
            threads=settings.threads,
            batch=1,
            length=length,
            times=times,
        )
        for name in timed:
            found = VariantLatency.of(latency, name).model_dump(mode="json")
            rows.append({"variant": name, **found})
    return rows


def measure_repair(dry: bool) -> Iterator[Finding]:
    """Repair behind the removal of 5 heads of 12 in every layer: by least squares, then refined."""
    import torch
    from attribution_speed import timed
    from speed_cases import waveforms

    from hibprune.compression.remove import copy_without
    from hibprune.compression.repair import repair
    from hibprune.compression.settings import RemovalSettings
    from hibprune.execution.memory import peak_bytes
    from hibprune.models.attention import heads_of
    from hibprune.models.layerwise import CalibrationClip

    device = required_device(dry)
    original = base_model(dry).to(device)
    number, seconds, steps = (20, 0.25, 2) if dry else (CLIPS, 1, REFINE_STEPS)
    clips = [CalibrationClip(sample.inputs) for sample in waveforms(number, seconds)]
    gone = [head for head in heads_of(original) if head.index % 12 < (1 if dry else 5)]
    room = int(RemovalSettings().memory_gib * 2**30)
    for name, refine in (("least-squares", 0), ("refined", steps)):
        pruned = copy_without(original, gone)
        with TemporaryDirectory() as scratch:
            found: list[Any] = []

            def compute(
                pruned: PreTrainedModel = pruned,
                scratch: str = scratch,
                refine: int = refine,
                found: list[Any] = found,
            ) -> None:
                took = timed(
                    lambda: repair(
                        original, pruned, clips, "least-squares", Path(scratch), room,
                        refine_steps=refine,
                    )
                )  # fmt: skip
                found.append(took)

            peak = peak_bytes(compute, device)
        ((took, result),) = found
        before = mean([one.before for one in result.sublayers])
        after = mean([one.after for one in result.sublayers])
        models = sum(weight.nbytes for model in (original, pruned) for weight in model.parameters())
        yield (
            name,
            {
                "device": str(next(pruned.parameters()).device),
                "clips": number,
                "clip_seconds": seconds,
                "heads_removed": len(gone),
                "refine_steps": refine,
                "layers_refined": sum(one.kept for one in result.refinements),
                "seconds": took.wall,
                "peak_bytes": peak,
                "model_bytes": models,
                "sublayers": len(result.sublayers),
                "error_before": before,
                "error_after": after,
            },
        )
        if not after <= before < math.inf:
            raise RuntimeError(f"{name}: the error went from {before:.3g} to {after:.3g}")
        if any(weight.device.type != device.type for weight in pruned.parameters()):
            raise RuntimeError(f"{name}: weights have left {device.type}")
        if not all(bool(torch.isfinite(weight).all()) for weight in pruned.parameters()):
            raise RuntimeError(f"{name}: weights that are no numbers")


def measure_run(dry: bool) -> Iterator[Finding]:
    """The quickstart from its recipe to its directory, in three precisions, and the check of it.

    A dry run takes a tiny model's recipe in its place.
    """
    from click.testing import CliRunner
    from standin import keyword_spotting

    from hibprune.cli import main
    from hibprune.records.manifest import Manifest

    required_device(dry)
    with TemporaryDirectory() as scratch:
        place = Path(scratch)
        recipe = keyword_spotting(place / "task").recipe if dry else QUICKSTART
        words = ["run", str(recipe), "--output", str(place / "out"), "--device", device_of(dry)]
        words += ["--set", "export.variants=[fp32, int8, fp16]", "--json"]
        start = time.monotonic()
        ended = CliRunner().invoke(main, words)
        yield "seconds", round(time.monotonic() - start, 2)
        if ended.exit_code != 0:
            raise RuntimeError(f"hibprune run ended with {ended.exit_code}: {ended.output[-2000:]}")
        manifest = Manifest.model_validate_json(ended.stdout)
        yield "device", manifest.device
        yield "steps", manifest.steps
        yield "missing", [one.model_dump(mode="json") for one in manifest.missing]
        yield "variants", [one.model_dump(mode="json") for one in manifest.variants]
        verified = CliRunner().invoke(main, ["verify", str(place / "out")])
        yield "verified", verified.output.splitlines()
        if verified.exit_code != 0:
            raise RuntimeError(f"hibprune verify ended with {verified.exit_code}")


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


PARTS = (
    Part("machine", 30, find_machine),
    Part("tests", 150, run_tests),
    Part("run", 80, measure_run),
    Part("attribution", 90, measure_attribution),
    Part("quickstart", 20, measure_quickstart),
    Part("base", 50, measure_base),
    Part("repair", 60, measure_repair),
)
"""In all at most 8 minutes."""


def speed_table(report: Mapping[str, Any]) -> str:
    """Markdown: every variant's median milliseconds, and how many times as fast as the original.

    As it stands in tests/benchmarks/README.md.
    """
    found = {name: part["found"] for name, part in report["parts"].items()}
    measured = {
        "quickstart": [
            (one["name"], row) for one in found["run"]["variants"] for row in one["latency"]
        ],
        "base shape": [(row["variant"], row) for row in found["base"]["latency"]],
    }
    lengths = list(dict.fromkeys(row["seconds"] for _, row in measured["base shape"]))
    lines = [["model", *(f"{seconds:g} s" for seconds in lengths)], [":--", "--:", "--:", "--:"]]
    for model, rows in measured.items():
        for name in dict.fromkeys(name for name, _ in rows):
            own = {row["seconds"]: row for one, row in rows if one == name}
            lines.append([f"{model}, {name}", *(_speed(own[seconds]) for seconds in lengths)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _speed(row: Mapping[str, Any]) -> str:
    low, high = row["ratio_interval"]
    said = f"{row['times']['p50']:.2f} ms"
    return said if low == high == 1 else f"{said}, {row['ratio']:.2f}× ({low:.2f}–{high:.2f})"


def main(arguments: Sequence[str] | None = None, parts: Sequence[Part] = PARTS) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dry", action="store_true", help="on the CPU, with tiny shapes")
    names = ",".join(part.name for part in parts)
    parser.add_argument("--parts", default=names, help=f"of {names}")
    parser.add_argument("--output", type=Path, default=RESULT)
    chosen = parser.parse_args(arguments)
    wanted = chosen.parts.split(",")
    if unknown := set(wanted) - {part.name for part in parts}:
        parser.error(f"--parts: no part {', '.join(sorted(unknown))}: there are {names}")
    if chosen.dry:
        # The tests of a dry run see no GPU either.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    start = time.monotonic()
    result: dict[str, Any] = {"dry": chosen.dry, "device": device_of(chosen.dry), "parts": {}}
    starter = context(PRELOADED)
    for part in (part for part in parts if part.name in wanted):
        if chosen.dry:
            part = replace(part, limit_seconds=DRY_PATIENCE * part.limit_seconds)
        found = result["parts"][part.name] = run_part(part, chosen.dry, starter)
        print(f"{part.name}: {found['outcome']}, {found['seconds']:.0f} s", flush=True)
        if found["error"] is not None:
            print(found["error"].splitlines()[-1], flush=True)
        result["failed"] = [
            name for name, one in result["parts"].items() if one["outcome"] != "passed"
        ]
        result["seconds"] = round(time.monotonic() - start, 2)
        write_text(chosen.output, json.dumps(result, indent=1) + "\n")
    return 1 if result["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
