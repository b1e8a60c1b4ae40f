"""Recipes: what is wrong is said in one plain line per fault, word for word."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
import yaml
from click.testing import CliRunner
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hibprune.cli import main
from hibprune.data import Manifest
from hibprune.errors import UserError
from hibprune.recipe import LoadedRecipe, Recipe, load_recipe
from hibprune.recipe.faults import fault_lines, members_of

CONTENT: dict[str, Any] = {
    "model": {"source": "model"},
    "task": {"kind": "keyword-spotting"},
    "calibration": {"source": {"kind": "manifest", "path": "calibration.jsonl"}},
    "validation": {"source": {"kind": "folder", "path": "validation"}},
    "budget": {"fraction": 0.4},
}
RECIPES = Path(__file__).parent.parent / "recipes"


def load(tmp_path: Path, text: str | bytes, *overrides: str, name: str = "r.yaml") -> LoadedRecipe:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_recipe(path, overrides)


def faults(tmp_path: Path, text: str | bytes, *overrides: str, name: str = "r.yaml") -> list[str]:
    """The lines of the error, the directory left out of them."""
    with pytest.raises(UserError) as caught:
        load(tmp_path, text, *overrides, name=name)
    return str(caught.value).replace(f"{tmp_path}/", "").splitlines()


def test_what_is_left_out_takes_the_documented_defaults(tmp_path: Path) -> None:
    recipe = load(tmp_path, yaml.safe_dump(CONTENT), name="yes-no.yaml").recipe
    assert recipe.name == "yes-no"
    assert (recipe.calibration.samples, recipe.calibration.max_unreadable) == (200, 0.01)
    assert recipe.benchmark.seconds == (1.0, 5.0, 15.0)
    assert (recipe.attribution.name(), recipe.device, recipe.seed) == ("hib", "auto", 0)


AMOUNTS = "fraction, heads, parameters, multiply_adds, size_mb, metric_drop or speedup"
ONE_OF = f"budget: give one of {AMOUNTS}"


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("budgets=1", "budgets: unknown key (did you mean 'budget'?)"),
        ("zzz=1", "zzz: unknown key"),
        ("budget.fracton=1", "budget.fracton: unknown key (did you mean 'fraction'?)"),
        ("task.kin=a", "task.kin: unknown key (did you mean 'kind'?)"),
        ("attribution={method: hib, step: 3}",
         "attribution.step: unknown key (did you mean 'steps'?)"),
        ("calibration.source.pth=a",
         "calibration.source.pth: unknown key (did you mean 'path'?)"),
        ("task.kind=keyword-spoting",
         "task: unknown kind 'keyword-spoting' (did you mean 'keyword-spotting'?)"),
        ("attribution={method: hib, steps: auot}",
         "attribution.steps: should be a whole number from 1 up or 'auto', not 'auot' "
         "(did you mean 'auto'?)"),
        ("attribution={method: hib, steps: 0}",
         "attribution.steps: should be a whole number from 1 up or 'auto', not 0"),
        ("attribution={method: hib, steps: {a: 1}}",
         "attribution.steps: should be a whole number from 1 up or 'auto', not a mapping"),
        ("attribution={method: hib, precision: 16}",
         "attribution.precision: 16 is not one of 'float32' or 'bfloat16'"),
        ("attribution={method: occlusion, beta: 1}",
         "attribution.beta: not a setting of occlusion (of hib, head-iba): "
         "leave it out or change the method"),
        ("attribution={method: occlusion, betta: 1}", "attribution.betta: unknown key"),
        ("task={kind: asr-ctc, language: en}",
         "task.language: not a setting of asr-ctc (of asr-seq2seq): "
         "leave it out or change the kind"),
        ("calibration.source={kind: folder, path: a, split: b}",
         "calibration.source.split: not a setting of folder (of datasets): "
         "leave it out or change the kind"),
        ("calibration.source={kind: datasets, path: a, label_names: {1.5: b}}",
         "calibration.source.label_names.1.5: a key should be a whole number or text, not 1.5"),
        ("calibration.source={kind: datasets, path: a, slots: {1: b}}",
         "calibration.source.slots.1: a key should be text, not 1"),
        ("calibration.source={kind: datasets, path: a, slots: {b: yes}}",
         "calibration.source.slots.b: should be text, not true"),
        ("attribution={method: occlusion, stacks: [encodr]}",
         "attribution.stacks.0: 'encodr' is not one of 'encoder', 'decoder.self' or "
         "'decoder.cross'"),
        ("attribution.method=hibb", "attribution: unknown method 'hibb' (did you mean 'hib'?)"),
        ("validation.source.kind=folders",
         "validation.source: unknown kind 'folders' (did you mean 'folder'?)"),
        ("attribution={metod: hib, steps: 3}",
         "attribution.metod: unknown key (did you mean 'method'?)"),
        ("validation.source={path: a, knd: folder}",
         "validation.source.knd: unknown key (did you mean 'kind'?)"),
        ("validation.source={path: a}", "validation.source: missing key 'kind'"),
        ("model={}", "model.source: missing"),
        ("task=keyword-spotting",
         "task: should be a mapping of keys to values, not 'keyword-spotting'"),
        ("validation=null", "validation: should be a mapping of keys to values, not nothing"),
        ("gates=[1]", "gates: should be a mapping of keys to values, not a list"),
        ("budget.fraction=half", "budget.fraction: should be a number, not 'half'"),
        ("budget.fraction=1", "budget.fraction: should be less than 1, not 1"),
        ("budget.fraction=-0.1", "budget.fraction: should be greater than or equal to 0, not -0.1"),
        ("budget.fraction=0",
         "budget: fraction is 0 and there is no share of other units, so that nothing would go: "
         "raise it or give one"),
        ("budget.heads=3", f"{ONE_OF}: there are fraction and heads"),
        ("budget={}",
         f"{ONE_OF}, or a share of neurons, channels, decoder_neurons, decoder_heads, cross_heads "
         "or ranks: there is none"),
        ("budget.scope=globall", "budget.scope: 'globall' is not one of 'global' or 'layerwise'"),
        ("budget={neurons: true}", "budget.neurons: should be a number, not true"),
        ("budget.heads=yes", "budget.heads: should be a whole number, not true"),
        ("export.batches=[1, on]", "export.batches.1: should be a whole number, not true"),
        ("attribution={method: hib, steps: false}",
         "attribution.steps: should be a whole number from 1 up or 'auto', not false"),
        ("seed=1.5", "seed: should be a whole number, not 1.5"),
        ("seed=2020-01-01", "seed: should be a whole number, not 2020-01-01"),
        ("model.source=[a]", "model.source: should be text, not a list"),
        ("model.pickle=perhaps", "model.pickle: should be true or false, not 'perhaps'"),
        ("benchmark.seconds=1", "benchmark.seconds: should be a list, not 1"),
        ("benchmark.seconds=[1, x]", "benchmark.seconds.1: should be a number, not 'x'"),
        ("benchmark.seconds=[]", "benchmark.seconds: should have at least 1 entry"),
        ("benchmark.seconds=[-1]", "benchmark.seconds: should be at least 0.1, not -1"),
        ("export.batches=[1, 0]", "export.batches.1: should be greater than 0, not 0"),
        ("export.tolerance=.inf", "export.tolerance: should be a finite number"),
        ("calibration.min_seconds=50",
         "calibration: min_seconds 50 is more than max_seconds 40"),
        ("name=a b", "name: 'a b' does not do: use letters, digits, '.', '_' and '-'"),
        ("name=../up", "name: '../up' does not do: use letters, digits, '.', '_' and '-'"),
        ("gates.max_wer_rise=0.1",
         "gates.max_wer_rise: the metric of keyword-spotting is accuracy: "
         "use max_accuracy_drop"),
    ],
)  # fmt: skip
def test_a_fault_is_named_by_file_key_and_remedy(tmp_path: Path, override: str, fault: str) -> None:
    assert faults(tmp_path, yaml.safe_dump(CONTENT), override) == [f"r.yaml: {fault}"]


def test_an_override_that_leaves_another_kinds_keys_is_told_of_first(tmp_path: Path) -> None:
    content = yaml.safe_dump({**CONTENT, "attribution": {"method": "hib", "beta": 2, "steps": 3}})
    assert faults(tmp_path, content, "attribution.method=magnitude", "attribution.x=1") == [
        "r.yaml: attribution: --set attribution.method=magnitude leaves keys that method "
        "'magnitude' does not have: replace them all, e.g. --set 'attribution={method: magnitude}'",
        "r.yaml: attribution.beta: not a setting of magnitude (of hib, head-iba): "
        "leave it out or change the method",
        "r.yaml: attribution.steps: not a setting of magnitude (of hib, head-iba, gates, attattr): "
        "leave it out or change the method",
        "r.yaml: attribution.x: unknown key",
    ]
    remedied = load(tmp_path, content, "attribution={method: magnitude}").recipe
    assert remedied.attribution.name() == "magnitude"


def test_unknown_keys_that_no_override_left_are_not_blamed_on_one(tmp_path: Path) -> None:
    told = faults(tmp_path, yaml.safe_dump(CONTENT), "attribution.method=hib", "attribution.x=1")
    assert told == ["r.yaml: attribution.x: unknown key"]
    content = yaml.safe_dump({**CONTENT, "task": {"kind": "keyword-spotting", "x": 1}})
    assert faults(tmp_path, content, "attribution.method=hib") == ["r.yaml: task.x: unknown key"]


class Unions(BaseModel):
    """Unions that no recipe has yet."""

    amount: Annotated[int, Field(gt=0, le=4)] | Literal["few", "many"] | None = None
    shares: list[Annotated[float, Field(ge=0, lt=0.5)] | bool] = []
    names: dict[str, int | list[int]] = {}
    layers: list[int | Literal["all"]] | None = None


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ({"amount": 5},
         "amount: should be a whole number above 0 up to 4, 'few' or 'many', not 5"),
        ({"amount": "man"},
         "amount: should be a whole number above 0 up to 4, 'few' or 'many', not 'man' "
         "(did you mean 'many'?)"),
        ({"shares": [0.1, 0.5]},
         "shares.1: should be a number from 0 up below 0.5 or true or false, not 0.5"),
        ({"layers": [1, "al"]},
         "layers.1: should be a whole number or 'all', not 'al' (did you mean 'all'?)"),
        ({"names": {"a": "b"}}, "names.a: should be a whole number or a list, not 'b'"),
    ],
)  # fmt: skip
def test_any_union_of_types_has_one_line(content: dict[str, Any], line: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Unions.model_validate(content)
    assert caught.value.error_count() > 1
    assert list(fault_lines(caught.value, Unions)) == [line]


def test_the_accuracy_gate_does_not_fit_a_wer(tmp_path: Path) -> None:
    overrides = ("task.kind=asr-ctc", "gates.max_accuracy_drop=0.1")
    assert faults(tmp_path, yaml.safe_dump(CONTENT), *overrides) == [
        "r.yaml: gates.max_accuracy_drop: the metric of asr-ctc is WER: use max_wer_rise"
    ]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("largest_accuracy_drop", "max_accuracy_drop"),
        ("largest_wer_rise", "max_wer_rise"),
        ("smallest_speedup", "min_speedup"),
        ("largest_file_mb", "max_file_mb"),
    ],
)
def test_an_old_key_names_the_new_one(tmp_path: Path, old: str, new: str) -> None:
    line = f"r.yaml: gates.{old}: write {new} instead"
    assert faults(tmp_path, yaml.safe_dump(CONTENT), f"gates.{old}=0.1") == [line]
    written = yaml.safe_dump({**CONTENT, "gates": {old: 0.1}})
    assert faults(tmp_path, written) == [line]


def test_a_key_at_the_top_that_belongs_below(tmp_path: Path) -> None:
    assert faults(tmp_path, yaml.safe_dump({**CONTENT, "allow_chance_baseline": True})) == [
        "r.yaml: allow_chance_baseline: write validation.allow_chance_baseline instead"
    ]


def test_any_section_may_have_keys_of_earlier_versions() -> None:
    class Section(BaseModel):
        model_config = ConfigDict(extra="forbid")
        former_names: ClassVar[dict[str, str]] = {"old": "new"}
        new: int = 1

    class Whole(BaseModel):
        section: Section

    with pytest.raises(ValidationError) as caught:
        Whole.model_validate({"section": {"old": 2, "nww": 3}})
    assert list(fault_lines(caught.value, Whole)) == [
        "section.old: write new instead",
        "section.nww: unknown key (did you mean 'new'?)",
    ]


@pytest.mark.parametrize(
    ("task", "gate", "right"),
    [
        ("keyword-spotting", "max_cer_rise", "max_accuracy_drop"),
        ("asr-ctc", "max_cer_rise", "max_wer_rise"),
    ],
)
def test_a_gate_on_a_metric_that_is_not_the_tasks(
    tmp_path: Path, task: str, gate: str, right: str
) -> None:
    (line,) = faults(tmp_path, yaml.safe_dump(CONTENT), f"task.kind={task}", f"gates.{gate}=0.1")
    assert line.startswith(f"r.yaml: gates.{gate}: the metric of {task} is ")
    assert line.endswith(f": use {right}")


def test_every_fault_has_its_own_line(tmp_path: Path) -> None:
    assert faults(tmp_path, "budget: {fraction: 2}\nsede: 1\ntask: {kind: asr}") == [
        "r.yaml: model: missing",
        "r.yaml: task: unknown kind 'asr' (did you mean 'asr-ctc'?)",
        "r.yaml: calibration: missing",
        "r.yaml: validation: missing",
        "r.yaml: budget.fraction: should be less than 1, not 2",
        "r.yaml: sede: unknown key (did you mean 'seed'?)",
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", ": a recipe is a mapping of keys to values, not nothing"),
        ("- a", ": a recipe is a mapping of keys to values, not a list"),
        ("just text", ": a recipe is a mapping of keys to values, not 'just text'"),
        ("a: 1\nb: {c: 1, c: 2}", ":2: not valid YAML: key 'c' is given twice"),
        ("a: b: c", ":1: not valid YAML: mapping values are not allowed here"),
        ("{[1]: 2}", ": not valid YAML: a list or a mapping cannot be a key"),
        ("a: 2020-01-99", ": not valid YAML: day is out of range for month"),
        ("[" * 5000, ": not valid YAML: nested too deeply"),
        (b"\x80\xff\x00", ": not a text file in UTF-8"),
        (b"a: \x00", ": not valid YAML: unacceptable character #x0000: "
         "special characters are not allowed"),
    ],
)  # fmt: skip
def test_what_is_no_recipe_at_all(tmp_path: Path, text: str | bytes, fault: str) -> None:
    assert faults(tmp_path, text) == [f"r.yaml{fault}"]


def test_yaml_never_runs_code(tmp_path: Path) -> None:
    told = faults(tmp_path, f"!!python/object/apply:pathlib.Path.touch ['{tmp_path}/made']")
    assert told == [
        "r.yaml:1: not valid YAML: could not determine a constructor for the tag "
        "'tag:yaml.org,2002:python/object/apply:pathlib.Path.touch'"
    ]
    assert not (tmp_path / "made").exists()


def test_a_missing_file_and_a_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.yaml: no such file$"):
        load_recipe(tmp_path / "gone.yaml")
    with pytest.raises(UserError, match=r": cannot be read: is a directory$"):
        load_recipe(tmp_path)


@pytest.mark.timeout(20)
def test_a_recipe_is_a_file_of_a_size_that_people_write(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    (tmp_path / "long.yaml").write_text("#" * 1_100_000)
    for name, fault in (
        ("pipe.yaml", "a pipe, not a file"),
        ("zero.yaml", "a device, not a file"),
        ("long.yaml", "larger than 1 MB"),
    ):
        with pytest.raises(UserError) as caught:
            load_recipe(tmp_path / name)
        assert str(caught.value) == f"{tmp_path / name}: cannot be read: {fault}"


def test_a_file_name_that_does_not_do_for_a_name(tmp_path: Path) -> None:
    assert faults(tmp_path, yaml.safe_dump(CONTENT), name="my recipe.yaml") == [
        "my recipe.yaml: name: missing, and 'my recipe' does not do for one: "
        "use letters, digits, '.', '_' and '-'"
    ]


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("seed", "--set seed: give it as key.path=value, e.g. budget.fraction=0.3"),
        ("=3", "--set =3: give it as key.path=value, e.g. budget.fraction=0.3"),
        ("a..b=3", "--set a..b=3: give it as key.path=value, e.g. budget.fraction=0.3"),
        ("seed=[1", "--set seed=[1: '[1' is not a YAML value"),
        ("seed=!!python/name:os.system", "--set seed=!!python/name:os.system: "
         "'!!python/name:os.system' is not a YAML value"),
        ("task.kind.x=1", "--set task.kind.x=1: task.kind has no keys in it"),
    ],
)  # fmt: skip
def test_overrides_in_a_bad_form(tmp_path: Path, override: str, fault: str) -> None:
    assert faults(tmp_path, yaml.safe_dump(CONTENT), override) == [fault]


def test_overrides_make_sections_and_take_yaml_values(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        yaml.safe_dump(CONTENT) + "export:\n",
        "export.opset=17",
        "gates.min_speedup=1.5",
        "benchmark.seconds=[1, 2.5]",
        "attribution.method=hib",
        "attribution.learning_rate=1e-2",
        "model.revision=null",
        "calibration.labels=model",
        "name=a=b",
        "name=later",
    )
    recipe = loaded.recipe
    assert recipe.export.opset == 17
    assert recipe.gates.min_speedup == 1.5
    assert recipe.benchmark.seconds == (1.0, 2.5)
    assert recipe.attribution.model_dump()["learning_rate"] == 0.01
    assert recipe.model.revision is None
    assert recipe.calibration.labels == "model"
    assert recipe.name == "later"
    again = load(tmp_path, loaded.text, name="again.yaml")
    assert again.recipe == recipe


def test_the_text_of_a_recipe_without_overrides_is_the_file_itself(tmp_path: Path) -> None:
    text = "# why these values\n" + yaml.safe_dump({**CONTENT, "name": "mine"})
    assert load(tmp_path, text).text == text


def test_a_name_taken_from_the_file_stays_with_the_text(tmp_path: Path) -> None:
    text = yaml.safe_dump(CONTENT)
    loaded = load(tmp_path, text, name="mine.yaml")
    assert loaded.text == f"name: mine\n{text}"
    assert load(tmp_path, loaded.text, name="other.yaml").recipe.name == "mine"


def test_a_recipe_cannot_be_changed(tmp_path: Path) -> None:
    recipe = load(tmp_path, yaml.safe_dump(CONTENT)).recipe
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 1  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        recipe.budget.fraction = 0.1  # type: ignore[misc]


@pytest.fixture
def schema() -> dict[str, Any]:
    return dict(json.loads(CliRunner().invoke(main, ["schema"]).stdout))


def test_the_schema_describes_what_the_recipe_accepts(schema: dict[str, Any]) -> None:
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == set(Recipe.model_fields)
    assert set(schema["required"]) == {
        "name", "model", "task", "calibration", "validation", "budget"
    }  # fmt: skip
    definitions = schema["$defs"]
    assert definitions["Budget"]["properties"]["scope"]["enum"] == ["global", "layerwise"]
    assert set(schema["properties"]["attribution"]["discriminator"]["mapping"]) >= {
        "hib", "magnitude", "random"
    }  # fmt: skip
    source = definitions["Calibration"]["properties"]["source"]["discriminator"]["mapping"]
    assert definitions[source["manifest"].rpartition("/")[2]]["properties"].keys() == (
        Manifest.model_fields.keys()
    )
    for name, definition in definitions.items():
        if definition["type"] == "object":
            assert definition["additionalProperties"] is False, name


def test_recipes_shipped_and_made_here_fit_the_schema(schema: dict[str, Any]) -> None:
    validator = pytest.importorskip("jsonschema").Draft202012Validator(schema)
    for path in sorted(RECIPES.glob("*.yaml")):
        content = yaml.safe_load(path.read_text())
        assert not list(validator.iter_errors({"name": path.stem, **content})), path
    assert not list(validator.iter_errors({"name": "x", **CONTENT}))
    assert list(validator.iter_errors({"name": "x", **CONTENT, "sede": 1}))


def settings_below(kind: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A section of a recipe and all that stand in it."""
    yield kind
    for field in kind.model_fields.values():
        for member in members_of(field.annotation):
            yield from settings_below(member)


def test_true_is_no_number_in_any_section() -> None:
    """By the published schema: whatever says number there, alone, in a list or beside words."""
    seen = 0
    for section in {kind.__name__: kind for kind in settings_below(Recipe)}.values():
        for key, schema in section.model_json_schema()["properties"].items():
            members = schema.get("anyOf", [schema])
            numbers = {"number", "integer"} & {one.get("type") for one in members}
            listed = schema.get("items", {}).get("type") in ("number", "integer")
            if not numbers and not listed:
                continue
            with pytest.raises(ValidationError) as caught:
                section.model_validate({key: [1, True] if listed else True})
            told = list(fault_lines(caught.value, section))
            place = f"{key}.1" if listed else key
            (line,) = [one for one in told if one.startswith(f"{place}: ")]
            assert re.fullmatch(r"\S+: should be a (whole )?number.*, not true", line), line
            seen += 1
    assert seen > 90
