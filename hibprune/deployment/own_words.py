"""What a model says of itself: in its graphs' metadata, and under one key of its settings files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from hibprune.errors import UserError
from hibprune.models.source import read_json, real_file
from hibprune.models.staging import MAX_SETTINGS_BYTES
from hibprune.tasks import Task, TaskBase

CONFIG_KEY = "hibprune"
"""Of config.json and preprocessor_config.json; in graphs this name stands in front, with a dot."""
SHORTEST_CLIP = f"{CONFIG_KEY}.min_seconds"
TASK_SETTINGS = f"{CONFIG_KEY}.task_settings"
"""The task as a recipe describes it, so that a model can be run without its recipe."""


def in_graph(properties: Mapping[str, object]) -> dict[str, object]:
    """Properties by the names that they have in a graph."""
    return {f"{CONFIG_KEY}.{key}": value for key, value in properties.items()}


def task_of(about: Mapping[str, object]) -> TaskBase | None:
    """The task that a graph's properties speak of; None where they speak of none."""
    try:
        task: TaskBase = TypeAdapter(Task).validate_python(about.get(TASK_SETTINGS))
    except ValidationError:
        return None
    return task


def task_of_configuration(directory: Path) -> TaskBase | None:
    """The task that a directory's config.json speaks of, None where it speaks of none."""
    name = "config.json"
    try:
        path = real_file(directory, name, str(directory))
        content = read_json(path, str(directory / name), MAX_SETTINGS_BYTES)
    except UserError:
        # Told of where the file is opened in earnest.
        return None
    told = content.get(CONFIG_KEY)
    return task_of(in_graph(told)) if isinstance(told, dict) else None
