"""`hibprune predict` on a stranger's directory: what does not fit is one plain line."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import yaml
from commands import faults, invoke
from onnx import TensorProto, helper, numpy_helper
from standin import LABELS, StandIn

from hibprune.deployment.deployed import told
from hibprune.errors import UserError
from hibprune.execution.confined import ConfinedError, confined
from hibprune.execution.runtime import guarded, onnx_predict, onnx_session

pytestmark = pytest.mark.timeout(120)

FITTING = np.zeros((1, len(LABELS)), np.float32)


@pytest.fixture
def deployed(finished: Callable[[str], Path], tmp_path: Path) -> Path:
    """A finished keyword spotter, to be spoiled."""
    return Path(shutil.copytree(finished("keyword_spotting"), tmp_path / "deployed"))


@pytest.fixture
def clip(stand_ins: Callable[[str], Path]) -> Path:
    return StandIn(stand_ins("keyword_spotting")).clip("validation", 0)


def a_graph(
    nodes: list[Any],
    constants: dict[str, np.ndarray],
    taken: tuple[str, int, list[None]] = ("input_values", TensorProto.FLOAT, [None, None]),
    given: tuple[str, int] = ("logits", TensorProto.FLOAT),
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(*taken)],
        [helper.make_tensor_value_info(*given, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    return model


def says(value: np.ndarray) -> onnx.ModelProto:
    """A graph that gives out the same whatever it is given."""
    kind = (
        TensorProto.STRING
        if value.dtype == object
        else helper.np_dtype_to_tensor_dtype(value.dtype)
    )
    nodes = [helper.make_node("Identity", ["constant"], ["logits"])]
    return a_graph(nodes, {"constant": value}, given=("logits", kind))


def takes(name: str, kind: int, rank: int) -> onnx.ModelProto:
    nodes = [helper.make_node("Identity", ["constant"], ["logits"])]
    return a_graph(nodes, {"constant": FITTING}, (name, kind, [None] * rank))


def under_another_name() -> onnx.ModelProto:
    nodes = [helper.make_node("Identity", ["constant"], ["scores"])]
    return a_graph(nodes, {"constant": FITTING}, given=("scores", TensorProto.FLOAT))


def of_nobodys_operators() -> onnx.ModelProto:
    return a_graph([helper.make_node("Harm", ["input_values"], ["logits"], domain="nobody")], {})


def larger_than_memory() -> onnx.ModelProto:
    nodes = [helper.make_node("ConstantOfShape", ["shape"], ["logits"])]
    return a_graph(nodes, {"shape": np.array([10**6, 10**7])})


def with_data_elsewhere() -> onnx.ModelProto:
    model = says(FITTING)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../secret.bin"
    return model


def without_end() -> onnx.ModelProto:
    def info(name: str, kind: int, shape: list[int] | None) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["x"], ["y"])],
        "body",
        [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, []),
         info("x", TensorProto.FLOAT, None)],
        [info("on", TensorProto.BOOL, []), info("y", TensorProto.FLOAT, None)],
    )  # fmt: skip
    loop = helper.make_node("Loop", ["", "yes", "input_values"], ["logits"], body=body)
    return a_graph([loop], {"yes": np.array(True)})


def put(model: onnx.ModelProto, directory: Path) -> None:
    onnx.save(model, directory / "onnx/model.onnx")


def fault_of(directory: Path, argument: object) -> str:
    """Why a directory's model is not used, found in this process."""
    with pytest.raises(UserError) as error:
        list(told(str(directory), [str(argument)]))
    (line,) = str(error.value).replace(str(directory), "DIR").splitlines()
    assert len(line) < 600
    return line


