"""Calls the command line within the test's own process and judges its refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from standin import StandIn

from hibprune.cli import main
from hibprune.execution.steps import result_digest
from hibprune.records.comparison import Comparison
from hibprune.records.manifest import Manifest


def invoke(*arguments: object) -> Result:
    """Call `hibprune` with some arguments."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def run(stand_in: StandIn, *options: str, output: Path | None = None) -> Result:
    """Run a stand-in into a directory, by default `out` beside its recipe."""
    directory = stand_in.root / "out" if output is None else output
    return invoke("run", stand_in.recipe, "--output", directory, *options)


def manifest(stand_in: StandIn, output: str = "out") -> Manifest:
    """What such a run left behind."""
    return Manifest.model_validate_json((stand_in.root / output / "manifest.json").read_text())


def words_of_steps(said: str) -> dict[str, str]:
    """The first word that stands behind each step: `done` where it was taken up."""
    return {line.split()[0]: line.split()[1] for line in said.splitlines() if len(line.split()) > 1}


def compare(stand_in: StandIn, *options: object, output: Path | None = None) -> Result:
    """Compare methods on a stand-in into a directory, by default `out` beside its recipe."""
    return invoke("compare", stand_in.recipe, "--output", output or stand_in.root / "out", *options)


def compared(stand_in: StandIn, *options: object, output: Path | None = None) -> Comparison:
    """The outcome of such a comparison."""
    result = compare(stand_in, *options, "--json", output=output)
    assert result.exit_code == 0, result.output or result.exception
    return Comparison.model_validate_json(result.stdout)


def faults(result: Result) -> list[str]:
    """The plain lines of a refusal; anything but a refusal fails the test."""
    assert result.exit_code == 2, result.output or result.exception
    assert isinstance(result.exception, SystemExit)
    lines = result.stderr.splitlines()
    assert all(line.startswith("error: ") for line in lines), result.stderr
    return [line.removeprefix("error: ") for line in lines]


def refused(stand_in: StandIn, *options: str) -> list[str]:
    """The faults of a run that must leave nothing behind; paths relative to the stand-in."""
    found = faults(run(stand_in, *options))
    assert not (stand_in.root / "out").exists()
    return [fault.replace(f"{stand_in.root}/", "") for fault in found]


def let_it_have_found(record: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the record of a step as if the step itself had found that."""
    content = json.loads(record.read_text())
    edit(content)
    content["digest"] = result_digest(content["key"], content["result"], content["files"])
    record.write_text(json.dumps(content))
