"""Recipes that are small to write and enormous to read: refused in a short line, at once."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_recipe import CONTENT, faults, load

from hibprune.recipe.bounded_yaml import MAX_VALUES, NotYAMLError, parse_yaml

pytestmark = pytest.mark.timeout(60)

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{this}: &{this} [{', '.join([f'*{last}'] * 9)}]\n"
    for last, this in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGED = "x0: &x0 {k: 1}\n" + "".join(
    f"x{this}: &x{this} {{<<: [{', '.join([f'*x{this - 1}'] * 9)}]}}\n" for this in range(1, 9)
)
MANY = f"more than {MAX_VALUES:,} values in it"
SECONDS, LONGEST_LINE, MOST_LINES = 15.0, 700, 25


def refusal(tmp_path: Path, text: str, *overrides: str) -> list[str]:
    """The lines of a refusal that came at once and can be read."""
    start = time.monotonic()
    lines = faults(tmp_path, text, *overrides)
    assert time.monotonic() - start < SECONDS
    assert len(lines) <= MOST_LINES
    assert max(map(len, lines)) < LONGEST_LINE
    return lines


@pytest.mark.parametrize(
    "place",
    [
        "", "attribution: {method: hib, steps: *i}", "attribution: {method: *i}",
        "task: {kind: *i}", "name: *i", "budget: *i", "? *i\n: 1", "seed: [*i, *i]",
    ],
)  # fmt: skip
def test_a_bomb_of_aliases(tmp_path: Path, place: str) -> None:
    assert refusal(tmp_path, BOMB + place) == [f"r.yaml: not valid YAML: {MANY}"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (MERGED, MANY),
        ("a: [" + "1," * 300_000 + "]", MANY),
        ("".join(f"k{number}: 1\n" for number in range(20_000)), MANY),
        ("a: &a [*a]", "a value that is part of itself"),
        ("a: &a {b: *a}", "a value that is part of itself"),
        ("a: " + "[" * 20_000, "nested too deeply"),
        ("a: " + "{b: " * 20_000, "nested too deeply"),
        ("- " * 20_000, "nested too deeply"),
        ("? " * 20_000, "nested too deeply"),
        ("seed: " + "9" * 5000, "a number of 5,000 characters"),
        ("seed: 0x" + "f" * 100_000, "a number of 100,002 characters"),
        ("seed: 1" + ":1" * 100_000, "a number of 200,001 characters"),
        ("seed: 1" + ":1" * 1000 + ".5", "a number of 2,003 characters"),
        ("seed: !!int ''", "a value is not of the kind that its tag says"),
        ("seed: !!float ''", "a value is not of the kind that its tag says"),
        ("seed: !!bool perhaps", "a value is not of the kind that its tag says"),
        ("seed: !!timestamp x", "a value is not of the kind that its tag says"),
        ("seed: !!binary aGVsbG8=", "bytes is no kind of value for a recipe"),
        ("seed: !!set {a, b}", "set is no kind of value for a recipe"),
        ("seed: !!omap [a: 1]", "tuple is no kind of value for a recipe"),
        ("seed: !!map x", "expected a mapping node, but found scalar"),
        ("%YAML " + "1" * 100_000, "a number of thousands of digits"),
        ('name: "\\0"', "'\0' holds what is no character"),
        ('name: "\\ud800"', "'\ud800' holds what is no character"),
    ],
)  # fmt: skip
def test_what_no_person_would_write(tmp_path: Path, text: str, reason: str) -> None:
    (line,) = refusal(tmp_path, text)
    place, _, told = line.partition(": not valid YAML: ")
    assert place in ("r.yaml", "r.yaml:1")
    assert told == reason


@pytest.mark.parametrize(
    "text",
    [
        "name: " + "x" * 900_000,
        "x" * 900_000,
        "x" * 1000 + ": 1",
        "x" * 1000 + ": 1\n" + "x" * 1000 + ": 2",
        "a: !!" + "t" * 100_000 + " x",
        "a: *" + "t" * 100_000,
        "task: {kind: " + "x" * 300_000 + "}",
        "attribution: {method: hib, steps: " + "x" * 300_000 + "}",
        "attribution: {method: hib, precision: " + "x" * 300_000 + "}",
        "task: {kind: intent-classification, slots: {" + "s" * 900 + ": []}}",
        "".join(f"key{number}: 1\n" for number in range(3000)),
    ],
)
def test_what_is_long_is_told_of_in_short(tmp_path: Path, text: str) -> None:
    refusal(tmp_path, text)


def test_a_recipe_that_is_a_link_to_a_file_of_others_repeats_none_of_it(tmp_path: Path) -> None:
    text = "root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n"
    (line,) = refusal(tmp_path, text)
    assert line == "r.yaml: a recipe is a mapping of keys to values, not text"


@pytest.mark.parametrize(
    "override",
    [
        "seed=" + "9" * 5000, "seed=" + "[" * 3000, "seed=&a [*a]", "x" * 100_000,
        "a." * 3000 + "b=1", "name=" + "y" * 5000, "task.kind=" + "z" * 100_000,
        "seed=!!bool x", "seed=2020-99-99", "task={kind: [1, 2]}",
        "attribution.method=" + "m" * 9000,
    ],
)  # fmt: skip
def test_overrides_are_held_to_the_same(tmp_path: Path, override: str) -> None:
    refusal(tmp_path, yaml.safe_dump(CONTENT), override)


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("model.source=\"a\\nerror: b\"", "model.source: should be one line, not 'a error: b'"),
        ("name=\"a\\nb\"", "name: 'a b' does not do: use letters, digits, '.', '_' and '-'"),
        ("removal.memory_gib=.inf", "removal.memory_gib: should be a finite number"),
        ("export.tolerance=1e999", "export.tolerance: should be a finite number"),
        ("export.tolerance=inf", "export.tolerance: should be a finite number"),
        ("export.seconds=[nan, 1]", "export.seconds.0: should be a finite number"),
        ("seed=" + "9" * 90, "seed: should be at most 9,007,199,254,740,992"),
        ("calibration.samples=9007199254740993",
         "calibration.samples: should be at most 9,007,199,254,740,992"),
        ("benchmark.threads=1000000",
         "benchmark.threads: should be at most 1,024, not 1,000,000"),
        ("benchmark.repetitions=1000000000",
         "benchmark.repetitions: should be at most 100,000, not 1,000,000,000"),
        ("export.batches=[1, 100000]", "export.batches: should be at most 1,024, not 100,000"),
    ],
)  # fmt: skip
def test_numbers_that_no_machine_can_take(tmp_path: Path, override: str, fault: str) -> None:
    assert refusal(tmp_path, yaml.safe_dump(CONTENT), override) == [f"r.yaml: {fault}"]


def test_what_an_alias_stands_for_can_be_changed_alone(tmp_path: Path) -> None:
    content: dict[str, Any] = {**CONTENT, "calibration": None, "validation": None}
    text = yaml.safe_dump({k: v for k, v in content.items() if v is not None}) + (
        "calibration: {source: &clips {kind: manifest, path: a.jsonl}}\n"
        "validation: {source: *clips}\n"
    )
    recipe = load(tmp_path, text, "calibration.source.path=b.jsonl").recipe
    paths = [one.source.model_dump()["path"] for one in (recipe.calibration, recipe.validation)]
    assert paths == ["b.jsonl", "a.jsonl"]


@pytest.mark.parametrize("name", ["2024", "1e5", "null", "true", "2020-01-01", "0x10", "plain"])
@pytest.mark.parametrize("mark", ["", "---\n", "\ufeff", "%YAML 1.1\n---\n"])
def test_a_name_taken_from_the_file_reads_as_a_name(tmp_path: Path, name: str, mark: str) -> None:
    loaded = load(tmp_path, mark + yaml.safe_dump(CONTENT), name=f"{name}.yaml")
    assert load(tmp_path, loaded.text, name="again.yaml").recipe == loaded.recipe
    assert loaded.recipe.name == name


def test_a_recipe_in_braces_takes_a_name_too(tmp_path: Path) -> None:
    text = yaml.safe_dump(CONTENT, default_flow_style=True, width=10_000)
    assert text.startswith("{")
    loaded = load(tmp_path, text, name="mine.yaml")
    assert load(tmp_path, loaded.text, name="again.yaml").recipe == loaded.recipe


def test_plain_values_are_as_yaml_has_them() -> None:
    text = "a: [1, 2.5, true, null, x, 2020-01-01]\nb: {c: ~, d: 0x10, e: 1:30}\n"
    assert parse_yaml(text) == yaml.safe_load(text)
    assert parse_yaml("") is None
    with pytest.raises(NotYAMLError):
        parse_yaml("a: 1\n---\nb: 2\n")
