"""Runs the command line on input that is broken or hostile, and judges what it does.

Whatever comes in, a command ends by itself with 0, 2 or 3, says so in plain lines of bounded
length, leaves nothing half-written, and touches nothing outside its output directory.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import resource
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from standin import StandIn

PRELOADED = ("hibprune.pipeline", "hibprune.cli", "optimum.exporters.onnx.convert", "onnxruntime")
PATIENCE = 90.0
"""Seconds after which a command counts as hanging."""
MEMORY = 12 * 2**30
"""Bytes of address space beyond what a fresh process has: more is an error of the command's."""
LONGEST_LINE, MOST_LINES = 2000, 60
OUTDATED = re.compile(
    r"unknown (key|kind|method)|not a setting of|recipe\.yaml: [\w.]+: missing$|No such option",
    re.MULTILINE,
)
"""What is said of recipes and commands that are not written as they are today."""

Spoil = Callable[[StandIn], object]


@dataclass(frozen=True)
class Case:
    """One piece of bad input: a stand-in, what is done to it, and the command given it.

    Arguments may name `{root}`, the stand-in's directory. `must_refuse`: only exit code 2 will do;
    otherwise the command may also take what it is given (exit codes 0 and 3). `says`: a refusal
    speaks of one of these, so that it is the case's own fault that is refused. `finished`: the run
    of the stand-in lies in `out`; "int8": one with a variant in int8.
    """

    name: str
    spoil: Spoil
    stand_in: str = "keyword_spotting"
    command: tuple[str, ...] = ("run", "{root}/recipe.yaml", "--output", "{root}/out", "--quiet")
    finished: bool | str = False
    must_refuse: bool = True
    says: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """What a command did; `faults` is empty where it behaved."""

    code: int | None
    said: str
    faults: tuple[str, ...]


def judge(case: Case, root: Path) -> Verdict:
    """Spoil the stand-in in `root`, run the case's command there, and say what was wrong."""
    case.spoil(StandIn(root))
    there = (root / "out").exists()
    before = _snapshot(root)
    arguments = tuple(part.replace("{root}", str(root)) for part in case.command)
    said = root.parent / f"{root.name}.said"
    code = _run(arguments, said, root)
    text = said.read_text(encoding="utf-8", errors="replace")
    faults = list(_faults(case, code, text))
    faults += [f"touched {path}" for path in sorted(_changed(before, _snapshot(root)))]
    if code == 2 and not there and (root / "out").exists():
        faults.append("refused, and left an output directory")
    if code in (0, 3) and case.command[0] == "run" and not (root / "out/manifest.json").is_file():
        faults.append("done, but there is no manifest")
    return Verdict(code, text, tuple(faults))


def _faults(case: Case, code: int | None, said: str) -> list[str]:
    if code is None:
        return ["hangs"]
    allowed = (2,) if case.must_refuse else (0, 2, 3)
    faults = [] if code in allowed else [f"exit code {code} where {allowed} would do"]
    if "Traceback" in said:
        faults.append("a traceback")
    lines = said.splitlines()
    if len(lines) > MOST_LINES:
        faults.append(f"{len(lines)} lines")
    if any(len(line) > LONGEST_LINE for line in lines):
        faults.append(f"a line of {max(map(len, lines))} characters")
    if any(not letter.isprintable() for line in lines for letter in line):
        faults.append("control characters")
    if code == 2 and not any(line.startswith(("error: ", "Error: ")) for line in lines):
        faults.append("refused without a line that says why")
    if code == 2 and case.says and not any(words in said for words in case.says):
        faults.append(f"refused, and not for {' or '.join(case.says)}")
    if code == 2 and not case.says and OUTDATED.search(said):
        faults.append("refused for how the case is written")
    return faults


def _run(arguments: tuple[str, ...], said: Path, directory: Path) -> int | None:
    """The exit code of a command run inside `directory`; None where it had to be killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    process = context.Process(target=_command, args=(arguments, said, directory))
    process.start()
    process.join(PATIENCE)
    if process.exitcode is None:
        process.kill()
        process.join()
        return None
    return process.exitcode


def _command(arguments: tuple[str, ...], said: Path, directory: Path) -> None:
    from hibprune.cli import main

    os.chdir(directory)
    with said.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    main(list(arguments), prog_name="hibprune")


def _snapshot(root: Path) -> dict[str, tuple[int, int, int]]:
    """What lies beside the output directory, and what must not change there."""
    found = {}
    # An output directory may be reached by a link.
    output = Path(os.path.realpath(root / "out")).name
    for parent, directories, files in os.walk(root):
        if Path(parent) == root:
            directories[:] = [
                one for one in directories if one not in ("out", output, "exported_models")
            ]
        for name in (*directories, *files):
            path = Path(parent) / name
            about = path.lstat()
            size = 0 if stat.S_ISDIR(about.st_mode) else about.st_size
            changed = 0 if stat.S_ISDIR(about.st_mode) else about.st_mtime_ns
            found[str(path.relative_to(root))] = (stat.S_IFMT(about.st_mode), size, changed)
    return found


def _changed(
    before: dict[str, tuple[int, int, int]], after: dict[str, tuple[int, int, int]]
) -> set[str]:
    return {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}


def copy_of(source: Path, target: Path) -> Path:
    """A stand-in's directory, to be spoiled."""
    return Path(shutil.copytree(source, target, symlinks=True))
