"""Labels in the data's words: names that a recipe gives them, and whole numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import data_standins
import pytest
from commands import invoke
from data_standins import write_clip
from pydantic import TypeAdapter
from standin import CLASSES, LABELS, StandIn

from hibprune.data import DataSource, TargetFields
from hibprune.recipe import load_recipe

LABEL, TEXT = TargetFields("label"), TargetFields("text")
SLOTS = TargetFields("slots", ("action", "object", "location"))


def targets(base: Path, fields: TargetFields, **source: Any) -> list[Any]:
    found = TypeAdapter(DataSource).validate_python(source).utterances(fields, base)
    return [utterance.target for utterance in found]


class TestNames:
    @pytest.mark.parametrize("names", [["a", "b", "c"], {0: "a", "1": "b", 2: "c"}])
    @pytest.mark.parametrize("given", [[0, 2, 1], ["0", "2", "1"]])
    def test_of_a_manifest(self, tmp_path: Path, names: Any, given: list[Any]) -> None:
        rows = [{"audio": f"{n}.wav", "label": label} for n, label in enumerate(given)]
        (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
        found = targets(tmp_path, LABEL, kind="manifest", path="m.jsonl", label_names=names)
        assert found == ["a", "c", "b"]

    def test_of_a_folder(self, tmp_path: Path) -> None:
        for name in ("ja", "nein"):
            write_clip(tmp_path / name / "1.wav")
        names = {"ja": "yes"}
        found = targets(tmp_path, LABEL, kind="folder", path=".", label_names=names)
        assert found == ["yes", "nein"]

    def test_of_a_data_set(self, tmp_path: Path) -> None:
        import datasets

        rows = {"audio": ["a.wav", "b.wav"], "label": [1, 0]}
        datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "set"))
        source = {"kind": "datasets", "path": "set"}
        assert targets(tmp_path, LABEL, **source, label_names=["no", "yes"]) == ["yes", "no"]
        assert targets(tmp_path, LABEL, **source) == ["1", "0"]

    def test_of_corpora(self, tmp_path: Path) -> None:
        for made in ("speech_commands", "fluent_speech_commands", "voxceleb1"):
            getattr(data_standins, made)(tmp_path)
        words = targets(
            tmp_path, LABEL, kind="speechcommands", root=".", subset="testing", unknown_clips=1,
            silence_clips=1, label_names={"stop": "STOP", "_silence_": "quiet"},
        )  # fmt: skip
        assert set(words) == {"yes", "STOP", "_unknown_", "quiet"}
        speakers = targets(
            tmp_path, LABEL, kind="voxceleb1", root=".", subset="train",
            label_names={"id10001": "Ada"},
        )  # fmt: skip
        assert speakers == ["Ada", "id11251"]
        intents = targets(
            tmp_path, SLOTS, kind="fluent", root=".", subset="test",
            label_names={"none": "nowhere", "lights": 2},
        )  # fmt: skip
        assert intents[0] == {"action": "activate", "object": "2", "location": "nowhere"}

    def test_transcripts_are_no_labels(self, tmp_path: Path) -> None:
        data_standins.fluent_speech_commands(tmp_path)
        names = {"Switch to Korean": "x"}
        source = {"kind": "fluent", "root": ".", "subset": "test", "label_names": names}
        assert targets(tmp_path, TEXT, **source)[1] == "Switch to Korean"

    @pytest.mark.parametrize("names", ["{yes: JA}", "{ja: yes}", "[no, off]"])
    def test_words_that_yaml_takes_for_truth_are_told(self, stand_in: StandIn, names: str) -> None:
        result = invoke("check", stand_in.recipe, "--set", f"validation.source.label_names={names}")
        assert result.exit_code == 2
        assert "validation.source.label_names: holds " in result.stderr
        assert "write it in quotes" in result.stderr


def relabel(stand_in: StandIn, label: Callable[[Any], Any], kind: str) -> None:
    """Write both manifests with other labels, as `jsonl` or `csv`."""
    content = stand_in.content()
    for split in ("calibration", "validation"):
        rows = [{**row, "label": label(row["label"])} for row in stand_in.rows(split)]
        lines = [json.dumps(row) for row in rows]
        if kind == "csv":
            lines = ["audio,label", *(f"{row['audio']},{row['label']}" for row in rows)]
        (stand_in.root / f"{split}.{kind}").write_text("\n".join(lines))
        content[split]["source"]["path"] = f"{split}.{kind}"
    stand_in.write(content)


class TestNumbers:
    """`w0` to `w4` are the classes 0 to 4 of the stand-in's model."""

    @pytest.mark.parametrize("kind", ["jsonl", "csv"])
    @pytest.mark.parametrize("write", [int, str])
    def test_count_the_models_classes(
        self, stand_in: StandIn, kind: str, write: Callable[[Any], Any]
    ) -> None:
        relabel(stand_in, lambda label: write(LABELS.index(label)), kind)
        result = invoke("check", stand_in.recipe)
        assert result.exit_code == 0, result.stderr
        assert (
            "note: validation: labels are numbers, taken for those of the model's classes: "
            "0 is 'w0', 1 is 'w1', 2 is 'w2', 3 is 'w3', 4 is 'w4'\n"
        ) in result.stdout
        classes = json.loads(invoke("check", stand_in.recipe, "--json").stdout)["data"][1][
            "classes"
        ]
        assert set(classes) == set(LABELS)

    def test_are_measured_as_their_names_are(self, stand_in: StandIn) -> None:
        import torch

        from hibprune.stages.load import load

        named = load(load_recipe(stand_in.recipe), torch.device("cpu"))
        relabel(stand_in, LABELS.index, "jsonl")
        numbered = load(load_recipe(stand_in.recipe), torch.device("cpu"))
        assert numbered.validation.identity == named.validation.identity
        assert numbered.calibration.utterances == named.calibration.utterances
        assert (len(named.notes), len(numbered.notes)) == (0, 2)

    @pytest.mark.parametrize("number", [CLASSES, -1, 10**8])
    def test_of_no_class_are_told(self, stand_in: StandIn, number: int) -> None:
        relabel(stand_in, lambda label: number if label == "w3" else LABELS.index(label), "jsonl")
        result = invoke("check", stand_in.recipe)
        assert result.exit_code == 2
        assert f"the model has no class {number}, only 0 to 4" in result.stderr

    def test_beside_names_are_told(self, stand_in: StandIn) -> None:
        relabel(stand_in, lambda label: 3 if label == "w3" else label, "csv")
        result = invoke("check", stand_in.recipe)
        assert result.exit_code == 2
        assert "some labels are names ('w0'), others numbers of classes ('3')" in result.stderr

    def test_may_be_labels_in_another_order(self, stand_in: StandIn) -> None:
        path = stand_in.model / "config.json"
        names = {"id2label": {n: str(CLASSES - n) for n in range(CLASSES)}, "label2id": None}
        path.write_text(json.dumps({**json.loads(path.read_text()), **names}))
        relabel(stand_in, lambda label: CLASSES - LABELS.index(label), "jsonl")
        result = invoke("check", stand_in.recipe)
        assert result.exit_code == 0, result.stderr
        told = "taken for the model's labels of that name: '5' is class 0, '4' is class 1"
        assert told in result.stdout
        relabel(stand_in, lambda label: int(label) - 1, "jsonl")
        result = invoke("check", stand_in.recipe)
        assert result.exit_code == 2
        assert "'0' is none of the model's labels, some of which are numbers" in result.stderr

    def test_of_slots(self, stand_in_of: Callable[[str], StandIn]) -> None:
        stand_in = stand_in_of("intents")
        for split in ("calibration", "validation"):
            rows = stand_in.rows(split)
            for row in rows:
                row["action"] = {"on": 0, "off": 1}[row["action"]]  # type: ignore[assignment]
                row["object"] = {"none": 0, "lamp": 1, "heat": 2}[row["object"]]  # type: ignore[assignment]
            stand_in.write_rows(split, rows)
        result = invoke("check", stand_in.recipe)
        assert result.exit_code == 0, result.stderr
        assert "note: validation: labels are numbers" in result.stdout
