"""Manifests as a run would write them, for tests of what is made of them; and what reads pages."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

import numpy as np
from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console

from hibprune.records.base import Interval
from hibprune.records.manifest import (
    SPEEDUP,
    AttributionSummary,
    CountedWork,
    DataSummary,
    HeadSummary,
    Machine,
    Manifest,
    MetricSummary,
    ModelSummary,
    SkippedClip,
)
from hibprune.records.measurements import Gate, Measurement, Percentiles
from hibprune.records.medium import Length
from hibprune.records.precision import Agreement, Precision, graph_name
from hibprune.records.units import Head, Plan, Scores, heads_by_layer
from hibprune.records.variants import (
    GraphFile,
    OutputParity,
    ParitySummary,
    Variant,
    VariantLatency,
)
from hibprune.report.page import report_markdown
from hibprune.report.terminal import closing_table

RECIPE = "name: quickstart\nmodel:\n  source: superb/wav2vec2-base-superb-ks\n"
SIZES = {
    "original": 12_211_000,
    "original-int8": 6_040_000,
    "pruned": 10_430_000,
    "pruned-int8": 5_210_000,
    "pruned-fp16": 5_280_000,
}
CLIPS = 480


def make_scores(layers: int, heads: int, samples: int = 200, seed: int = 0) -> Scores:
    generator = np.random.default_rng(seed)
    means = np.sort(generator.gamma(2.0, 0.08, layers * heads))
    generator.shuffle(means)
    rows = means + generator.normal(0, 0.25, (samples, layers * heads))
    return Scores(
        method="hib",
        heads=tuple(Head(layer, head) for layer in range(layers) for head in range(heads)),
        samples=tuple(f"clip{i}" for i in range(samples)),
        per_sample=tuple(tuple(map(float, row)) for row in rows),
    )


def make_plan(scores: Scores, share: float = 0.5) -> Plan:
    ranked = sorted(scores.heads, key=lambda head: (scores.values[head], head))
    number = round(share * len(ranked))
    return Plan(removed=tuple(sorted(ranked[:number])), kept=tuple(sorted(ranked[number:])))


def make_measurement(
    value: float, half_width: float = 0.018, name: str = "accuracy", n: int = CLIPS
) -> Measurement:
    return Measurement(
        metric=name,
        value=value,
        interval=Interval(value - half_width, value + half_width),
        n=n,
        higher_is_better=name != "WER",
    )


def make_latency(
    seconds: float = 1.0,
    ratio: float = 1.31,
    interval: tuple[float, float] = (1.28, 1.34),
    provider: str = "CPUExecutionProvider",
) -> VariantLatency:
    p50 = 9.4 * seconds**1.1 / ratio
    return VariantLatency(
        runtime="onnxruntime",
        provider=provider,
        threads=2,
        batch=1,
        length=Length(value=seconds, unit="seconds"),
        repetitions=60,
        times=Percentiles(
            p50=p50, p90=1.08 * p50, p99=1.3 * p50, real_time_factor=p50 / 1000 / seconds
        ),
        ratio=ratio,
        ratio_interval=Interval(*interval),
    )


LATENCY = (
    make_latency(1),
    make_latency(5, 1.12, (1.09, 1.15)),
    make_latency(15, 1.01, (0.98, 1.03)),
)


def make_parity(relative_diff: float) -> ParitySummary:
    logits = OutputParity(
        output="logits", max_abs_diff=4 * relative_diff, scale=4.0, relative_diff=relative_diff
    )
    return ParitySummary(tolerance=1e-4, outputs=(logits,), lengths=(0.5, 1.0, 5.0), batches=(1, 3))


def make_variant(name: str, value: float = 0.954, metric: str = "accuracy") -> Variant:
    """A variant by its name, `original`, `original-int8`, `pruned`, …, with usual figures."""
    parent, _, lower = name.partition("-")
    precision: Precision = "int8" if lower == "int8" else "fp16" if lower else "fp32"
    is_rival = parent == "original"
    path = None if is_rival else f"onnx/{graph_name('model.onnx', precision)}"
    latency = LATENCY
    if name == "original":
        latency = tuple(make_latency(one.length.seconds or 1, 1.0, (1.0, 1.0)) for one in latency)
    return Variant(
        name=name,
        parent=parent if lower else None if is_rival else "original",
        precision=precision,
        done=(
            *([] if is_rival else ["18 heads removed"]),
            *([f"converted to {lower}"] if lower else []),
        ),
        files=(GraphFile(name="model.onnx", path=path, size_bytes=SIZES[name], sha256="0" * 64),),
        size_bytes=SIZES[name],
        parameters=3_021_120 if is_rival else 2_577_216,
        macs=212_000_000 if is_rival else 181_300_000,
        metric=make_measurement(value, name=metric),
        parity=None if lower else make_parity(6.1e-7),
        agreement=Agreement(n=CLIPS, equal=0.99, max_abs_diff=0.2, relative_diff=0.02)
        if lower
        else None,
        latency=latency,
    )


def make_variants(
    before: float = 0.961, after: float = 0.954, metric: str = "accuracy"
) -> tuple[Variant, ...]:
    """Those that a run ends in when the recipe says nothing, with the metric of each model."""
    values = {"original": before, "original-int8": before, "pruned": after, "pruned-int8": after}
    return tuple(make_variant(name, value, metric) for name, value in values.items())


def make_metric(name: str = "accuracy") -> MetricSummary:
    return MetricSummary(name=name, higher_is_better=name != "WER", n=CLIPS)


def make_manifest(plan: Plan | None = None, **changes: object) -> Manifest:
    plan = plan or make_plan(make_scores(6, 6))
    manifest = Manifest(
        recipe="quickstart",
        model=ModelSummary(
            source="superb/wav2vec2-base-superb-ks",
            on_hub=True,
            revision=None,
            family="wav2vec2",
            identity="4f" * 32,
        ),
        task="keyword-spotting",
        device="cpu",
        seed=0,
        calibration=DataSummary(kind="jsonl", n=200, identity="ab" * 32, skipped=()),
        validation=DataSummary(
            kind="jsonl",
            n=CLIPS,
            identity="cd" * 32,
            skipped=(SkippedClip(id="on/voice_7.wav", reason="the file is empty"),),
        ),
        attribution=AttributionSummary(
            method="hib",
            settings={"beta": 1.0, "bottleneck": "paper", "score": "similarity", "steps": 200},
            samples=200,
            seconds=133.2,
            split_half=0.94,
        ),
        heads=HeadSummary(
            total=plan.total,
            removed={layer: tuple(i) for layer, i in heads_by_layer(plan.removed).items()},
        ),
        counted_work=CountedWork(length=Length(value=1.0, unit="seconds")),
        metric=make_metric(),
        variants=make_variants(),
        gates=(
            Gate(name="max_accuracy_drop", limit=0.03, value=0.007, verdict="passed"),
            Gate(
                name=SPEEDUP,
                limit=1.2,
                value=1.01,
                interval=Interval(0.98, 1.03),
                verdict="failed",
            ),
        ),
        steps={"export-original": 1.2, "measure-original": 6.5, "attribute": 133.2, "plan": 0.0},
        machine=Machine(
            processor="AMD EPYC 7763", cores=2, memory_gib=15.6, gpu=None, system="Linux 6.1"
        ),
        versions={"torch": "2.14.1", "transformers": "4.57.6", "onnxruntime": "1.31.1"},
        files={},
    )
    return manifest.model_copy(update=changes)


def with_variant(manifest: Manifest, name: str, **changes: object) -> Manifest:
    """The same but for some fields of one variant."""
    variants = [
        one.model_copy(update=changes) if one.name == name else one for one in manifest.variants
    ]
    return manifest.model_copy(update={"variants": tuple(variants)})


def of_word_errors(before: float, after: float) -> Manifest:
    """A manifest of a task on transcripts, with the rate of either model."""
    variants = make_variants(before, after, "WER")
    return make_manifest(task="asr-ctc", metric=make_metric("WER"), variants=variants)


def scored(**changes: object) -> Manifest:
    """A manifest of scores that came about in another way."""
    attribution = make_manifest().attribution.model_copy(update=changes)
    return make_manifest(attribution=attribution)


def report_of(manifest: Manifest, recipe: str = RECIPE) -> str:
    scores = make_scores(6, 6)
    return report_markdown(manifest, scores, make_plan(scores), recipe)


def section(page: str, heading: str) -> str:
    """What stands below a heading of the second level."""
    return page.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]


def rows_of(text: str) -> dict[str, list[str]]:
    """Cells of the lines of a table by what stands in the first."""
    lines = [line for line in text.splitlines() if re.match(r"\| [^:]", line)]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in cells}


def parsed(markdown: str) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(markdown)


def headings(markdown: str) -> list[str]:
    tokens = parsed(markdown)
    return [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]


def body_of(card: str) -> str:
    return card.split("\n---\n", 1)[1]


def printed(manifest: Manifest, width: int = 80) -> str:
    """What the terminal shows at the end of a run."""
    console = Console(width=width, file=io.StringIO(), no_color=True)
    with console.capture() as capture:
        console.print(closing_table(manifest))
    return capture.get()


def unwrapped(lines: str | Sequence[str]) -> str:
    """Words on one line, wherever lines were broken."""
    return " ".join((lines if isinstance(lines, str) else " ".join(lines)).split())
