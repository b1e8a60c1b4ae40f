"""The exported model is the pruned one, and says what it is."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tiny_models import PLANS, READING, TAGGING, TINY_MODELS, TinyModel
from torch import Tensor
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from hibprune.compression.remove import save_model
from hibprune.deployment.export import export_onnx, write_metadata
from hibprune.deployment.parity import check_parity
from hibprune.deployment.settings import ExportSettings
from hibprune.errors import UserError
from hibprune.execution.runtime import (
    Outputs,
    Predict,
    onnx_predict,
    onnx_session,
    torch_predict,
)
from hibprune.records.medium import SOUND, Length

SAME = 1e-5
SHAPES = ExportSettings(tolerance=SAME, seconds=(0.2, 0.37, 1.0), batches=(1, 3))

CLASSIFICATION, CTC = "audio-classification", "automatic-speech-recognition"
TEXT_CLASSIFICATION = "text-classification"
CTC_MODELS = ("wav2vec2", "wavlm", "conformer-relative")


@dataclass(frozen=True)
class Exported:
    """A pruned tiny model in a directory shaped like that of a run."""

    tiny: TinyModel
    task: str
    directory: Path
    model: PreTrainedModel
    before: dict[str, Any]
    """What the model was before it was exported."""

    @property
    def path(self) -> Path:
        return self.directory / "onnx" / "model.onnx"

    @property
    def onnx_predict(self) -> Predict:
        return onnx_predict(onnx_session(self.path, "cpu", threads=1))

    def inputs(self, seconds: float, batch: int) -> dict[str, Tensor]:
        return exported_inputs(self.tiny, seconds, batch)

    def example(self, length: Length, batch: int) -> dict[str, Tensor]:
        return self.inputs(length.value, batch)


def exported_inputs(tiny: TinyModel, seconds: float, batch: int) -> dict[str, Tensor]:
    """All that the graph takes; for text that is a mask and, for BERT, token types too."""
    inputs = tiny.inputs(batch, seconds)
    if tiny.takes == "tokens":
        tokens = inputs["input_ids"]
        inputs["attention_mask"] = torch.ones_like(tokens)
        if tiny.name == "bert":
            inputs["token_type_ids"] = torch.zeros_like(tokens)
    return inputs


def snapshot(model: PreTrainedModel) -> dict[str, Any]:
    return {
        "weights": {name: value.clone() for name, value in model.state_dict().items()},
        "types": [type(module) for module in model.modules()],
        "parametrized": [
            path for path, module in model.named_modules() if parametrize.is_parametrized(module)
        ],
        "modes": [module.training for module in model.modules()],
        "gradients": [weight.requires_grad for weight in model.parameters()],
        "config": copy.deepcopy(model.config.to_dict()),
        "attention": model.config._attn_implementation,
    }


def named_logits(predict: Predict) -> Outputs:
    return lambda inputs: {"logits": predict(inputs)}


TASKS = {TAGGING: CLASSIFICATION, READING: TEXT_CLASSIFICATION}
CASES = [(tiny, TASKS[tiny.auto_class]) for tiny in TINY_MODELS if tiny.auto_class in TASKS] + [
    (tiny, CTC) for tiny in TINY_MODELS if tiny.name in CTC_MODELS
]


@pytest.fixture(scope="module", params=CASES, ids=[f"{tiny.name}-{task}" for tiny, task in CASES])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    tiny, task = request.param
    model = tiny.build("AutoModelForCTC" if task == CTC else tiny.auto_class)
    emptied = ("last emptied", "first emptied")[CASES.index((tiny, task)) % 2]
    model.prune_heads(PLANS[emptied])
    directory = tmp_path_factory.mktemp("run")
    save_model(model, directory)
    made = Exported(tiny, task, directory, model, snapshot(model))
    export_onnx(model, made.path.parent, task, 18, (made.path.name,))
    return made


def test_parity_at_several_lengths_and_batch_sizes(exported: Exported) -> None:
    parity = check_parity(
        named_logits(torch_predict(exported.model)),
        named_logits(exported.onnx_predict),
        exported.example,
        SHAPES,
        SOUND,
    )
    assert {(case.length.seconds, case.batch) for case in parity.cases} == {
        (seconds, batch) for seconds in SHAPES.seconds for batch in SHAPES.batches
    }
    assert len(parity.cases) == 6
    assert 0 <= parity.worst.relative_diff <= SAME


def test_exporting_does_not_touch_the_model(exported: Exported) -> None:
    after, before = snapshot(exported.model), dict(exported.before)
    weights = before.pop("weights")
    assert after["weights"].keys() == weights.keys()
    assert all(torch.equal(after["weights"][name], weight) for name, weight in weights.items())
    assert {name: after[name] for name in before} == before
    tiny = exported.tiny
    normed = tiny.takes == "waveform" and tiny.name != "data2vec-audio"
    assert bool(before["parametrized"]) == normed


def test_axes_are_dynamic_and_weight_norm_is_multiplied_out(exported: Exported) -> None:
    model = onnx.load(exported.path)
    onnx.checker.check_model(model)
    for taken in model.graph.input:
        sizes = [axis.dim_param or axis.dim_value for axis in taken.type.tensor_type.shape.dim]
        fixed = [axis for axis, size in enumerate(sizes) if not isinstance(size, str)]
        assert fixed == ([1, 2] if exported.tiny.takes == "patches" else [])
    names = {taken.name for taken in model.graph.input}
    assert names == set(exported.inputs(1.0, 1))
    assert exported.model.main_input_name in names
    assert [given.name for given in model.graph.output] == ["logits"]
    assert [opset.version for opset in model.opset_import if opset.domain == ""] == [18]
    stored = [initializer.name for initializer in model.graph.initializer]
    assert not [name for name in stored if "parametrization" in name]
    assert not any(node.op_type == "ReduceL2" for node in model.graph.node)
    assert [file.name for file in exported.path.parent.iterdir()] == ["model.onnx"]


def test_metadata_can_be_read(exported: Exported, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(exported.path.read_bytes())
    says = {
        "hibprune.recipe": "tiny «é»",
        "hibprune.removed_heads": exported.model.config.pruned_heads,
        "hibprune.metric": {"name": "accuracy", "baseline": 0.9639, "pruned": 0.8336},
    }
    write_metadata(path, {"hibprune.recipe": "overwritten below", "old": 1})
    write_metadata(path, says)
    session = onnx_session(path, "cpu", threads=1)
    read = session.get_modelmeta().custom_metadata_map
    wanted = json.loads(json.dumps(says))  # JSON has text for keys
    assert {name: json.loads(read[name]) for name in says} == wanted
    assert {p.key: p.value for p in onnx.load(path).metadata_props}.items() >= {
        name: json.dumps(value) for name, value in says.items()
    }.items()
    clip = exported.inputs(0.3, 2)
    assert np.array_equal(onnx_predict(session)(clip), exported.onnx_predict(clip))
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_an_input_that_a_graph_does_not_take_is_left_out(tmp_path: Path) -> None:
    """Without any heads, an exported text model has no mask of attention to take."""
    from onnx import TensorProto, helper

    sides = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 2]) for n in ("ids", "logits")]
    node = helper.make_node("Identity", ["ids"], ["logits"])
    graph = helper.make_graph([node], "g", sides[:1], sides[1:])
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "m.onnx")
    predict = onnx_predict(onnx_session(tmp_path / "m.onnx", "cpu", threads=1))
    ids = torch.tensor([[1.0, 2.0]])
    assert np.array_equal(predict({"ids": ids, "attention_mask": torch.ones(1, 2)}), ids.numpy())


def test_model_of_another_plan_is_found_out(exported: Exported) -> None:
    other = exported.tiny.build(
        "AutoModelForCTC" if exported.task == CTC else exported.tiny.auto_class
    )
    other.prune_heads(PLANS["uneven"])
    settings = ExportSettings(seconds=(0.3,), batches=(2,))
    with pytest.raises(UserError, match=r"at 0\.3 s, batch 2, over export\.tolerance 0\.001"):
        check_parity(
            named_logits(torch_predict(other)),
            named_logits(exported.onnx_predict),
            exported.example,
            settings,
            SOUND,
        )


@pytest.mark.filterwarnings("ignore")
def test_optimum_loads_the_directory_of_a_run(exported: Exported) -> None:
    from optimum import onnxruntime

    kind = {
        CTC: onnxruntime.ORTModelForCTC,
        CLASSIFICATION: onnxruntime.ORTModelForAudioClassification,
        TEXT_CLASSIFICATION: onnxruntime.ORTModelForSequenceClassification,
    }[exported.task]
    loaded = kind.from_pretrained(exported.directory)
    assert loaded.config.pruned_heads == exported.model.config.pruned_heads
    clip = exported.inputs(0.4, 2)
    with torch.no_grad():
        wanted = exported.model(**clip).logits
        assert (loaded(**clip).logits - wanted).abs().max() < SAME


def test_opset_is_the_one_asked_for(tmp_path: Path) -> None:
    export_onnx(TINY_MODELS[0].build(), tmp_path, CLASSIFICATION, 15, ("model.onnx",))
    model = onnx.load(tmp_path / "model.onnx")
    assert [opset.version for opset in model.opset_import if opset.domain == ""] == [15]
