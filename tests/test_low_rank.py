"""Low rank: the closed form against numpy and brute force, and projections of every family.

Factored models are checked on whole passes, with products multiplied out by the tests.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import interpreters
import numpy as np
import pytest
import torch
import transformers
from repairs import clips_of
from tiny_exports import TASKS, TinyExport, run
from tiny_models import LAYERS, TINY_MODELS, TinyModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from hibprune.compression.factoring import factor
from hibprune.compression.projection_ranks import take_shape
from hibprune.compression.quantize.graphs import layer_groups, multiplications, read_graph
from hibprune.compression.remove import copy_without
from hibprune.compression.truncation import fitted_factors, root_of, truncated
from hibprune.deployment.export import export_onnx
from hibprune.models.attention import heads_of
from hibprune.models.layerwise import CalibrationClip
from hibprune.models.low_rank import LowRankLinear, projections_of, rank_within, ranks_within
from hibprune.models.moments import Moments
from hibprune.records.repair import FactoredProjection
from hibprune.records.units import Unit

UNLIKE = tuple(
    one
    for one in TINY_MODELS
    if one.name in ("wav2vec2", "wavlm", "conformer-rotary", "ast", "moonshine", "distilbert")
)
every_model = pytest.mark.parametrize("tiny", TINY_MODELS, ids=lambda tiny: tiny.name)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def correlated(frames: int, columns: int, seed: int = 1) -> Tensor:
    """Inputs of unequal variance that hang together, away from 0."""
    mixing = noise(columns, columns, seed=seed) * torch.logspace(0, -2, columns)
    return noise(frames, columns, seed=seed + 1) @ mixing + noise(1, columns, seed=seed + 2)


class TestClosedForm:
    @pytest.mark.parametrize("shape", [(9, 6), (6, 9), (7, 7)])
    @pytest.mark.parametrize("rank", [1, 3, 5])
    def test_what_is_lost_are_the_singular_values_left_out(
        self, shape: tuple[int, int], rank: int
    ) -> None:
        weight, inputs = noise(*shape), correlated(200, shape[1])
        second = inputs.T @ inputs
        outer, inner = truncated(weight, rank, root_of(second, 1e-12))
        assert (outer.shape, inner.shape) == ((shape[0], rank), (rank, shape[1]))
        # numpy's own root of the covariance, by its eigenvectors.
        values, vectors = np.linalg.eigh(second.numpy())
        whitened = weight.numpy() @ (vectors * np.sqrt(values)) @ vectors.T
        left_out = np.linalg.svd(whitened, compute_uv=False)[rank:]
        lost = ((inputs @ (weight - outer @ inner).T) ** 2).sum()
        assert float(lost) == pytest.approx(float((left_out**2).sum()), rel=1e-6)

    def test_without_data_it_is_the_truncated_matrix(self) -> None:
        weight = noise(8, 5)
        outer, inner = truncated(weight, 2)
        u, s, v = np.linalg.svd(weight.numpy())
        assert np.allclose((outer @ inner).numpy(), (u[:, :2] * s[:2]) @ v[:2], atol=1e-10)

    def test_no_other_product_of_that_rank_comes_closer(self) -> None:
        weight, inputs = noise(6, 5), correlated(80, 5)
        targets = inputs @ weight.T
        outer, inner = truncated(weight, 2, root_of(inputs.T @ inputs, 1e-12))
        lost = float(((inputs @ (outer @ inner).T - targets) ** 2).sum())
        least = min(self._alternating(inputs, targets, 2, seed) for seed in range(3))
        assert lost == pytest.approx(least, rel=1e-6)

    def test_a_fit_of_low_rank_to_other_targets_neither(self) -> None:
        inputs = correlated(400, 5)
        targets = inputs @ noise(6, 5, seed=8).T + noise(400, 6, seed=9)
        weight, one = noise(6, 5), Moments.of(inputs, targets)
        found, _ = fitted_factors(
            weight, False, (one, Moments.nothing(6, 5, torch.device("cpu"))), 2, "least-squares",
            refit=True,
        )  # fmt: skip
        lost = float(((inputs @ found.product.T - targets) ** 2).sum())
        least = min(self._alternating(inputs, targets, 2, seed) for seed in range(3))
        assert lost == pytest.approx(least, rel=1e-5)

    @staticmethod
    def _alternating(inputs: Tensor, targets: Tensor, rank: int, seed: int) -> float:
        """Least squares by turns for one factor and the other, from a random start."""
        x, y = inputs.numpy(), targets.numpy()
        inner = noise(rank, x.shape[1], seed=seed + 20).numpy()
        for _ in range(400):
            outer = np.linalg.lstsq(x @ inner.T, y, rcond=None)[0].T
            inner = np.linalg.lstsq(x, y @ np.linalg.pinv(outer).T, rcond=None)[0].T
        return float(((x @ (outer @ inner).T - y) ** 2).sum())

    def test_a_matrix_of_that_rank_under_the_data_goes_for_nothing(self) -> None:
        # The matrix is of full rank; all inputs lie in three dimensions about a mean.
        weight, bias = noise(10, 8), noise(10, seed=3)
        inputs = noise(300, 3, seed=4) @ noise(3, 8, seed=5) + noise(1, 8, seed=6)
        fit = Moments.of(inputs[:200], inputs[:200, :0]).of_outputs(weight, bias)
        held = Moments.of(inputs[200:], inputs[200:, :0]).of_outputs(weight, bias)
        found, error = fitted_factors(weight, True, (fit, held), 3, "least-squares", refit=False)
        assert error < 1e-9
        wanted = inputs @ weight.T + bias
        assert found.bias is not None
        assert torch.allclose(inputs @ found.product.T + found.bias, wanted, atol=1e-4)

    def test_the_bias_takes_up_what_is_lost_of_the_mean(self) -> None:
        weight, bias, inputs = noise(6, 5), noise(6, seed=3), correlated(90, 5)
        sums = Moments.of(inputs, inputs[:, :0]).of_outputs(weight, bias)
        none = Moments.nothing(6, 5, torch.device("cpu"))
        for kind in ("mean", "least-squares"):
            found, _ = fitted_factors(weight, True, (sums, none), 2, kind, refit=False)
            assert found.bias is not None
            missed = inputs @ (found.product - weight).T + found.bias - bias
            assert missed.mean(0).abs().max() < 1e-9
            plain = kind == "mean"
            u, s, v = np.linalg.svd(weight.numpy())
            same = np.allclose(found.product.numpy(), (u[:, :2] * s[:2]) @ v[:2], atol=1e-8)
            assert same == plain

    def test_sums_of_outputs_are_those_of_the_outputs(self) -> None:
        weight, bias, inputs = noise(4, 5), noise(4, seed=3), correlated(50, 5)
        made = Moments.of(inputs, inputs[:, :0]).of_outputs(weight, bias)
        wanted = Moments.of(inputs, inputs @ weight.T + bias)
        assert torch.allclose(made.cross, wanted.cross)
        assert torch.allclose(made.target_sum, wanted.target_sum)
        assert made.targets == pytest.approx(wanted.targets)


@pytest.mark.parametrize(
    ("rows", "columns", "share", "rank"),
    [
        (32, 32, 0.5, 8),
        (37, 32, 0.5, 8),
        (32, 32, 0.01, 15),
        (768, 3072, 0.25, 460),
        (30, 20, 0.7, 3),  # 3.6
        (32, 32, 0.99, 1),
        (20, 20, 0.7, 3),  # exactly, and not 2.9999…
        (1, 32, 0.5, None),
        (2, 2, 0.5, None),
        (0, 32, 0.5, None),
        (32, 0, 0.5, None),
    ],
)
def test_rank_of_a_share(rows: int, columns: int, share: float, rank: int | None) -> None:
    assert rank_within(rows, columns, share) == rank


def outputs(model: PreTrainedModel, tiny: TinyModel) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**tiny.inputs()).logits
    return found


GONE = (Unit(0, 1), Unit(1, 2), *(Unit(0, index, kind="neuron") for index in range(0, 20, 2)))
"""Heads of both layers, and neurons of the first."""


def smaller(tiny: TinyModel, gone: Sequence[Unit] = GONE) -> PreTrainedModel:
    model = tiny.build()
    pruned = copy_without(model, gone)
    factored(model, pruned, tiny, Path("unused"), "none")
    return pruned


def factored(
    model: PreTrainedModel,
    pruned: PreTrainedModel,
    tiny: TinyModel,
    scratch: Path,
    kind: Any = "least-squares",
    share: float = 0.5,
) -> tuple[FactoredProjection, ...]:
    clips = [] if kind == "none" else clips_of(tiny, 40)
    return factor(model, pruned, clips, kind, ranks_within(pruned, share), scratch, 2**30)


def whole_again(model: PreTrainedModel) -> PreTrainedModel:
    """Every pair of matrices multiplied out."""
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, LowRankLinear):
                made = nn.Linear(module.in_features, module.out_features, module.bias is not None)
                made.weight.data = module.outer.weight.data @ module.weight.data
                if module.bias is not None:
                    made.bias.data = module.bias.data
                setattr(parent, name, made)
    return model


class TestFamilies:
    @every_model
    def test_two_matrices_give_out_what_their_product_does(
        self, tiny: TinyModel, tmp_path: Path
    ) -> None:
        model, whole = smaller(tiny), copy_without(tiny.build(), GONE)
        wanted = {
            place: rank_within(one.out_features, one.in_features, 0.5)
            for place, one in projections_of(whole).items()
        }
        found = {
            place: one.rank
            for place, one in projections_of(model).items()
            if isinstance(one, LowRankLinear)
        }
        # q, k, v, out and two matrices a feed-forward, of which conformers have two.
        assert len(found) == LAYERS * (8 if tiny.name.startswith("conformer") else 6)
        assert found == wanted
        saved = whole.num_parameters() - model.num_parameters()
        matrices = projections_of(whole).values()
        share = saved / sum(one.out_features * one.in_features for one in matrices)
        assert 0.5 <= share < 0.57
        given = outputs(model, tiny)
        model.save_pretrained(tmp_path)
        assert torch.allclose(outputs(whole_again(model), tiny), given, atol=1e-5)

        again = type(model).from_pretrained(tmp_path)
        assert torch.equal(outputs(again, tiny), given)
        assert heads_of(again) == heads_of(whole)
        assert shapes_of(again) == shapes_of(whole)
        told = json.loads((tmp_path / "config.json").read_text())["projection_ranks"]
        assert {(int(n), path): r for n, own in told.items() for path, r in own.items()} == wanted

    @every_model
    def test_heads_go_from_two_matrices_as_from_one(self, tiny: TinyModel, tmp_path: Path) -> None:
        model = smaller(tiny)
        whole = whole_again(smaller(tiny))
        for one in (model, whole):
            one.prune_heads({0: [0], 1: [0, 3]})
        assert torch.allclose(outputs(model, tiny), outputs(whole, tiny), atol=1e-5)
        model.save_pretrained(tmp_path)
        again = type(model).from_pretrained(tmp_path)
        assert torch.equal(outputs(again, tiny), outputs(model, tiny))

    @every_model
    def test_data_bring_it_nearer_to_the_original(self, tiny: TinyModel, tmp_path: Path) -> None:
        model, clips = tiny.build(), clips_of(tiny, 50)[40:]
        wanted = states(model, clips)
        far = {}
        for kind in ("none", "mean", "scale", "least-squares"):
            pruned = copy_without(model, [Unit(0, 1)])
            found = factored(model, pruned, tiny, tmp_path, kind, 0.4)
            far[kind] = float((states(pruned, clips) - wanted).square().mean())
            assert all((one.error is None) == (kind == "none") for one in found)
            assert len({(one.layer, one.name) for one in found}) == len(found) >= 12
        # Fitted to the original's stream or not makes little difference at random weights.
        assert max(far["least-squares"], far["scale"]) < far["mean"] < far["none"]
        assert far["least-squares"] < 0.3 * far["none"]
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("tiny", UNLIKE, ids=lambda tiny: tiny.name)
    def test_graphs_give_out_the_same(self, tiny: TinyModel, tmp_path: Path) -> None:
        # A layer without heads, whose attention stays whole.
        model = smaller(tiny, gone=(*GONE, *(Unit(1, index) for index in range(4))))
        export = TinyExport(tiny, tmp_path)
        export.path("").mkdir(parents=True)
        export_onnx(model, export.path(""), TASKS[tiny.auto_class], 18, export.graphs)
        (graph, *_) = export.graphs
        for feed in export.feeds(graph)[graph]:
            given = {name: torch.from_numpy(value) for name, value in feed.items()}
            with torch.no_grad():
                if tiny.speaks:
                    wanted = model.get_encoder()(**given).last_hidden_state
                else:
                    wanted = model(**given).logits
            (found,) = run(export.path(graph), feed).values()
            assert np.abs(found - wanted.numpy()).max() <= 1e-4 * wanted.abs().max()
        groups = layer_groups([(graph, read_graph(export.path(graph)))])
        named = [name for group in groups for name in group.split(" layer ")[1:]]
        assert set(named) == {"0 attention", "0 feed-forward", "1 feed-forward"}
        # Six projections of the first layer, or eight, and of the second's without heads two.
        products = multiplications(read_graph(export.path(graph)))
        assert sum("outer" in one.name for one in products) in (8, 12)

    def test_without_hibprune_loading_stops(self, tmp_path: Path) -> None:
        """Also of families that transformers prunes by itself, where no head is gone."""
        tiny = next(one for one in TINY_MODELS if one.name == "bert")
        model = tiny.build()
        factor(model, model, [], "none", ranks_within(model, 0.5), tmp_path, 0)
        model.save_pretrained(tmp_path)
        code = (
            "import sys, transformers\n"
            "transformers.AutoModelForSequenceClassification.from_pretrained(sys.argv[1])\n"
        )
        ended = interpreters.run(code, tmp_path, ready="transformers")
        assert ended.returncode != 0
        assert "size mismatch" in ended.stderr or "mismatched" in ended.stderr

    def test_shapes_alone_are_those_of_the_real_thing(self) -> None:
        tiny = TINY_MODELS[0]
        shaped = copy_without(tiny.build(), GONE)
        take_shape(shaped, ranks_within(shaped, 0.5))
        assert [w.shape for w in shaped.parameters()] == [
            w.shape for w in smaller(tiny).parameters()
        ]

    def test_what_two_would_not_be_cheaper_for_stays_one(self, tmp_path: Path) -> None:
        tiny, gone = TINY_MODELS[0], [Unit(0, index) for index in range(4)]
        # A neuron alone: 1 × 32 and 32 × 1, and an attention without heads.
        gone += [Unit(1, index, kind="neuron") for index in range(36)]
        model = tiny.build()
        pruned = copy_without(model, gone)
        found = factored(model, pruned, tiny, tmp_path, "least-squares", 0.5)
        attention = {f"attention.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
        feeding = {"feed_forward.intermediate_dense", "feed_forward.output_dense"}
        assert {one.name for one in found if one.layer == 0} == feeding
        assert {one.name for one in found if one.layer == 1} == attention
        assert outputs(pruned, tiny).isfinite().all()


def shapes_of(model: PreTrainedModel) -> list[tuple[int, int]]:
    return [(one.out_features, one.in_features) for one in projections_of(model).values()]


def states(model: PreTrainedModel, clips: list[CalibrationClip]) -> Tensor:
    with torch.no_grad():
        encoder = model.get_encoder() if model.config.is_encoder_decoder else model.base_model
        return torch.cat([encoder(**clip.inputs)[0][0] for clip in clips])


@pytest.mark.parametrize(
    ("told", "fault"),
    [
        ({"7": {"attention.q_proj": 4}}, "speaks of layer 7, and there are layers 0 to 1"),
        ({"0": {"attention.qproj": 4}}, "speaks of 'attention.qproj', and the projections"),
        ({"0": {"feed_forward": 4}}, "speaks of 'feed_forward', and the projections"),
    ],
)
def test_a_configuration_that_contradicts_the_model_is_an_error(told: Any, fault: str) -> None:
    config = TINY_MODELS[0].config(projection_ranks=told)
    with pytest.raises(ValueError, match=fault):
        transformers.AutoModelForAudioClassification.from_config(config)
