"""Records that somebody changed are noticed, and what they stood for is made again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import invoke, let_it_have_found

from hibprune.execution.files import sha256_of
from hibprune.execution.steps import Partial
from hibprune.records.base import Interval
from hibprune.records.measurements import Evaluation
from hibprune.records.precision import Int8Guard
from hibprune.records.repair import LayerRefinement, Repair, SublayerRepair
from hibprune.records.units import Head, Scores, Training, Unit
from hibprune.records.variants import Converted
from hibprune.stages.credibility import (
    credible_conversion,
    credible_evaluation,
    credible_partial,
    credible_repair,
    credible_scores,
    credible_targets,
)

STEPS = (
    "export-original", "original", "attribute", "plan", "prune", "repair", "export", "pruned",
    "benchmark", "example",
)  # fmt: skip
PUBLISHED = ("config.json", "model.safetensors", "onnx/model.onnx", "predictions/pruned.jsonl")


@pytest.fixture
def output(finished: Callable[[str], Path], tmp_path: Path) -> Path:
    """A finished run of the keyword spotter, to be forged."""
    return Path(shutil.copytree(finished("keyword_spotting"), tmp_path / "out"))


def rerun(recipe_of: Path, output: Path) -> list[str]:
    """Run once more into the same directory; returns the steps that were done anew."""
    result = invoke("run", recipe_of / "recipe.yaml", "--output", output, "--quiet")
    assert result.exit_code == 0, result.output or result.exception
    lines = [line.split() for line in result.stdout.splitlines()]
    return [line[0] for line in lines if line[0] in STEPS and line[1] != "done"]


def forge(output: Path, step: str, change: Callable[[Any], object]) -> None:
    """Edit the result in a record, as one would by hand."""
    name = f"measure-{step}" if step in ("original", "pruned") else step
    path = output / f"steps/{name}.json"
    record = json.loads(path.read_text())
    change(record["result"])
    path.write_text(json.dumps(record))


FORGERIES: dict[str, Callable[[Any], object]] = {
    "export-original": lambda result: [case.update(max_abs_diff=1e-9) for case in result["cases"]],
    "original": lambda result: result["evaluation"].update(value=0.99, interval=[0.98, 1.0]),
    "attribute": lambda result: result["per_sample"].reverse(),
    "plan": lambda result: result.update(removed=[], kept=result["kept"] + result["removed"]),
    "prune": lambda result: result["after"].update(parameters=1),
    "repair": lambda result: result.update(repair=None),
    "export": lambda result: [case.update(max_abs_diff=1e-9) for case in result["cases"]],
    "pruned": lambda result: result["evaluation"].update(value=1.0, interval=[0.9, 1.0]),
    "benchmark": lambda result: result["latencies"][0]["times"]["model"].update(
        pruned=[0.1, 0.1, 0.1]
    ),
    "example": lambda result: result["outputs"]["pruned"].update(says="forged"),
}


def test_a_result_that_was_edited_is_made_again(
    output: Path, finished: Callable[[str], Path], stand_ins: Callable[[str], Path]
) -> None:
    for step in STEPS:
        forge(output, step, FORGERIES[step])
    assert rerun(stand_ins("keyword_spotting"), output) == list(STEPS)
    original = finished("keyword_spotting")
    for name in PUBLISHED:
        assert sha256_of(output / name) == sha256_of(original / name), name
    assert rerun(stand_ins("keyword_spotting"), output) == []


def test_a_single_forgery_is_enough(output: Path, stand_ins: Callable[[str], Path]) -> None:
    forge(output, "pruned", FORGERIES["pruned"])
    assert rerun(stand_ins("keyword_spotting"), output) == ["pruned"]


def test_a_plan_that_removes_nothing_is_not_carried_out(
    output: Path, finished: Callable[[str], Path], stand_ins: Callable[[str], Path]
) -> None:
    """Not even where the record says of itself that nobody touched it."""
    let_it_have_found(
        output / "steps/plan.json", lambda record: FORGERIES["plan"](record["result"])
    )
    (output / "steps/prune.json").unlink()
    assert rerun(stand_ins("keyword_spotting"), output) == ["plan", "prune"]
    wanted = json.loads((finished("keyword_spotting") / "config.json").read_text())
    assert json.loads((output / "config.json").read_text()) == wanted
    assert wanted["pruned_heads"]


def test_what_builds_on_another_result_is_done_again(
    output: Path, stand_ins: Callable[[str], Path]
) -> None:
    """As if the model had been measured to be better: the ONNX file tells of that figure."""

    def better(record: dict[str, Any]) -> None:
        result = record["result"]["evaluation"]
        result["errors"] = [0.0] * len(result["errors"])
        result.update(value=1.0, interval=[0.9, 1.0])

    let_it_have_found(output / "steps/measure-original.json", better)
    assert rerun(stand_ins("keyword_spotting"), output) == [
        "export",
        "pruned",
        "benchmark",
        "example",
    ]


def test_scores_of_another_model_are_not_believed(
    output: Path, stand_ins: Callable[[str], Path]
) -> None:
    def of_other_heads(record: dict[str, Any]) -> None:
        record["result"]["heads"][0]["index"] = 99

    let_it_have_found(output / "steps/attribute.json", of_other_heads)
    assert rerun(stand_ins("keyword_spotting"), output)[0] == "attribute"
    kept = json.loads((output / "steps/plan.json").read_text())["result"]
    assert all(head["index"] < 4 for head in kept["removed"] + kept["kept"])


def test_layers_that_a_rival_has_not_are_a_plain_line(
    finished_in_int8: Callable[[str], Path], stand_ins: Callable[[str], Path], tmp_path: Path
) -> None:
    """What lies in the record of the original's int8, of which nothing but the record is kept."""
    output = Path(shutil.copytree(finished_in_int8("keyword_spotting"), tmp_path / "out"))

    def of_others(record: dict[str, Any]) -> None:
        record["result"]["guard"].update(in_float=["a\nb"], drops={"a\nb": 1.0})

    let_it_have_found(output / "steps/convert-original-int8.json", of_others)
    result = invoke(
        "run", stand_ins("keyword_spotting") / "recipe.yaml", "--output", output, "--quiet",
        "--set=export.variants=[fp32, int8]", "--set=quantize.max_drop=100",
        "--set=benchmark.rivals=true",
    )  # fmt: skip
    assert result.exit_code == 0, result.output or result.exception
    (missing,) = json.loads((output / "manifest.json").read_text())["missing"]
    assert (missing["name"], missing["reason"]) == (
        "original-int8",
        "int8: an earlier run left 'a b' in float32, and the model has no such layers: "
        "remove steps/ in the output directory and run again",
    )


