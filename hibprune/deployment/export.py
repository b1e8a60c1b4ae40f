"""Export to ONNX through optimum, and what a graph says about itself."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PretrainedConfig, PreTrainedModel

from hibprune.deployment.decoder_cache import leave_heads_open, own_cache
from hibprune.deployment.exporter import EXPORT, plain_exporter
from hibprune.deployment.masked_export import with_mask
from hibprune.errors import UserError
from hibprune.execution.files import scratch_directory, write_via_temporary
from hibprune.execution.runtime import json_values
from hibprune.models.families import has_decoder
from hibprune.tasks.seq2seq import MERGED_DECODER

DECODERS_OWN = {
    "num_attention_heads": "decoder_attention_heads",
    "num_hidden_layers": "decoder_num_hidden_layers",
}
"""What configurations call a number of the model, by which they mean the encoder's, and what
Whisper and Moonshine call the decoder's."""


def export_onnx(
    model: PreTrainedModel, directory: Path, task: str, opset: int, files: tuple[str, ...]
) -> None:
    """Write graphs with dynamic batch and length; the model itself is not touched.

    `task` is optimum's name for it; of the files that makes, `files` are kept.

    Raises:
        UserError: the model is too large for a single file, or the exporter fails.
    """
    _write(model, directory, task, opset, files)


def export_masked_onnx(
    model: PreTrainedModel, directory: Path, task: str, opset: int, files: tuple[str, ...]
) -> None:
    """The same of a model on waveforms, whose graph takes a mask as well.

    Raises:
        UserError: as `export_onnx`.
    """
    _write(model, directory, task, opset, files, masked=True)


def _write(
    model: PreTrainedModel,
    directory: Path,
    task: str,
    opset: int,
    files: tuple[str, ...],
    masked: bool = False,
) -> None:
    with scratch_directory(directory) as scratch, plain_exporter(EXPORT, opset):
        duplicate = _export_copy(model)
        _export(duplicate, scratch, task, opset, masked)
        if MERGED_DECODER in files:
            _merge_decoders(duplicate, scratch)
            leave_heads_open(duplicate, scratch / MERGED_DECODER)
        if any(scratch.glob("*_data")):
            raise UserError("export: the model is larger than the 2 GB that one ONNX file holds")
        for name in files:
            (scratch / name).replace(directory / name)


def export_layer(layer: nn.Module, path: Path, example: Tensor, opset: int) -> None:
    """Write the graph of one layer as optimum writes those of models, with dynamic frames.

    `example` is an input (batch, frames, columns).

    Raises:
        UserError: the exporter fails.
    """
    with plain_exporter(EXPORT, opset):
        torch.onnx.export(
            layer.eval(),
            (example,),
            str(path),
            input_names=["inputs"],
            output_names=["outputs"],
            dynamic_axes={name: {0: "batch", 1: "frames"} for name in ("inputs", "outputs")},
            opset_version=opset,
            dynamo=False,
        )


def _export(model: PreTrainedModel, directory: Path, task: str, opset: int, masked: bool) -> None:
    from optimum.exporters.onnx.convert import onnx_export_from_model

    # Known once the above is imported.
    own = with_mask(model, task) if masked else None
    own = own_cache(model, task) if has_decoder(model) else own
    onnx_export_from_model(
        model,
        directory,
        opset=opset,
        task=task,
        do_validation=False,
        # What it does depends on what else is installed.
        no_post_process=True,
        custom_onnx_configs=own,
        **_window(model),
    )
    model.config.save_pretrained(directory)
    if model.can_generate():
        model.generation_config.save_pretrained(directory)


def _merge_decoders(model: PreTrainedModel, directory: Path) -> None:
    """Make one graph of the decoder's first step and those that follow, which share all weights.

    Token embedding and output projection, if they are one matrix, are also stored once.
    """
    import onnx
    from optimum.onnx import merge_decoders, remove_duplicate_weights_from_tied_info

    graphs = [directory / name for name in ("decoder_model.onnx", "decoder_with_past_model.onnx")]
    embedding = model.get_input_embeddings().weight
    tied = [name for name, w in model.named_parameters(remove_duplicate=False) if w is embedding]
    if len(tied) > 1:
        for graph in graphs:
            remove_duplicate_weights_from_tied_info(
                onnx.load(graph), model, [tied], save_path=str(graph)
            )
    # Not strict: what the decoder makes of the encoder's states comes out of the first step alone.
    merge_decoders(*graphs, save_path=directory / MERGED_DECODER, strict=False)


def _window(model: PreTrainedModel) -> dict[str, int]:
    """Mel frames of the example the exporter makes, for models that take no other number."""
    if model.config.model_type != "whisper":
        return {}
    # Its second convolution leaves one position for two mel frames.
    return {"nb_max_frames": 2 * int(model.config.max_source_positions)}


def _export_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy on the CPU with weight norms multiplied out, which a graph would do at every run."""
    duplicate = copy.deepcopy(model).cpu().eval()
    # Where it was loaded from, the exporter would look for tokenizers and the like, and load them.
    duplicate.config._name_or_path = ""
    _describe_the_decoder(duplicate.config)
    for module in list(duplicate.modules()):
        if parametrize.is_parametrized(module):
            _bake(module)
    return duplicate


def _describe_the_decoder(config: PretrainedConfig) -> None:
    """Let a configuration for graphs alone name the decoder's heads and layers as the model's.

    Exporter and Optimum shape what the decoder keeps by those numbers, which are the encoder's.
    """
    if not config.is_encoder_decoder:
        return
    for name, own in DECODERS_OWN.items():
        number = getattr(config, own, None)
        if number is not None:
            setattr(config, name, number)


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


def write_metadata(path: Path, properties: Mapping[str, object]) -> None:
    """Let the ONNX file say about itself what `properties` say, as JSON text under each key."""
    import onnx

    model = onnx.load(path)
    onnx.helper.set_model_props(
        model, {key: json.dumps(value) for key, value in properties.items()}
    )
    write_via_temporary(path, lambda temporary: onnx.save(model, temporary))


def read_metadata(path: Path) -> dict[str, Any]:
    """What `write_metadata` wrote; a key whose text is no JSON is left out.

    Raises:
        UserError: the file cannot be read as ONNX.
    """
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except MemoryError:
        raise
    except Exception as error:  # protobuf raises its own types
        raise UserError(f"{path}: ONNX cannot read it: copy it again") from error
    return json_values({entry.key: entry.value for entry in model.metadata_props})
