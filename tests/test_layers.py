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

# Top to bottom. Rooms on one floor do not import one another; a room is a module or a package, or
# a module within a package that has a floor of its own.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("cli",),
    ("explaining",),
    ("comparing",),
    ("pipeline",),
    ("stages",),
    ("report", "deployment.predict", "deployment.verify", "deployment.rehearsal"),
    ("deployment.deployed",),
    ("recipe",),
    ("attribution", "compression", "deployment", "evaluation"),
    ("models",),
    ("tasks",),
    ("data",),
    ("execution",),
    ("records",),
    ("errors",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
ENTRANCE = "hibprune"
"""The package's own `__init__`, which teaches transformers what models.families lists."""

HEAVY = ("torch", "transformers", "numpy", "pydantic", "onnx", "onnxruntime", "optimum", "rich")


MAX_LINES = 350
"""Of a file; one that is longer has a second subject."""


def room_of(module: str) -> str:
    """The room of a module named within the package: `models.attention` is in `models`."""
    parts = module.split(".")
    return next((r for r in (".".join(parts[:2]), parts[0]) if r in FLOOR), ENTRANCE)


def rooms() -> dict[str, list[Path]]:
    """The source files of each room."""
    found: dict[str, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found.setdefault(room_of(".".join(parts)), []).append(path)
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
                yield node.lineno, room_of(rest)


def test_every_room_has_its_floor() -> None:
    assert set(rooms()) == {*FLOOR, ENTRANCE}
    assert rooms()[ENTRANCE] == [PACKAGE / "__init__.py"]
    assert sum(map(len, FLOORS)) == len(FLOOR)


def test_nothing_lies_at_the_root_but_the_chain_and_errors() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == {"__init__", "pipeline", "errors"}


def test_no_file_is_too_long_to_be_read_in_one_go() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert lengths
    assert {str(path): lines for path, lines in lengths.items() if lines > MAX_LINES} == {}


@pytest.mark.parametrize("room", sorted(FLOOR))
def test_imports_run_downhill(room: str) -> None:
    for path in rooms()[room]:
        for line, other in imported(path):
            assert other in (room, ENTRANCE) or FLOOR[other] > FLOOR[room], (
                f"{path}:{line}: {room} (floor {FLOOR[room]}) imports {other} "
                f"(floor {FLOOR[other]})"
            )


def test_the_entrance_is_asked_for_the_version_alone() -> None:
    for path in PACKAGE.rglob("*.py"):
        for line, other in imported(path):
            if other == ENTRANCE:
                assert "import __version__" in path.read_text().splitlines()[line - 1], path


def test_a_forbidden_import_would_be_found(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text(
        "import hibprune.cli\n"
        "from hibprune import __version__\n"
        "def f():\n    from hibprune.report.page import report_markdown\n"
        "    from hibprune.deployment.predict import answers\n"
    )
    assert list(imported(path)) == [
        (1, "cli"),
        (2, "hibprune"),
        (4, "report"),
        (5, "deployment.predict"),
    ]


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
