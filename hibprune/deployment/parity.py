"""Agreement of exported graphs with the PyTorch model they were made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from torch import Tensor

from hibprune.deployment.settings import ExportSettings
from hibprune.errors import UserError
from hibprune.execution.runtime import Outputs, plain_onnx_errors
from hibprune.records.measurements import Parity, ParityCase
from hibprune.records.medium import Length, Medium


def check_parity(
    reference: Outputs,
    exported: Outputs,
    inputs: Callable[[Length, int], dict[str, Tensor]],
    settings: ExportSettings,
    medium: Medium,
) -> Parity:
    """Compare everything the exported graphs give out with PyTorch, over lengths and batch sizes.

    `inputs` makes a batch of clips or texts, the longest of some length, from that and its size.

    Raises:
        UserError: outputs differ in shape, or by more than the tolerance, somewhere.
    """
    cases = [
        case
        for length in settings.lengths(medium)
        for batch in settings.batches
        for case in _compare(reference, exported, inputs(length, batch), length, batch)
    ]
    parity = Parity(tolerance=settings.tolerance, cases=tuple(cases))
    worst = parity.worst
    # Written so that a difference which is no number fails.
    if not worst.relative_diff <= settings.tolerance:
        raise UserError(
            f"export: {worst.output} of ONNX and PyTorch differ by {worst.relative_diff:.1e} of "
            f"the largest ({worst.max_abs_diff:.1e} of {worst.scale:.3g}) at {worst.length}, "
            f"batch {worst.batch}, over export.tolerance {settings.tolerance:g}: "
            "try another opset or, if the metric holds, raise the tolerance"
        )
    return parity


def _compare(
    reference: Outputs, exported: Outputs, inputs: dict[str, Tensor], length: Length, batch: int
) -> Iterator[ParityCase]:
    place = f"at {length}, batch {batch}"
    expected = reference(inputs)
    with plain_onnx_errors(f"export: ONNX Runtime fails {place}"):
        found = exported(inputs)
    for name, wanted in expected.items():
        if wanted.shape != found[name].shape:
            raise UserError(
                f"export: ONNX gives {name} of shape {found[name].shape} where PyTorch gives "
                f"{wanted.shape}, {place}: try another opset"
            )
        yield ParityCase(
            output=name,
            length=length,
            batch=batch,
            max_abs_diff=float(np.abs(wanted - found[name]).max(initial=0)),
            scale=float(np.abs(wanted).max(initial=0)),
        )
