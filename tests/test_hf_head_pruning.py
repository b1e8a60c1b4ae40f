"""`prune_heads` as transformers 4.57 tests it on its own models, here for every family.

Rewritten from the behaviour of the four head-pruning tests of its common test-suite: prune; prune,
save and load; a configuration that names pruned heads; repeated pruning with saving in between.
Heads are counted by the shapes of the weights and by those of the attention that comes out.
"""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import interpreters
import pytest
import torch
import transformers
from tiny_models import (
    HEAD_SIZE,
    HEADS,
    LAYERS,
    RAW_AUDIO,
    SPEAKING,
    TAGGING,
    TINY_MODELS,
    TinyModel,
)
from transformers import PreTrainedModel

import hibprune

ROOT = Path(hibprune.__file__).parents[1]
ALL = list(range(HEADS))
ROWS = ("q_proj", "k_proj", "v_proj", "linear_q", "linear_k", "linear_v", "query", "key", "value")
ROWS = (*ROWS, "q_lin", "k_lin", "v_lin")
COLUMNS = ("out_proj", "o_proj", "linear_out", "attention.output.dense", "out_lin")
ENCODER_LAYER = r"(?:encoder|transformer)\.layers?\.(\d+)\.(?:attention|self_attn)"

BASE, CTC = "AutoModel", "AutoModelForCTC"


def classes(tiny: TinyModel) -> tuple[str, ...]:
    if tiny in RAW_AUDIO:
        return (BASE, TAGGING, CTC)
    return (BASE, SPEAKING, TAGGING) if tiny.name == "whisper" else (BASE, tiny.auto_class)


CASES = [
    pytest.param(tiny, auto_class, id=f"{tiny.name}-{auto_class}")
    for tiny in TINY_MODELS
    for auto_class in classes(tiny)
]
every_class = pytest.mark.parametrize(("tiny", "auto_class"), CASES)
every_model = pytest.mark.parametrize("tiny", TINY_MODELS, ids=lambda tiny: tiny.name)


def forward(model: PreTrainedModel, tiny: TinyModel) -> Any:
    """Outputs with attention, which only the eager implementation gives out."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return model.eval()(**inputs(model, tiny), output_attentions=True)


def inputs(model: PreTrainedModel, tiny: TinyModel) -> dict[str, torch.Tensor]:
    """A classifier on top of an encoder has no decoder to feed."""
    taken = inspect.signature(model.forward).parameters
    return {name: value for name, value in tiny.inputs().items() if name in taken}


def heads_by_attention(model: PreTrainedModel, tiny: TinyModel) -> list[int]:
    """Heads of each layer: attention is (batch, heads, frames, frames)."""
    outputs = forward(model, tiny)
    own = outputs.encoder_attentions if "encoder_attentions" in outputs else outputs.attentions
    return [layer.shape[-3] for layer in own]


def heads_by_weights(model: PreTrainedModel) -> list[int]:
    """Heads of each layer by q, k and v rows and output columns, which must agree."""
    counts: list[set[int]] = [set() for _ in range(LAYERS)]
    seen = 0
    for name, weight in model.state_dict().items():
        layer = re.search(rf"{ENCODER_LAYER}\.(.+)\.weight$", name)
        if layer is None:
            continue
        if layer[2].endswith(ROWS):
            counts[int(layer[1])].add(weight.shape[0])
        elif f"attention.{layer[2]}".endswith(COLUMNS):
            counts[int(layer[1])].add(weight.shape[1])
        else:
            continue
        seen += 1
    assert seen == 4 * LAYERS
    assert all(len(widths) == 1 for widths in counts)
    return [widths.pop() // HEAD_SIZE for widths in counts]


def require_heads(model: PreTrainedModel, tiny: TinyModel, counts: list[int]) -> None:
    assert heads_by_weights(model) == counts
    assert heads_by_attention(model, tiny) == counts


def saved_and_loaded(model: PreTrainedModel, auto_class: str, directory: Path) -> PreTrainedModel:
    model.save_pretrained(directory)
    return getattr(transformers, auto_class).from_pretrained(directory)


def query_rows(model: PreTrainedModel, layer: int) -> torch.Tensor:
    """Rows of a layer's query projection, one block a head."""
    name = next(
        name
        for name in model.state_dict()
        if (found := re.search(rf"{ENCODER_LAYER}\..*(q_proj|linear_q|query|q_lin)\.weight$", name))
        and int(found[1]) == layer
    )
    return model.state_dict()[name].unflatten(0, (-1, HEAD_SIZE))


