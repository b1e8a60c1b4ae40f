"""Verification of a directory that was copied: every file, and every variant on the example."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hibprune.errors import UserError, shortened
from hibprune.execution.confined import ConfinedError, confined
from hibprune.execution.files import read_fault, sha256_of
from hibprune.execution.output import read_manifest
from hibprune.execution.runtime import ONNX_DIRECTORY
from hibprune.records.example import DIRECTORY, Example
from hibprune.records.manifest import Manifest
from hibprune.records.precision import Precision
from hibprune.records.waveform import WaveformGraph

REHEARSAL = "hibprune.deployment.example_run"
"""What opens and runs the model; imported in the process where that happens."""
MAX_DIFFERENCE: dict[Precision, float] = {"fp32": 1e-3, "fp16": 0.05, "int8": 0.25}
"""Of the largest logit; processors round int8 differently."""
NOT_DEPLOYED = (
    "figures/", "predictions/", "sherpa/", "report.md", "report.html", "README.md", "recipe.yaml",
)  # fmt: skip
"""What a copy may come without, beside what `predict` itself asks for."""
LONGEST_ANSWER = 100


@dataclass(frozen=True)
class Check:
    """One thing that was looked at, what was found, and whether that is wrong."""

    subject: str
    finding: str
    is_fault: bool = False

    @property
    def line(self) -> str:
        """`pruned-int8: at most 0.3 % from the run's, says 'yes'`."""
        return f"{self.subject}: {self.finding}"


def verify(directory: Path, seconds: float) -> Iterator[Check]:
    """Check the files of a finished run by their digests, then its variants on its example.

    Every variant is loaded and run in a process of its own that may take `seconds`.

    Raises:
        UserError: there is no finished run in the directory.
    """
    manifest = read_manifest(directory)
    yield from _files(directory, manifest)
    if manifest.example is None:
        yield Check(DIRECTORY, "none: the run was of an earlier version; run it again", True)
        return
    for variant in manifest.variants:
        output = manifest.example.outputs.get(variant.name)
        if output is None:
            continue
        if not _is_there(directory, [file.path for file in variant.files]):
            yield Check(variant.name, "not in this copy")
            continue
        yield _rehearsal(directory, manifest.example, variant.name, variant.precision, seconds)
    if manifest.waveform is not None:
        yield _heard(directory, manifest.example, manifest.waveform, seconds)


def _files(directory: Path, manifest: Manifest) -> Iterator[Check]:
    missing, same = [], 0
    for name, sha256 in manifest.files.items():
        path = directory / name
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            yield Check(shortened(name, LONGEST_ANSWER), "a path that leads elsewhere", True)
        elif not os.path.lexists(path):
            missing.append(name)
        else:
            try:
                changed = sha256_of(path, within=directory) != sha256
            except OSError as error:
                yield Check(name, f"cannot be read: {read_fault(error)}", True)
                continue
            if changed:
                yield Check(name, "not as the run left it: copy it again", True)
            else:
                same += 1
    yield Check("files", f"{same} of {len(manifest.files)} as the run left them", not same)
    for name in missing:
        # Graphs of a variant may stay behind: not every copy has all of them.
        spared = name.startswith((*NOT_DEPLOYED, f"{ONNX_DIRECTORY}/", "model.safetensors"))
        yield Check(name, "not in this copy", not spared)


def _is_there(directory: Path, paths: list[str | None]) -> bool:
    return all(path is not None and (directory / path).is_file() for path in paths)


def _rehearsal(
    directory: Path, example: Example, name: str, precision: Precision, seconds: float
) -> Check:
    output = example.outputs[name]
    work = (
        os.fspath(directory), precision, example.input, dict(example.tensors), output.file,
    )  # fmt: skip
    try:
        found = next(one for one in confined(REHEARSAL, "rehearsed", work, seconds) if one)
    except UserError as error:
        return Check(name, str(error), True)
    except ConfinedError as error:
        remedy = "give it longer (--timeout)" if error.timed_out else "copy it again"
        return Check(name, f"{error}: {remedy}", True)
    if fault := found.get("fault"):
        return Check(name, fault, True)
    difference, says = found["difference"], found["says"]
    told = f"says {_quoted(says)}"
    if difference is None:
        # Tokens: equal or not.
        if says == output.says:
            return Check(name, f"the run's own tokens, {told}")
        is_fault = precision == "fp32"
        return Check(name, f"{told} where the run said {_quoted(output.says)}", is_fault)
    told = f"{difference:.1e} of the largest logit from the run's, {told}"
    limit = MAX_DIFFERENCE[precision]
    if difference <= limit:
        return Check(name, told)
    return Check(name, f"{told}: over {limit:g}, so that another model or runtime is at work", True)


def _heard(directory: Path, example: Example, graph: WaveformGraph, seconds: float) -> Check:
    if not _is_there(directory, [graph.path, graph.made_from]):
        return Check(graph.path, "not in this copy")
    work = (
        os.fspath(directory), example.input, dict(example.tensors), graph.made_from, graph.path,
    )  # fmt: skip
    try:
        found = next(one for one in confined(REHEARSAL, "heard", work, seconds) if one)
    except UserError as error:
        return Check(graph.path, str(error), True)
    except ConfinedError as error:
        remedy = "give it longer (--timeout)" if error.timed_out else "copy it again"
        return Check(graph.path, f"{error}: {remedy}", True)
    difference, limit = found["difference"], MAX_DIFFERENCE["fp32"]
    told = f"{difference:.1e} of the largest value from {graph.made_from}"
    if difference <= limit:
        return Check(graph.path, told)
    return Check(graph.path, f"{told}: over {limit:g}, so that it is another model's", True)


def _quoted(said: str | dict[str, str]) -> str:
    text = said if isinstance(said, str) else ", ".join(f"{k}={v}" for k, v in said.items())
    return f"'{shortened(text, LONGEST_ANSWER)}'"
