"""Imports run downhill: a room knows only the rooms on the floors below its own."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hibprune

PACKAGE = Path(hibprune.__file__).parent

# Top to bottom. Rooms on one floor do not import one another; a room is a module or a package.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("cli",),
    ("pipeline", "comparing", "correlating"),
    ("choosing", "stages"),
    ("outcome", "checking", "run"),
    ("loading", "evaluation", "prediction"),
    ("recipe",),
    ("attribution", "checkpoint"),
    ("tasks", "preprocessing"),
    (
        "data",
        "planning",
        "surgery",
        "export",
        "bench",
        "footprint",
        "report",
        "machine",
        "rounds",
        "passes",
        "replay",
    ),
    ("attention", "steps", "output", "comparison", "hibprune"),
    ("manifest",),
    ("families", "records", "files", "runtime", "narration", "faults"),
    ("statistics", "medium", "memory", "ranks"),
    ("errors",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

WORKSHOPS = {"attribution", "tasks", "data", "planning", "surgery", "export", "bench"}
BETWEEN_WORKSHOPS = {
    # A method is handed batches and a loss, whose types are the task's.
    ("attribution", "tasks"),
    # A task says which targets it wants of the data.
    ("tasks", "data"),
}

HEAVY = ("torch", "transformers", "numpy", "pydantic", "onnx", "onnxruntime", "optimum", "rich")


def rooms() -> dict[str, list[Path]]:
    """The source files of each room; the package's own `__init__` is the room `hibprune`."""
    found: dict[str, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        first = path.relative_to(PACKAGE).with_suffix("").parts[0]
        found.setdefault("hibprune" if first == "__init__" else first, []).append(path)
    return found


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and room of every import of ours in a file, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write imports in full"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            top, _, rest = name.partition(".")
            if top == "hibprune":
                room = rest.partition(".")[0]
                yield node.lineno, room if room in FLOOR else "hibprune"


def test_every_room_has_its_floor() -> None:
    assert set(rooms()) == set(FLOOR)
    assert sum(map(len, FLOORS)) == len(FLOOR)


@pytest.mark.parametrize("room", sorted(FLOOR))
def test_imports_run_downhill(room: str) -> None:
    for path in rooms()[room]:
        for line, other in imported(path):
            assert other == room or FLOOR[other] > FLOOR[room], (
                f"{path}:{line}: {room} (floor {FLOOR[room]}) imports {other} "
                f"(floor {FLOOR[other]})"
            )


def test_the_workshops_do_not_know_each_other() -> None:
    pairs = {
        (room, other)
        for room in WORKSHOPS
        for path in rooms()[room]
        for _, other in imported(path)
        if other in WORKSHOPS and other != room
    }
    assert pairs == BETWEEN_WORKSHOPS


def test_a_forbidden_import_would_be_found(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text(
        "import hibprune.cli\n"
        "from hibprune import __version__\n"
        "def f():\n    from hibprune.report.page import report_markdown\n"
    )
    assert list(imported(path)) == [(1, "cli"), (2, "hibprune"), (4, "report")]


def test_the_command_line_starts_without_heavy_imports() -> None:
    program = (
        f"import sys, hibprune.cli; print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    told = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
        timeout=60,
    )
    assert told.stdout.strip() == "[]"
