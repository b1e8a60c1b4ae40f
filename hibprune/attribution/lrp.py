"""Layer-wise relevance propagation: how much of the model's answer comes through a head.

Relevance is activation times gradient, under rules that neither create nor lose any on its way
through a layer (Ali et al. 2022, "XAI for Transformers", section 4).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel
from transformers.activations import ACT2CLS

from hibprune.attribution.batches import CalibrationBatch, Report
from hibprune.attribution.fitting import score_by_batch
from hibprune.attribution.methods import LayerwiseRelevance
from hibprune.attribution.sensitivity import columns_by_layer, gate_gradients
from hibprune.attribution.session import Loss, Sample, Session
from hibprune.errors import UserError
from hibprune.models.attention import heads_of
from hibprune.models.families import family_of
from hibprune.records.units import Scores


def attribute(
    method: LayerwiseRelevance,
    model: PreTrainedModel,
    samples: Sequence[Sample],
    loss: Loss,
    session: Session,
) -> Scores:
    """Score every head of every sample."""
    layers = columns_by_layer(heads_of(model, method.stacks))

    def score_batch(calibration: CalibrationBatch, report: Report) -> Tensor:
        with relevance_conserved(model, multipliers_of(model)):
            slopes, losses = gate_gradients(model, calibration, loss, method.stacks)
        report(1.0, float(losses.mean()))
        relevance = -slopes
        if method.normalise == "layer":
            for columns in layers:
                total = relevance[:, columns].abs().sum(1, keepdim=True)
                relevance[:, columns] /= total.where(total > 0, 1.0)
        return relevance.abs() if method.sign == "absolute" else relevance

    return score_by_batch(method, model, samples, session, score_batch)


ACTIVATIONS: tuple[type[nn.Module], ...] = tuple(
    entry[0] if isinstance(entry, tuple) else entry for entry in ACT2CLS.values()
)
"""Every activation that transformers can build into a model by name."""


@contextmanager
def relevance_conserved(
    model: nn.Module, multipliers: Collection[nn.Module] = ()
) -> Iterator[None]:
    """Make activation times gradient the relevance of an activation, in a forward pass within.

    Attention weights, the deviation in a LayerNorm and a gated unit's gate are held constant;
    an activation function f scales its input by the constant f(x)/x. So each layer is linear in
    its input and the outputs stay what they were. `multipliers` are modules whose output scales
    another branch.

    Raises:
        UserError: an activation function is not 0 at 0, so f(x)/x does not exist there.
    """
    with ExitStack() as stack:
        for path, module in model.named_modules():
            if module in multipliers:
                stack.callback(module.register_forward_hook(_held).remove)
            elif isinstance(module, ACTIVATIONS):
                _require_zero_at_zero(path, module)
                stack.callback(module.register_forward_hook(_scaled).remove)
        stack.enter_context(_ConservingFunctions())
        yield


def multipliers_of(model: PreTrainedModel) -> set[nn.Module]:
    """The modules whose output scales another branch, by the model's family."""
    patterns = family_of(model.config.model_type).multipliers
    return {
        module
        for path, module in model.base_model.named_modules()
        if any(fnmatch(path, pattern) for pattern in patterns)
    }


def _require_zero_at_zero(path: str, module: nn.Module) -> None:
    weight = next(module.parameters(), torch.zeros(()))
    if float(module(weight.new_zeros(1)).abs().max()) > 0:
        raise UserError(
            f"{path}: relevance cannot be propagated through {type(module).__name__}, which is not "
            "0 at 0: use taylor, attattr or hib"
        )


def _held(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
    return output.detach()


def _scaled(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return _as_scaling(inputs[0], output)


def _as_scaling(inputs: Tensor, output: Tensor) -> Tensor:
    """The output of an elementwise function, written as its input times a constant."""
    ratio = torch.where(inputs == 0, 0.0, output / inputs)
    return inputs * ratio.detach()


def _layer_norm(
    inputs: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    axes = tuple(range(-len(normalized_shape), 0))
    centred = inputs - inputs.mean(axes, keepdim=True)
    deviation = (centred.square().mean(axes, keepdim=True) + eps).sqrt().detach()
    normal = centred / deviation
    scaled = normal if weight is None else normal * weight
    return scaled if bias is None else scaled + bias


def _softmax(inputs: Tensor, *rest: Any, **named: Any) -> Tensor:
    return torch.softmax(inputs.detach(), *rest, **named)


def _functional_softmax(inputs: Tensor, *rest: Any, **named: Any) -> Tensor:
    return functional.softmax(inputs.detach(), *rest, **named)


def _attention(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **named: Any) -> Tensor:
    rest = tuple(part.detach() if isinstance(part, Tensor) else part for part in rest)
    if isinstance(named.get("attn_mask"), Tensor):
        named["attn_mask"] = named["attn_mask"].detach()
    return functional.scaled_dot_product_attention(
        query.detach(), key.detach(), value, *rest, **named
    )


def _gated_linear_unit(inputs: Tensor, dim: int = -1) -> Tensor:
    content, gate = inputs.chunk(2, dim)
    return content * gate.sigmoid().detach()


def _tanh(inputs: Tensor) -> Tensor:
    return _as_scaling(inputs, torch.tanh(inputs))


RULES: Mapping[Any, Callable[..., Tensor]] = {
    functional.layer_norm: _layer_norm,
    functional.softmax: _functional_softmax,
    torch.softmax: _softmax,
    Tensor.softmax: _softmax,
    functional.scaled_dot_product_attention: _attention,
    functional.glu: _gated_linear_unit,
    torch.tanh: _tanh,
}
"""What takes the place of functions that models call without a module of their own."""


class _ConservingFunctions(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return RULES.get(func, func)(*args, **(kwargs or {}))
