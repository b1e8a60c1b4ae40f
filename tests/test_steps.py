"""A step runs once, and only a record that can be believed stands for its result."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from hibprune.errors import UserError
from hibprune.execution.files import (
    remove_leftovers,
    sha256_of,
    write_files_via_temporary,
    write_text,
)
from hibprune.execution.steps import Done, Partial, Step, result_digest
from hibprune.records.units import Head, Plan, Training

PLAN = Plan(removed=(Head(0, 1),), kept=(Head(0, 0),))


def step(directory: Path, name: str = "plan", version: int = 1, **inputs: Any) -> Step[Plan]:
    return Step[Plan](directory, name, version, {"budget": 1, **inputs}, Plan)


def counted(result: Plan = PLAN) -> tuple[Callable[[], Plan], list[int]]:
    calls: list[int] = []

    def compute() -> Plan:
        calls.append(1)
        return result

    return compute, calls


def run(step: Step[Plan]) -> tuple[Done[Plan], bool]:
    """The result, and whether it was computed."""
    compute, calls = counted()
    return step.once(compute), bool(calls)


def record(directory: Path) -> dict[str, Any]:
    return dict(json.loads((directory / "steps/plan.json").read_text()))


def test_the_second_run_takes_the_first_ones_result(tmp_path: Path) -> None:
    first, computed = run(step(tmp_path))
    assert computed
    assert not first.resumed
    second, computed = run(step(tmp_path))
    assert not computed
    assert second.resumed
    assert (second.result, second.key, second.seconds) == (first.result, first.key, first.seconds)


@pytest.mark.parametrize(
    "changed",
    [
        lambda directory: step(directory, budget=2),
        lambda directory: step(directory, more=None),
        lambda directory: step(directory, version=2),
    ],
)
def test_a_changed_input_or_version_computes_again(
    tmp_path: Path, changed: Callable[[Path], Step[Plan]]
) -> None:
    run(step(tmp_path))
    assert run(changed(tmp_path))[1]
    assert run(step(tmp_path))[1], "the record of the changed step must not do for the first"


def test_keys_tell_names_versions_and_inputs_apart(tmp_path: Path) -> None:
    steps = [
        step(tmp_path),
        step(tmp_path, name="plan1", version=1),
        step(tmp_path, name="plan", version=11),
        step(tmp_path, budget="1"),
        step(tmp_path, budget=[1]),
    ]
    assert len({one.key for one in steps}) == len(steps)
    reordered = Step[Plan](tmp_path, "plan", 1, {"b": 1, "a": 2}, Plan)
    assert reordered.key == Step[Plan](tmp_path, "plan", 1, {"a": 2, "b": 1}, Plan).key


@pytest.mark.parametrize(
    "forged",
    [
        "",
        "{",
        "[]",
        "null",
        "\x00\x01",
        '{"key": "KEY"}',
        '{"key": "KEY", "step": "plan", "version": 1, "seconds": 1, "inputs": {}, "files": [], '
        '"result": {"removed": [], "kept": []}}',
        '{"key": "KEY", "step": "plan", "version": 1, "seconds": 1, "inputs": {}, "files": {}, '
        '"result": {"removed": []}}',
        '{"key": "other", "step": "plan", "version": 1, "seconds": 1, "inputs": {}, "files": {}, '
        '"result": {"removed": [], "kept": []}}',
    ],
)
def test_a_file_that_merely_exists_is_not_believed(tmp_path: Path, forged: str) -> None:
    this = step(tmp_path)
    write_text(tmp_path / "steps/plan.json", forged.replace("KEY", this.key))
    done, computed = run(this)
    assert computed
    assert done.result == PLAN
    assert not run(this)[1], "what was computed takes the place of the forgery"


def test_files_of_a_step_must_be_there_unchanged(tmp_path: Path) -> None:
    def once(content: str) -> bool:
        calls: list[int] = []

        def compute() -> Plan:
            calls.append(1)
            write_text(tmp_path / "made.txt", content)
            return PLAN

        step(tmp_path).once(compute, lambda _: ["made.txt"])
        return bool(calls)

    assert once("right")
    assert not once("right")
    (tmp_path / "made.txt").write_text("tampered")
    assert once("right")
    assert (tmp_path / "made.txt").read_text() == "right"
    (tmp_path / "made.txt").unlink()
    assert once("right")


def test_a_record_that_names_other_files_is_not_believed(tmp_path: Path) -> None:
    run(step(tmp_path))
    compute, calls = counted()
    write_text(tmp_path / "made.txt", "")
    step(tmp_path).once(compute, lambda _: ["made.txt"])
    assert calls


@pytest.mark.parametrize(
    "edit",
    [
        lambda kept: kept["result"].update(removed=[]),
        lambda kept: kept.update(files={"made.txt": "0" * 64}),
        lambda kept: kept.pop("digest"),
        lambda kept: kept.update(seconds=float("inf")),
        lambda kept: kept.update(seconds=-1),
        lambda kept: kept["inputs"].update(more=float("nan")),
    ],
)
def test_a_record_that_was_edited_is_not_believed(
    tmp_path: Path, edit: Callable[[dict[str, Any]], object]
) -> None:
    first, _ = run(step(tmp_path))
    kept = record(tmp_path)
    edit(kept)
    (tmp_path / "steps/plan.json").write_text(json.dumps(kept))
    again, computed = run(step(tmp_path))
    assert computed
    assert (again.result, again.key) == (first.result, first.key)


def test_what_stands_for_a_step_changes_with_its_result_and_its_files(tmp_path: Path) -> None:
    def key(content: str, result: Plan = PLAN) -> str:
        for name in ("steps/plan.json", "made.txt"):
            (tmp_path / name).unlink(missing_ok=True)

        def compute() -> Plan:
            write_text(tmp_path / "made.txt", content)
            return result

        return step(tmp_path).once(compute, lambda _: ["made.txt"]).key

    other = Plan(removed=(), kept=(Head(0, 0), Head(0, 1)))
    assert key("a") == key("a")
    assert len({key("a"), key("b"), key("a", other)}) == 3


def test_what_a_step_took_does_not_stand_for_it(tmp_path: Path) -> None:
    def once(seconds: float) -> Done[dict[str, float]]:
        timed = frozenset({"seconds"})
        one = Step[dict[str, float]](tmp_path, "a", 1, {}, dict[str, float], timed)
        return one.once(lambda: {"score": 1.0, "seconds": seconds})

    first = once(1.5)
    path = tmp_path / "steps/a.json"
    kept = json.loads(path.read_text())
    kept["result"]["seconds"] = 0.0
    path.write_text(json.dumps(kept))
    again = once(2.5)
    assert again.result["seconds"] == 2.5, "it is guarded like the rest"
    assert again.key == first.key


def test_a_result_that_cannot_be_right_is_computed_again(tmp_path: Path) -> None:
    run(step(tmp_path))
    compute, calls = counted()
    step(tmp_path).once(compute, credible=lambda plan: len(plan.removed) == 1)
    assert not calls
    step(tmp_path).once(compute, credible=lambda plan: len(plan.removed) == 2)
    assert calls


@pytest.mark.parametrize("name", ["../outside.txt", "/outside.txt", "a/../../outside.txt", "\0"])
def test_a_record_of_files_elsewhere_is_not_believed(tmp_path: Path, name: str) -> None:
    directory = tmp_path / "run"
    run(step(directory))
    (tmp_path / "outside.txt").write_text("")
    path = str(tmp_path / "outside.txt") if name.startswith("/") else name
    kept = record(directory)
    kept["files"] = {path: sha256_of(tmp_path / "outside.txt")}
    kept["digest"] = result_digest(kept["key"], kept["result"], kept["files"])
    (directory / "steps/plan.json").write_text(json.dumps(kept))
    compute, calls = counted()

    def once(names: list[str]) -> None:
        with suppress(OSError):  # the files that the new result names are not there either
            step(directory).once(compute, lambda _: names)

    once([path])
    assert calls


def test_a_failing_step_leaves_no_record(tmp_path: Path) -> None:
    def fail() -> Plan:
        raise UserError("no")

    with pytest.raises(UserError):
        step(tmp_path).once(fail)
    assert not list(tmp_path.rglob("*"))


def test_the_record_says_what_it_stands_for(tmp_path: Path) -> None:
    run(step(tmp_path))
    kept = record(tmp_path)
    assert (kept["step"], kept["version"], kept["inputs"]) == ("plan", 1, {"budget": 1})
    assert Plan.model_validate(kept["result"]) == PLAN


def test_partial_results_belong_to_one_key_and_go_when_the_step_is_done(tmp_path: Path) -> None:
    this = step(tmp_path)
    assert this.partial() == Partial({})
    this.save_partial({"a": (1.0, 2.5)}, steps=40)
    assert this.partial() == Partial({"a": (1.0, 2.5)}, steps=40)
    # What no decimal of less than 17 digits stands for comes back to the last bit.
    training = Training(steps=3, share=0.1, state={"x": (0.1 + 0.2, 1e-45), "y": ()})
    this.save_partial({}, training=training)
    assert this.partial() == Partial({}, training=training)
    assert step(tmp_path, budget=2).partial() == Partial({})
    run(this)
    assert this.partial() == Partial({})
    assert [path.name for path in (tmp_path / "steps").iterdir()] == ["plan.json"]


@pytest.mark.parametrize(
    "forged",
    [
        "",
        "[]",
        '{"key": "KEY"}',
        '{"key": "KEY", "rows": {"a": 1}}',
        '{"key": "KEY", "rows": {}, "training": {"steps": 3}}',
        '{"key": "KEY", "rows": {}, "training": {"steps": 3, "share": 0.1, "state": {"x": 1}}}',
    ],
)
def test_forged_partial_results_are_not_believed(tmp_path: Path, forged: str) -> None:
    this = step(tmp_path)
    write_text(tmp_path / "steps/plan.partial.json", forged.replace("KEY", this.key))
    assert this.partial() == Partial({})


def test_a_writer_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")

    def half(place: Path) -> None:
        (place / "a.txt").write_text("half")
        raise ValueError("half-way")

    with pytest.raises(ValueError, match="half-way"):
        write_files_via_temporary(tmp_path, half)
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_files_are_moved_into_place_and_readable_by_others(tmp_path: Path) -> None:
    def write(place: Path) -> None:
        (place / "b.bin").write_text("b")
        (place / "b.bin").chmod(0o600)
        (place / "a.txt").write_text("a")

    assert write_files_via_temporary(tmp_path / "new", write) == ["a.txt", "b.bin"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a.txt", "b.bin"]
    plain = tmp_path / "plain"
    plain.touch()
    assert (tmp_path / "new/b.bin").stat().st_mode == plain.stat().st_mode


def test_only_leftovers_of_ours_are_removed(tmp_path: Path) -> None:
    ours = ["steps/.plan.123.partial.json", ".scratch.123.partial/x", "onnx/.model.9.partial.onnx"]
    theirs = ["steps/attribute.partial.json", ".hidden", ".my.partial", "a.1.partial"]
    for name in (*ours, *theirs):
        write_text(tmp_path / name, "")
    remove_leftovers(tmp_path)
    left = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert left == set(theirs)


def leaving(directory: Path, *names: str) -> Callable[[], Plan]:
    def compute() -> Plan:
        for name in names:
            write_text(directory / name, name)
        return PLAN

    return compute


def leave(directory: Path, budget: int, *names: str) -> None:
    """Do the step for some budget, leaving some files."""
    done = step(directory, budget=budget).once(leaving(directory, *names), lambda _: list(names))
    assert not done.resumed


def test_files_of_an_earlier_recipe_that_are_not_made_again_go(tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("of another step")
    leave(tmp_path, 1, "config.json", "onnx/tokenizer.json")
    leave(tmp_path, 2, "config.json", "vocab.json")
    assert not (tmp_path / "onnx/tokenizer.json").exists()
    for kept in ("config.json", "vocab.json", "other.txt"):
        assert (tmp_path / kept).exists(), kept


def test_a_file_that_someone_has_changed_since_stays(tmp_path: Path) -> None:
    leave(tmp_path, 1, "config.json", "notes.json")
    (tmp_path / "notes.json").write_text("mine now")
    leave(tmp_path, 2, "config.json")
    assert (tmp_path / "notes.json").read_text() == "mine now"


def test_a_forged_record_removes_nothing_elsewhere(tmp_path: Path) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_text("outside.txt")
    run_directory = tmp_path / "run"
    leave(run_directory, 1, "inside.txt")
    forged = record(run_directory)
    forged["files"] = {"../outside.txt": sha256_of(outside), "inside.txt": "gone by now"}
    write_text(run_directory / "steps/plan.json", json.dumps(forged))
    leave(run_directory, 2, "new.txt")
    assert outside.exists()
    assert (run_directory / "inside.txt").exists()
