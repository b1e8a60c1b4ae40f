"""Attention score and confidence against plain loops over transformers' own attention weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_hib import samples_of, task_loss, tiny
from tiny_models import TINY_MODELS, TinyModel

from hibprune.attribution import MethodBase
from hibprune.attribution.methods import AttentionScore, Confidence
from hibprune.attribution.session import Sample, Session
from hibprune.models.attention import frame_count, positions_fitted

METHODS = (AttentionScore(method="attention"), Confidence(method="confidence"))


def plain(method: MethodBase, weights: np.ndarray) -> float:
    """Of one head's weights (frames, frames)."""
    largest = [max(row) for row in weights.tolist()]
    return max(largest) if method.name() == "attention" else sum(largest) / len(largest)


def own_attentions(model: Any, row: TinyModel, inputs: dict[str, Any]) -> Any:
    with torch.no_grad(), positions_fitted(model, inputs):
        outputs = model(**inputs, output_attentions=True)
    return outputs.encoder_attentions if row.speaks else outputs.attentions


def eager(row: TinyModel) -> Any:
    return row.build(attention="eager")


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name())
@pytest.mark.parametrize("row", TINY_MODELS, ids=lambda row: row.name)
def test_clips_alone(row: TinyModel, method: MethodBase) -> None:
    samples = samples_of(row)
    scores = method.attribute(row.build(), samples, task_loss, Session())
    model = eager(row)
    for sample, got in zip(samples, scores.per_sample, strict=True):
        expected = [
            plain(method, head.numpy())
            for layer in own_attentions(model, row, sample.inputs)
            for head in layer[0]
        ]
        assert np.allclose(got, expected, atol=1e-5)
        assert np.ptp(expected) > 1e-4


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name())
@pytest.mark.parametrize(
    "name", ["wav2vec2-stable", "wavlm-stable", "bert", "roberta", "distilbert"]
)
def test_clips_in_transformers_own_padded_batch(name: str, method: MethodBase) -> None:
    """Of families whose front end does not see the padding."""
    row = tiny(name)
    clips = row.inputs(batch=3)[row.main_input]
    longest = clips.shape[1]
    # Within a factor of 1.25, so that the clips share a batch of ours too.
    lengths = [longest, int(0.9 * longest), int(0.85 * longest)]
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    samples = []
    for place, length in enumerate(lengths):
        inputs = {row.main_input: clips[place : place + 1, :length]}
        if row.takes == "tokens":
            inputs["attention_mask"] = torch.ones(1, length, dtype=torch.long)
        samples.append(Sample(f"clip{place}", inputs, (0,)))
    scores = method.attribute(row.build(), samples, task_loss, Session())

    model = eager(row)
    padding = model.config.pad_token_id if row.takes == "tokens" else 0
    padded = {
        row.main_input: clips.masked_fill(mask == 0, padding),
        "attention_mask": mask,
    }
    layers = own_attentions(model, row, padded)
    for place, (length, got) in enumerate(zip(lengths, scores.per_sample, strict=True)):
        frames = frame_count(model, length)
        assert frames < layers[0].shape[-1] or length == longest
        expected = [
            plain(method, head[:frames, :frames].numpy())
            for layer in layers
            for head in layer[place]
        ]
        assert np.allclose(got, expected, atol=1e-4)