@pytest.mark.parametrize(
    ("model", "fault"),
    [
        (says(np.full((1, 5), np.nan, np.float32)), "gives out numbers that are not finite"),
        (says(np.array([[0, 1, np.inf, 0, 0]], np.float32)), "numbers that are not finite"),
        (says(np.zeros((1, 9), np.float32)), "gives out float32 of shape 1×9 where the labels"),
        (says(np.zeros((1, 2), np.float32)), "shape 1×2 where the labels of config.json want 1×5"),
        (says(np.zeros((1, 0), np.float32)), "shape 1×0"),
        (says(np.zeros((2, 5), np.float32)), "shape 2×5"),
        (says(np.zeros(5, np.float32)), "shape 5 where"),
        (says(np.zeros((), np.float32)), "shape a single number"),
        (says(np.zeros((1, 1, 5), np.float32)), "shape 1×1×5"),
        (says(np.zeros((1, 5), np.int64)), "int64 of shape 1×5, which are no logits"),
        (says(np.zeros((1, 5), np.bool_)), "which are no logits"),
        (says(np.array([["w0"] * 5], dtype=object)), "which are no logits"),
        (takes("sound", TensorProto.FLOAT, 2), "ONNX Runtime fails: Required inputs"),
        (takes("input_values", TensorProto.DOUBLE, 2), "expected: (tensor(double))"),
        (takes("input_values", TensorProto.INT64, 2), "expected: (tensor(int64))"),
        (takes("input_values", TensorProto.FLOAT, 3), "Got: 2 Expected: 3"),
        (under_another_name(), "Invalid output name"),
        (of_nobodys_operators(), "ONNX Runtime cannot load it"),
        (larger_than_memory(), "it takes more memory than there is"),
        (with_data_elsewhere(), "ONNX Runtime cannot load it"),
    ],
)
def test_a_graph_that_does_not_fit_its_directory(
    deployed: Path, clip: Path, model: onnx.ModelProto, fault: str
) -> None:
    (deployed.parent / "secret.bin").write_bytes(b"\0" * 100)
    put(model, deployed)
    assert fault in fault_of(deployed, clip)


def of_one_length_alone() -> onnx.ModelProto:
    """What is found to be wrong in the middle of a pass."""
    add = helper.make_node("Add", ["input_values", "fixed"], ["logits"])
    return a_graph([add], {"fixed": np.zeros((1, 7), np.float32)})


