"""The licence of a checkpoint: what its card or configuration states, and what is no statement."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from commands import faults, invoke
from standin import StandIn

from hibprune.models.licence import stated_licence
from hibprune.records.licence import Licence


def card(directory: Path, front: str, body: str = "# A model\n") -> None:
    (directory / "README.md").write_text(f"---\n{front}---\n{body}")


@pytest.mark.parametrize(
    ("front", "expected"),
    [
        ("license: apache-2.0\n", ("apache-2.0", None, None)),
        ("language: en\nlicense: CC-BY-NC-4.0\ntags: [a]\n", ("cc-by-nc-4.0", None, None)),
        ("license: [mit]\n", ("mit", None, None)),
        (
            "license: other\nlicense_name: of-ours\nlicense_link: LICENSE\n",
            ("other", "of-ours", "LICENSE"),
        ),
        ("license: [mit, apache-2.0]\n", None),
        ("license: {a: b}\n", None),
        ("license: 'see the \x07 file'\n", None),
        ("license: ''\n", None),
        ("license: !!python/object/apply:os.system [ls]\n", None),
        ("license: [\n", None),
        ("- license\n", None),
        ("tags: [a]\n", None),
    ],
)
def test_what_a_card_states(
    tmp_path: Path, front: str, expected: tuple[str, str | None, str | None] | None
) -> None:
    card(tmp_path, front)
    found = stated_licence(tmp_path, "model")
    assert (found and (found.id, found.name, found.link)) == expected


def test_the_configuration_is_asked_where_no_card_states_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"license": "mit"}))
    assert stated_licence(tmp_path, "model") == Licence(id="mit", taken_from="config.json")
    card(tmp_path, "tags: [a]\n", "license: gpl\n---\n")
    assert stated_licence(tmp_path, "model") == Licence(id="mit", taken_from="config.json")
    card(tmp_path, "license: openrail\n")
    assert stated_licence(tmp_path, "model") == Licence(id="openrail", taken_from="README.md")


def test_a_card_that_leads_elsewhere_or_is_none_states_nothing(tmp_path: Path) -> None:
    directory, elsewhere = tmp_path / "model", tmp_path / "elsewhere"
    directory.mkdir()
    elsewhere.mkdir()
    card(elsewhere, "license: mit\n")
    (directory / "README.md").symlink_to(elsewhere / "README.md")
    assert stated_licence(directory, "model") is None
    (directory / "README.md").unlink()
    (directory / "README.md").mkdir()
    assert stated_licence(directory, "model") is None
    (directory / "README.md").rmdir()
    (directory / "README.md").write_bytes(b"\xef\xbb\xbf---\r\nlicense: mit\r\n---\r\n\xff")
    found = stated_licence(directory, "model")
    assert found is not None
    assert found.id == "mit"


def test_a_licence_in_the_recipe_that_is_no_name_of_one(stand_in: StandIn) -> None:
    content = stand_in.content()
    for said in ("Apache License, Version 2.0", 3, ""):
        stand_in.recipe.write_text(yaml.safe_dump({**content, "export": {"license": said}}))
        (fault,) = faults(invoke("check", stand_in.recipe))
        assert "export.license: should be the Hub's name of a licence, in small letters" in fault
