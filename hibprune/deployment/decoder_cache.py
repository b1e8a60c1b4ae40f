"""Keys and values that a decoder keeps from step to step, as its graph takes and gives them.

Exporter and Optimum shape all of them by one number of heads, that of the configuration. Where a
layer has fewer, the exporter is given an example of its own, and the graph leaves the number open:
of what stands for a memory where there is none yet, which Optimum makes as if there were all
heads, nothing is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from hibprune.models.attention import attention_sites
from hibprune.records.units import DECODER_CROSS, DECODER_SELF

WITH_PAST = "decoder_with_past_model"
"""How the exporter calls the decoder of all steps but the first."""
NAMES = {DECODER_SELF: "decoder", DECODER_CROSS: "encoder"}
"""How it calls what each attention keeps."""


def kept_heads(model: PreTrainedModel, stack: str) -> list[int]:
    """How many heads each layer of a decoder has keys and values of."""
    return [len(site.heads) for site in attention_sites(model, [stack])]


def own_cache(model: PreTrainedModel, task: str) -> dict[str, Any]:
    """What the exporter is to know of each graph by its name, where it does not by itself."""
    from optimum.exporters.tasks import TasksManager

    constructor = TasksManager.get_exporter_config_constructor(
        exporter="onnx", model=model, task=task, library_name="transformers"
    )
    # As the exporter makes it.
    config = constructor(model.config, int_dtype="int64", float_dtype="fp32")
    config = config.with_behavior("decoder", use_past=True, use_past_in_inputs=True)
    usual = config.generate_dummy_inputs
    counts = list(zip(*(kept_heads(model, stack) for stack in NAMES), strict=True))

    def with_own_heads(*rest: Any, **named: Any) -> dict[str, Any]:
        inputs: dict[str, Any] = usual(*rest, **named)
        inputs["past_key_values"] = [
            # A key and a value of self-attention, then of cross-attention.
            tuple(one[:, : own[place // 2]].contiguous() for place, one in enumerate(layer))
            for own, layer in zip(counts, inputs["past_key_values"], strict=True)
        ]
        return inputs

    config.generate_dummy_inputs = with_own_heads
    return {WITH_PAST: config}


def leave_heads_open(model: PreTrainedModel, graph: Path) -> None:
    """Let a merged decoder take and give any number of heads where it is not the configuration's.

    Raises:
        OSError: the graph cannot be read or written.
    """
    import onnx

    whole = model.config.num_attention_heads
    fewer = {
        f".{layer}.{name}."
        for stack, name in NAMES.items()
        for layer, count in enumerate(kept_heads(model, stack))
        if count != whole
    }
    if not fewer:
        return
    merged = onnx.load(graph)
    for one in (*merged.graph.input, *merged.graph.output):
        if any(place in one.name for place in fewer):
            one.type.tensor_type.shape.dim[1].dim_param = f"heads_of_{one.name}"
    onnx.save(merged, graph)
