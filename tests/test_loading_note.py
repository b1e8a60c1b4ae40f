"""config.json of a pruned model says what loading it takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import interpreters
import pytest
from tiny_models import TINY_MODELS
from transformers import AutoConfig, AutoModelForAudioClassification

from hibprune.compression.remove import remove_heads, save_model
from hibprune.records.units import Head, Plan


def note_of(directory: Path) -> str | None:
    note: str | None = json.loads((directory / "config.json").read_text()).get("_hibprune")
    return note


@pytest.mark.parametrize("name", ["keyword_spotting", "encoder_decoder", "text_classification"])
def test_the_note_stands_in_every_pruned_model(finished: Callable[[str], Path], name: str) -> None:
    note = note_of(finished(name))
    assert note is not None
    assert "`import hibprune`" in note
    assert "_prune_heads" in note


def test_it_survives_reloading_and_is_not_repeated(
    finished: Callable[[str], Path], tmp_path: Path
) -> None:
    output = finished("keyword_spotting")
    model = AutoModelForAudioClassification.from_pretrained(output)
    save_model(model, tmp_path)
    assert note_of(tmp_path) == note_of(output)
    remove_heads(model, Plan(removed=(Head(0, 0),), kept=()))
    save_model(model, tmp_path)
    assert note_of(tmp_path) == note_of(output)
    assert AutoConfig.from_pretrained(tmp_path).to_dict()["_hibprune"] == note_of(output)


def test_a_model_that_lost_nothing_has_none(tmp_path: Path) -> None:
    model = TINY_MODELS[0].build()
    remove_heads(model, Plan(removed=(), kept=(Head(0, 0),)))
    save_model(model, tmp_path)
    assert note_of(tmp_path) is None


def test_without_hibprune_loading_stops_where_the_note_says(
    finished: Callable[[str], Path],
) -> None:
    program = (
        "import sys; from transformers import AutoModelForAudioClassification as Model\n"
        "try: Model.from_pretrained(sys.argv[1])\n"
        "except Exception as error: print(str(error))"
    )
    output = finished("keyword_spotting")
    told = interpreters.run(program, output, ready="transformers")
    assert "_prune_heads" in told.stdout
    card = (output / "README.md").read_text()
    assert "`_prune_heads`" in card
    assert "import hibprune" in card
