"""Parity: every output, at every length and batch size, as a share of its largest value."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from commands import faults, invoke
from pydantic import ValidationError
from standin import StandIn
from tiny_models import WITH_DECODER, TinyModel
from torch import Tensor

from hibprune.deployment.parity import check_parity
from hibprune.deployment.settings import ExportSettings
from hibprune.errors import UserError
from hibprune.execution.runtime import Outputs
from hibprune.records.measurements import Parity
from hibprune.records.medium import SOUND, Length
from hibprune.tasks.generation import load_exported, outputs_of

SCALE = 4.0


def reference(inputs: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Two outputs, of which the first reaches `SCALE` and the second a hundredth of that."""
    states = np.linspace(-SCALE, SCALE / 2, 4 * len(inputs["x"]), dtype=np.float32)
    return {"states": states.reshape(-1, 4), "logits": states.reshape(-1, 4) / 100}


def example(length: Length, batch: int) -> dict[str, Tensor]:
    return {"x": torch.zeros(batch, int(100 * length.value))}


def differing(where: tuple[float, int], output: str, by: float) -> Outputs:
    """What differs from the reference in one number, at one length and batch size."""

    def outputs(inputs: dict[str, Tensor]) -> dict[str, np.ndarray]:
        given = reference(inputs)
        if inputs["x"].shape == (where[1], int(100 * where[0])):
            given[output][-1, 2] += by
        return given

    return outputs


def checked(exported: Outputs, tolerance: float = 1e-3) -> Parity:
    settings = ExportSettings(seconds=(1, 2), batches=(1, 3), tolerance=tolerance)
    return check_parity(reference, exported, example, settings, SOUND)


@pytest.mark.parametrize("output", ["states", "logits"])
@pytest.mark.parametrize("by", [0.25, -0.25, np.nan, np.inf])
def test_one_wrong_number_is_found_wherever_it_is(output: str, by: float) -> None:
    for where in ((1, 1), (1, 3), (2, 1), (2, 3)):
        place = rf"{output} of ONNX .* at {where[0]} s, batch {where[1]}, over export\.tolerance"
        with pytest.raises(UserError, match=place):
            checked(differing(where, output, by), tolerance=0.02)


def test_differences_are_shares_of_the_largest_value_of_that_output() -> None:
    """0.003 is a thousandth of values up to 4, and a tenth of values up to 0.04."""
    parity = checked(differing((2, 3), "states", 0.003))
    assert parity.worst.output == "states"
    assert parity.worst.relative_diff == pytest.approx(0.003 / SCALE, rel=1e-3)
    assert parity.worst.scale == SCALE
    with pytest.raises(UserError) as refusal:
        checked(differing((2, 3), "logits", 0.003))
    assert str(refusal.value) == (
        "export: logits of ONNX and PyTorch differ by 7.5e-02 of the largest (3.0e-03 of 0.04) "
        "at 2 s, batch 3, over export.tolerance 0.001: try another opset or, if the metric holds, "
        "raise the tolerance"
    )


def test_the_worst_case_of_every_output_is_kept() -> None:
    parity = checked(differing((2, 1), "logits", 0.00002))
    assert [(case.output, case.batch) for case in parity.worst_by_output] == [
        ("states", 1),
        ("logits", 1),
    ]
    assert [case.relative_diff > 0 for case in parity.worst_by_output] == [False, True]
    assert len(parity.cases) == 2 * 2 * 2


def test_outputs_of_another_shape_are_found_out() -> None:
    def one_row(inputs: dict[str, Tensor]) -> dict[str, np.ndarray]:
        return {**reference(inputs), "logits": reference(inputs)["logits"][:1]}

    with pytest.raises(
        UserError, match=r"logits of shape \(1, 4\) where PyTorch gives \(3, 4\), at 1 s, batch 3"
    ):
        checked(one_row)


def test_a_graph_that_cannot_be_run_is_a_plain_line() -> None:
    def fails(inputs: dict[str, Tensor]) -> dict[str, np.ndarray]:
        raise RuntimeError("bad graph\nwith details")

    with pytest.raises(UserError, match=r"^export: ONNX Runtime fails at 1 s, batch 1: bad graph$"):
        checked(fails)