@pytest.mark.parametrize(
    ("kind", "clips"), [("least-squares", -5), ("least-squares", 1000), ("\x1b[2J", 16)]
)
def test_a_repair_that_was_not_asked_for_is_done_again(
    output: Path, stand_ins: Callable[[str], Path], kind: str, clips: int
) -> None:
    let_it_have_found(
        output / "steps/repair.json",
        lambda record: record["result"]["repair"].update(kind=kind, clips=clips),
    )
    assert "repair" in rerun(stand_ins("keyword_spotting"), output)
    report = (output / "report.md").read_text()
    assert "\x1b" not in report
    kept = json.loads((output / "steps/repair.json").read_text())["result"]["repair"]
    assert (kept["kind"], kept["clips"]) == ("least-squares", 16)


SUBLAYER = SublayerRepair(
    layer=1, kind="head", name="attention", removed=2, kept=2, strength=0.1, before=0.5, after=0.2,
    refitted=True,
)  # fmt: skip
FEED_FORWARD = SUBLAYER.model_copy(
    update={"kind": "neuron", "name": "feed-forward", "removed": 1, "kept": 36}
)
REPAIR = Repair(kind="scale", clips=8, held_out=2, frames=90, sublayers=(SUBLAYER, FEED_FORWARD))
GONE = (Head(1, 0), Head(1, 3), Unit(1, 5, kind="neuron"))


def with_sublayer(**values: Any) -> dict[str, Any]:
    return {"sublayers": (SUBLAYER.model_copy(update=values), FEED_FORWARD)}


