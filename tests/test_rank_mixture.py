"""Ranks in one budget with units: what they are worth, and what is chosen of both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from repairs import clips_of
from tiny_models import LAYERS, PLANS, TINY_MODELS, TinyModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from hibprune.compression.rank_mixture import RankMixture, Ranks, by_weights
from hibprune.compression.rank_spectra import Spectra, Spectrum, rank_spectra
from hibprune.compression.unit_mixture import Mixture
from hibprune.models.attention import run_encoder
from hibprune.models.hidden_states import HiddenStates
from hibprune.models.layerwise import CalibrationClip, encoder_layers
from hibprune.models.low_rank import ProjectionPlace, projections_of, readers_and_writer
from hibprune.models.sublayers import Sublayer, sublayers
from hibprune.records.units import Scores, Unit

every_model = pytest.mark.parametrize("tiny", TINY_MODELS, ids=lambda tiny: tiny.name)
GONE = [Unit(0, 1), Unit(1, 0), Unit(1, 3), *(Unit(0, n, kind="neuron") for n in range(3, 30))]


class Outputs:
    """What projections of an encoder take in and give out on clips, in whole passes."""

    def __init__(self, model: PreTrainedModel, clips: Sequence[CalibrationClip]) -> None:
        self.inputs: dict[ProjectionPlace, list[Tensor]] = {}
        self.outputs: dict[ProjectionPlace, list[Tensor]] = {}
        handles = []
        for number, path in projections_of(model):
            module = encoder_layers(model)[number].get_submodule(path)
            handles.append(module.register_forward_hook(self.keeping((number, path))))
        for clip in clips:
            with torch.no_grad():
                run_encoder(model, clip.inputs)
        for handle in handles:
            handle.remove()

    def keeping(self, place: ProjectionPlace) -> Any:
        def hook(_module: nn.Module, inputs: Any, output: Tensor) -> None:
            self.inputs.setdefault(place, []).append(inputs[0].flatten(0, -2))
            self.outputs.setdefault(place, []).append(output.flatten(0, -2))

        return hook

    def of(self, place: ProjectionPlace) -> tuple[Tensor, Tensor]:
        return (
            torch.cat(self.inputs[place]).double(),
            torch.cat(self.outputs[place]).double(),
        )


def directions(outputs: Tensor, with_bias: bool) -> Tensor:
    """Squares of the singular values of what is given out, about its mean if a bias can be that."""
    own = outputs - outputs.mean(0) if with_bias else outputs
    return torch.linalg.svdvals(own).square()


def kept_of(one: Sublayer, gone: Sequence[Unit]) -> list[int]:
    return [
        column
        for unit, block in zip(one.units, one.blocks, strict=True)
        if unit not in gone
        for column in block
    ]


@pytest.mark.parametrize("gone", [[], GONE], ids=["whole", "pruned"])
@every_model
def test_spectra_are_those_of_what_projections_give_out(
    tiny: TinyModel, gone: list[Unit], tmp_path: Path
) -> None:
    model = tiny.build()
    clips = clips_of(tiny, 6)
    (found,) = rank_spectra(model, clips, [gone], HiddenStates(tmp_path, 2**30))
    assert set(found) == set(projections_of(model))
    watched = Outputs(model, clips)
    for number, own in enumerate(sublayers(model)):
        for one in own:
            readers, writer = readers_and_writer(model, one.kind, one.part)
            columns = kept_of(one, gone)
            z, wrote = watched.of((number, writer))
            bias = one.writer.bias is not None
            inputs = (z - z.mean(0) if bias else z)[:, columns]
            target = wrote - wrote.mean(0) if bias else wrote
            fitted = inputs @ torch.linalg.lstsq(inputs, target, driver="gelsd").solution
            wanted = directions(fitted, bias)
            spectrum = found[number, writer]
            assert (spectrum.rows, spectrum.columns) == (wrote.shape[1], len(columns))
            alike(spectrum, wanted)
            share = sum(spectrum.values)
            for path in readers:
                _, given = watched.of((number, path))
                layer = encoder_layers(model)[number]
                bias = layer.get_submodule(path).bias is not None
                wanted = directions(given[:, columns], bias)
                spectrum = found[number, path]
                assert (spectrum.rows, spectrum.columns) == (len(columns), 32)
                alike(spectrum, wanted)
                # As much as its sublayer writes into the stream.
                assert sum(spectrum.values) == pytest.approx(share)


def alike(spectrum: Spectrum, wanted: Tensor) -> None:
    """In proportion: of what reads and of what writes, each is counted in its own shares."""
    number = min(len(spectrum.values), len(wanted))
    values = torch.tensor(spectrum.values[:number], dtype=torch.float64)
    assert sum(spectrum.values[number:]) <= 1e-6 * sum(spectrum.values)
    difference = values / values.sum() - wanted[:number] / wanted.sum()
    assert difference.abs().max() < 1e-4


def test_what_writes_is_counted_in_shares_of_the_stream(tmp_path: Path) -> None:
    tiny = next(one for one in TINY_MODELS if one.name == "hubert")
    model = tiny.build()
    clips = clips_of(tiny, 6)
    (found,) = rank_spectra(model, clips, [()], HiddenStates(tmp_path, 2**30))
    streams: list[Tensor] = []
    layer = encoder_layers(model)[1]
    handle = layer.layer_norm.register_forward_pre_hook(lambda _m, i: streams.append(i[0][0]))
    watched = Outputs(model, clips)
    handle.remove()
    stream = torch.cat(streams).double()
    _, wrote = watched.of((1, "attention.out_proj"))
    share = (wrote - wrote.mean(0)).square().sum() / (stream - stream.mean(0)).square().sum()
    assert sum(found[1, "attention.out_proj"].values) == pytest.approx(float(share), rel=1e-3)


def test_a_layer_without_units_has_no_projections_to_factor(tmp_path: Path) -> None:
    tiny = TINY_MODELS[0]
    all_heads = [Unit(1, index) for index in range(4)]
    (found,) = rank_spectra(
        tiny.build(), clips_of(tiny, 4), [all_heads], HiddenStates(tmp_path, 2**30)
    )
    assert {path for number, path in found if number == 1} == {
        "feed_forward.intermediate_dense", "feed_forward.output_dense",
    }  # fmt: skip
    assert len([number for number, _ in found if number == 0]) == 6


@pytest.mark.parametrize("name", ["wavlm", "conformer-relative", "bert"])
def test_nor_has_one_that_came_without(name: str, tmp_path: Path) -> None:
    tiny = next(one for one in TINY_MODELS if one.name == name)
    model = tiny.build()
    model.prune_heads(PLANS["first emptied"])
    (found,) = rank_spectra(model, clips_of(tiny, 4), [()], HiddenStates(tmp_path, 2**30))
    whole = projections_of(model)
    assert set(found) == {
        place for place, one in whole.items() if one.out_features * one.in_features
    }
    assert 0 < len(found) < len(whole)


HEADS, SIZE, WIDTH = 4, 5, 20


def made_up(errors: Sequence[float], values: Sequence[float]) -> tuple[RankMixture, list[Any]]:
    """Two layers of heads of 5 rows in a matrix 20 wide, of which each row has a direction."""
    scores = Scores(
        method="m",
        heads=tuple(Unit(layer, head) for layer in range(LAYERS) for head in range(HEADS)),
        samples=(),
        per_sample=(tuple(errors) * LAYERS,),
    )

    def left(units: Sequence[Unit]) -> list[int]:
        return [SIZE * (HEADS - sum(unit.layer == n for unit in units)) for n in range(LAYERS)]

    def count(units: Sequence[Unit], ranks: Any = None) -> float:
        weights = 100.0
        for layer, rows in enumerate(left(units)):
            rank = (ranks or {}).get((layer, "p"))
            weights += rows * WIDTH if rank is None else rank * (rows + WIDTH)
        return weights

    asked: list[Any] = []

    def spectra(mixes: Sequence[Sequence[Unit]]) -> list[Spectra]:
        asked.extend(mixes)
        return [
            {
                (n, "p"): Spectrum(rows, WIDTH, tuple(values[:rows]))
                for n, rows in enumerate(left(mix))
                if rows
            }
            for mix in mixes
        ]

    units = Mixture.of([scores], {"head": 1.0}, 0, count)
    return RankMixture(units, count, Ranks(spectra, by_weights(1.0), 1.0)), asked


FALLING = [2.0**-n for n in range(WIDTH)]


@pytest.mark.parametrize("limit", [860, 700, 500, 300, 180, 120])
def test_the_mix_costs_no_more_and_errs_no_more_than_either_alone(limit: float) -> None:
    errors = (0.01, 0.05, 0.3, 2.0)
    both, _ = made_up(errors, FALLING)
    mix = both.within(limit)
    assert both.count(mix.units, mix.ranks) <= limit
    by_units = RankMixture(both.units, both.count).within(limit)
    assert not by_units.ranks
    assert mix.error <= both.units.error(by_units.units)
    alone = [
        (2 * sum(FALLING[rank:]))
        for rank in range(1, 10)
        if 100 + 2 * rank * (WIDTH + WIDTH) <= limit
    ]
    assert mix.error <= min(alone, default=mix.error)


def test_free_ranks_are_taken_before_anything_else() -> None:
    low_rank = [1.0, 1.0, 1.0, *[0.0] * 17]
    both, asked = made_up((0.1, 0.1, 0.1, 0.1), low_rank)
    mix = both.within(340)
    assert mix.units == ()
    # Two of 20 × 20, each of rank 3: 3 · 40 weights.
    assert mix.ranks == {(0, "p"): 3, (1, "p"): 3}
    assert mix.error == 0
    assert both.count(mix.units, mix.ranks) == 340
    number = len(asked)
    both.within(300)
    assert len(asked) == number


def test_units_alone_go_where_no_rank_is_cheap() -> None:
    both, _ = made_up((0.0, 0.0, 0.5, 0.5), [1.0] * WIDTH)
    mix = both.within(500)
    assert not mix.ranks
    assert sorted(mix.units) == [Unit(0, 0), Unit(0, 1), Unit(1, 0), Unit(1, 1)]


def test_what_cannot_be_reached_is_said() -> None:
    both, _ = made_up((0.1,) * HEADS, FALLING)
    assert both.least == 100
    with pytest.raises(ValueError, match="cannot be reached: the least is 100"):
        both.within(99)
