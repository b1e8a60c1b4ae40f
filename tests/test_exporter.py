"""What torch, optimum and onnx say and raise while graphs are made."""

from __future__ import annotations

import logging
import warnings

import pytest

from hibprune.deployment.exporter import plain_exporter
from hibprune.errors import UserError


@pytest.mark.parametrize(
    ("key", "remedy"),
    [
        ("export", "set another export.opset"),
        ("export.waveform", "set another export.opset or leave export.waveform out"),
        ("export.sherpa", "set another export.opset or leave export.sherpa out"),
    ],
)
def test_a_failure_is_a_line_of_the_recipe_s_key(key: str, remedy: str) -> None:
    with pytest.raises(UserError) as caught, plain_exporter(key, 9):
        raise KeyError("aten::made_up\nand many lines more")
    assert str(caught.value).startswith(f"{key}: the exporter fails at opset 9 (KeyError: ")
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
