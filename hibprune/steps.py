"""Runs a step once: its result is kept under a key made of everything it depends on.

A killed run takes up where it stopped, and a changed recipe redoes what the change reaches. A step
counts as done when its record carries the right key and the files it made are unchanged; never
because a file merely exists.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from hibprune.files import digest, sha256_of, write_text

Result = TypeVar("Result")


@dataclass(frozen=True)
class Done(Generic[Result]):
    """A step's result. `seconds` is what it took when it ran; `resumed` if that was before."""

    key: str
    result: Result
    seconds: float
    resumed: bool


@dataclass(frozen=True)
class Step(Generic[Result]):
    """A step of a run in `directory`. Raise `version` when its code computes something else.

    `inputs` is everything that the result depends on, as JSON values: the step's slice of the
    recipe, the keys of steps before it, the identity of model and data.
    """

    directory: Path
    name: str
    version: int
    inputs: Mapping[str, Any]
    result_type: Any

    @property
    def key(self) -> str:
        inputs = json.dumps(self.inputs, sort_keys=True, ensure_ascii=False)
        return digest(self.name, str(self.version), inputs)

    @property
    def _record_path(self) -> Path:
        return self.directory / "steps" / f"{self.name}.json"

    @property
    def _partial_path(self) -> Path:
        return self.directory / "steps" / f"{self.name}.partial.json"

    def once(
        self, compute: Callable[[], Result], files: Callable[[Result], list[str]] = lambda _: []
    ) -> Done[Result]:
        """The kept result, or that of `compute`, which is then kept.

        `files` names the files, relative to the directory, that the step left there.
        """
        kept = self._kept()
        if kept is not None:
            return kept
        start = time.perf_counter()
        result = compute()
        seconds = time.perf_counter() - start
        record = {
            "step": self.name,
            "version": self.version,
            "key": self.key,
            "seconds": seconds,
            "inputs": self.inputs,
            "files": {name: sha256_of(self.directory / name) for name in files(result)},
            "result": TypeAdapter(self.result_type).dump_python(result, mode="json"),
        }
        write_text(self._record_path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        self._partial_path.unlink(missing_ok=True)
        return Done(self.key, result, seconds, resumed=False)

    def _kept(self) -> Done[Result] | None:
        record = _read_json(self._record_path)
        if not isinstance(record, dict) or record.get("key") != self.key:
            return None
        for name, sha256 in record["files"].items():
            path = self.directory / name
            if not path.is_file() or sha256_of(path) != sha256:
                return None
        try:
            result = TypeAdapter(self.result_type).validate_python(record["result"], strict=False)
        except ValidationError:
            return None
        return Done(self.key, result, float(record["seconds"]), resumed=True)

    def save_partial(self, rows: Mapping[str, Any]) -> None:
        """Keep what there is so far of a long step."""
        write_text(self._partial_path, json.dumps({"key": self.key, "rows": rows}))

    def partial(self) -> dict[str, Any]:
        """What an interrupted run of this very step had so far; empty if there was none."""
        kept = _read_json(self._partial_path)
        if not isinstance(kept, dict) or kept.get("key") != self.key:
            return {}
        return dict(kept["rows"])


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