@pytest.mark.parametrize(
    ("change", "credible"),
    [
        ({}, True),
        ({"kind": "mean"}, False),
        ({"clips": 9}, False),
        ({"clips": 12, "held_out": -2}, False),
        ({"frames": 0}, False),
        ({"sublayers": ()}, False),
        (with_sublayer(strength=None), True),
        (with_sublayer(strength=-1.0), False),
        (with_sublayer(removed=1), False),
        (with_sublayer(layer=0), False),
        (with_sublayer(layer=-1), False),
        (with_sublayer(kind="neuron"), False),
        (with_sublayer(kept=-1), False),
        (with_sublayer(before=-1.0), False),
        (with_sublayer(after=-0.1), False),
        (with_sublayer(after=0.6), False),
        (with_sublayer(before=float("nan")), False),
        ({"refinements": (LayerRefinement(layer=1, before=1, after=0.5, steps=3),)}, False),
    ],
)
def test_a_repair_is_of_these_units_on_so_many_clips(
    change: dict[str, Any], credible: bool
) -> None:
    assert credible_repair(REPAIR.model_copy(update=change), "scale", 10, GONE, 0) is credible


@pytest.mark.parametrize("stack", ["decoder.self", "decoder.cross"])
def test_heads_of_a_decoder_are_told_of_as_well(stack: str) -> None:
    gone = (*GONE, Head(0, 2, stack))
    assert not credible_repair(REPAIR, "scale", 10, gone, 0)
    own = REPAIR.sublayers[0].model_copy(update={"layer": 0, "stack": stack, "removed": 1})
    told = REPAIR.model_copy(update={"sublayers": (*REPAIR.sublayers, own)})
    assert credible_repair(told, "scale", 10, gone, 0)
    assert not credible_repair(told, "scale", 10, GONE, 0)


@pytest.mark.parametrize(
    ("steps", "credible"), [((3,), True), ((0,), True), ((), False), ((-1,), False),
                            ((6,), False), ((3, 3), False)],
)  # fmt: skip
def test_layers_are_refined_by_as_many_steps_as_there_are(
    steps: tuple[int, ...], credible: bool
) -> None:
    refined = tuple(LayerRefinement(layer=1, before=1, after=0.5, steps=one) for one in steps)
    repair = REPAIR.model_copy(update={"refinements": refined})
    assert credible_repair(repair, "scale", 10, GONE, 5) is credible


GUARD = Int8Guard(
    reference=0.9, quantized=0.8, guarded=0.9, max_drop=0.01, in_float=("a", "b"),
    drops={"a": 0.05, "b": 0.05, "c": 0.0}, measurements=5,
)  # fmt: skip


@pytest.mark.parametrize(
    ("converted", "precision", "credible"),
    [
        (Converted(guard=GUARD), "int8", True),
        (Converted(), "int8", False),
        (Converted(guard=GUARD), "fp16", False),
        (Converted(in_float=("node",)), "fp16", True),
        (Converted(fault="it loops"), "int8", True),
        (Converted(fault="\x1b[2J"), "int8", False),
        (Converted(fault="it loops", guard=GUARD), "int8", False),
        (Converted(guard=GUARD.model_copy(update={"max_drop": 0.5})), "int8", False),
        (Converted(guard=GUARD.model_copy(update={"measurements": 0})), "int8", False),
        (Converted(guard=GUARD.model_copy(update={"in_float": ("a", "a")})), "int8", False),
        (Converted(guard=GUARD.model_copy(update={"in_float": ("a", "z")})), "int8", False),
    ],
)
def test_a_conversion_is_what_the_recipe_wants(
    converted: Converted, precision: Any, credible: bool
) -> None:
    assert credible_conversion(converted, precision, 0.01) is credible


@pytest.mark.parametrize(
    "spoil",
    [
        lambda partial: partial["rows"].update({"calibration/0.wav": [1.0]}),
        lambda partial: partial["rows"].update({"nobody.wav": [1.0] * 8}),
        lambda partial: partial["rows"].update({"calibration/0.wav": [float("nan")] * 8}),
        lambda partial: partial.update(steps=-3),
        lambda partial: partial.update(training={"steps": 2, "share": 7.0, "state": {}}),
    ],
)
def test_partial_results_that_cannot_be_right_are_not_gone_on_from(
    output: Path, stand_ins: Callable[[str], Path], spoil: Callable[[dict[str, Any]], object]
) -> None:
    record = json.loads((output / "steps/attribute.json").read_text())
    partial: dict[str, Any] = {"key": record["key"], "rows": {}, "steps": None, "training": None}
    spoil(partial)
    (output / "steps/attribute.json").unlink()
    (output / "steps/attribute.partial.json").write_text(json.dumps(partial))
    assert "attribute" in rerun(stand_ins("keyword_spotting"), output)
    again = json.loads((output / "steps/attribute.json").read_text())["result"]
    np.testing.assert_allclose(again["per_sample"], record["result"]["per_sample"], atol=1e-4)


