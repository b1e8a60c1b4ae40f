"""Decoders' neurons from the recipe to the report, beside heads and by one number for all kinds."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import transformers
from commands import faults, invoke, manifest, refused, run
from manifests import make_manifest
from pydantic import ValidationError
from standin import StandIn

from hibprune.compression.plan import Budget
from hibprune.models.attention import heads_of
from hibprune.models.feed_forward import neurons_of
from hibprune.records.transcripts import TranscriptFaults
from hibprune.records.units import DECODER
from hibprune.report.caveats import caveats
from hibprune.report.transcripts import faults_table

NEURONS = 74
"""Two layers of 37."""


def prepared(stand_ins: Callable[[str], Path], root: Path, name: str, **content: Any) -> StandIn:
    stand_in = StandIn(Path(shutil.copytree(stand_ins(name), root / name)))
    stand_in.write({**stand_in.content(), "attribution": {"method": "magnitude"}, **content})
    return stand_in


@pytest.fixture(scope="module")
def pruned(stand_ins: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    """Of clips without labels: the decoder is fed what the model says."""
    root = tmp_path_factory.mktemp("decoders")
    budget = {"heads": 2, "decoder_neurons": 0.5}
    stand_in = prepared(stand_ins, root, "encoder_decoder", budget=budget)
    result = run(stand_in, "--set", "calibration.labels=model")
    assert result.exit_code == 0, result.output or result.exception
    (stand_in.root / "said.txt").write_text(result.output)
    return stand_in


class TestShare:
    def test_half_of_them_go(self, pruned: StandIn) -> None:
        found = manifest(pruned).decoder_neurons
        assert found is not None
        assert (found.total, found.removed_count, found.share) == (NEURONS, 37, 0.5)
        assert sum(found.kept.values()) == 37
        model = transformers.AutoModelForSpeechSeq2Seq.from_pretrained(pruned.root / "out")
        left = neurons_of(model, DECODER)
        assert {unit.layer: 0 for unit in left}.keys() <= found.kept.keys()
        for layer, kept in found.kept.items():
            assert sum(unit.layer == layer for unit in left) == kept
        assert len(neurons_of(model)) == NEURONS

    def test_graphs_and_manifest_say_so(self, pruned: StandIn) -> None:
        found = manifest(pruned)
        assert found.decoder_neurons is not None
        removed = {str(k): len(v) for k, v in found.decoder_neurons.removed.items()}
        for graph in (pruned.root / "out" / "onnx").glob("*.onnx"):
            told = {one.key: one.value for one in onnx.load(graph).metadata_props}
            assert json.loads(told["hibprune.removed_decoder_neurons"]) == removed
        assert "37 decoder neurons removed" in found.variant("pruned").done

    def test_repair_was_fed_transcripts(self, pruned: StandIn) -> None:
        repair = manifest(pruned).repair
        assert repair is not None
        assert repair.tokens > repair.clips
        own = [one for one in repair.sublayers if one.stack == DECODER]
        assert sum(one.removed for one in own) == 37
        assert any(one.refitted for one in own)

    def test_report_and_terminal_say_so(self, pruned: StandIn) -> None:
        report = (pruned.root / "out" / "report.md").read_text()
        assert "## Decoder neurons" in report
        assert "37 of 74 neurons of the decoder's feed-forwards went" in report
        assert "decoder cross-attention" in report
        assert "tokens of transcripts" in report
        assert "transcripts looping" in report
        card = (pruned.root / "out" / "README.md").read_text()
        said = " ".join((pruned.root / "said.txt").read_text().split())
        for text in (card, said):
            assert "Of 74 neurons of the decoder's feed-forwards 37 were removed (50 %)" in text

    def test_a_second_run_takes_all_from_the_first(self, pruned: StandIn) -> None:
        before = (pruned.root / "out" / "model.safetensors").read_bytes()
        result = run(pruned, "--set", "calibration.labels=model")
        assert result.exit_code == 0
        assert re.search(r"^repair .*(kept|before|earlier)", result.output, re.M), result.output
        assert (pruned.root / "out" / "model.safetensors").read_bytes() == before


@pytest.fixture(scope="module")
def without_heads(
    stand_ins: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> StandIn:
    """A Moonshine that lost heads of all three stacks, in all precisions."""
    root = tmp_path_factory.mktemp("heads")
    budget = {"heads": 1, "decoder_heads": 0.4, "cross_heads": 0.5}
    stand_in = prepared(
        stand_ins, root, "encoder_decoder_on_waveforms", budget=budget,
        export={"variants": ["fp32", "int8", "fp16"], "seconds": [0.5], "batches": [1, 2]},
        # What the guard leaves in float is not what this is about.
        quantize={"max_drop": 100},
    )  # fmt: skip
    content = stand_in.content()
    content["calibration"]["samples"], content["validation"]["limit"] = 6, 4
    stand_in.write(content)
    result = run(stand_in)
    assert result.exit_code == 0, result.output or result.exception
    return stand_in


class TestHeads:
    def test_what_was_asked_for_goes(self, without_heads: StandIn) -> None:
        found, out = manifest(without_heads), without_heads.root / "out"
        assert found.decoder_heads is not None
        assert found.cross_heads is not None
        assert (found.decoder_heads.removed_count, found.decoder_heads.total) == (3, 8)
        assert (found.cross_heads.removed_count, found.cross_heads.total) == (4, 8)
        assert found.decoder_heads.method == found.cross_heads.method == "reconstruction"
        assert found.heads.removed_count == 1
        model = transformers.AutoModelForSpeechSeq2Seq.from_pretrained(out)
        for summary, stack in (
            (found.decoder_heads, "decoder.self"), (found.cross_heads, "decoder.cross"),
        ):  # fmt: skip
            left = heads_of(model, [stack])
            assert min(summary.kept.values()) > 0
            for layer, kept in summary.kept.items():
                assert sum(head.layer == layer for head in left) == kept
                assert {head.index for head in left if head.layer == layer} == set(range(4)) - set(
                    summary.removed.get(layer, ())
                )
        assert found.repair is not None
        assert {one.stack for one in found.repair.sublayers} >= {"decoder.self", "decoder.cross"}

    def test_it_is_told_of(self, without_heads: StandIn) -> None:
        out = without_heads.root / "out"
        report, card = (out / "report.md").read_text(), (out / "README.md").read_text()
        assert "## Decoder heads" in report
        assert "4 of 8 heads of the decoder's cross-attention went" in report
        assert "3 decoder heads removed" in manifest(without_heads).variant("pruned").done
        assert card.count("use_io_binding=False") == 3
        graph = onnx.load(out / "onnx" / "decoder_model_merged.onnx")
        told = {one.key: one.value for one in graph.metadata_props}
        assert sum(json.loads(told["hibprune.removed_cross_heads"]).values()) == 4

    def test_all_variants_answer(self, without_heads: StandIn) -> None:
        clip = next(without_heads.root.rglob("*.wav"))
        for variant in ("fp32", "int8", "fp16"):
            answer = invoke("predict", without_heads.root / "out", clip, "--variant", variant)
            assert answer.exit_code == 0, answer.output

    def test_it_is_taken_up_and_is_pruned_again(
        self, without_heads: StandIn, tmp_path: Path
    ) -> None:
        assert run(without_heads).exit_code == 0
        own = without_heads.root / "out"
        said = invoke("check", without_heads.recipe, "--set", f"model.source={own}")
        assert said.exit_code == 0, said.output
        assert "2 of 5 heads of the decoder's self-attention" in said.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "repair"),
    [("encoder_decoder", "none"), ("encoder_decoder_on_waveforms", "least-squares")],
)
def test_one_number_takes_what_kinds_allow(
    stand_ins: Callable[[str], Path], tmp_path: Path, name: str, repair: str
) -> None:
    budget = {"parameters": 0.93, "kinds": ["head", "decoder_neuron", "cross_head"]}
    stand_in = prepared(stand_ins, tmp_path, name, budget=budget, removal={"repair": repair})
    assert run(stand_in).exit_code == 0
    found = manifest(stand_in)
    assert found.budget is not None
    assert found.budget.kinds == ("head", "decoder_neuron", "cross_head")
    assert found.neurons is None
    assert found.decoder_neurons is not None
    assert found.decoder_neurons.removed_count > 0
    assert found.budget.reached <= 0.93
    original, smaller = found.original.parameters, found.variant("pruned").parameters
    assert found.budget.reached == pytest.approx(smaller / original)
    report = (stand_in.root / "out" / "report.md").read_text()
    section = report.partition("## Mix")[2].partition("## Heads")[0]
    assert "decoder neurons removed" in section
    assert "of heads, decoder neurons and cross heads" in section


class TestCheck:
    def test_it_tells_what_would_go(self, stand_ins: Callable[[str], Path], tmp_path: Path) -> None:
        name = "encoder_decoder_on_waveforms"
        stand_in = prepared(stand_ins, tmp_path, name)
        share = "budget={heads: 2, decoder_neurons: 0.3}"
        said = invoke("check", stand_in.recipe, "--set", share).stdout
        assert "22 of 74 neurons of the decoder's feed-forwards (global)" in said
        said = invoke("check", stand_in.recipe, "--set", "budget={parameters: 0.9}").stdout
        kinds = "heads, neurons, decoder neurons, decoder heads, cross heads and ranks"
        assert f"{kinds} until 90.0% of the parameters" in said
        heads = "budget={heads: 2, decoder_heads: 0.5, cross_heads: 0.25}"
        said = invoke("check", stand_in.recipe, "--set", heads).stdout
        assert "4 of 8 heads of the decoder's self-attention (global)" in said
        assert "2 of 8 heads of the decoder's cross-attention (global)" in said

    def test_a_model_without_a_decoder_has_none(self, reviews: StandIn) -> None:
        for budget, place in (
            ("{heads: 1, decoder_neurons: 0.5}", "budget.decoder_neurons"),
            ("{parameters: 0.9, kinds: [decoder_neuron]}", "budget.kinds"),
            ("{heads: 1, decoder_heads: 0.5}", "budget.decoder_heads"),
            ("{heads: 1, cross_heads: 0.5}", "budget.cross_heads"),
            ("{parameters: 0.9, kinds: [cross_head]}", "budget.kinds"),
        ):
            (line,) = refused(reviews, "--set", f"budget={budget}")
            kind = "neurons" if "neuron" in budget else "heads"
            assert line == (
                f"{place}: DistilBertForSequenceClassification has no decoder whose {kind} can be "
                "removed: leave it out (speech recognition with whisper and moonshine has one)"
            )
            content = reviews.content()
            assert faults(invoke("check", reviews.recipe, "--set", f"budget={budget}")) == [line]
            assert content == reviews.content()


@pytest.mark.parametrize(
    ("budget", "fault"),
    [
        ({"heads": 1, "decoder_neurons": 1.0}, "less than 1"),
        ({"heads": 1, "decoder_neurons": -0.1}, "greater than or equal to 0"),
        ({"parameters": 0.5, "decoder_neurons": 0.5}, "decoder_neurons contradicts parameters"),
        ({"heads": 1, "decoder_heads": 1.0}, "less than 1"),
        ({"heads": 1, "cross_heads": -0.1}, "greater than or equal to 0"),
        ({"parameters": 0.5, "cross_heads": 0.5}, "cross_heads contradicts parameters"),
        ({"decoder_heads": 0.0}, "cross_heads or ranks: there is none"),
        ({"parameters": 0.5, "kinds": ["decoder"]}, "decoder_neuron"),
    ],
)
def test_budgets_that_cannot_be(budget: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        Budget.model_validate(budget)


def test_a_pruned_model_that_loops_more_is_told_of() -> None:
    whole = make_manifest()
    variants = tuple(
        one.model_copy(
            update={
                "faults": TranscriptFaults(
                    empty=0.02, looping=0.1 if one.name == "pruned-int8" else 0.05
                )
            }
        )
        for one in whole.variants
    )
    told = caveats(whole.model_copy(update={"variants": variants}))
    assert [line for line in told if "transcripts" in line] == [
        "10.0 % of the transcripts of pruned-int8 are looping, one phrase over and over; of the "
        "original's 5.0 %."
    ]
    assert not [line for line in caveats(whole) if "transcripts" in line]
    assert "| pruned-int8 | 2.0 % | 10.0 % |" in re.sub(" +", " ", faults_table(variants))
    assert faults_table(whole.variants) == ""
