"""torch's exporter as a user meets it: quiet, and with a plain line where it fails."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

from hibprune.errors import UserError

EXPORT = "export"
"""The recipe's section; keys of it are files made beside the graphs, which can be left out."""


@contextlib.contextmanager
def plain_exporter(key: str, opset: int) -> Iterator[None]:
    """Keep chatter off the terminal while graphs are made, as the recipe's `key` asks for them.

    Whatever torch, optimum and onnx raise becomes a line; what the disk does is told elsewhere.

    Raises:
        UserError: one of them failed.
    """
    try:
        with _quiet():
            yield
    except (UserError, OSError):
        raise
    except Exception as error:  # torch, optimum and onnx each have kinds of their own
        reason = next(iter(str(error).strip().splitlines()), "")[:200]
        remedies = ["set another export.opset"] if _may_be_the_opset(error) else []
        if key != EXPORT:
            remedies.append(f"leave {key} out")
        raise UserError(
            f"{key}: the exporter fails at opset {opset} ({type(error).__name__}: {reason}): "
            + (" or ".join(remedies) or "it cannot export this model, so take another")
        ) from error


def _may_be_the_opset(error: Exception) -> bool:
    """Whether an operator was at fault; all else, such as a shape, is the same at any opset."""
    from onnx.checker import ValidationError
    from torch.onnx.errors import OnnxExporterError

    return isinstance(error, (OnnxExporterError, ValidationError)) or "opset" in str(error).lower()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("optimum", "transformers", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
