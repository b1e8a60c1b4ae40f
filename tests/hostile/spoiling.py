"""Ways to spoil a stand-in: settings, rows of manifests, files that are no files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from standin import SAMPLING_RATE, StandIn

Spoil = Callable[[StandIn], object]


def setting(file: str, **values: Any) -> Spoil:
    """Change values of a JSON file, by a path relative to the stand-in."""

    def spoil(stand_in: StandIn) -> None:
        path = stand_in.root / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return spoil


def without(file: str, *keys: str) -> Spoil:
    """Take keys out of a JSON file."""

    def spoil(stand_in: StandIn) -> None:
        path = stand_in.root / file
        content = json.loads(path.read_text())
        path.write_text(json.dumps({k: v for k, v in content.items() if k not in keys}))

    return spoil


def content(file: str, data: bytes | str) -> Spoil:
    """Replace a file, or make one."""

    def spoil(stand_in: StandIn) -> None:
        path = stand_in.root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(data.encode(errors="surrogateescape") if isinstance(data, str) else data)

    return spoil


def removed(file: str) -> Spoil:
    return lambda stand_in: (stand_in.root / file).unlink()


def cut(file: str, share: float) -> Spoil:
    """Leave the beginning of a file only."""

    def spoil(stand_in: StandIn) -> None:
        path = stand_in.root / file
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])

    return spoil


def no_file(file: str, kind: str) -> Spoil:
    """Put something in the place of a file that is none: pipe, zeros, directory, loop, nowhere."""

    def spoil(stand_in: StandIn) -> None:
        path = stand_in.root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() or path.exists():
            path.unlink()
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "directory":
            path.mkdir()
        else:
            target = {"zeros": "/dev/zero", "nowhere": "nowhere", "loop": path.name}[kind]
            path.symlink_to(target)

    return spoil


def recipe(**changes: Any) -> Spoil:
    """Change a recipe: `attribution__steps=3` sets a key of a section."""

    def spoil(stand_in: StandIn) -> None:
        whole = stand_in.content()
        for path, value in changes.items():
            *sections, key = path.split("__")
            place = whole
            for section in sections:
                place = place.setdefault(section, {})
            place[key] = value
        stand_in.write(whole)

    return spoil


def recipe_text(text: str) -> Spoil:
    """Append lines to a recipe."""

    def spoil(stand_in: StandIn) -> None:
        stand_in.recipe.write_text(stand_in.recipe.read_text() + text)

    return spoil


def row(split: str, **values: Any) -> Spoil:
    """Change the fourth line of a manifest; None takes a key out."""

    def spoil(stand_in: StandIn) -> None:
        rows = stand_in.rows(split)
        rows[3] = {k: v for k, v in {**rows[3], **values}.items() if v is not None}
        stand_in.write_rows(split, rows)

    return spoil


def every_clip(samples: np.ndarray, rate: int = SAMPLING_RATE, **options: Any) -> Spoil:
    """All clips of the validation set are this sound."""

    def spoil(stand_in: StandIn) -> None:
        for path in (stand_in.root / "validation").glob("*.wav"):
            soundfile.write(path, samples, rate, **options)

    return spoil


def both(*spoils: Spoil) -> Spoil:
    """One after the other."""

    def spoil(stand_in: StandIn) -> None:
        for one in spoils:
            one(stand_in)

    return spoil


def weights(change: Callable[[dict[str, Any]], object]) -> Spoil:
    """Change the tensors of a checkpoint."""

    def spoil(stand_in: StandIn) -> None:
        from safetensors.torch import load_file, save_file

        path = stand_in.model / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return spoil


def marker(root: Path) -> str:
    """Python that leaves a file behind if it is ever run."""
    return f"from pathlib import Path\nPath({str(root / 'ran')!r}).write_text('')\n"


def code(file: str) -> Spoil:
    """Put Python beside a checkpoint that must not run."""

    def spoil(stand_in: StandIn) -> None:
        path = stand_in.root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(marker(stand_in.root))

    return spoil