@pytest.mark.parametrize(
    "settings",
    [
        {"opset": 13}, {"opset": 21}, {"tolerance": 0}, {"tolerance": np.inf}, {"seconds": ()},
        {"seconds": (np.inf,)}, {"seconds": (np.nan,)}, {"batches": ()}, {"batches": (0,)},
        {"batches": (1, -2)}, {"x": 1},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ExportSettings(**settings)


# Encoder and decoder ---------------------------------------------------------------------------

OUTPUTS = ("encoder states", "decoder logits", "decoder logits of single steps")


@pytest.mark.parametrize("tiny", WITH_DECODER, ids=lambda tiny: tiny.name)
class TestOutputs:
    def test_single_steps_go_on_where_the_first_tokens_ended(self, tiny: TinyModel) -> None:
        """With what the decoder kept they give what all tokens fed at once do."""
        model = tiny.build()
        heard = {name: x for name, x in tiny.inputs(2).items() if name == tiny.main_input}
        fed: list[Tensor] = []
        model.get_decoder().register_forward_pre_hook(
            lambda _, __, named: fed.append(named["input_ids"]), with_kwargs=True
        )
        found = outputs_of(model)(heard)
        tokens = torch.cat(fed, 1)
        assert [step.shape for step in fed] == [(2, 4), (2, 1), (2, 1)]
        assert len(set(tokens.flatten().tolist())) > 3
        with torch.no_grad():
            whole = model(**heard, decoder_input_ids=tokens, use_cache=False)
        assert tuple(found) == OUTPUTS
        np.testing.assert_allclose(found[OUTPUTS[0]], whole.encoder_last_hidden_state, atol=1e-5)
        logits = np.concatenate([found[name] for name in OUTPUTS[1:]], 1)
        np.testing.assert_allclose(logits, whole.logits, atol=1e-5)

    def test_a_weight_of_the_decoder_alone_is_found_out(self, tiny: TinyModel) -> None:
        model, other = tiny.build(), tiny.build()
        with torch.no_grad():
            weight = other.get_decoder().layers[-1].encoder_attn.v_proj.weight
            weight += torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        heard = {name: x for name, x in tiny.inputs(2).items() if name == tiny.main_input}
        with pytest.raises(UserError, match="decoder logits"):
            check_parity(
                outputs_of(model),
                outputs_of(other),
                lambda length, batch: heard,
                ExportSettings(seconds=(1,), batches=(2,)),
                SOUND,
            )


STAND_INS = ("encoder_decoder", "encoder_decoder_on_waveforms")


@pytest.mark.parametrize("name", STAND_INS)
def test_a_fault_in_the_steps_that_follow_the_first_is_found_out(
    finished: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    """In the branch of the merged decoder that goes on with what it kept."""
    from transformers import AutoFeatureExtractor, AutoModelForSpeechSeq2Seq

    output = Path(shutil.copytree(finished(name), tmp_path / name))
    model = AutoModelForSpeechSeq2Seq.from_pretrained(output).eval()
    extractor = AutoFeatureExtractor.from_pretrained(output)

    def noise(length: Length, batch: int) -> dict[str, Tensor]:
        sound = np.random.default_rng(0).normal(size=(batch, 8000)) * 0.1
        features = extractor(list(sound), sampling_rate=16_000, return_tensors="pt")
        return {model.main_input_name: features[model.main_input_name]}

    def compare() -> Parity:
        settings = ExportSettings(seconds=(0.5,), batches=(1, 3), tolerance=1e-4)
        exported = outputs_of(load_exported(output, "cpu"))
        return check_parity(outputs_of(model), exported, noise, settings, SOUND)

    assert [case.output for case in compare().worst_by_output] == list(OUTPUTS)
    path = output / "onnx/decoder_model_merged.onnx"
    graph = onnx.load(path)
    (choice,) = (node for node in graph.graph.node if node.op_type == "If")
    (following,) = (a.g for a in choice.attribute if a.name == "then_branch")
    last = next(node for node in following.node if following.output[0].name in node.output)
    shift = onnx.helper.make_tensor("shift", onnx.TensorProto.FLOAT, [], [0.01])
    logits = last.output[0]
    last.output[0] = "before_shift"
    following.initializer.append(shift)
    following.node.append(onnx.helper.make_node("Add", ["before_shift", "shift"], [logits]))
    onnx.save(graph, path)
    with pytest.raises(UserError, match=f"^export: {OUTPUTS[2]} of ONNX and PyTorch differ"):
        compare()


# Nothing half-written --------------------------------------------------------------------------


def left(output: Path) -> set[str]:
    return {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}


SAYS_FINISHED = {"manifest.json", "README.md", "report.md", "report.html"}


@pytest.mark.parametrize("name", ["keyword_spotting", "encoder_decoder"])
def test_a_model_that_differs_leaves_no_graph(
    stand_in_of: Callable[[str], StandIn], name: str
) -> None:
    stand_in = stand_in_of(name)
    output = stand_in.root / "out"
    quick = ("--quiet", "--set", "attribution={method: magnitude}", "--set", "validation.limit=5")
    run = ("run", stand_in.recipe, "--output", output, *quick)
    (fault,) = faults(invoke(*run, "--set", "export.tolerance=1e-12"))
    assert "of ONNX and PyTorch differ by" in fault
    assert not [path for path in left(output) if "onnx" in path or ".partial" in path]
    assert not SAYS_FINISHED & left(output)
    clip = stand_in.clip("validation", 0)
    (refusal,) = faults(invoke("predict", output, clip))
    assert refusal.startswith(f"{output}: no recipe.yaml in it")
    assert invoke(*run).exit_code == 0
    assert left(output) >= SAYS_FINISHED


def test_a_finished_run_that_is_changed_and_fails_is_not_finished_any_more(
    stand_in: StandIn,
    finished: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = Path(shutil.copytree(finished("keyword_spotting"), tmp_path / "out"))
    graph = (output / "onnx/model.onnx").read_bytes()
    run = ("run", stand_in.recipe, "--output", output, "--quiet")
    # The original is tried first, and nothing has changed until then.
    faults(invoke(*run, "--set", "export.tolerance=1e-12"))
    assert left(output) >= SAYS_FINISHED

    def fails(*_: object, **__: object) -> None:
        raise UserError("the clock has stopped")

    with monkeypatch.context() as patch:
        patch.setattr("hibprune.stages.measure.measure_latency", fails)
        faults(invoke(*run, "--set", "removal.repair=none"))
    assert (output / "onnx/model.onnx").read_bytes() != graph
    assert not SAYS_FINISHED & left(output)
    assert faults(invoke("predict", output, stand_in.clip("validation", 0))) == [
        f"{output}: no manifest.json in it: not the directory of a finished run"
    ]
    # What is asked for no longer stands where nothing was to be done anew.
    assert invoke(*run).exit_code == 0
    assert left(output) >= SAYS_FINISHED
    manifest = (output / "manifest.json").read_bytes()
    faults(invoke(*run, "--set", "export.opset=99"))
    assert (output / "manifest.json").read_bytes() == manifest


@pytest.mark.exports
def test_an_exporter_that_fails_is_a_plain_line(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optimum.exporters.onnx import convert

    def fails(*_: object, **__: object) -> None:
        raise torch.onnx.errors.UnsupportedOperatorError("aten::made_up", 18, 30)

    monkeypatch.setattr(convert, "onnx_export_from_model", fails)
    output = stand_in.root / "out"
    result = invoke("run", stand_in.recipe, "--output", output, "--quiet")
    (fault,) = faults(result)
    assert fault.startswith("export: the exporter fails at opset 18 (UnsupportedOperatorError: ")
    assert fault.endswith(": set another export.opset")
    assert not [path for path in left(output) if "onnx" in path or ".partial" in path]
