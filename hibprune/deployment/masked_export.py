"""What the exporter is told of a graph that takes a mask beside the waveform.

Optimum's own settings for wav2vec2-like models name the waveform alone.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from hibprune.execution.runtime import MASK

WHOLE = "model"
"""How the exporter calls a model that is one graph."""


def with_mask(model: PreTrainedModel, task: str) -> dict[str, Any]:
    """The exporter's settings for a graph with a second input, by the graph's name.

    The mask, int64 (batch, samples), is 1 on a clip's own samples and 0 on what fills it up.
    """
    from optimum.exporters.tasks import TasksManager

    constructor = TasksManager.get_exporter_config_constructor(
        exporter="onnx", model=model, task=task, library_name="transformers"
    )
    # As the exporter makes them; it has examples of the waveform alone.
    plain, config = (
        constructor(model.config, int_dtype="int64", float_dtype="fp32") for _ in range(2)
    )
    usual, waveform = type(config), model.main_input_name

    def inputs(self: Any) -> dict[str, dict[int, str]]:
        own: dict[str, dict[int, str]] = usual.inputs.fget(self)
        return {**own, MASK: own[waveform]}

    def example(*rest: Any, **named: Any) -> dict[str, Any]:
        import torch

        found: dict[str, Any] = plain.generate_dummy_inputs(*rest, **named)
        mask = torch.ones_like(found[waveform], dtype=torch.long)
        mask[-1, mask.shape[1] // 2 :] = 0
        return {**found, MASK: mask}

    # The exporter reads them off the class.
    config.__class__ = type(f"Masked{usual.__name__}", (usual,), {"inputs": property(inputs)})
    config.generate_dummy_inputs = example
    return {WHOLE: config}
