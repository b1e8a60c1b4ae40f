"""The model that a config.json describes, built without weights: can it be, and how large is it?"""

from __future__ import annotations

import copy
import re
from functools import partial
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, PreTrainedModel
from transformers.modeling_utils import no_init_weights

from hibprune.errors import UserError, shortened
from hibprune.models.families import families_by_type, family_of, has_decoder
from hibprune.models.parts import WEIGHTS, plain_faults, pretrained, reason_of
from hibprune.models.source import read_json
from hibprune.models.staging import MAX_SETTINGS_BYTES, StagedCheckpoint
from hibprune.tasks import TaskBase

MOST_LAYERS, LARGEST_SETTING = 1000, 2_000_000
"""Of each layer a module is made, and of some settings a table, before any weight is seen."""
LARGEST_GRAPH = 2**31 - 2**23
"""Bytes of weights in an ONNX graph: a protobuf message ends at 2 GB, and the graph needs some."""
BUILD = ("is_encoder_decoder", "add_cross_attention")
"""Settings that follow from the model type."""
QUANTIZED = ("quantization_config", "compression_config")
LAYER, MASK = re.compile("0|[1-9][0-9]{0,3}"), re.compile("[0-9a-f]+")
"""How a configuration writes a layer's number, and which of its neurons are gone."""


def read_configuration(staged: StagedCheckpoint, task: TaskBase) -> Any:
    """The model's configuration, once it is known to be of a family and a task that are served.

    Raises:
        UserError: it is damaged, of an unknown model type or of one that does not serve the task,
            asks for weights that are not plain numbers, or for more than any model has.
    """
    source, place = staged.source, f"{staged.source}: cannot read its config.json"
    said = read_json(staged.directory / "config.json", place, MAX_SETTINGS_BYTES)
    model_type = said.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise UserError(
            f"{place}: transformers knows no model type '{str(model_type)[:60]}': "
            f"use one of {', '.join(sorted(families_by_type()))}"
        )
    family_of(model_type, source)
    for key in QUANTIZED:
        if said.get(key):
            raise UserError(
                f"{source}: its weights are quantized (config.json: {key}): "
                "take the checkpoint that they were made of"
            )
    with plain_faults(place, staged):
        _require_sane(said, CONFIG_MAPPING[model_type](), place)
    configuration = pretrained("AutoConfig", staged)
    if type(configuration) not in getattr(transformers, task.model_class)._model_mapping:
        raise UserError(
            f"{source}: cannot serve '{task.model_dump()['kind']}': transformers has no "
            f"{task.model_class} of model type '{model_type}'"
        )
    return configuration


def _require_sane(said: dict[str, object], usual: Any, place: str) -> None:
    for key in BUILD:
        if said.get(key, getattr(usual, key)) != getattr(usual, key):
            raise UserError(
                f"{place}: {key}: {str(said[key])[:40]} is not how a model of type "
                f"'{usual.model_type}' is built: take config.json and weights from one checkpoint"
            )
    remembered = (
        ("pruned_neurons", partial(_units_fault, "neurons")),
        ("pruned_decoder_neurons", partial(_units_fault, "neurons")),
        ("pruned_channels", partial(_units_fault, "channels")),
        ("pruned_decoder_heads", partial(_units_fault, "heads")),
        ("pruned_cross_heads", partial(_units_fault, "heads")),
        ("pruned_heads", _heads_fault),
        ("projection_ranks", _ranks_fault),
    )
    for key, fault in remembered:
        told = said.get(key)
        wrong = None if not told else fault(told) if isinstance(told, dict) else "no mapping"
        if wrong is not None:
            raise UserError(f"{place}: {key}: {wrong}: mend it or take another copy")
    counts = [key for key, value in vars(usual).items() if isinstance(value, int)]
    for key in (*counts, "num_labels"):
        value = said.get(key)
        if not isinstance(value, int | float):
            continue
        most = MOST_LAYERS if key.endswith("layers") else LARGEST_SETTING
        if not -most <= value <= most:
            raise UserError(
                f"{place}: {key}: {str(value)[:40]} is more than any model has: mend it"
            )


