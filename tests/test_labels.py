"""Labels against the classes of a model: names and numbers, and a config.json that contradicts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from commands import invoke
from pydantic import TypeAdapter
from standin import CLASSES, LABELS, StandIn
from transformers import Wav2Vec2Config

from hibprune.tasks import Task, Vocabulary
from hibprune.tasks.labels import Reading, class_number, readings_fault, readings_note


def task(kind: str, **fields: Any) -> Any:
    return TypeAdapter(Task).validate_python({"kind": kind, **fields})


def vocabulary(names: dict[Any, Any], outputs: int | None = None, **more: Any) -> Vocabulary:
    """What is known of a model with these labels; as many outputs as labels unless told."""
    configuration = Wav2Vec2Config(id2label=names, **more)
    labels = tuple(str(name) for _, name in sorted(configuration.id2label.items()))
    return Vocabulary(
        labels, configuration=configuration, outputs=len(names) if outputs is None else outputs
    )


def fault(names: dict[Any, Any], outputs: int | None = None, **more: Any) -> str:
    return str(task("keyword-spotting").vocabulary_fault(vocabulary(names, outputs, **more)))


class TestNames:
    @pytest.mark.parametrize("names", [{0: "a", 1: "b"}, {"1": "b", "0": "a"}, {0: 0, 1: 1}])
    def test_one_for_each_output_is_well(self, names: dict[Any, Any]) -> None:
        assert fault(names) == "None"

    @pytest.mark.parametrize(
        ("names", "missing"),
        [
            ({0: "a", 2: "b"}, 1),
            ({1: "a", 2: "b"}, 0),
            ({0: "a", -1: "b"}, 1),
            ({0: "a", 7: "b"}, 1),
        ],
    )
    def test_gaps_and_offsets_are_told(self, names: dict[int, str], missing: int) -> None:
        """The old order of the numbers made 'b' class 1 of each."""
        assert f"but not {missing}, and it has the classes 0 to 1: correct it" in fault(names)

    def test_more_outputs_or_names_are_told(self) -> None:
        assert "names 2 classes from 0 to 1, but not 2" in fault({0: "a", 1: "b"}, 3)
        assert "names 3 classes, but it has 2" in fault({0: "a", 1: "b", 2: "c"}, 2)

    def test_a_label_twice_is_told(self) -> None:
        expected = "calls class 0 and class 2 'a': give each its own label"
        assert expected in fault({0: "a", 1: "b", 2: "a"})
        assert "calls class 0 and class 1 '1'" in fault({0: 1, 1: "1"})

    @pytest.mark.parametrize("name", [None, "", "  ", ["a"], True, 1.5])
    def test_no_text_is_told(self, name: object) -> None:
        assert "has no name for class 1: give every class its label as text" in fault(
            {0: "a", 1: name}
        )

    def test_label2id_that_says_otherwise_is_told(self) -> None:
        names = {0: "a", 1: "b"}
        told = "'a' is class 1 by label2id and 0 by id2label: correct the wrong one"
        assert told in fault(names, label2id={"a": 1, "b": 0})
        for agreeing in ({"a": 0, "b": 1}, {"a": "0"}, {}, {"LABEL_0": 0, "LABEL_1": 1}):
            assert fault(names, label2id=agreeing) == "None"

    @pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
    @pytest.mark.parametrize(
        ("kind", "fields"),
        [
            ("keyword-spotting", {}),
            ("speaker-identification", {}),
            ("text-classification", {}),
            ("intent-classification", {"slots": {"s": ["a", "b"]}}),
        ],
    )
    def test_other_problems_are_told(self, kind: str, fields: Any, problem: str) -> None:
        known = vocabulary({0: "a", 1: "b"}, problem_type=problem)
        assert f"says problem_type {problem}" in task(kind, **fields).vocabulary_fault(known)
        known = vocabulary({0: "a", 1: "b"}, problem_type="single_label_classification")
        assert task(kind, **fields).vocabulary_fault(known) is None


class TestIntentOrder:
    SLOTS: ClassVar = {"action": ["on", "off"], "object": ["none", "lamp"]}

    def told(self, *names: str) -> tuple[str | None, str | None]:
        intent, known = (
            task("intent-classification", slots=self.SLOTS),
            vocabulary(dict(enumerate(names))),
        )
        return intent.vocabulary_fault(known), intent.vocabulary_note(known)

    @pytest.mark.parametrize(
        "names",
        [
            ("on", "off", "none", "lamp"),
            ("On", "OFF", "none", "Lamp"),
            ("action_on", "action: off", "object none", "lamp"),
            ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"),
            ("0", "1", "2", "3"),
        ],
    )
    def test_the_same_or_none_is_well(self, names: tuple[str, ...]) -> None:
        assert self.told(*names) == (None, None)

    @pytest.mark.parametrize(
        "names",
        [
            ("off", "on", "none", "lamp"),
            ("none", "lamp", "on", "off"),
            ("on", "off", "lamp", "none"),
        ],
    )
    def test_another_order_is_refused(self, names: tuple[str, ...]) -> None:
        """The default of task.slots would score a model with other numbers in a fixed order."""
        refused, _ = self.told(*names)
        assert refused is not None
        assert refused.endswith("list task.slots in the order of the model's outputs")

    def test_superb_in_alphabetical_order_is_refused(self) -> None:
        intent = task("intent-classification")
        in_order = [label for labels in intent.slots.values() for label in labels]
        assert intent.vocabulary_fault(vocabulary(dict(enumerate(in_order)))) is None
        sorted_ones = [label for labels in intent.slots.values() for label in sorted(labels)]
        assert "calls output 0 'activate'" in intent.vocabulary_fault(
            vocabulary(dict(enumerate(sorted_ones)))
        )

    def test_strange_names_are_noted(self) -> None:
        refused, note = self.told("an", "aus", "nichts", "Lampe")
        assert refused is None
        assert note is not None
        assert "calls output 0 'an' (id2label), task.slots calls it 'on' of action" in note

    def test_repeated_labels_may_stand_in_two_slots(self) -> None:
        slots = {"one": ["none", "a"], "two": ["none", "b"]}
        known = vocabulary({0: "none", 1: "a", 2: "none", 3: "b"})
        assert task("intent-classification", slots=slots).vocabulary_fault(known) is None


class TestNumbers:
    LABELS = ("left", "right", "up")

    def test_names_come_first_then_numbers(self) -> None:
        assert [class_number(label, self.LABELS) for label in ("right", "0", "2")] == [1, 0, 2]
        assert class_number("1", ("1", "2")) == 0

    @pytest.mark.parametrize(
        ("label", "told"),
        [
            ("3", "has no class 3, only 0 to 2"),
            ("-1", "has no class -1, only 0 to 2"),
            ("01", "has no label '01'"),
            ("1.0", "has no label '1.0'"),
            ("rigth", r"has no label 'rigth' \(did you mean 'right'\?\)"),
            ("9" * 5000, "has no label '9"),
        ],
    )
    def test_others_are_refused(self, label: str, told: str) -> None:
        with pytest.raises(ValueError, match=told):
            class_number(label, self.LABELS)

    def test_a_number_beside_labels_that_are_numbers_is_ambiguous(self) -> None:
        with pytest.raises(ValueError, match=r"some of which are numbers.*label_names"):
            class_number("0", ("1", "2", "3"))

    def test_a_target_is_named_as_the_model_names_it(self) -> None:
        known = Vocabulary(self.LABELS)
        assert task("keyword-spotting").named("2", known) == "up"
        intent = task("intent-classification", slots=TestIntentOrder.SLOTS)
        assert intent.named({"action": "1", "object": "lamp"}, known) == {
            "action": "off",
            "object": "lamp",
        }

    def test_names_and_numbers_are_not_mixed(self) -> None:
        mixed = [Reading("left", "left", 0), Reading("1", "right", 1)]
        assert "names ('left'), others numbers of classes ('1')" in str(readings_fault(mixed))
        assert readings_fault(mixed[:1]) is readings_fault(mixed[1:]) is None

    def test_how_they_are_read_is_noted(self) -> None:
        assert readings_note([Reading("left", "left", 0)]) is None
        assert readings_note([Reading("1", "1", 1)]) is None
        by_number = readings_note([Reading("1", "right", 1), Reading("0", "left", 0)])
        assert by_number == (
            "labels are numbers, taken for those of the model's classes: 0 is 'left', 1 is 'right'"
        )
        by_name = readings_note([Reading("1", "1", 0)])
        assert by_name == (
            "labels are numbers, taken for the model's labels of that name: '1' is class 0"
        )


def set_config(stand_in: StandIn, **fields: Any) -> None:
    path = stand_in.model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


class TestCommands:
    def test_check_tells_of_labels_that_are_shifted(self, stand_in: StandIn) -> None:
        set_config(stand_in, id2label={str(n + 1): name for n, name in enumerate(LABELS)})
        result = invoke("check", stand_in.recipe)
        assert result.exit_code == 2
        assert result.stderr == (
            "error: model: cannot serve 'keyword-spotting': id2label in its config.json names 5 "
            "classes from 1 to 5, but not 0, and it has the classes 0 to 4: correct it\n"
        )

    def test_labels_that_are_numbers_are_text(self, stand_in: StandIn) -> None:
        set_config(stand_in, id2label={str(n): n for n in range(CLASSES)}, label2id=None)
        for split in ("calibration", "validation"):
            rows = [{**row, "label": row["label"][1:]} for row in stand_in.rows(split)]
            stand_in.write_rows(split, rows)
        result = invoke("check", stand_in.recipe)
        assert (result.exit_code, result.stderr) == (0, "")

    @pytest.mark.parametrize("name", ["keyword_spotting", "intents", "text_classification"])
    def test_a_model_of_several_labels_is_refused(
        self, stand_in_of: Callable[[str], StandIn], name: str
    ) -> None:
        stand_in = stand_in_of(name)
        set_config(stand_in, problem_type="multi_label_classification")
        result = invoke("check", stand_in.recipe)
        assert result.exit_code == 2
        assert "says problem_type multi_label_classification, several labels" in result.stderr

    def test_slots_in_another_order_are_refused(
        self, stand_in_of: Callable[[str], StandIn]
    ) -> None:
        stand_in = stand_in_of("intents")
        names = ["off", "on", "none", "lamp", "heat"]
        set_config(stand_in, id2label=dict(enumerate(names)), label2id=None)
        result = invoke("run", stand_in.recipe, "--output", stand_in.root / "out")
        assert result.exit_code == 2
        assert "calls output 0 'off' (id2label), task.slots calls it 'on'" in result.output
        assert not Path(stand_in.root / "out").exists()

    def test_strange_names_are_noted_by_check_and_run(
        self, stand_in_of: Callable[[str], StandIn]
    ) -> None:
        stand_in = stand_in_of("intents")
        names = {str(n): name for n, name in enumerate(["an", "aus", "nichts", "Lampe", "warm"])}
        set_config(stand_in, id2label=names, label2id=None)
        result = invoke("check", stand_in.recipe)
        assert result.exit_code == 0
        assert "note: model: its config.json calls output 0 'an' (id2label)" in result.output
