"""Ranks from the recipe to the report: projections factored, saved, exported, told of."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import onnx
import pytest
from commands import faults, invoke, manifest, refused, run
from manifests import unwrapped
from pydantic import ValidationError
from standin import StandIn, keyword_spotting, quick_keyword_spotting

from hibprune.compression.plan import Budget
from hibprune.records.manifest import Manifest, RankSummary
from hibprune.records.repair import FactoredProjection
from hibprune.report.repair import ranks_section

OPTIONS = (
    "--set", "budget.ranks=0.5", "--set", "budget.neurons=0.5",
    "--set", "export.variants=[fp32, int8]",
)  # fmt: skip
MATRICES = (
    "attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.out_proj",
    "feed_forward.intermediate_dense", "feed_forward.output_dense",
)  # fmt: skip


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    stand_in = quick_keyword_spotting(tmp_path_factory.mktemp("ranks") / "keywords", {"heads": 1})
    result = run(stand_in, *OPTIONS)
    assert result.exit_code == 0, result.output or result.exception
    (stand_in.root / "said.txt").write_text(result.stdout)
    return stand_in


def test_check_says_what_would_go(pruned: StandIn) -> None:
    said = invoke("check", pruned.recipe, "--set", "budget.ranks=0.5")
    assert said.exit_code == 0
    # Four of 32 × 32 and two of 37 × 32 a layer, each of rank 8.
    before, after = 2 * (4 * 1024 + 2 * 1184), 2 * (4 * 8 * 64 + 2 * 8 * 69)
    assert (before, after) == (12928, 6304)
    assert (
        "would remove 6.62 k of 12.9 k weights of 12 of 12 projections, as pairs of thinner "
        "matrices of ranks 8 to 8 (fewer where heads or neurons go)\n"
    ) in said.stdout


def test_ranks_are_of_what_is_left(pruned: StandIn) -> None:
    out, found = pruned.root / "out", manifest(pruned).ranks
    assert found is not None
    assert (found.total, found.share) == (12, 0.5)
    config = json.loads((out / "config.json").read_text())
    told = config["projection_ranks"]
    assert {(int(layer), name) for layer, own in told.items() for name in own} == {
        (layer, name) for layer in (0, 1) for name in MATRICES
    }
    (layer,) = config["pruned_heads"]
    kept = manifest(pruned).neurons
    assert kept is not None
    for one in found.factored:
        assert one.rank == told[str(one.layer)][one.name]
        assert one.rank == int(0.5 * one.rows * one.columns / (one.rows + one.columns))
        width = 24 if one.layer == int(layer) else 32
        neurons = kept.kept[one.layer]
        assert (one.rows, one.columns) == {
            "attention.out_proj": (32, width),
            "feed_forward.intermediate_dense": (neurons, 32),
            "feed_forward.output_dense": (32, neurons),
        }.get(one.name, (width, 32))
        assert one.error is not None
        assert 0 <= one.error < 1.5
    assert config["_hibprune"].startswith("Parts were removed with hibprune.")


def test_files_and_counts_are_smaller_by_it(pruned: StandIn) -> None:
    out, found = pruned.root / "out", manifest(pruned)
    assert found.ranks is not None
    before, after = found.ranks.weights
    assert after <= before / 2
    graph = onnx.load(out / "onnx" / "model.onnx")
    said = {entry.key: json.loads(entry.value) for entry in graph.metadata_props}
    assert said["hibprune.projection_ranks"] == {
        str(layer): {one.name: one.rank for one in found.ranks.factored if one.layer == layer}
        for layer in (0, 1)
    }
    stored = {one.name: tuple(one.dims) for one in graph.graph.initializer}
    products = {
        re.sub(r".*layers\.", "", node.name): stored[node.input[1]]
        for node in graph.graph.node
        if node.op_type == "MatMul" and node.input[1] in stored and "layers." in node.name
    }
    for one in found.ranks.factored:
        path = f"{one.layer}/{one.name.replace('.', '/')}"
        assert products[f"{path}/MatMul"] == (one.columns, one.rank)
        assert products[f"{path}/outer/MatMul"] == (one.rank, one.rows)
    weights = sum(weight.numel() for weight in saved_weights(out).values())
    assert found.variant("pruned").parameters == weights
    assert found.variant("pruned").macs < found.original.macs
    int8 = found.variant("pruned-int8")
    assert int8.size_bytes < found.variant("pruned").size_bytes
    assert int8.guard is not None
    assert int8.guard.measurements > 0


def saved_weights(out: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(out / "model.safetensors")


def test_what_was_done_is_told_everywhere(pruned: StandIn) -> None:
    out, found = pruned.root / "out", manifest(pruned)
    assert found.ranks is not None
    ranks = [one.rank for one in found.ranks.factored]
    sentence = (
        "Of the encoder's 12 projections 12 became pairs of thinner matrices, of ranks "
        f"{min(ranks)} to {max(ranks)}: "
    )
    for text in ("said.txt", "out/report.md", "out/README.md"):
        assert sentence in unwrapped((pruned.root / text).read_text())
    report = unwrapped((out / "report.md").read_text())
    assert "## Ranks" in report
    header = report[report.index("| layer | attention.q") :]
    assert "weights before | after |" in header
    assert found.variant("pruned").done == (
        "1 head removed", f"{removed(found)} neurons removed", "12 projections factored",
        "repaired (least-squares)",
    )  # fmt: skip
    assert any("12 projections factored" in line for line in said(pruned))


@pytest.mark.parametrize(
    ("errors", "told"),
    [
        ((0.2, 1.0, 1.0004), None),
        ((None, None, None), None),
        ((0.2, 1.24, 0.99), "In 1 of 3"),
        ((1.001, 1.24, 0.99), "In 2 of 3"),
    ],
)
def test_projections_that_miss_more_than_all_are_remarked_upon(
    errors: tuple[float | None, ...], told: str | None
) -> None:
    factored = tuple(
        FactoredProjection(layer=0, name=name, rows=8, columns=8, rank=2, error=error)
        for name, error in zip(MATRICES, errors, strict=False)
    )
    ranks = RankSummary(total=12, share=0.5, factored=factored)
    page = ranks_section(Manifest.model_construct(ranks=ranks, input="sound"))
    sentence = (
        f"{told} the error on held-out clips is above 100 %: more is missing than if they gave out "
        "their mean. Let fewer weights go or fit on more clips."
    )
    assert (sentence in page) == (told is not None)
    assert ("above 100 %" in page) == (told is not None)


def removed(found: Manifest) -> int:
    assert found.neurons is not None
    return found.neurons.removed_count


def said(pruned: StandIn) -> list[str]:
    return (pruned.root / "said.txt").read_text().splitlines()


def test_the_model_answers_and_a_run_is_taken_up(pruned: StandIn) -> None:
    clip = next(pruned.root.rglob("*.wav"))
    for variant in ("fp32", "int8"):
        answer = invoke("predict", pruned.root / "out", clip, "--variant", variant)
        assert answer.exit_code == 0, answer.output
    again = run(pruned, *OPTIONS, "--quiet")
    assert again.exit_code == 0
    steps = {line.split()[0]: line.split()[1] for line in again.stdout.splitlines()[:14] if line}
    assert steps["prune"] == steps["repair"] == steps["export"] == "done"
    other = run(pruned, *OPTIONS, "--set", "budget.ranks=0", "--quiet")
    assert other.exit_code == 0
    steps = {line.split()[0]: line.split()[1] for line in other.stdout.splitlines()[:14] if line}
    assert steps["plan-neurons"] == "done"
    assert "done" not in (steps["prune"], steps["repair"])
    config = json.loads((pruned.root / "out" / "config.json").read_text())
    assert "projection_ranks" not in config
    assert manifest(pruned).ranks is None


def test_no_run_starts_from_pairs_of_matrices(pruned: StandIn) -> None:
    options = ("--set", "removal.repair=none", "--set", "export.variants=[fp32]")
    ended = run(pruned, "--set", "budget.ranks=0.9", *options, "--quiet")
    assert ended.exit_code == 0, ended.output
    plain = manifest(pruned).ranks
    assert plain is not None
    assert [one.error for one in plain.factored] == [None] * 12
    own = pruned.root / "out"
    (line,) = faults(invoke("check", pruned.recipe, "--set", f"model.source={own}"))
    assert line.endswith(
        ": its projections were made two thinner ones each by an earlier run (budget.ranks), "
        "and a run starts from whole ones: take the checkpoint that it was made of"
    )


@pytest.mark.parametrize("share", [1, 1.5, -0.1, "half", float("nan")])
def test_a_share_is_at_least_0_and_below_1(share: Any) -> None:
    with pytest.raises(ValidationError, match="ranks"):
        Budget.model_validate({"heads": 1, "ranks": share})


@pytest.mark.parametrize(
    "number",
    [
        {"parameters": 0.5},
        {"multiply_adds": 0.5},
        {"size_mb": 1},
        {"metric_drop": 0},
        {"speedup": 2},
    ],
)
def test_one_number_knows_no_ranks(number: dict[str, Any]) -> None:
    (name,) = number
    with pytest.raises(ValidationError, match=f"ranks contradicts {name}, which decides by itself"):
        Budget.model_validate({**number, "ranks": 0.5})
    assert Budget.model_validate({**number, "ranks": 0}).one_number == name


@pytest.mark.parametrize(
    ("told", "fault"),
    [
        ({"0": {MATRICES[0]: 10**9}}, "layer 0 has ranks that no projection has"),
        ({"0": {MATRICES[0]: -1}}, "layer 0 has ranks that no projection has"),
        ({"0": {MATRICES[0]: 0}}, "layer 0 has ranks that no projection has"),
        ({"0": {MATRICES[0]: 8.0}}, "layer 0 has no mapping of projections to ranks"),
        ({"0": {MATRICES[0]: True}}, "layer 0 has no mapping of projections to ranks"),
        ({"0": {MATRICES[0]: "8"}}, "layer 0 has no mapping of projections to ranks"),
        ({"0": [8]}, "layer 0 has no mapping of projections to ranks"),
        ({"-1": {MATRICES[0]: 8}}, "'-1' is no layer's number"),
        ({"x": {MATRICES[0]: 8}}, "'x' is no layer's number"),
        ([8], "no mapping"),
        ("8", "no mapping"),
    ],
)
def test_a_configuration_that_cannot_be_is_told_in_a_line(
    told: Any, fault: str, tmp_path: Path
) -> None:
    stand_in = told_of_ranks(tmp_path / "own", told)
    (line,) = refused(stand_in)
    assert line.endswith(
        f"cannot read its config.json: projection_ranks: {fault}: mend it or take another copy"
    )
    assert faults(invoke("check", stand_in.recipe)) == [line]


@pytest.mark.parametrize(
    ("told", "fault"),
    [
        ({"9": {MATRICES[0]: 8}}, "projection_ranks speaks of layer 9, and there are layers 0"),
        ({"0": {"../x": 8}}, "projection_ranks speaks of '../x', and the projections of a layer"),
        (
            {"0": {MATRICES[0]: 8}},
            "no weights for wav2vec2.encoder.layers.0.attention.q_proj.o",
        ),
        ({"0": {MATRICES[0]: 1_000_000}}, "its weights do not have the shapes its config.json"),
    ],
)
def test_a_configuration_that_contradicts_the_model_is_told_in_a_line(
    told: Any, fault: str, tmp_path: Path
) -> None:
    (line,) = refused(told_of_ranks(tmp_path / "own", told))
    assert fault in line


def told_of_ranks(root: Path, told: Any) -> StandIn:
    stand_in = keyword_spotting(root)
    path = stand_in.model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "projection_ranks": told}))
    return stand_in
