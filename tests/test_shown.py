"""A run that is to be shown and shipped: clips in its page, the licence in its card."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from commands import invoke
from huggingface_hub import ModelCard
from standin import StandIn, loud_keyword_spotting


def test_a_page_plays_clips_whose_answers_changed_and_a_card_has_the_original_s_licence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in: StandIn = loud_keyword_spotting(tmp_path / "task")
    (stand_in.model / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# Original\n")
    content = stand_in.content()
    content |= {"attribution": {"method": "magnitude"}, "removal": {"repair": "none"}}
    stand_in.write(content)
    output = tmp_path / "out"
    run = ("run", stand_in.recipe, "--output", output, "--quiet")
    assert invoke(*run).exit_code == 0
    assert "<audio" not in (output / "report.html").read_text()
    assert ModelCard.load(output / "README.md").data.license == "cc-by-4.0"

    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) is None)
    shown = ("--set=report.audio=true", "--set=export.license=mit", "--open")
    graph = (output / "onnx/model.onnx").stat().st_mtime_ns
    result = invoke(*run, *shown)
    assert result.exit_code == 0, result.output
    # Nothing that was made is made anew for it.
    assert (output / "onnx/model.onnx").stat().st_mtime_ns == graph
    assert opened == [(output / "report.html").resolve().as_uri()]
    assert ModelCard.load(output / "README.md").data.license == "mit"
    page = (output / "report.html").read_text()
    played = re.findall(
        r'<audio [^>]*aria-label="([^"]+)" src="data:audio/wav;base64,([^"]+)"', page
    )
    assert played
    assert len(page) < 1.5e6
    for name, encoded in played:
        heard, rate = soundfile.read(io.BytesIO(base64.b64decode(encoded)))
        original, own_rate = soundfile.read(stand_in.root / name)
        assert rate == own_rate
        np.testing.assert_allclose(heard, original, atol=1e-4)
