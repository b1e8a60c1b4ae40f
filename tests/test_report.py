"""The report: honest wording, Markdown nobody breaks out of, pictures that are what they say."""

from __future__ import annotations

import io
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console

from hibprune.records.base import Interval
from hibprune.records.manifest import (
    SPEEDUP,
    AttributionSummary,
    Change,
    DataSummary,
    HeadSummary,
    LatencySummary,
    Machine,
    MacsChange,
    Manifest,
    MetricSummary,
    ModelSummary,
    OutputParity,
    ParitySummary,
    RoundSummary,
    SkippedClip,
)
from hibprune.records.measurements import Gate, Measurement, Percentiles
from hibprune.records.medium import Length
from hibprune.records.units import Head, HeadShare, Plan, Scores, heads_by_layer
from hibprune.report.card import model_card
from hibprune.report.figures import head_grid, head_map, latency_figure, score_spread
from hibprune.report.files import write_report
from hibprune.report.gates import gate_line
from hibprune.report.markdown import fenced, plain, table
from hibprune.report.numbers import change, count, duration, megabytes, milliseconds
from hibprune.report.page import report_markdown
from hibprune.report.ranking import ranking_sentence, score_label
from hibprune.report.spread import cut_of, heads_near_cut, spread_of
from hibprune.report.summary import summary_rows
from hibprune.report.terminal import closing_table
from hibprune.report.wording import (
    metric_finding,
    metric_sentence,
    speed_finding,
    speed_sentences,
)

RECIPE = "name: quickstart\nmodel:\n  source: superb/wav2vec2-base-superb-ks\n"


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
    value: float, half_width: float = 0.018, name: str = "accuracy", n: int = 480
) -> Measurement:
    return Measurement(
        metric=name,
        value=value,
        interval=Interval(value - half_width, value + half_width),
        n=n,
        higher_is_better=name != "WER",
    )


def make_metric(
    baseline: float = 0.961, pruned: float = 0.954, name: str = "accuracy"
) -> MetricSummary:
    return MetricSummary(
        name=name,
        higher_is_better=name != "WER",
        n=480,
        baseline=make_measurement(baseline, name=name),
        pruned=make_measurement(pruned, name=name),
        exported=make_measurement(pruned, name=name),
        pruned_change=None,
        exported_change=None,
    )


def make_latency(
    seconds: float = 1.0,
    ratio: float = 1.31,
    interval: tuple[float, float] = (1.28, 1.34),
    provider: str = "CPUExecutionProvider",
) -> LatencySummary:
    def percentiles(p50: float) -> Percentiles:
        return Percentiles(
            p50=p50, p90=1.08 * p50, p99=1.3 * p50, real_time_factor=p50 / 1000 / seconds
        )

    before = 9.4 * seconds**1.1
    return LatencySummary(
        runtime="onnxruntime",
        provider=provider,
        threads=2,
        batch=1,
        length=Length(value=seconds, unit="seconds"),
        repetitions=60,
        before=percentiles(before),
        after=percentiles(before / ratio),
        ratio=ratio,
        ratio_interval=Interval(*interval),
    )


def make_parity(relative_diff: float) -> ParitySummary:
    logits = OutputParity(
        output="logits", max_abs_diff=4 * relative_diff, scale=4.0, relative_diff=relative_diff
    )
    return ParitySummary(tolerance=1e-4, outputs=(logits,), lengths=(0.5, 1.0, 5.0), batches=(1, 3))


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
            n=480,
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
        parameters=Change(before=3_021_120, after=2_577_216),
        macs=MacsChange(
            before=212_000_000, after=181_300_000, length=Length(value=1.0, unit="seconds")
        ),
        size_bytes=Change(before=12_211_000, after=10_430_000),
        metric=make_metric(),
        parity=make_parity(6.1e-7),
        latency=(
            make_latency(1),
            make_latency(5, 1.12, (1.09, 1.15)),
            make_latency(15, 1.01, (0.98, 1.03)),
        ),
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
        steps={"load": 1.2, "baseline": 6.5, "attribute": 133.2, "plan": 0.0, "prune": 0.4},
        machine=Machine(
            processor="AMD EPYC 7763", cores=2, memory_gib=15.6, gpu=None, system="Linux 6.1"
        ),
        versions={"torch": "2.14.1", "transformers": "4.57.6", "onnxruntime": "1.31.1"},
        files={},
    )
    return manifest.model_copy(update=changes)