@every_class
def test_pruned_heads_are_gone(tiny: TinyModel, auto_class: str) -> None:
    model = tiny.build(auto_class)
    require_heads(model, tiny, [HEADS, HEADS])
    model.prune_heads({0: [1, 2, 3], -1: [0]})
    require_heads(model, tiny, [1, HEADS - 1])


@every_class
def test_pruned_model_is_saved_and_loaded(tiny: TinyModel, auto_class: str, tmp_path: Path) -> None:
    model = tiny.build(auto_class)
    model.prune_heads({0: [1, 2, 3], -1: [0]})
    loaded = saved_and_loaded(model, auto_class, tmp_path)
    require_heads(loaded, tiny, [1, HEADS - 1])
    saved = json.loads((tmp_path / "config.json").read_text())["pruned_heads"]
    assert saved == {"0": [1, 2, 3], "1": [0]}
    assert loaded.config.pruned_heads == {0: [1, 2, 3], 1: [0]}
    assert torch.equal(forward(model, tiny)[0], forward(loaded, tiny)[0])


@every_class
def test_configuration_that_names_pruned_heads(tiny: TinyModel, auto_class: str) -> None:
    config = tiny.config(pruned_heads={0: [1, 2, 3], -1: [0]})
    model = getattr(transformers, auto_class).from_config(config)
    require_heads(model, tiny, [1, HEADS - 1])


@every_class
def test_pruned_again_after_saving(tiny: TinyModel, auto_class: str, tmp_path: Path) -> None:
    config = tiny.config(pruned_heads={1: [1, 2]})
    model = getattr(transformers, auto_class).from_config(config)
    require_heads(model, tiny, [HEADS, 2])
    kept = query_rows(model, 1).clone()

    model = saved_and_loaded(model, auto_class, tmp_path / "once")
    require_heads(model, tiny, [HEADS, 2])

    model.prune_heads({0: [0], 1: [1, 2]})
    require_heads(model, tiny, [HEADS - 1, 2])
    assert model.config.pruned_heads == {0: [0], 1: [1, 2]}

    model = saved_and_loaded(model, auto_class, tmp_path / "twice")
    model.prune_heads({1: [3]})
    require_heads(model, tiny, [HEADS - 1, 1])
    assert model.config.pruned_heads == {0: [0], 1: [1, 2, 3]}
    assert torch.equal(query_rows(model, 1)[0], kept[0])  # head 0, not what took its place

    model = saved_and_loaded(model, auto_class, tmp_path / "thrice")
    require_heads(model, tiny, [HEADS - 1, 1])
    assert torch.equal(query_rows(model, 1)[0], kept[0])


@every_model
def test_indices_stay_original(tiny: TinyModel) -> None:
    model = tiny.build()
    original = query_rows(model, 0).clone()
    model.prune_heads({0: [0]})
    model.prune_heads({0: [2]})
    assert torch.equal(query_rows(model, 0), original[[1, 3]])
    assert model.config.pruned_heads == {0: [0, 2]}


@every_class
def test_layers_that_lose_every_head(tiny: TinyModel, auto_class: str, tmp_path: Path) -> None:
    model = tiny.build(auto_class)
    model.prune_heads({0: [0, 2]})
    model.prune_heads({0: [1, 3]})
    require_heads(model, tiny, [0, HEADS])
    loaded = saved_and_loaded(model, auto_class, tmp_path / "one")
    require_heads(loaded, tiny, [0, HEADS])
    assert torch.equal(forward(model, tiny)[0], forward(loaded, tiny)[0])

    loaded.prune_heads({0: ALL, 1: ALL})
    require_heads(loaded, tiny, [0, 0])
    bare = saved_and_loaded(loaded, auto_class, tmp_path / "both")
    require_heads(bare, tiny, [0, 0])
    output = forward(bare, tiny)[0]
    assert output.isfinite().all()
    assert torch.equal(output, forward(loaded, tiny)[0])


@every_model
def test_pruning_again_what_is_gone_changes_nothing(tiny: TinyModel) -> None:
    model = tiny.build()
    model.prune_heads({0: [1], 1: ALL})
    before = dict(model.named_parameters())
    model.prune_heads({1: [2], 0: [1]})
    after = dict(model.named_parameters())
    assert before.keys() == after.keys()
    assert all(after[name] is weight for name, weight in before.items())
    assert model.config.pruned_heads == {0: [1], 1: ALL}


