"""Neurons of every family: silenced equals removed, and what is removed stays so after loading."""

from __future__ import annotations

from pathlib import Path

import interpreters
import pytest
import torch
import transformers
from tiny_models import TINY_MODELS, TinyModel
from transformers import PreTrainedModel

from hibprune.compression.neuron_pruning import remove_neurons
from hibprune.models.feed_forward import feed_forward_sites, neurons_of, neurons_silenced
from hibprune.records.units import Unit

every_model = pytest.mark.parametrize("tiny", TINY_MODELS, ids=lambda tiny: tiny.name)
every_plan = pytest.mark.parametrize("plan", ["uneven", "even", "emptied"])
NEURONS = 37


def chosen(model: PreTrainedModel, plan: str) -> list[Unit]:
    """Neurons to remove: some of the first layer, the same places everywhere, or a whole layer."""
    neurons = neurons_of(model)
    if plan == "uneven":
        return [one for one in neurons if one.layer == 0 and one.index % 5 == 0]
    if plan == "even":
        return [one for one in neurons if one.index % NEURONS in (0, 3, 5, 36)]
    return [one for one in neurons if one.layer == 1]


def logits(model: PreTrainedModel, tiny: TinyModel) -> torch.Tensor:
    with torch.no_grad():
        return model(**tiny.inputs()).logits


@every_plan
@every_model
def test_silenced_equals_removed(tiny: TinyModel, plan: str) -> None:
    model = tiny.build()
    whole, gone = logits(model, tiny), chosen(model, plan)
    with neurons_silenced(model, gone):
        wanted = logits(model, tiny)
    assert (wanted - whole).abs().max() > 1e-3
    assert torch.equal(logits(model, tiny), whole)
    before = sum(weight.numel() for weight in model.parameters())
    remove_neurons(model, gone)
    assert torch.allclose(logits(model, tiny), wanted, atol=1e-4)
    # A neuron is a row, its bias and a column; every width here is 32.
    assert before - sum(weight.numel() for weight in model.parameters()) == len(gone) * (
        32 + 1 + 32
    )
    assert set(neurons_of(model)).isdisjoint(gone)


@every_plan
@every_model
def test_reloads_exactly_also_twice_and_pruned_again(
    tiny: TinyModel, plan: str, tmp_path: Path
) -> None:
    model = tiny.build()
    gone = chosen(model, plan)
    remove_neurons(model, gone)
    model.save_pretrained(tmp_path / "once")
    once = type(model).from_pretrained(tmp_path / "once")
    assert torch.equal(logits(once, tiny), logits(model, tiny))
    assert neurons_of(once) == neurons_of(model)
    more = [neurons_of(once)[0], neurons_of(once)[-1]]
    remove_neurons(once, [*more, *gone])  # those gone are passed over
    once.save_pretrained(tmp_path / "twice")
    twice = type(model).from_pretrained(tmp_path / "twice")
    assert torch.equal(logits(twice, tiny), logits(once, tiny))
    assert set(neurons_of(twice)) == set(neurons_of(model)) - set(more)


def test_what_all_layers_keep_is_in_the_familys_own_attribute() -> None:
    """So that transformers alone builds the layers in their size."""
    by_name = {tiny.name: tiny for tiny in TINY_MODELS}
    for name, attribute in (
        ("wav2vec2", "intermediate_size"),
        ("whisper", "encoder_ffn_dim"),
        ("distilbert", "hidden_dim"),
    ):
        model = by_name[name].build()
        remove_neurons(model, chosen(model, "even"))
        assert getattr(model.config, attribute) == NEURONS - 4
        remove_neurons(model, chosen(model, "uneven"))
        assert getattr(model.config, attribute) == NEURONS


def test_both_feed_forwards_of_a_conformer_are_counted_on() -> None:
    tiny = next(tiny for tiny in TINY_MODELS if tiny.name == "conformer-relative")
    model = tiny.build()
    remove_neurons(model, [Unit(0, 2, kind="neuron"), Unit(0, NEURONS + 4, kind="neuron")])
    first, second, *_ = feed_forward_sites(model)
    assert [unit.index for unit in first.neurons] == [i for i in range(NEURONS) if i != 2]
    assert NEURONS + 4 not in [unit.index for unit in second.neurons]
    assert (first.first.out_features, second.first.out_features) == (NEURONS - 1, NEURONS - 1)


@pytest.mark.parametrize("neuron", [Unit(2, 0, kind="neuron"), Unit(0, NEURONS, kind="neuron")])
def test_a_neuron_that_never_was_is_an_error(neuron: Unit) -> None:
    model = TINY_MODELS[0].build()
    with pytest.raises(IndexError):
        remove_neurons(model, [neuron])


def test_a_configuration_that_contradicts_itself_is_an_error(tmp_path: Path) -> None:
    model = TINY_MODELS[0].build()
    remove_neurons(model, chosen(model, "uneven"))
    model.config.intermediate_size = 20
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="speaks of 37 neurons of which 8 are gone"):
        type(model).from_pretrained(tmp_path)


@pytest.mark.parametrize("mask", ["-1", "4000000000", "x", ""])
def test_neurons_that_are_gone_and_never_were_are_an_error(mask: str) -> None:
    config = TINY_MODELS[0].config(pruned_neurons={"0": [(NEURONS, mask)]})
    with pytest.raises(ValueError, match=r"never were|invalid literal"):
        transformers.AutoModel.from_config(config)


def test_removing_nothing_leaves_the_configuration_alone() -> None:
    model = TINY_MODELS[0].build()
    before = model.config.to_dict()
    remove_neurons(model, [])
    assert model.config.to_dict() == before


LOAD = """
import sys, torch, hibprune
from transformers import AutoModel
for directory in sys.argv[1:]:
    model = AutoModel.from_pretrained(directory).eval()
    expected = torch.load(f"{directory}/expected.pt")
    with torch.no_grad():
        print((model(**expected["inputs"])[0] - expected["output"]).abs().max().item())
"""


def test_loads_in_a_fresh_process(tmp_path: Path) -> None:
    places = []
    for name in ("wav2vec2", "whisper", "moonshine", "conformer-rotary"):
        tiny = next(tiny for tiny in TINY_MODELS if tiny.name == name)
        model = tiny.build()
        remove_neurons(model, chosen(model, "emptied"))
        remove_neurons(model, chosen(model, "uneven"))
        model.prune_heads({0: [1], 1: [0, 1, 2, 3]})
        model.save_pretrained(tmp_path / name)
        with torch.no_grad():
            output = model.base_model(**tiny.inputs())[0]
        torch.save({"inputs": tiny.inputs(), "output": output}, tmp_path / name / "expected.pt")
        places.append(str(tmp_path / name))
    told = interpreters.run(LOAD, *places, ready="torch")
    assert told.stdout.split() == ["0.0"] * len(places), told.stderr


@every_model
def test_heads_and_neurons_together_and_in_either_order(tiny: TinyModel, tmp_path: Path) -> None:
    outputs = []
    for heads_first in (True, False):
        model = tiny.build()
        if heads_first:
            model.prune_heads({0: [0, 2], 1: [3]})
        remove_neurons(model, chosen(model, "uneven"))
        if not heads_first:
            model.prune_heads({0: [0, 2], 1: [3]})
        model.save_pretrained(tmp_path)
        outputs.append(logits(type(model).from_pretrained(tmp_path), tiny))
        assert torch.equal(outputs[-1], logits(model, tiny))
    assert torch.equal(*outputs)