def scored(**changes: object) -> Manifest:
    """A manifest of scores that came about in another way."""
    attribution = make_manifest().attribution.model_copy(update=changes)
    return make_manifest(attribution=attribution)


def make_noisy_recipe() -> str:
    return "name: x\nnote: |\n  ```\n  ---\n  ````\n  # Injected\n  | a | b |\n"


def report_of(manifest: Manifest, recipe: str = RECIPE) -> str:
    scores = make_scores(6, 6)
    return report_markdown(manifest, scores, make_plan(scores), recipe)


def parsed(markdown: str) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(markdown)


def headings(markdown: str) -> list[str]:
    tokens = parsed(markdown)
    return [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]


def body_of(card: str) -> str:
    return card.split("\n---\n", 1)[1]


def printed(manifest: Manifest, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), no_color=True)
    with console.capture() as capture:
        console.print(closing_table(manifest))
    return capture.get()


class TestWording:
    def test_overlapping_intervals_are_noise(self) -> None:
        finding = metric_finding(make_measurement(0.961), make_measurement(0.954), None)
        assert finding == "0.7 points worse, within the noise of 480 clips"

    def test_a_fall_beyond_the_intervals_is_said_plainly(self) -> None:
        finding = metric_finding(make_measurement(0.961), make_measurement(0.81), None)
        assert finding == "15.1 points worse, more than the noise of 480 clips explains"

    @pytest.mark.parametrize(
        ("paired", "verdict"),
        [((-0.02, -0.001), "more than"), ((-0.02, 0.0), "within"), ((0.001, 0.02), "more than")],
    )
    def test_the_paired_interval_overrules_the_overlap(
        self, paired: tuple[float, float], verdict: str
    ) -> None:
        before, after = make_measurement(0.961), make_measurement(0.954)
        finding = metric_finding(before, after, Interval(*paired))
        assert finding.startswith(f"0.7 points worse, {verdict} the noise of 480 clips")

    def test_each_model_is_judged_on_its_own_change(self) -> None:
        metric = make_metric().model_copy(
            update={
                "exported": make_measurement(0.953),
                "pruned_change": Interval(-0.02, -0.001),
                "exported_change": Interval(-0.03, 0.01),
            }
        )
        manifest = make_manifest(metric=metric)
        rows = {
            line.split("|")[1].strip(): line
            for line in report_of(manifest).splitlines()
            if line.startswith("| pruned,")
        }
        assert "0.7 points worse, more than the noise" in rows["pruned, PyTorch"]
        assert "0.8 points worse, within the noise" in rows["pruned, ONNX Runtime"]
        noise = [row.change_detail for row in summary_rows(manifest) if "ccuracy" in row.label]
        assert noise == ["beyond noise", "within noise"]

    def test_a_rise_of_wer_is_worse(self) -> None:
        before, after = make_measurement(0.06, name="WER"), make_measurement(0.12, name="WER")
        assert metric_finding(before, after, None).startswith("6.0 points worse, more than")
        assert metric_finding(after, before, None).startswith("6.0 points better, more than")

    def test_equal_values_are_not_called_a_change(self) -> None:
        assert metric_finding(make_measurement(0.9), make_measurement(0.9), None) == (
            "the same value on 480 clips"
        )

    def test_metric_sentence_names_direction_and_intervals(self) -> None:
        sentence = metric_sentence(make_metric(0.06, 0.08, "WER"))
        assert sentence.startswith(
            "WER (lower is better) went from 6.0 % (4.2–7.8) to 8.0 % (6.2–9.8)"
        )

    def test_an_export_that_scores_otherwise_is_told(self) -> None:
        metric = make_metric().model_copy(update={"exported": make_measurement(0.5)})
        assert "The exported ONNX model scores 50.0 %" in metric_sentence(metric)
        assert "against the original that is 46.1 points worse" in metric_sentence(metric)

    @pytest.mark.parametrize(
        ("ratio", "interval", "finding"),
        [
            (1.31, (1.28, 1.34), "1.31× as fast (1.28–1.34)"),
            (1.01, (0.98, 1.03), "no measurable speed-up (1.01×, 0.98–1.03)"),
            (1.006, (1.002, 1.009), "no measurable speed-up (1.01×, 1.00–1.01)"),
            (0.9, (0.88, 0.93), "slower: 0.90× as fast (0.88–0.93)"),
        ],
    )
    def test_speed_up(self, ratio: float, interval: tuple[float, float], finding: str) -> None:
        assert speed_finding(make_latency(1, ratio, interval)) == finding

    def test_every_setting_has_its_sentence(self) -> None:
        latency = [make_latency(), make_latency(provider="CUDAExecutionProvider")]
        sentences = speed_sentences(latency)
        assert sentences.count("Speed against the original") == 2
        assert speed_sentences([]) == "Latency was not measured."

    @pytest.mark.parametrize(
        ("correlation", "words"),
        [
            (0.95, "correlation 0.95: other samples of the same kind would give nearly the same"),
            (0.8, "heads near the cut may swap"),
            (0.3, "partly chance"),
        ],
    )
    def test_split_half_is_explained(self, correlation: float, words: str) -> None:
        assert words in ranking_sentence(scored(split_half=correlation))

    def test_split_half_of_rounds_is_the_first_ones(self) -> None:
        one = RoundSummary(removed={0: (1,)}, seconds=1.0, split_half=0.8)
        manifest = scored(split_half=0.8).model_copy(update={"rounds": (one, one)})
        assert "correlation 0.80 in the first round: " in ranking_sentence(manifest)

    @pytest.mark.parametrize(
        ("samples", "reason"),
        [
            (0, "magnitude looks at no data"),
            (3, "it takes four samples"),
            (200, "magnitude scores all samples together, not one by one"),
        ],
    )
    def test_the_lack_of_split_half_is_explained(self, samples: int, reason: str) -> None:
        manifest = scored(method="magnitude", samples=samples, split_half=None)
        assert ranking_sentence(manifest) == f"There is no split-half correlation: {reason}."

    @pytest.mark.parametrize(
        ("split_half", "rounds", "label"),
        [
            (0.9, 1, "hib score (similarity), mean over 200 samples"),
            # One score of all samples together is no mean over them.
            (None, 1, "hib score (similarity)"),
            (0.9, 2, "hib score (similarity) of the head's last round, mean over 200 samples"),
        ],
    )
    def test_scores_are_called_what_they_are(
        self, split_half: float | None, rounds: int, label: str
    ) -> None:
        manifest = make_manifest()
        attribution = manifest.attribution.model_copy(update={"split_half": split_half})
        one = RoundSummary(removed={0: (1,)}, seconds=1.0, split_half=split_half)
        changed = make_manifest(attribution=attribution, rounds=(one,) * rounds)
        assert score_label(changed) == label

    def test_numbers_are_written_as_people_write_them(self) -> None:
        assert [count(n) for n in (812, 25_300, 3_021_120, 94_371_712, 1_234_000_000)] == [
            "812",
            "25.3 k",
            "3.02 M",
            "94.4 M",
            "1.23 G",
        ]
        assert [megabytes(n) for n in (812_000, 378_300_000)] == ["0.81 MB", "378 MB"]
        assert [milliseconds(t) for t in (7.184, 55.21, 184.6)] == ["7.18 ms", "55.2 ms", "185 ms"]
        assert [duration(s) for s in (4.23, 133.2, 3900)] == ["4.2 s", "2 min 13 s", "1 h 5 min"]
        assert [change(100, after) for after in (67, 100, 120)] == ["−33 %", "0 %", "+20 %"]
        assert change(1000, 998) == "−0.2 %"
        assert change(0, 5) == "–"

    @pytest.mark.parametrize(
        ("number", "written"),
        [(999, "999"), (999_700, "1.00 M"), (99_960, "100 k"), (5 * 10**13, "50.0 T")],
    )
    def test_counts_carry_over_to_the_next_unit(self, number: int, written: str) -> None:
        assert count(number) == written


