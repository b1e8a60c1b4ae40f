"""HIB: the batched engine against the plain reference, and its formulas against closed forms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hib_reference import agreed_generator, reference_attention
from scipy.stats import spearmanr
from tiny_models import CLASSES, TINY_MODELS, TinyModel
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence
from torch.nn import functional

from hibprune.attribution.batches import mean_over_frames, read_unmodified
from hibprune.attribution.hib import optimise
from hibprune.attribution.hib_settings import HeadInformationBottleneck
from hibprune.attribution.noise import SeededNoise
from hibprune.attribution.noisy_channel import activate, bottleneck, noisy_mix, pearson, row_norms
from hibprune.attribution.session import Sample, Session
from hibprune.errors import UserError
from hibprune.models.attention import attention_sites, frozen, heads_of, positions_fitted, silenced
from hibprune.tasks import Batch

STEPS = 4


def task_loss(model: Any, batch: Batch) -> Tensor:
    logits = model(**batch.inputs).logits
    if logits.dim() == 3:
        return token_loss(logits, batch.inputs["decoder_input_ids"], batch.targets)
    return functional.cross_entropy(
        logits, torch.tensor([target[0] for target in batch.targets]), reduction="none"
    )


def token_loss(logits: Tensor, fed: Tensor, targets: tuple[tuple[int, ...], ...]) -> Tensor:
    """Mean cross-entropy of each clip over its own tokens, of which the decoder was fed others."""
    assert fed.shape == logits.shape[:2]
    losses = [
        functional.cross_entropy(own[: len(target)], torch.tensor(target))
        for own, target in zip(logits, targets, strict=True)
    ]
    return torch.stack(losses)


LENGTHS = (0.08, 0.1, 0.09)


def samples_of(tiny: TinyModel, lengths: tuple[float, ...] = LENGTHS) -> list[Sample]:
    generator = torch.Generator().manual_seed(2)
    samples = []
    for i, seconds in enumerate(lengths):
        inputs: dict[str, Tensor] = {}
        if tiny.takes == "tokens":
            tokens = (1, int(100 * seconds))
            inputs["input_ids"] = torch.randint(2, 40, tokens, generator=generator)
            inputs["attention_mask"] = torch.ones(tokens, dtype=torch.long)
        else:
            shape = {
                "patches": (1, 64, 32),
                # Half of what the model insists on.
                "mel": (1, 16, 2 * int(250 * seconds)),
                "waveform": (1, int((48_000 if tiny.speaks else 16_000) * seconds)),
            }[tiny.takes]
            inputs[tiny.main_input] = torch.randn(shape, generator=generator)
        target: tuple[int, ...] = (i % CLASSES,)
        if tiny.speaks:
            target = tuple(range(4 + i, 7 + 2 * i))
            inputs["decoder_input_ids"] = torch.tensor([[1, *target[:-1]]])
        samples.append(Sample(f"clip{i}", inputs, target))
    return samples


def method(**fields: Any) -> HeadInformationBottleneck:
    fields = {"paper": True, "steps": STEPS, "beta": 2.0, **fields}
    return HeadInformationBottleneck(method="hib", **fields).for_task("keyword-spotting")


def tiny(name: str) -> TinyModel:
    return next(model for model in TINY_MODELS if model.name == name)


class TestAgainstThePlainReference:
    @pytest.mark.parametrize("row", TINY_MODELS, ids=lambda row: row.name)
    def test_same_noise_gives_the_same_attention_in_a_padded_batch(self, row: TinyModel) -> None:
        model = row.build()
        samples = samples_of(row, (0.08, 0.08, 0.08) if row.equal_lengths else LENGTHS)
        settings = method()
        with frozen(model):
            calibration = read_unmodified(model, samples)
            noise = SeededNoise.for_batch(calibration, seed=5)
            learned = optimise(settings, model, calibration, task_loss, noise)

        sites = attention_sites(model)
        for place, sample in enumerate(samples):
            frames = calibration.batch.frames[place]
            alone = Batch((sample.id,), sample.inputs, (sample.target,), (frames,), (frames,))
            with positions_fitted(model, sample.inputs):
                expected = reference_attention(
                    model,
                    [(site.value, site.output) for site in sites],
                    sites[0].head_size,
                    frames,
                    lambda alone=alone: task_loss(model, alone)[0],  # type: ignore[misc]
                    agreed_generator(5, sample.id),
                    steps=STEPS,
                    beta=2.0,
                )
            for layer, attention in enumerate(expected):
                got = learned[layer][place, :, :frames, :frames]
                assert torch.allclose(got, attention, atol=2e-5)
                # A reference that never moved would agree with anything that never moved.
                assert (attention - 1 / frames).abs().max() > 0.01

    @pytest.mark.parametrize("kind", ["exact", "mutual-information"])
    @pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
    def test_other_bottlenecks_and_activations(self, kind: str, activation: str) -> None:
        row = tiny("wav2vec2")
        model, samples = row.build(), samples_of(row)[:1]
        settings = method(bottleneck=kind, activation=activation, initial_scale=0.5)
        with frozen(model):
            calibration = read_unmodified(model, samples)
            noise = SeededNoise.for_batch(calibration, seed=0)
            learned = optimise(settings, model, calibration, task_loss, noise)
        sites = attention_sites(model)
        expected = reference_attention(
            model,
            [(site.value, site.output) for site in sites],
            sites[0].head_size,
            calibration.batch.frames[0],
            lambda: functional.cross_entropy(
                model(**samples[0].inputs).logits, torch.tensor(samples[0].target)
            ),
            agreed_generator(0, samples[0].id),
            steps=STEPS,
            beta=2.0,
            initial_scale=0.5,
            bottleneck=kind,
            activation=activation,
        )
        for layer, attention in enumerate(expected):
            assert torch.allclose(learned[layer][0], attention, atol=2e-5)


class TestFormulas:
    ROWS = torch.tensor([[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0], [0.7, 0.1, 0.1, 0.1]])

    @pytest.mark.parametrize("noise", [0.3, 0.9, 1.5])
    def test_exact_is_torchs_divergence_of_the_two_gaussians(self, noise: float) -> None:
        d = 8
        got = bottleneck(row_norms(self.ROWS), d, noise, "exact")
        for row, value in zip(self.ROWS, got, strict=True):
            variance = float(row.square().sum()) + noise**2
            channel = MultivariateNormal(torch.zeros(d), variance * torch.eye(d))
            prior = MultivariateNormal(torch.zeros(d), torch.eye(d))
            assert value == pytest.approx(float(kl_divergence(channel, prior)), abs=1e-4)

    def test_paper_is_the_divergence_with_a_rank_one_covariance(self) -> None:
        """Eq. 15: the covariance adds |a|² in one of d directions only."""
        d, noise = 6, 0.9
        got = bottleneck(row_norms(self.ROWS), d, noise, "paper")
        for row, value in zip(self.ROWS, got, strict=True):
            covariance = noise**2 * torch.eye(d)
            covariance[0, 0] += row.square().sum()
            channel = MultivariateNormal(torch.zeros(d), covariance)
            prior = MultivariateNormal(torch.zeros(d), torch.eye(d))
            assert value == pytest.approx(float(kl_divergence(channel, prior)), abs=1e-4)

    def test_mutual_information_is_that_of_the_gaussian_channel(self) -> None:
        """I(Z; V) = ½ log det(cov Z) − ½ log det(noise), for V of unit variance."""
        d, noise = 5, 0.9
        got = bottleneck(row_norms(self.ROWS), d, noise, "mutual-information")
        for row, value in zip(self.ROWS.double(), got, strict=True):
            output = (row.square().sum() + noise**2) * torch.eye(d, dtype=torch.float64)
            clean = noise**2 * torch.eye(d, dtype=torch.float64)
            expected = 0.5 * (torch.logdet(output) - torch.logdet(clean))
            assert value == pytest.approx(float(expected), abs=1e-5)

    def test_paper_bottleneck_is_smallest_where_the_text_says(self) -> None:
        norms = torch.linspace(0.01, 1.0, 1000)
        for kind in ("paper", "exact"):
            best = norms[bottleneck(norms, 4, 0.9, kind).argmin()]  # type: ignore[arg-type]
            assert float(best) == pytest.approx(1 - 0.9**2, abs=0.002)
        assert bottleneck(norms, 4, 0.9, "mutual-information").argmin() == 0

    @pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
    def test_mixing_is_scale_mix_noise_and_scale_back(self, activation: str) -> None:
        torch.manual_seed(0)
        values = 3 + 2 * torch.randn(1, 2, 7, 4)
        valid = torch.tensor([[True] * 5 + [False] * 2])
        weights = activate(torch.randn(1, 2, 7, 7), valid, activation)  # type: ignore[arg-type]
        draws = torch.randn(1, 2, 7, 4)
        got = noisy_mix(weights, values, valid, 0.9, draws, activation)  # type: ignore[arg-type]

        real = values[:, :, :5]
        mean, deviation = real.mean(2, keepdim=True), real.std(2, keepdim=True, unbiased=False)
        scaled = (real - mean) / deviation
        expected = (weights[:, :, :, :5] @ scaled + 0.9 * draws) * deviation + mean
        assert torch.allclose(got, expected, atol=1e-5)

    def test_nothing_is_attended_to_on_padded_frames(self) -> None:
        valid = torch.tensor([[True, True, True, False]])
        for activation in ("softmax", "sigmoid"):
            weights = activate(torch.randn(1, 3, 4, 4), valid, activation)  # type: ignore[arg-type]
            assert (weights[..., 3] == 0).all()
        assert torch.allclose(
            activate(torch.randn(1, 3, 4, 4), valid, "softmax").sum(-1), torch.ones(1, 3, 4)
        )

    def test_correlation_is_numpys_over_the_valid_square(self) -> None:
        torch.manual_seed(1)
        first, second = torch.rand(2, 3, 6, 6), torch.rand(2, 3, 6, 6)
        valid = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
        got = pearson(first, second, valid)
        for sample, frames in ((0, 6), (1, 4)):
            for head in range(3):
                a = first[sample, head, :frames, :frames].flatten().numpy()
                b = second[sample, head, :frames, :frames].flatten().numpy()
                assert got[sample, head] == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-5)

    def test_correlation_with_a_constant_matrix_is_zero(self) -> None:
        constant = torch.full((1, 1, 4, 4), 0.25)
        assert pearson(constant, torch.rand(1, 1, 4, 4), torch.ones(1, 4, dtype=bool)) == 0.0

    def test_mean_over_frames_leaves_padding_out(self) -> None:
        per_frame = torch.tensor([[[1.0, 3.0, 100.0]]])
        valid = torch.tensor([[True, True, False]])
        assert mean_over_frames(per_frame, valid) == 2.0


class TestStartAtTheModelsOwnAttention:
    @pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
    @pytest.mark.parametrize("name", ["wav2vec2", "whisper", "bert"])
    def test_before_any_step_it_is_the_models_own(self, name: str, activation: str) -> None:
        row = tiny(name)
        model, samples = row.build(), samples_of(row)
        still = method(start="attention", activation=activation, steps=1, learning_rate=1e-9)
        with frozen(model):
            calibration = read_unmodified(model, samples)
            noise = SeededNoise.for_batch(calibration, 0)
            learned = optimise(still, model, calibration, task_loss, noise)
        for layer, own in calibration.attention.items():
            pairs = calibration.valid[:, None, :, None] & calibration.valid[:, None, None, :]
            assert torch.allclose(learned[layer] * pairs, own * pairs, atol=2e-5)


def test_reduced_precision_keeps_the_ranking() -> None:
    row = tiny("wav2vec2")
    exact, reduced = (
        method(score="information", precision=precision, steps=20)
        .attribute(row.build(), samples_of(row), task_loss, Session())
        .per_sample
        for precision in ("float32", "bfloat16")
    )
    assert exact != reduced
    assert np.allclose(exact, reduced, rtol=0.05)
    for one, other in zip(exact, reduced, strict=True):
        assert spearmanr(one, other).statistic > 0.9


class TestScores:
    def test_batches_padding_and_memory_running_out_change_nothing(self) -> None:
        row = tiny("wav2vec2")
        model = row.build()
        samples = samples_of(row, (0.08, 0.1, 0.09, 0.08, 0.085))
        alone = method(batch_size=1).attribute(model, samples, task_loss, Session())
        together = method(batch_size=5).attribute(model, samples, task_loss, Session())
        assert np.allclose(alone.per_sample, together.per_sample, atol=1e-4)

        sizes = []

        def greedy(model: Any, batch: Batch) -> Tensor:
            sizes.append(len(batch.ids))
            if len(batch.ids) > 2:
                raise torch.OutOfMemoryError("out of memory")
            return task_loss(model, batch)

        notices: list[str] = []
        halved = method(batch_size=5).attribute(
            model, samples, greedy, Session(notice=notices.append)
        )
        assert np.allclose(alone.per_sample, halved.per_sample, atol=1e-4)
        # Two steps of two samples to measure what they take, then all that are said to fit.
        assert sizes[:3] == [2, 2, 5]
        assert set(sizes[3:]) <= {1, 2}
        assert notices == ["memory ran out; going on with batches of 2"]

    def test_a_sample_that_fits_nowhere_is_a_plain_error(self) -> None:
        row = tiny("wav2vec2")

        def hopeless(model: Any, batch: Batch) -> Tensor:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")

        with pytest.raises(UserError, match="clip1: attribution of this sample alone does not fit"):
            method().attribute(row.build(), samples_of(row), hopeless, Session())

    def test_other_errors_are_not_taken_for_memory(self) -> None:
        row = tiny("wav2vec2")

        def broken(model: Any, batch: Batch) -> Tensor:
            raise RuntimeError("shapes do not match")

        with pytest.raises(RuntimeError, match="shapes do not match"):
            method().attribute(row.build(), samples_of(row), broken, Session())

    def test_rows_done_before_are_kept_and_not_computed_again(self) -> None:
        row = tiny("wav2vec2")
        model, samples = row.build(), samples_of(row)
        known = tuple(float(i) for i in range(8))
        seen: list[str] = []

        def watched(model: Any, batch: Batch) -> Tensor:
            seen.extend(batch.ids)
            return task_loss(model, batch)

        saved: dict[str, Any] = {}
        scores = method().attribute(
            model, samples, watched, Session(done={"clip1": known}, save=saved.update)
        )
        assert scores.per_sample[1] == known
        assert "clip1" not in seen
        assert set(saved) == {"clip0", "clip1", "clip2"}

    def test_information_ranks_a_useless_head_last(self) -> None:
        """A head whose output goes nowhere costs β and earns nothing, so it gives up everything."""
        row = tiny("wav2vec2")
        model = row.build()
        useless = heads_of(model)[2]
        site = attention_sites(model)[useless.layer]
        with torch.no_grad():
            columns = slice(2 * site.head_size, 3 * site.head_size)
            site.output.weight[:, columns] = 0
        settings = method(bottleneck="mutual-information", score="information", beta=1e-3, steps=60)
        values = settings.attribute(model, samples_of(row), task_loss, Session()).values
        assert min(values, key=values.__getitem__) == useless

    def test_information_is_at_least_that_of_a_uniform_row(self) -> None:
        row = tiny("wav2vec2")
        model, samples = row.build(), samples_of(row, (0.08,))
        settings = method(bottleneck="mutual-information", score="information")
        values = settings.attribute(model, samples, task_loss, Session()).values.values()
        frames = read_unmodified(model, samples).batch.frames[0]
        assert min(values) >= math.log(1 + 1 / frames / 0.81) - 1e-6

    def test_paper_settings_of_table_1(self) -> None:
        expected = {
            "asr-ctc": (10.0, 100),
            "speaker-identification": (0.1, 200),
            "keyword-spotting": (1.0, 200),
            "intent-classification": (1.0, 100),
        }
        for task, (beta, steps) in expected.items():
            filled = HeadInformationBottleneck(method="hib", paper=True).for_task(task)
            assert (filled.beta, filled.steps) == (beta, steps)
            assert (filled.learning_rate, filled.noise) == (0.1, 0.9)
            assert (filled.bottleneck, filled.score, filled.activation) == (
                "paper",
                "similarity",
                "softmax",
            )

    def test_what_a_recipe_says_stands_beside_what_it_leaves_open(self) -> None:
        for paper, *left_open in ((True, "similarity", 0.9, 200), (False, "information", 0.3, 40)):
            chosen = HeadInformationBottleneck(
                method="hib", paper=paper, bottleneck="exact", beta=7.0
            ).for_task("speaker-identification")
            assert (chosen.bottleneck, chosen.beta) == ("exact", 7.0)
            assert [chosen.score, chosen.noise, chosen.steps] == left_open

    def test_pruned_heads_are_neither_scored_nor_missed(self) -> None:
        row = tiny("wavlm")
        model = row.build()
        model.prune_heads({0: [1], 1: [0, 1, 2, 3]})
        scores = method().attribute(model, samples_of(row), task_loss, Session())
        assert scores.heads == heads_of(model)
        assert len(scores.per_sample[0]) == 3
        assert np.isfinite(scores.per_sample).all()

    def test_silencing_works_right_after_attribution(self) -> None:
        row = tiny("hubert")
        model, samples = row.build(), samples_of(row)
        before = model(**samples[0].inputs).logits
        method().attribute(model, samples, task_loss, Session())
        assert torch.equal(model(**samples[0].inputs).logits, before)
        with silenced(model, heads_of(model)[:1]):
            assert not torch.equal(model(**samples[0].inputs).logits, before)
