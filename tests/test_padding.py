"""What the card says of padding: as many answers change as do by extractor and ONNX Runtime."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import soundfile
from manifests import make_manifest, with_variant
from standin import StandIn
from transformers import AutoFeatureExtractor

from hibprune.records.padding import PaddingEffect
from hibprune.report.usage import caution

CLIPS, BATCH = 24, 8


def test_answers_in_padded_batches_are_compared_with_those_alone(
    finished: Callable[[str], Path], stand_ins: Callable[[str], Path]
) -> None:
    output, task = finished("keyword_spotting"), StandIn(stand_ins("keyword_spotting"))
    manifest = json.loads((output / "manifest.json").read_text())
    by_name = {one["name"]: one["padding"] for one in manifest["variants"]}
    found = by_name.pop("pruned")
    assert set(by_name.values()) == {None}
    extractor = AutoFeatureExtractor.from_pretrained(output)
    session = onnxruntime.InferenceSession(output / "onnx/model.onnx")
    clips = [
        soundfile.read(task.root / row["audio"], dtype="float32")[0]
        for row in task.rows("validation")[:CLIPS]
    ]

    def said(some: list[np.ndarray]) -> list[int]:
        filled = extractor(some, sampling_rate=16_000, padding=True, return_tensors="np")
        (logits,) = session.run(["logits"], {"input_values": filled["input_values"]})
        return list(logits.argmax(-1))

    alone = [said([clip])[0] for clip in clips]
    batches = [clips[start : start + BATCH] for start in range(0, CLIPS, BATCH)]
    together = [answer for some in batches for answer in said(some)]
    assert found["n"] == CLIPS
    assert found["equal"] == sum(a == b for a, b in zip(alone, together, strict=True))
    longest = max(max(map(len, some)) / min(map(len, some)) for some in batches)
    assert found["longest"] == pytest.approx(longest)
    card = (output / "README.md").read_text()
    told = f"{CLIPS - found['equal'] or 'none'} of {CLIPS} get another answer than alone"
    assert re.search(told, " ".join(card.split()))


@pytest.mark.parametrize("name", ["encoder_decoder", "text_classification"])
def test_it_is_not_looked_at_where_there_is_nothing_to_fill_up(
    finished: Callable[[str], Path], name: str
) -> None:
    manifest = json.loads((finished(name) / "manifest.json").read_text())
    assert all(one["padding"] is None for one in manifest["variants"])


def test_the_card_says_by_how_much() -> None:
    manifest = make_manifest()
    assert "filled up" not in caution(manifest)
    effect = PaddingEffect(n=24, equal=21, batch=8, longest=2.5)
    told = caution(with_variant(manifest, "pruned", padding=effect))
    assert told.endswith(
        "Of validation clips filled up with silence in batches of 8, by up to 2.5 times their "
        "length, 3 of 24 get another answer than alone."
    )