HEADS = (Head(0, 0), Head(0, 1))
SAMPLES = ("a", "b")
SCORES = Scores(method="hib", heads=HEADS, samples=SAMPLES, per_sample=((1.0, 2.0), (3.0, 4.0)))


@pytest.mark.parametrize(
    ("change", "credible"),
    [
        ({}, True),
        ({"per_sample": ((1.0, 2.0),)}, True),
        ({"samples": (), "per_sample": ((1.0, 2.0),)}, True),
        ({"per_sample": ()}, False),
        ({"per_sample": ((1.0, 2.0), (3.0,))}, False),
        ({"per_sample": ((1.0, 2.0, 3.0),) * 2}, False),
        ({"per_sample": ((1.0, 2.0),) * 3}, False),
        ({"per_sample": ((1.0, float("nan")), (3.0, 4.0))}, False),
        ({"per_sample": ((1.0, float("inf")), (3.0, 4.0))}, False),
        ({"per_sample": ((1.0, 1e300), (3.0, 4.0))}, False),
        ({"samples": ("a", "c")}, False),
        ({"samples": ("a",)}, False),
        ({"heads": (Head(0, 0), Head(0, 0))}, False),
        ({"heads": (Head(0, 0), Head(1, 1))}, False),
        ({"heads": (Head(0, 0),)}, False),
        ({"heads": ()}, False),
    ],
)
def test_scores_are_of_these_heads_and_samples(change: dict[str, Any], credible: bool) -> None:
    assert credible_scores(SCORES.model_copy(update=change), HEADS, SAMPLES) is credible


EVALUATION = Evaluation(
    metric="accuracy",
    value=0.75,
    interval=Interval(0.3, 0.95),
    n=4,
    higher_is_better=True,
    errors=(0.0, 0.0, 1.0, 0.0),
    counted=(1.0,) * 4,
)


@pytest.mark.parametrize(
    ("change", "credible"),
    [
        ({}, True),
        ({"value": 0.25, "higher_is_better": False}, True),
        ({"value": 2.5, "higher_is_better": False, "errors": (7.0, 1.0, 1.0, 1.0),
          "interval": Interval(1.0, 4.0)}, True),
        ({"value": 0.76}, False),
        ({"value": 1.75}, False),
        ({"value": -0.25}, False),
        ({"value": float("nan")}, False),
        ({"interval": Interval(0.95, 0.3)}, False),
        ({"interval": Interval(0.3, 1.5)}, False),
        ({"interval": Interval(-0.5, 0.9)}, False),
        ({"interval": Interval(float("nan"), 0.9)}, False),
        ({"n": 5}, False),
        ({"errors": (1.0,)}, False),
        ({"errors": (-1.0, 1.0, 1.0, 0.0)}, False),
        ({"counted": (0.0,) * 4}, False),
    ],
)  # fmt: skip
def test_a_metric_is_in_range_and_what_its_errors_add_up_to(
    change: dict[str, Any], credible: bool
) -> None:
    assert credible_evaluation(EVALUATION.model_copy(update=change), 4) is credible


def test_partial_results_are_taken_whole_or_not_at_all() -> None:
    training = Training(steps=3, share=0.5, state={})
    for good in (
        Partial({}),
        Partial({"a": (1.0, 2.0)}),
        Partial({"a": (1.0, 2.0)}, steps=40),
        Partial({}, training=training),
    ):
        assert credible_partial(good, HEADS, SAMPLES) == good
    for bad in (
        Partial({"a": (1.0,)}),
        Partial({"a": (1.0, 2.0), "b": (1.0,)}),
        Partial({"c": (1.0, 2.0)}),
        Partial({}, steps=0),
        Partial({}, training=training.model_copy(update={"share": 1.5})),
        Partial({}, training=training.model_copy(update={"steps": -1})),
    ):
        assert credible_partial(bad, HEADS, SAMPLES) == Partial({})


def test_labels_of_the_model_are_those_of_all_its_samples() -> None:
    assert credible_targets({"a": "x", "b": "y"}, SAMPLES)
    assert not credible_targets({"a": "x"}, SAMPLES)
    assert not credible_targets({"a": "x", "b": "y", "c": "z"}, SAMPLES)