def test_a_graph_that_fails_on_the_way_is_told_of_once_and_without_colours(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    onnx.save(of_one_length_alone(), tmp_path / "model.onnx")
    predict = onnx_predict(onnx_session(tmp_path / "model.onnx", "cpu", threads=1))
    with pytest.raises(UserError) as error:
        guarded(predict, Path("model.onnx"))({"input_values": torch.zeros(1, 9)})
    assert str(error.value).startswith("model.onnx: ONNX Runtime fails: ")
    assert str(error.value).endswith("by a dimension other than 1. 7 by 9")
    assert "onnxruntime_src" not in str(error.value)
    assert tuple(capfd.readouterr()) == ("", "")


def test_a_graph_that_fits_is_believed(deployed: Path, clip: Path) -> None:
    logits = FITTING.copy()
    logits[0, 3] = 1
    put(says(logits), deployed)
    assert [one.get("prediction") for one in told(str(deployed), [str(clip)])] == [None, "w3"]


def changed(directory: Path, file: str, **values: Any) -> None:
    path = directory / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_slots_that_do_not_add_up(finished: Callable[[str], Path], tmp_path: Path) -> None:
    directory = Path(shutil.copytree(finished("intents"), tmp_path / "intents"))
    clip = tmp_path / "any.wav"
    recipe = yaml.safe_load((directory / "recipe.yaml").read_text())
    recipe["task"]["slots"]["object"].append("more")
    (directory / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert fault_of(directory, clip) == (
        "DIR: its model cannot serve its recipe's task: "
        "its 5 logits are not the 6 of task.slots together"
    )


def test_a_graph_without_end_is_ended(deployed: Path, clip: Path) -> None:
    put(without_end(), deployed)
    start = time.monotonic()
    assert faults(invoke("predict", deployed, clip, "--timeout", "2")) == [
        f"{deployed}: its model took more than 2 s: give it longer (--timeout)"
    ]
    assert time.monotonic() - start < 90


def test_what_crashes_the_library_does_not_crash_the_command() -> None:
    for end, said in (("crash", r"crashed \(SIGSEGV\)"), ("exit", "ended before its time"),
                      ("kill", "took too much memory")):  # fmt: skip
        with pytest.raises(ConfinedError, match=said):
            list(confined("endings", end, (), 30))


def test_values_come_out_in_order_and_faults_as_they_are() -> None:
    assert list(confined("endings", "count", (3,), 30)) == [0, 1, {"2": "ü\ud800"}]
    with pytest.raises(UserError, match=r"^said so$"):
        list(confined("endings", "fault", (), 30))
    with pytest.raises(UserError, match=r"^the package 'no_such_package' is not installed"):
        list(confined("endings", "missing", (), 30))
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        list(confined("endings", "defect", (), 30))


def test_a_program_without_a_guard_is_not_started_again(tmp_path: Path) -> None:
    import subprocess
    import sys

    program = tmp_path / "program.py"
    program.write_text(
        "from hibprune.execution.confined import confined\n"
        "print(list(confined('endings', 'count', (1,), 30)))\n"
    )
    told = subprocess.run(
        [sys.executable, str(program)],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=Path(__file__).parent,
        env={"PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parent.parent}"},
    )
    assert (told.stdout, told.stderr) == ("[0]\n", "")


STEERING = "\x1b[2J\x07\u202egnp\u2028\x9b31m"


def test_labels_do_not_steer_the_terminal(deployed: Path, clip: Path) -> None:
    labels = {str(number): f"{STEERING}{number}" for number in range(len(LABELS))}
    changed(deployed, "config.json", id2label=labels, label2id={v: k for k, v in labels.items()})
    result = invoke("predict", deployed, clip)
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.splitlines()
    assert line.isprintable()
    assert "�[2J" in line
    answer = json.loads(invoke("predict", deployed, clip, "--json").stdout)
    assert answer["prediction"] in labels.values()


def test_a_label_without_end_is_cut(deployed: Path, clip: Path) -> None:
    labels = {str(number): "x" * 100_000 for number in range(len(LABELS))}
    changed(deployed, "config.json", id2label=labels)
    result = invoke("predict", deployed, clip)
    assert max(map(len, (result.stdout + result.stderr).splitlines())) < 2000


@pytest.mark.parametrize("name", ["\udcff.wav", "a\nb.wav", "\x1b[31m.wav"])
def test_names_of_files_do_not_steer_the_terminal(
    deployed: Path, clip: Path, tmp_path: Path, name: str
) -> None:
    shutil.copy(clip, tmp_path / name)
    result = invoke("predict", deployed, tmp_path / name, tmp_path / f"no-{name}")
    assert result.exit_code == 2
    assert [line.isprintable() for line in result.stdout.splitlines()] == [True]
    assert all(line.isprintable() for line in result.stderr.splitlines())


def test_a_graph_of_gigabytes_is_not_read(deployed: Path, clip: Path) -> None:
    with (deployed / "onnx/model.onnx").open("wb") as file:
        file.truncate(2**33)
    assert fault_of(deployed, clip).startswith("DIR/onnx/model.onnx: cannot be read: larger than ")


@pytest.mark.parametrize("name", ["onnx/model.onnx", "config.json", "recipe.yaml"])
def test_devices_and_pipes_are_not_read(deployed: Path, clip: Path, name: str) -> None:
    import os

    (deployed / name).unlink()
    os.mkfifo(deployed / name)
    assert fault_of(deployed, clip).endswith(f"{name}: cannot be read: a pipe, not a file")
    (deployed / name).unlink()
    (deployed / name).symlink_to("/dev/zero")
    assert fault_of(deployed, clip).endswith(f"{name}: cannot be read: a device, not a file")
