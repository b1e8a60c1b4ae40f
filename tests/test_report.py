"""The report: honest wording, Markdown nobody breaks out of, the card and the terminal."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from manifests import (
    RECIPE,
    body_of,
    headings,
    make_manifest,
    make_measurement,
    make_metric,
    make_parity,
    make_plan,
    make_scores,
    make_variant,
    of_word_errors,
    parsed,
    printed,
    report_of,
    rows_of,
    scored,
    section,
    unwrapped,
    with_variant,
)

from hibprune.attribution import METHODS
from hibprune.records.base import Interval
from hibprune.records.licence import Licence
from hibprune.records.manifest import DataSummary, ModelSummary, RoundSummary, SkippedClip
from hibprune.records.measurements import Gate
from hibprune.records.medium import Length, Unit
from hibprune.records.units import HeadShare
from hibprune.report.card import model_card
from hibprune.report.figures import score_spread
from hibprune.report.files import write_report
from hibprune.report.gates import gate_line
from hibprune.report.markdown import fenced, plain, table
from hibprune.report.page import report_markdown
from hibprune.report.ranking import score_label


def make_noisy_recipe() -> str:
    return "name: x\nnote: |\n  ```\n  ---\n  ````\n  # Injected\n  | a | b |\n"


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

    @pytest.mark.draws
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

    def test_shows_every_variant(self) -> None:
        """In a table of all, of the metric, of times at every length, of sizes; with the files."""
        manifest = make_manifest()
        names = [one.name for one in manifest.variants]
        page = report_of(manifest)
        for heading in ("Variants", "Accuracy", "Size"):
            assert list(rows_of(section(page, heading)))[1:] == names, heading
        timed = re.findall(r"^\| (\d+ s) \| ([\w-]+) ", section(page, "Latency"), re.MULTILINE)
        assert timed == [(length, name) for length in ("1 s", "5 s", "15 s") for name in names]
        rows = rows_of(section(page, "Variants"))
        assert rows["pruned-int8"] == [
            "18 heads removed, converted to int8", "95.4 % (93.6–97.2)", "5.21 MB",
            "1.31× (1.28–1.34)", "1.12× (1.09–1.15)", "1.01× (0.98–1.03)",
        ]  # fmt: skip
        assert rows["original"][1:] == ["96.1 % (94.3–97.9)", "12.2 MB", "1×", "1×", "1×"]
        files = {name: row[2] for name, row in rows_of(section(page, "Size")).items()}
        assert files["pruned-int8"] == "onnx/model_quantized.onnx"
        assert files["original-int8"] == "not left"
        agreement = rows_of(section(page, "Agreement"))["pruned-int8"]
        assert agreement == ["pruned", "99.0% of 480", "2.0%", "nothing"]

    def test_says_what_to_deploy(self) -> None:
        for text in (report_of(make_manifest()), model_card(make_manifest(), RECIPE)):
            assert "Deploy pruned-int8: accuracy within the noise of the original" in text
            assert "Plain int8 of the original (6.04 MB, 1.01× at 15 s) is larger." in text

    def test_names_the_variant_that_gates_hold(self) -> None:
        manifest = make_manifest(judged="pruned-int8")
        page = report_of(manifest)
        assert "They hold pruned-int8." in section(page, "Gates")
        assert "to 95.4 % (93.6–97.2) (pruned-int8): " in page
        assert "Speed of pruned-int8 against the original" in page
        assert "(pruned-int8) went from 12.2 MB to 5.21 MB (−57 %)" in page
        assert "Gates on pruned-int8:" in printed(manifest)

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

    def test_a_gate_on_a_variant_that_was_not_made_says_so(self) -> None:
        gate = Gate(name="min_speedup", limit=1.2, value=None, verdict="failed")
        manifest = make_manifest(gates=(gate,))
        assert gate_line(gate) == (
            "min_speedup: limit 1.2, measured nothing: the variant was not made"
        )
        assert rows_of(section(report_of(manifest), "Gates"))["min_speedup"] == [
            "1.2", "nothing: the variant was not made", "–", "✗ FAILED",
        ]  # fmt: skip
        assert "nothing: the variant was not made, limit 1.2  FAILED" in printed(manifest)

    def test_parity_beyond_tolerance_is_shouted(self) -> None:
        beyond = with_variant(make_manifest(), "pruned", parity=make_parity(0.2))
        assert report_of(beyond).count("BEYOND the tolerance") == 1
        assert report_of(beyond).count("within the tolerance") == 1
        assert "BEYOND" not in report_of(make_manifest())

    def test_does_without_latency_gates_and_removed_heads(self) -> None:
        scores = make_scores(2, 2)
        plan = make_plan(scores, 0)
        manifest = make_manifest(plan, gates=())
        for one in manifest.variants:
            manifest = with_variant(manifest, one.name, latency=())
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

    def test_the_hub_shows_the_metric_of_every_variant(self) -> None:
        card = ModelCard(model_card(make_manifest(), RECIPE))
        assert card.data.model_name == "quickstart"
        found = {one.metric_name: one.metric_value for one in card.data.eval_results}
        assert found == {"accuracy of pruned": 0.954, "accuracy of pruned-int8": 0.954}

    def test_intervals_stand_in_the_notes_of_the_metrics(self) -> None:
        manifest = make_manifest()
        card = ModelCard(model_card(manifest, RECIPE))
        given = {one.metric_name: one.metric_args for one in card.data.eval_results}
        for name in ("pruned", "pruned-int8"):
            metric = manifest.variant(name).metric
            assert given[f"accuracy of {name}"] == {
                "interval_95": [round(bound, 6) for bound in metric.interval], "n": metric.n,
            }  # fmt: skip

    @pytest.mark.parametrize(
        ("licence", "expected", "sentence"),
        [
            (None, (None, None, None), "no licence is stated in its directory."),
            (
                Licence(id="apache-2.0", taken_from="README.md"),
                ("apache-2.0", None, None),
                "the licence is apache-2.0, as its README.md states.",
            ),
            (
                Licence(id="other", name="my *own*", link="LICENSE", taken_from="recipe"),
                ("other", "my *own*", "LICENSE"),
                "the licence is my \\*own\\*, as the recipe states.",
            ),
        ],
    )
    def test_the_licence_is_that_of_the_original(
        self, licence: Licence | None, expected: tuple[str | None, ...], sentence: str
    ) -> None:
        model = make_manifest().model.model_copy(update={"licence": licence})
        card = model_card(make_manifest(model=model), RECIPE)
        data = ModelCard(card).data
        assert (data.license, data.license_name, data.license_link) == expected
        assert sentence in card

    def test_sources_of_the_methods_used_are_cited(self) -> None:
        """A method that names a paper as its source has one in the card."""
        manifest = make_manifest()
        for method in METHODS:
            attribution = manifest.attribution.model_copy(update={"method": method.name()})
            cited = section(model_card(make_manifest(attribution=attribution), RECIPE), "Citation")
            names_a_paper = re.search(r"[0-9]{4}|HIB paper", method.source) is not None
            assert (cited.count("\n- ") > 1) == names_a_paper, method.name()
            years = set(re.findall(r"(?:[A-Z]\w+)(?: et al\.)? ([0-9]{4})", method.source))
            assert all(year in cited for year in years), method.name()
        assert "arXiv:1910.03771" in cited

    def test_speech_recognition_has_its_own_classes(self) -> None:
        card = model_card(of_word_errors(0.06, 0.08), RECIPE)
        assert "pipeline_tag: automatic-speech-recognition" in card
        assert "metrics:\n- wer\n" in card
        assert "ORTModelForCTC.from_pretrained" in card

    @pytest.mark.parametrize("on_hub", [True, False])
    def test_only_a_hub_id_is_a_base_model(self, on_hub: bool) -> None:
        model = make_manifest().model.model_copy(update={"source": "owner/name", "on_hub": on_hub})
        card = model_card(make_manifest(model=model), RECIPE)
        assert ("base_model: owner/name" in card) == on_hub

    @pytest.mark.parametrize(
        ("task", "number"), [("keyword-spotting", 4), ("intent-classification", 3), ("asr-ctc", 3)]
    )
    def test_examples_are_python(self, task: str, number: int) -> None:
        blocks = [
            token.content
            for token in parsed(body_of(model_card(make_manifest(task=task), RECIPE)))
            if token.info == "python"
        ]
        # Optimum, its int8, ONNX Runtime alone where that takes a few lines, PyTorch.
        assert len(blocks) == number
        for block in blocks:
            compile(block, "card", "exec")


class TestTerminal:
    def test_fits_80_columns_and_shows_gates_without_colour(self) -> None:
        lines = printed(make_manifest(recipe="[red]a[/] " + 100 * "long ")).splitlines()
        assert max(map(len, lines)) <= 80
        assert "[red]a[/]" in lines[0]
        assert any(line.startswith("✓ max_accuracy_drop") for line in lines)
        assert any(line.startswith("✗ min_speedup") and "FAILED" in line for line in lines)

    @pytest.mark.parametrize("unit", ["seconds", "tokens"])
    def test_a_table_of_every_variant_fits_80_columns(self, unit: Unit) -> None:
        """With all that a run can have: three lengths, five variants, intervals of two decimals."""
        metric = make_metric("slot_accuracy").model_copy(update={"n": 2000})
        manifest = make_manifest(metric=metric, gates=())
        fp16 = make_variant("pruned-fp16")
        many = {"metric": make_measurement(0.954, name="slot_accuracy", n=2000)}
        lengths = [Length(value=value, unit=unit) for value in (16, 64, 128)]
        variants = [
            one.model_copy(
                update={
                    **many,
                    "latency": tuple(
                        latency.model_copy(update={"length": length})
                        for latency, length in zip(one.latency, lengths, strict=True)
                    ),
                }
            )
            for one in (*manifest.variants, fp16)
        ]
        lines = printed(manifest.model_copy(update={"variants": tuple(variants)})).splitlines()
        assert max(map(len, lines)) <= 80
        told = [line.split() for line in lines]
        for one in variants:
            (row,) = [words for words in told if words and words[0] == one.name]
            assert row[1:3] == ["95.40", "%"]
            speeds = ["1×"] * 3 if one.name == "original" else ["1.31×", "1.12×", "1.01×"]
            assert row[-3:] == speeds
        assert "…" not in "".join(lines)

    def test_shows_noise_and_missing_speed_up(self) -> None:
        text = printed(make_manifest())
        assert "within noise" in text
        assert "no faster at 15 s" in unwrapped(text)
        assert "higher is better" in unwrapped(text)
        worse = of_word_errors(0.06, 0.2)
        told = unwrapped(printed(worse))
        assert "lower is better" in told
        assert "6.0 %" in told
        assert "20.0 %" in told
        assert "beyond noise" in told
        assert "Deploy none of the pruned variants" in told
        assert "Pruning lost: plain int8 of the original" in told


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


@pytest.mark.draws
def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    scores = make_scores(2, 2)
    plan = make_plan(scores)
    for name in ("a", "b"):
        write_report(make_manifest(plan), scores, plan, RECIPE, tmp_path / name)
    for path in (tmp_path / "a").rglob("*.png"):
        other = tmp_path / "b" / path.relative_to(tmp_path / "a")
        assert path.read_bytes() == other.read_bytes()