UNKNOWN: tuple[Mapping[int, list[int]], ...] = (
    {1: [1], 0: [HEADS]},
    {1: [1], 0: [-1]},
    {1: [1], LAYERS: [0]},
    {1: [1], -LAYERS - 1: [0]},
)
"""Each names a head that there is, too."""


@every_model
def test_unknown_heads_are_refused_and_nothing_is_changed(tiny: TinyModel) -> None:
    model = tiny.build()
    model.prune_heads({1: [0]})
    for unknown in UNKNOWN:
        with pytest.raises(
            IndexError, match=r"the model has layers 0 to 1|layer 0 has heads 0 to 3"
        ):
            model.prune_heads(unknown)
        assert model.config.pruned_heads == {1: [0]}
        assert heads_by_weights(model) == [HEADS, HEADS - 1]


@every_model
def test_weights_keep_type_mode_and_gradients(tiny: TinyModel) -> None:
    model = tiny.build().to(torch.bfloat16).eval().requires_grad_(False)
    model.prune_heads({0: [1], 1: [0, 2]})
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert not any(weight.requires_grad for weight in model.parameters())
    assert not any(module.training for module in model.modules())


LOAD_ALL = """
import json, sys, torch
from pathlib import Path
differences = {}
for directory in sorted(Path(sys.argv[1]).iterdir()):
    expected = torch.load(directory / "expected.pt")
    for auto_class, output in expected["outputs"].items():
        model = getattr(transformers, auto_class).from_pretrained(directory).eval()
        with torch.no_grad():
            difference = (model(**expected["inputs"])[0] - output).abs().max().item()
        differences[f"{directory.name} {auto_class}"] = difference
print(json.dumps(differences))
"""

ORDERS = {
    "hibprune first": (
        """
import sys, hibprune
assert "transformers" not in sys.modules
import transformers
""",
        "torch",
    ),
    "transformers first, its classes loaded": (
        """
import sys, transformers
assert "hibprune" not in sys.modules
from pathlib import Path
for directory in sorted(Path(sys.argv[1]).iterdir()):
    transformers.AutoModel.from_config(
        transformers.AutoConfig.from_pretrained(directory, pruned_heads={})
    )
directory = Path(sys.argv[1]) / "wav2vec2"
try:
    transformers.AutoModelForAudioClassification.from_pretrained(directory)
except AttributeError as error:
    assert "_prune_heads" in str(error), error
else:
    raise AssertionError("loads without hibprune: this test cannot fail")
import hibprune
""",
        "transformers",
    ),
}


@pytest.fixture(scope="module")
def pruned_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pruned model of every family, with what it and its base model make of a clip."""
    root = tmp_path_factory.mktemp("pruned")
    for tiny in TINY_MODELS:
        model = tiny.build()
        model.prune_heads({0: ALL, 1: [1, 2]})
        model.save_pretrained(root / tiny.name)
        clip = tiny.inputs()
        with torch.no_grad():
            outputs = {tiny.auto_class: model(**clip)[0], BASE: model.base_model(**clip)[0]}
        torch.save({"inputs": clip, "outputs": outputs}, root / tiny.name / "expected.pt")
    return root


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS.keys())
def test_loads_in_a_fresh_process(order: tuple[str, str], pruned_models: Path) -> None:
    start, ready = order
    told = interpreters.run(start + LOAD_ALL, pruned_models, ready=ready)
    assert told.returncode == 0, told.stderr
    differences = json.loads(told.stdout.splitlines()[-1])
    assert len(differences) == 2 * len(TINY_MODELS)
    assert set(differences.values()) == {0.0}, differences


LIGHT = """
import sys
HEAVY = {"torch", "transformers", "numpy", "scipy", "onnx", "onnxruntime", "datasets", "pydantic"}
import hibprune
assert not HEAVY & sys.modules.keys(), HEAVY & sys.modules.keys()
from hibprune.cli import main
for arguments in (["--help"], ["run", "--help"]):
    try:
        main(arguments)
    except SystemExit as end:
        assert end.code == 0, end.code
    assert not HEAVY & sys.modules.keys(), HEAVY & sys.modules.keys()
"""


def test_import_and_help_are_light() -> None:
    command = (sys.executable, "-c", LIGHT)
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert told.stdout.count("Usage") == 2