class TestMarkdown:
    @pytest.mark.parametrize(
        "text",
        [
            "a|b\\|c",
            "``` `x",
            "# heading",
            "- item",
            "1. item",
            "---",
            "<script>&lt;",
            "*_bold_* __x__ [a](b) ![c](d)",
            "two\nlines",
        ],
    )
    def test_strangers_text_renders_as_itself(self, text: str) -> None:
        whole = parsed(plain(text))
        assert [token.type for token in whole] == ["paragraph_open", "inline", "paragraph_close"]
        children = whole[1].children or []
        assert {child.type for child in children} <= {"text", "text_special"}
        assert "".join(child.content for child in children) == " ".join(text.split())

    def test_a_pipe_does_not_open_another_cell(self) -> None:
        cells = [
            t for t in parsed(table("lr", ["x", "y"], [("a|b\\|c", 1)])) if t.type == "td_open"
        ]
        assert len(cells) == 2

    def test_a_fence_outlasts_the_backticks_inside(self) -> None:
        tokens = parsed(fenced(make_noisy_recipe(), "yaml"))
        assert [token.type for token in tokens] == ["fence"]
        assert tokens[0].content == make_noisy_recipe()


class TestPage:
    def test_tells_the_whole_story(self) -> None:
        page = report_of(make_manifest())
        assert "18 of 36 attention heads (50 %) were removed." in page
        assert "within the noise of 480 clips" in page
        assert "no measurable speed-up (1.01×, 0.98–1.03) at 15 s" in page
        assert "on/voice_7.wav: the file is empty" in page
        assert "hibprune run recipe.yaml" in page
        assert "What was not measured" in headings(page)
        assert "CPUExecutionProvider, 2 threads, batch 1 on the machine above" in page

    @pytest.mark.parametrize(
        ("fraction", "sentence"),
        [
            (0.5, "18 of 36 attention heads (50 %) were removed."),
            (0.52, "18 of 36 attention heads (50 %) were removed: 0.52 of 36 is 18.72, rounded "
                   "down in every layer."),
        ],
    )  # fmt: skip
    def test_rounding_the_budget_down_is_told(self, fraction: float, sentence: str) -> None:
        heads = make_manifest().heads
        share = HeadShare(fraction=fraction, total=36, scope="layerwise")
        manifest = make_manifest(heads=heads.model_copy(update={"budget": share}))
        assert f"**{sentence}**" in report_of(manifest)
        assert sentence in model_card(manifest, RECIPE)

    def test_a_method_that_looks_at_no_data_is_not_said_to(self) -> None:
        manifest = scored(method="magnitude", settings={}, samples=0, split_half=None)
        scores = make_scores(6, 6, samples=1)
        page = report_markdown(manifest, scores, make_plan(scores), RECIPE)
        told = page + model_card(manifest, RECIPE)
        assert "scored by magnitude, which looks at no data." in told
        assert "| samples | none: it looks at no data |" in told
        assert "0 samples" not in told
        assert "standard error" not in told
        assert "there is one score of each head" in told

    def test_one_sample_is_one(self) -> None:
        manifest = scored(samples=1)
        assert "hib on 1 sample." in model_card(manifest, RECIPE)
        assert "the ranking rests on 1 sample and seed 0." in report_of(manifest)

    def test_rounds_have_no_cut_to_speak_of(self, tmp_path: Path) -> None:
        scores = make_scores(6, 6)
        plan = make_plan(scores)
        one = RoundSummary(removed={0: (1,)}, seconds=1.0, split_half=0.8)
        for name, rounds in (("one", 1), ("two", 2)):
            manifest = make_manifest(plan, rounds=(one,) * rounds)
            write_report(manifest, scores, plan, RECIPE, tmp_path / name)
        crossing = "Where bars cross the cut"
        assert crossing in (tmp_path / "one/report.md").read_text()
        assert crossing not in (tmp_path / "two/report.md").read_text()
        score_spread(scores, plan, tmp_path / "uncut.png", score_label(manifest), with_cut=False)
        score_spread(scores, plan, tmp_path / "cut.png", score_label(manifest))
        drawn = (tmp_path / "two/figures/spread.png").read_bytes()
        assert drawn == (tmp_path / "uncut.png").read_bytes()
        assert drawn != (tmp_path / "cut.png").read_bytes()

    def test_a_failed_gate_is_seen_at_the_top_and_in_the_table(self) -> None:
        page = report_of(make_manifest())
        assert "1 of 2 gates FAILED: min_speedup." in page.split("## ")[0]
        row = "| min_speedup | 1.2 | 1.01 (ratio of medians) | 0.98 to 1.03 | ✗ FAILED |"
        assert row in page

    def test_an_undecided_gate_is_told_wherever_the_gate_is(self) -> None:
        gate = Gate(
            name="max_accuracy_drop",
            limit=0.03,
            value=0.007,
            interval=Interval(-0.002, 0.031),
            verdict="undecided",
        )
        manifest = make_manifest(gates=(gate,))
        page = report_of(manifest)
        row = "| max_accuracy_drop | 0.03 | 0.007 | −0.002 to 0.031 | ? undecided: the interval "
        assert row in page
        verdict = "Undecided, since the 95 % interval holds the limit: max_accuracy_drop."
        assert verdict in page.split("## ")[0]
        assert verdict in model_card(manifest, RECIPE).replace("\\_", "_")
        lines = [line.rstrip() for line in printed(manifest).splitlines()]
        told = lines.index("? max_accuracy_drop: 0.007 (−0.002 to 0.031), limit 0.03  undecided")
        assert lines[told + 1] == "  the interval holds the limit"
        assert gate_line(gate) == (
            "max_accuracy_drop: limit 0.03, measured 0.007, 95 % interval −0.002 to 0.031: "
            "the interval holds the limit"
        )

    def test_a_gate_that_fails_by_the_stricter_reading_says_so(self) -> None:
        gate = Gate(
            name="max_wer_rise",
            limit=0.03,
            value=0.007,
            interval=Interval(-0.002, 0.031),
            verdict="failed",
            strict=True,
        )
        manifest = make_manifest(gates=(gate,))
        assert "1 of 1 gates FAILED: max_wer_rise." in report_of(manifest).split("## ")[0]
        reason = "the interval holds the limit, and gates.strict is set"
        assert f"✗ FAILED: {reason}" in report_of(manifest)
        assert "limit 0.03  FAILED" in printed(manifest)
        assert reason in printed(manifest)

    def test_parity_beyond_tolerance_is_shouted(self) -> None:
        assert "BEYOND the tolerance" in report_of(make_manifest(parity=make_parity(0.2)))
        assert "within the tolerance" in report_of(make_manifest())

    def test_does_without_latency_gates_and_removed_heads(self) -> None:
        scores = make_scores(2, 2)
        plan = make_plan(scores, 0)
        manifest = make_manifest(plan, latency=(), gates=())
        page = report_markdown(manifest, scores, plan, RECIPE)
        assert "None of the 4 attention heads was removed." in page
        assert "latency.png" not in page
        assert "No gates were set." in page
        assert "Latency" not in model_card(manifest, RECIPE)

    def test_tables_have_as_many_cells_in_every_row(self) -> None:
        for text in (report_of(make_manifest()), body_of(model_card(make_manifest(), RECIPE))):
            blocks = re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE)
            assert len(blocks) == sum(token.type == "table_open" for token in parsed(text))
            for block in blocks:
                assert len({line.count("|") for line in block.splitlines()}) == 1

    def test_no_name_or_recipe_breaks_out(self) -> None:
        nasty = "evil\n# Injected\n---\n```|`<b>[x](y)"
        data = DataSummary(
            kind="jsonl", n=1, identity="0" * 64, skipped=(SkippedClip(id=nasty, reason=nasty),)
        )
        manifest = make_manifest(
            recipe=nasty,
            validation=data,
            model=ModelSummary(
                source=nasty, on_hub=True, revision=nasty, family="wav2vec2", identity="0"
            ),
        )
        usual = make_manifest()
        page = report_of(manifest, make_noisy_recipe())
        card = model_card(manifest, make_noisy_recipe())
        assert headings(page)[1:] == headings(report_of(usual))[1:]
        assert headings(body_of(card))[1:] == headings(body_of(model_card(usual, RECIPE)))[1:]
        for text in (page, body_of(card)):
            tokens = parsed(text)
            assert tokens[-1].type == "fence"
            assert tokens[-1].content == make_noisy_recipe()
            assert not any(token.type in {"html_block", "hr"} for token in tokens)