def _units_fault(units: str, remembered: dict[str, Any]) -> str | None:
    """Why this is not what each layer had and lost: pairs of a number and a mask in hexadecimal.

    A layer has a pair for each of its feed-forwards, and one of channels or of heads.
    """
    count: Any
    mask: Any
    for layer, told in remembered.items():
        if not LAYER.fullmatch(layer):
            return f"'{shortened(layer)}' is no layer's number"
        for part in told if units == "neurons" and isinstance(told, list) else [told]:
            count, mask = part if isinstance(part, list) and len(part) == 2 else (None, None)
            if not _is_number(count) or not isinstance(mask, str) or not MASK.fullmatch(mask):
                return f"layer {layer} is no list of numbers of {units}, each with a mask"
            if not 0 <= count <= LARGEST_SETTING or len(mask) > count // 4 + 1:
                return f"layer {layer} had more {units} than any model has"
    return None


def _heads_fault(remembered: dict[str, Any]) -> str | None:
    """Why this is not what each layer lost: heads, by number."""
    for layer, heads in remembered.items():
        # transformers' own models count negative ones from the last.
        if not LAYER.fullmatch(layer.removeprefix("-")):
            return f"'{shortened(layer)}' is no layer's number"
        sound = isinstance(heads, list) and all(map(_is_number, heads))
        if not sound or not all(0 <= head <= LARGEST_SETTING for head in heads):
            return f"layer {layer} is no list of heads by number"
    return None


def _ranks_fault(remembered: dict[str, Any]) -> str | None:
    """Why these are not the ranks of each layer's projections, by their names."""
    for layer, ranks in remembered.items():
        if not LAYER.fullmatch(layer):
            return f"'{shortened(layer)}' is no layer's number"
        if not isinstance(ranks, dict) or not all(map(_is_number, ranks.values())):
            return f"layer {layer} has no mapping of projections to ranks"
        if not all(1 <= rank <= LARGEST_SETTING for rank in ranks.values()):
            return f"layer {layer} has ranks that no projection has"
    return None


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def attention_of(configuration: Any, task: TaskBase) -> str:
    """How a model computes attention: torch's fused function where transformers has it, else eager.

    Named for it, since a configuration may ask for a kernel to be fetched and run.
    """
    model_class = getattr(transformers, task.model_class)._model_mapping[type(configuration)]
    return "sdpa" if model_class._supports_sdpa else "eager"


def require_weights_to_fill(
    configuration: Any, task: TaskBase, staged: StagedCheckpoint, available: int
) -> None:
    """See that the model can be built, and is no larger than the files of its weights could fill.

    A configuration may promise more than memory holds; every weight takes at least a byte of the
    `available`.

    Raises:
        UserError: it cannot, or is.
    """
    own = copy.deepcopy(configuration)
    with plain_faults(f"{staged.source}: cannot read {WEIGHTS}", staged):
        described = _weights_described(own, task, staged)
    if described > available:
        raise UserError(f"{staged.source}: its weights do not have the shapes its config.json says")


def _weights_described(configuration: Any, task: TaskBase, staged: StagedCheckpoint) -> int:
    try:
        with torch.device("meta"), no_init_weights():
            model = getattr(transformers, task.model_class).from_config(
                configuration, attn_implementation=attention_of(configuration, task)
            )
    except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError) as error:
        raise UserError(
            f"{staged.source}: cannot read {WEIGHTS}: its config.json describes no model that can "
            f"be built ({reason_of(error)[:100]}): mend it or take another checkpoint"
        ) from error
    return sum(weight.numel() for weight in model.parameters())


def graph_fault(model: PreTrainedModel) -> str | None:
    """Why a model cannot be exported for its size, or None when it can.

    A decoder's graph holds its table of tokens once more where it also makes the logits.
    """
    sizes = {id(weight): weight.numel() * weight.element_size() for weight in model.parameters()}
    graphs = {"model": sum(sizes.values())}
    if has_decoder(model):
        encoder = sum(sizes[id(weight)] for weight in model.get_encoder().parameters())
        table = model.get_input_embeddings().weight
        tied = sizes[id(table)] if model.get_output_embeddings().weight is table else 0
        graphs = {"encoder": encoder, "decoder": sum(sizes.values()) - encoder + tied}
    for name, size in graphs.items():
        if size > LARGEST_GRAPH:
            return (
                f"the {name} has {size / 1e9:.1f} GB of weights in float32, more than the 2 GB "
                "that one ONNX file holds: use a smaller model"
            )
    return None
