"""What torch, optimum and onnx say and raise while graphs are made."""

from __future__ import annotations

import logging
import warnings

import pytest
from onnx.checker import ValidationError
from torch.onnx.errors import UnsupportedOperatorError

from hibprune.deployment.exporter import plain_exporter
from hibprune.errors import UserError

OTHER_OPSET = "set another export.opset"


@pytest.mark.parametrize(
    ("key", "error", "remedy"),
    [
        ("export", UnsupportedOperatorError("aten::made_up", 9, 10), OTHER_OPSET),
        ("export", RuntimeError("Unsupported onnx_opset_version: 9"), OTHER_OPSET),
        (
            "export.waveform",
            ValidationError("No Op registered for Made_Up"),
            f"{OTHER_OPSET} or leave export.waveform out",
        ),
        (
            "export",
            RuntimeError("number of output names provided (9) exceeded number of outputs (5)"),
            "it cannot export this model, so take another",
        ),
        ("export.sherpa", KeyError("a\nand many lines more"), "leave export.sherpa out"),
    ],
)
def test_a_failure_is_a_line_of_the_recipe_s_key(key: str, error: Exception, remedy: str) -> None:
    """Another opset is named where operators are at fault, and nowhere else."""
    with pytest.raises(UserError) as caught, plain_exporter(key, 9):
        raise error
    kind = type(error).__name__
    assert str(caught.value).startswith(f"{key}: the exporter fails at opset 9 ({kind}: ")
    assert str(caught.value).endswith(f"): {remedy}")
    assert "\n" not in str(caught.value)


def test_disks_and_plain_lines_are_left_as_they_are() -> None:
    for error in (OSError(28, "No space left on device"), UserError("a plain line")):
        with pytest.raises(type(error)) as caught, plain_exporter("export", 18):
            raise error
        assert caught.value is error


def test_chatter_stays_off_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with plain_exporter("export", 18):
        print("chatter")
        warnings.warn("a tracer's warning", stacklevel=1)
        assert not logger.isEnabledFor(logging.WARNING)
    assert logger.level == level
    assert capsys.readouterr().out == ""