class TestCard:
    def test_front_matter_is_yaml_the_hub_reads(self) -> None:
        fields = yaml.safe_load(model_card(make_manifest(), RECIPE).split("---\n")[1])
        assert fields["library_name"] == "transformers"
        assert fields["pipeline_tag"] == "audio-classification"
        assert fields["base_model"] == "superb/wav2vec2-base-superb-ks"
        assert {"hibprune", "pruned", "onnx"} <= set(fields["tags"])
        assert fields["metrics"] == ["accuracy"]

    def test_speech_recognition_has_its_own_classes(self) -> None:
        card = model_card(
            make_manifest(task="asr-ctc", metric=make_metric(0.06, 0.08, "WER")), RECIPE
        )
        assert "pipeline_tag: automatic-speech-recognition" in card
        assert "metrics:\n- wer\n" in card
        assert "ORTModelForCTC.from_pretrained" in card

    @pytest.mark.parametrize("on_hub", [True, False])
    def test_only_a_hub_id_is_a_base_model(self, on_hub: bool) -> None:
        model = make_manifest().model.model_copy(update={"source": "owner/name", "on_hub": on_hub})
        card = model_card(make_manifest(model=model), RECIPE)
        assert ("base_model: owner/name" in card) == on_hub

    @pytest.mark.parametrize("task", ["keyword-spotting", "intent-classification", "asr-ctc"])
    def test_examples_are_python(self, task: str) -> None:
        blocks = [
            token.content
            for token in parsed(body_of(model_card(make_manifest(task=task), RECIPE)))
            if token.info == "python"
        ]
        assert len(blocks) == 2
        for block in blocks:
            compile(block, "card", "exec")


