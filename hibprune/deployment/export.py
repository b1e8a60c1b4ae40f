"""ONNX: export through optimum, what the file says about itself, and parity with PyTorch."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import cast

import numpy as np
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from hibprune.errors import UserError
from hibprune.execution.files import scratch_directory, write_via_temporary
from hibprune.execution.runtime import Predict
from hibprune.records.measurements import Parity, ParityCase
from hibprune.records.medium import Length, LengthSettings, Medium


class ExportSettings(LengthSettings):
    """How to export, and how closely the file must agree with PyTorch.

    `tolerance` is the largest absolute difference of logits, looked for at every combination of
    `seconds` (of text, `tokens`) and `batches`.
    """

    opset: int = Field(default=18, ge=14, le=20)
    tolerance: float = Field(default=1e-3, gt=0)
    seconds: tuple[float, ...] = Field(default=(1.0, 2.5, 5.0), min_length=1)
    tokens: tuple[int, ...] = Field(default=(16, 40, 128), min_length=1)
    batches: tuple[int, ...] = Field(default=(1, 3), min_length=1)


def export_onnx(
    model: PreTrainedModel, directory: Path, task: str, opset: int, graphs: tuple[str, ...]
) -> None:
    """Write `graphs` with dynamic batch and length; the model itself is not touched.

    `task` is optimum's name for it; `graphs` are the files that makes, of which others are dropped.

    Raises:
        UserError: the model is too large for a single file.
    """
    from optimum.exporters.onnx.convert import onnx_export_from_model

    with scratch_directory(directory) as scratch, _quiet():
        onnx_export_from_model(
            _export_copy(model),
            scratch,
            opset=opset,
            task=task,
            do_validation=False,
            **_window(model),
        )
        if any(scratch.glob("*_data")):
            raise UserError("export: the model is larger than the 2 GB that one ONNX file holds")
        for graph in graphs:
            (scratch / graph).replace(directory / graph)


def _window(model: PreTrainedModel) -> dict[str, int]:
    """Mel frames of the example the exporter makes, for models that take no other number."""
    if model.config.model_type != "whisper":
        return {}
    # Its second convolution leaves one position for two mel frames.
    return {"nb_max_frames": 2 * int(model.config.max_source_positions)}


def _export_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy on the CPU with weight norms multiplied out, which a graph would do at every run."""
    duplicate = copy.deepcopy(model).cpu().eval()
    for module in list(duplicate.modules()):
        if parametrize.is_parametrized(module):
            _bake(module)
    return duplicate


def _bake(module: nn.Module) -> None:
    """Make a module's computed weights plain parameters.

    torch's `remove_parametrizations` would also strip them from the module's class, which the
    model that was copied shares.
    """
    computed = {
        name: getattr(module, name).detach().clone()
        for name in cast(nn.ModuleDict, module.parametrizations)
    }
    del module.parametrizations
    module.__class__ = type(module).__bases__[0]
    for name, value in computed.items():
        module.register_parameter(name, nn.Parameter(value))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the tracer's warnings and the exporter's chatter off the terminal."""
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


def write_metadata(path: Path, properties: Mapping[str, object]) -> None:
    """Let the ONNX file say about itself what `properties` say, as JSON text under each key."""
    import onnx

    model = onnx.load(path)
    onnx.helper.set_model_props(
        model, {key: json.dumps(value) for key, value in properties.items()}
    )
    write_via_temporary(path, lambda temporary: onnx.save(model, temporary))


def check_parity(
    reference: Predict,
    exported: Predict,
    inputs: Callable[[Length, int], dict[str, Tensor]],
    settings: ExportSettings,
    medium: Medium,
) -> Parity:
    """Compare logits of the exported model with PyTorch's over lengths and batch sizes.

    `inputs` makes a batch of equally long clips or texts from their length and batch size.

    Raises:
        UserError: they differ in shape, or by more than the tolerance, somewhere.
    """
    cases = []
    for length in settings.lengths(medium):
        for batch in settings.batches:
            example = inputs(length, batch)
            wanted, found = reference(example), exported(example)
            if wanted.shape != found.shape:
                raise UserError(
                    f"export: ONNX gives logits of shape {found.shape} where PyTorch gives "
                    f"{wanted.shape}, at {length}, batch {batch}: try another opset"
                )
            difference = float(np.abs(wanted - found).max())
            cases.append(ParityCase(batch=batch, length=length, max_abs_diff=difference))
    parity = Parity(tolerance=settings.tolerance, cases=tuple(cases))
    # `max` alone would pass over NaN, which is neither more nor less than any number.
    worst = max(cases, key=lambda case: (math.isnan(case.max_abs_diff), case.max_abs_diff))
    if not worst.max_abs_diff <= settings.tolerance:
        raise UserError(
            f"export: ONNX and PyTorch differ by {worst.max_abs_diff:.1e} at {worst.length}, "
            f"batch {worst.batch}, over export.tolerance {settings.tolerance:g}: "
            "try another opset or, if the metric holds, raise the tolerance"
        )
    return parity
