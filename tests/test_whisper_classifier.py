"""Whisper's encoder with a classifier in its decoder's place, which averages over its window."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from commands import faults, invoke, run
from standin import LABELS, StandIn
from tiny_models import PLANS, TAGGING, WHISPER, TinyModel
from torch.nn import functional
from transformers import PreTrainedModel

from hibprune.attribution.methods import Occlusion
from hibprune.attribution.session import Sample, Session
from hibprune.compression.remove import copy_without, save_model
from hibprune.data import DurationLimits
from hibprune.data.utterances import AudioFile
from hibprune.models.attention import heads_of, silenced
from hibprune.models.checkpoint import Checkpoint, load_checkpoint
from hibprune.models.layerwise import calibration_clip
from hibprune.models.source import ModelSource
from hibprune.records.manifest import Manifest
from hibprune.records.units import Head
from hibprune.tasks import Batch
from hibprune.tasks.classification import KeywordSpotting

SAME, MOVED = 1e-5, 1e-3
POSITIONS = 50
WEIGHTED = pytest.mark.parametrize("weighted", [False, True], ids=["last layer", "all layers"])


def classifier(weighted: bool = False) -> PreTrainedModel:
    """`weighted` lets it read a weighted sum of the hidden states of all layers."""
    settings = {**WHISPER, "max_source_positions": POSITIONS, "use_weighted_layer_sum": weighted}
    return TinyModel("classifier", "WhisperConfig", settings, "mel", TAGGING).build()


@pytest.fixture
def classifying(stand_in: StandIn) -> StandIn:
    """A keyword spotter of that kind, with a window of a second."""
    model = classifier()
    model.config.id2label = dict(enumerate(LABELS))
    model.config.label2id = {label: number for number, label in enumerate(LABELS)}
    model.save_pretrained(stand_in.model)
    transformers.WhisperFeatureExtractor(16, chunk_length=1).save_pretrained(stand_in.model)
    return stand_in


def loaded(stand_in: StandIn) -> Checkpoint:
    task = KeywordSpotting(kind="keyword-spotting")
    return load_checkpoint(ModelSource(source="model"), task, stand_in.root, torch.device("cpu"))


def mel(clips: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(clips, 16, 2 * POSITIONS, generator=generator)


@torch.no_grad()
def logits(model: PreTrainedModel, features: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(model(input_features=features).logits)


def test_it_is_scored_on_what_it_is_used_on(classifying: StandIn) -> None:
    """On the clip's own frames alone the average, and so the loss, would be another."""
    checkpoint = loaded(classifying)
    reading = checkpoint.read(AudioFile(classifying.clip("calibration", 0)), DurationLimits())
    whole = transformers.AutoFeatureExtractor.from_pretrained(classifying.model)(
        np.asarray(reading), sampling_rate=16_000, return_tensors="pt"
    )
    model = transformers.AutoModelForAudioClassification.from_pretrained(classifying.model).eval()
    given = checkpoint.calibration_inputs(reading)
    wanted = logits(model, whole["input_features"])
    assert torch.equal(logits(checkpoint.model, given["input_features"]), wanted)
    # Repair counts all frames, too: the average does.
    assert calibration_clip(checkpoint, reading).frames == POSITIONS


@WEIGHTED
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
def test_silenced_removed_and_reloaded_are_equal(
    plan: dict[int, list[int]], weighted: bool, tmp_path: Path
) -> None:
    model, features = classifier(weighted), mel(2)
    heads = [Head(layer, index) for layer, own in plan.items() for index in own]
    with silenced(model, heads):
        without = logits(model, features)
    assert (without - logits(model, features)).abs().max() > MOVED
    smaller = copy_without(model, heads)
    assert (logits(smaller, features) - without).abs().max() < SAME
    save_model(smaller, tmp_path)
    again = transformers.AutoModelForAudioClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again, features), logits(smaller, features))


@WEIGHTED
def test_occlusion_is_what_silencing_costs(weighted: bool) -> None:
    """Layers below a head are not run again, and what reads their outputs must not notice."""

    def loss(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
        classes = torch.tensor([target[0] for target in batch.targets])
        return functional.cross_entropy(model(**batch.inputs).logits, classes, reduction="none")

    model, features, classes = classifier(weighted), mel(3), torch.arange(3)
    samples = [Sample(f"{i}", {"input_features": features[i : i + 1]}, (i,)) for i in range(3)]
    chosen = Occlusion(method="occlusion").for_task("keyword-spotting")
    found = torch.tensor(chosen.attribute(model, samples, loss, Session()).per_sample)

    def losses() -> torch.Tensor:
        return functional.cross_entropy(logits(model, features), classes, reduction="none")

    unchanged, expected = losses(), []
    for head in heads_of(model):
        with silenced(model, [head]):
            expected.append(losses() - unchanged)
    wanted = torch.stack(expected, 1)
    assert wanted.abs().max() > MOVED
    torch.testing.assert_close(found, wanted, atol=SAME, rtol=0)


def test_whispers_encoder_with_a_classifier_runs(classifying: StandIn) -> None:
    """Also where its configuration names no tokens, of which it says none."""
    path = classifying.model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": None}))
    result = run(classifying, "--quiet", "--json", "--set", "export.variants=[fp32, fp16]")
    assert result.exit_code == 0, result.output
    manifest = Manifest.model_validate_json(result.stdout)
    assert [one.name for one in manifest.variants] == ["original", "pruned", "pruned-fp16"]
    assert manifest.missing == ()


def test_room_for_long_batches_is_found_without_a_decoder(classifying: StandIn) -> None:
    """61 s in a batch are more than always fits, so that memory is estimated."""
    options = ("--set", "export.seconds=[1.0]", "--set", "export.batches=[1, 61]")
    result = invoke("check", classifying.recipe, *options)
    assert result.exit_code == 0, result.output


def test_a_decoders_heads_are_not_there(classifying: StandIn) -> None:
    options = ("--set", "attribution={method: occlusion, stacks: [encoder, decoder.self]}")
    assert faults(invoke("check", classifying.recipe, *options)) == [
        "WhisperForAudioClassification has no decoder, and no attention heads 'decoder.self': "
        "use encoder"
    ]
