"""The page on recipes says what the settings say, and leaves no key out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from commands import invoke

from hibprune.recipe import Recipe

PAGE = Path(__file__).parent.parent / "recipes" / "README.md"


def test_the_page_is_what_the_command_prints() -> None:
    result = invoke("schema", "--markdown")
    assert result.exit_code == 0
    assert result.output == PAGE.read_text(), (
        "hibprune schema --markdown > recipes/README.md brings the page up to date"
    )


def test_every_key_of_the_schema_is_on_the_page() -> None:
    schema = Recipe.model_json_schema()
    parts: list[dict[str, Any]] = [schema, *schema["$defs"].values()]
    page = PAGE.read_text()
    missing = [
        key for part in parts for key in part.get("properties", {}) if f"| `{key}` |" not in page
    ]
    assert not missing