class TestTerminal:
    def test_fits_80_columns_and_shows_gates_without_colour(self) -> None:
        lines = printed(make_manifest(recipe="[red]a[/] " + 100 * "long ")).splitlines()
        assert max(map(len, lines)) <= 80
        assert "[red]a[/]" in lines[0]
        assert any(line.startswith("✓ max_accuracy_drop") for line in lines)
        assert any(line.startswith("✗ min_speedup") and "FAILED" in line for line in lines)

    def test_shows_noise_and_missing_speed_up(self) -> None:
        text = printed(make_manifest())
        assert "within noise" in text
        assert "no speed-up" in text
        worse = make_manifest(metric=make_metric(0.06, 0.2, "WER"))
        assert "lower is better" in printed(worse)
        assert "+14.0 points" in printed(worse)
        assert "beyond noise" in printed(worse)


class TestFigures:
    def test_grid_marks_removed_heads_and_leaves_absent_ones_blank(self) -> None:
        heads = (Head(0, 0), Head(0, 2), Head(2, 1))
        scores = Scores(
            method="hib", heads=heads, samples=("a", "b"), per_sample=((1, 2, 3), (3, 2, 1))
        )
        grid = head_grid(scores, Plan(removed=(Head(0, 2),), kept=(Head(0, 0), Head(2, 1))))
        expected = np.full((3, 3), np.nan)
        expected[0, 0] = expected[0, 2] = expected[2, 1] = 2
        np.testing.assert_array_equal(grid.scores, expected)
        assert np.argwhere(grid.removed).tolist() == [[0, 2]]

    def test_standard_errors_and_the_cut(self) -> None:
        heads = tuple(Head(0, i) for i in range(3))
        scores = Scores(
            method="hib", heads=heads, samples=("a", "b"), per_sample=((5, 1, 2), (7, 1, 4))
        )
        spread = spread_of(scores, Plan(removed=(heads[1],), kept=(heads[0], heads[2])))
        assert spread.heads == (heads[1], heads[2], heads[0])
        assert spread.errors is not None
        np.testing.assert_allclose(spread.errors, [0, 1, 1])
        assert cut_of(spread) == 2
        assert heads_near_cut(spread) == 0

    def test_no_cut_where_a_kept_head_scores_below_a_removed_one(self) -> None:
        scores = make_scores(1, 3)
        order = sorted(scores.heads, key=scores.values.__getitem__)
        spread = spread_of(scores, Plan(removed=(order[1],), kept=(order[0], order[2])))
        assert cut_of(spread) is None
        assert heads_near_cut(spread) is None

    @pytest.mark.parametrize(("layers", "heads"), [(1, 1), (2, 4), (12, 12), (48, 25)])
    def test_pictures_of_any_model_keep_a_page_size(
        self, layers: int, heads: int, tmp_path: Path
    ) -> None:
        scores = make_scores(layers, heads, samples=3)
        plan = make_plan(scores)
        head_map(scores, plan, tmp_path / "heads.png")
        score_spread(scores, plan, tmp_path / "spread.png")
        for name in ("heads.png", "spread.png"):
            width, height = png_size(tmp_path / name)
            assert 600 <= width <= 1100
            assert 250 <= height <= 1700

    def test_a_method_without_samples_has_no_error_bars(self, tmp_path: Path) -> None:
        scores = make_scores(2, 3, samples=1)
        score_spread(scores, make_plan(scores), tmp_path / "spread.png")
        assert spread_of(scores, make_plan(scores)).errors is None

    def test_latency_picture_grows_with_lengths(self, tmp_path: Path) -> None:
        latency_figure([make_latency()], tmp_path / "one.png")
        latency_figure(make_manifest().latency, tmp_path / "three.png")
        assert png_size(tmp_path / "one.png")[1] < png_size(tmp_path / "three.png")[1]


def png_size(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    return width, height


def test_everything_is_written_and_every_picture_referred_to_exists(tmp_path: Path) -> None:
    scores = make_scores(6, 6)
    plan = make_plan(scores)
    written = write_report(make_manifest(plan), scores, plan, RECIPE, tmp_path)
    files = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert set(written) == files
    for page in ("report.md", "README.md"):
        text = (tmp_path / page).read_text(encoding="utf-8")
        for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text):
            assert picture in files


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    scores = make_scores(2, 2)
    plan = make_plan(scores)
    for name in ("a", "b"):
        write_report(make_manifest(plan), scores, plan, RECIPE, tmp_path / name)
    for path in (tmp_path / "a").rglob("*.png"):
        other = tmp_path / "b" / path.relative_to(tmp_path / "a")
        assert path.read_bytes() == other.read_bytes()
