"""Budgets that leave the encoder's heads alone, from the recipe to the report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import onnx
import pytest
import transformers
from commands import compared, faults, invoke, manifest, run, words_of_steps
from manifests import unwrapped
from standin import ALL_HEADS, StandIn, quick_keyword_spotting

from hibprune.models.attention import heads_of
from hibprune.models.feed_forward import neurons_of

NOT_USED = "is not used, since budget takes no head of the encoder"
INSTEAD = "heads are scored by reconstruction, for the report alone"


def told(stand_in: StandIn) -> dict[str, Any]:
    """What a graph says was removed of the model; of heads as config.json says, nothing."""
    out = stand_in.root / "out"
    graph = onnx.load(next((out / "onnx").glob("*.onnx")))
    said = {one.key: json.loads(one.value) for one in graph.metadata_props if "removed" in one.key}
    own = json.loads((out / "config.json").read_text())["hibprune"]
    assert said["hibprune.removed_heads"] == own["removed_heads"] == {}
    return said


@pytest.fixture(scope="module")
def neurons(
    tmp_path_factory: pytest.TempPathFactory,
    drawing: Callable[[], AbstractContextManager[None]],
) -> StandIn:
    stand_in = quick_keyword_spotting(
        tmp_path_factory.mktemp("neurons") / "keywords", {"neurons": 0.5}
    )
    with drawing():
        result = run(stand_in)
    assert result.exit_code == 0, result.output or result.exception
    (stand_in.root / "said.txt").write_text(result.output)
    return stand_in


class TestNeurons:
    def test_half_of_them_go_and_no_head(self, neurons: StandIn) -> None:
        found, out = manifest(neurons), neurons.root / "out"
        assert found.neurons is not None
        assert (found.neurons.removed_count, found.neurons.total) == (37, 74)
        assert (found.heads.removed_count, found.heads.total) == (0, ALL_HEADS)
        assert (found.heads.budget, found.budget) == (None, None)
        model = transformers.AutoModelForAudioClassification.from_pretrained(out)
        assert len(neurons_of(model)) == 37
        assert len(heads_of(model)) == ALL_HEADS
        assert sum(told(neurons)["hibprune.removed_neurons"].values()) == 37
        note = json.loads((out / "config.json").read_text())["_hibprune"]
        assert "`import hibprune`" in note

    def test_heads_are_scored_for_the_report_by_forward_passes(self, neurons: StandIn) -> None:
        """The recipe says magnitude."""
        assert manifest(neurons).attribution.method == "reconstruction"
        assert (neurons.root / "out" / "figures" / "heads.png").stat().st_size > 1000

    def test_what_is_said_speaks_of_neurons(self, neurons: StandIn) -> None:
        out = neurons.root / "out"
        card, report = ((out / name).read_text() for name in ("README.md", "report.md"))
        said = " ".join((neurons.root / "said.txt").read_text().split())
        sentence = (
            "None of the 8 attention heads was removed. Of 74 neurons of the feed-forwards 37 were "
            "removed (50 %)."
        )
        for text in (unwrapped(card), unwrapped(report), said):
            assert sentence in text
        assert "none of 8 heads to remove" in said
        assert f"attribution: magnitude {NOT_USED}: {INSTEAD}" in said
        assert "made smaller by removing neurons with hibprune" in unwrapped(card)
        assert "There is no cut to compare scores with." in report
        assert "None went, blank places" in unwrapped(report)
        # What went has no heads to show or to load.
        for word in ("figures/heads.png", "## Removed heads", "_prune_heads"):
            assert word not in card
        assert "which else stops at weights of other sizes" in unwrapped(card)
        assert "Which heads went" not in report
        done = manifest(neurons).variant("pruned").done
        assert done == ("37 neurons removed", "repaired (least-squares)")

    def test_it_is_taken_up_checked_and_shown(self, neurons: StandIn) -> None:
        before = (neurons.root / "out" / "model.safetensors").read_bytes()
        again = run(neurons, "--quiet")
        assert again.exit_code == 0
        steps = words_of_steps(again.stdout)
        assert {steps[name] for name in ("attribute", "plan", "plan-neurons", "repair")} == {"done"}
        assert (neurons.root / "out" / "model.safetensors").read_bytes() == before
        said = invoke("check", neurons.recipe)
        assert said.exit_code == 0, said.output
        assert "would remove 37 of 74 neurons of the feed-forwards (global)\n" in said.stdout
        for command in ("show", "verify"):
            assert invoke(command, neurons.root / "out").exit_code == 0

    def test_methods_that_score_heads_are_compared_all_the_same(
        self, neurons: StandIn, tmp_path: Path
    ) -> None:
        found = compared(
            neurons, "--methods", "magnitude,random", "--fractions", "0.5",
            output=tmp_path / "compared",
        )  # fmt: skip
        assert [one.label for one in found.methods] == ["magnitude", "random"]

    @pytest.mark.parametrize("budget", ["{ranks: 0.5}", "{channels: 0.5, heads: 0}"])
    def test_other_shares_alone(self, neurons: StandIn, tmp_path: Path, budget: str) -> None:
        result = run(neurons, f"--set=budget={budget}", "--quiet", "--json", output=tmp_path / "a")
        assert result.exit_code == 0, result.output
        found = json.loads(result.stdout)
        assert found["heads"]["removed"] == {}
        pruned = next(one for one in found["variants"] if one["name"] == "pruned")
        assert "head" not in pruned["done"][0]
        # Matrices that became two are not what repair fits.
        fitted = found["repair"]["sublayers"] != []
        assert fitted is any("repaired" in one for one in pruned["done"])
        assert fitted is ("channels" in budget)
        assert pruned["parameters"] < found["variants"][0]["parameters"]


def test_shares_by_which_nothing_goes_are_refused(stand_in: StandIn) -> None:
    for budget, named in (
        ("{neurons: 0.001}", "neurons 0.001"),
        ("{ranks: 0.001, heads: 0}", None),
        ("{neurons: 0.001, channels: 0.01}", "neurons 0.001 and channels 0.01"),
    ):
        result = invoke("check", stand_in.recipe, "--set", f"budget={budget}")
        if named is None:
            assert result.exit_code == 0, result.output
        else:
            assert faults(result) == [
                f"budget: by {named} nothing of this model would go: raise it"
            ]


@pytest.mark.parametrize(
    ("settings", "notes"),
    [
        (("attribution={method: hib, paper: true}", "schedule.rounds=3"),
         [f"attribution: hib with paper: true {NOT_USED}: {INSTEAD}",
          f"schedule.rounds: 3 {NOT_USED}: there is one round"]),
        (("attribution={method: random}", "schedule.rounds=1"),
         [f"attribution: random {NOT_USED}: {INSTEAD}"]),
        (("attribution={method: reconstruction, normalise: none}",), []),
        (("attribution={method: reconstruction}", "budget.min_heads_per_layer=2"),
         ["budget.min_heads_per_layer: 2 is not used, since budget takes no head"]),
        (("attribution={method: hib, paper: true}", "schedule.rounds=3", "budget.heads=1"), []),
    ],
)  # fmt: skip
def test_settings_about_heads_that_are_not_used_are_told(
    stand_in: StandIn, settings: tuple[str, ...], notes: list[str]
) -> None:
    options = [f"--set={one}" for one in ("budget={neurons: 0.5}", *settings)]
    said = invoke("check", stand_in.recipe, *options)
    assert (said.exit_code, said.stderr) == (0, "")
    told = [line for line in said.stdout.splitlines() if line.startswith("note: ")]
    assert told == [f"note: {note}" for note in notes]
    report = json.loads(invoke("check", stand_in.recipe, *options, "--json").stdout)
    assert report.get("notes", []) == notes


@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        (("attribution={method: hib}", "schedule.rounds=2"), ["attribution", "schedule.rounds"]),
        (("attribution={method: reconstruction}", "neuron_attribution={method: taylor}"),
         ["neuron_attribution"]),
        # The published form takes heads alone, and scores them.
        (("attribution={method: hib, paper: true}",), []),
        (("attribution={method: hib}", "budget.kinds=[head]"), []),
        (("attribution={method: reconstruction}", "neuron_attribution={method: taylor}",
          "budget.kinds=[neuron]"), []),
    ],
)  # fmt: skip
def test_methods_that_one_number_for_all_kinds_does_not_ask_are_told(
    stand_in: StandIn, settings: tuple[str, ...], keys: list[str]
) -> None:
    options = [f"--set={one}" for one in ("budget={parameters: 0.9}", *settings)]
    report = json.loads(invoke("check", stand_in.recipe, *options, "--json").stdout)
    notes = report.get("notes", [])
    assert [note.split(":")[0] for note in notes] == keys
    assert all("is not used, since budget.parameters" in note for note in notes)


def test_defaults_are_not_told_of_as_not_used(stand_in: StandIn) -> None:
    content = stand_in.content() | {"budget": {"neurons": 0.5}}
    content.pop("attribution", None)
    stand_in.write(content)
    assert "note: " not in invoke("check", stand_in.recipe).stdout


def test_heads_of_a_decoder_alone(stand_ins: Callable[[str], Path], tmp_path: Path) -> None:
    stand_in = StandIn(Path(shutil.copytree(stand_ins("encoder_decoder"), tmp_path / "task")))
    content = stand_in.content() | {"budget": {"decoder_heads": 0.25, "cross_heads": 0.25}}
    stand_in.write(content)
    result = run(stand_in)
    assert result.exit_code == 0, result.output or result.exception
    found, out = manifest(stand_in), stand_in.root / "out"
    assert found.heads.removed_count == 0
    assert {pool: one.removed_count for pool, one in found.others.items()} == {
        "decoder_head": 2, "cross_head": 2,
    }  # fmt: skip
    model = transformers.AutoModelForSpeechSeq2Seq.from_pretrained(out)
    left = {stack: len(heads_of(model, [stack])) for stack in ("encoder", "decoder.self")}
    assert left == {"encoder": ALL_HEADS, "decoder.self": ALL_HEADS - 2}
    assert sum(told(stand_in)["hibprune.removed_cross_heads"].values()) == 2
    card = unwrapped((out / "README.md").read_text())
    assert "removing decoder heads and cross heads with hibprune" in card
    for stack, units in (("self", found.decoder_heads), ("cross", found.cross_heads)):
        assert units is not None
        for layer, gone in units.removed.items():
            line = f"| decoder's {stack}-attention, {layer} | {', '.join(map(str, gone))} |"
            assert not gone or line in (out / "README.md").read_text()
    assert "which else stops at a missing `_prune_heads`" in card
    sentence = "None of the encoder's 8 attention heads was removed."
    assert sentence in card
    assert sentence in " ".join(result.output.split())
    again = run(stand_in, "--quiet")
    assert again.exit_code == 0
    steps = words_of_steps(again.stdout)
    assert {steps[name] for name in ("attribute", "plan", "plan-cross-heads", "repair")} == {"done"}
    said = invoke("check", stand_in.recipe).stdout
    assert "2 of 8 heads of the decoder's self-attention (global)" in said
