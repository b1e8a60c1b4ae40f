"""Interpreters that are as good as fresh, forked from one that has imported other libraries.

Starting Python and importing torch and transformers takes seven seconds of a processor, a fork
a hundredth of one. What a test is about is never among what was imported: choose `READY` by that.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from multiprocessing import util
from pathlib import Path
from types import ModuleType
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]
MOST_BYTES = 2**20
READY = {
    # What transformers imports of others, which is most of what it takes.
    "torch": (
        "torch", "torch._dynamo", "torch.distributed.tensor", "scipy.stats", "pandas",
        "sklearn.metrics",
    ),
    "transformers": (
        "transformers.modeling_utils", "transformers.models.auto.modeling_auto",
        "optimum.onnxruntime.modeling_seq2seq", "graph_sessions",
    ),
    "hibprune": (
        "hibprune.pipeline", "hibprune.cli", "optimum.exporters.onnx.convert", "onnxruntime",
    ),
}  # fmt: skip
"""What has been imported, each on top of the one before."""


@dataclass
class Interpreter:
    """A running one."""

    pid: int
    _line: IO[str]
    """Says its exit code in the end; negative for the signal that killed it."""
    _code: int | None = None

    def wait(self) -> int:
        """The exit code."""
        if self._code is None:
            said = self._line.readline()
            assert said, "ended without a word"
            self._code = int(said)
            self._line.close()
        return self._code


def start(
    code: str,
    *arguments: object,
    ready: str,
    stdout: int,
    stderr: int,
    cwd: Path = ROOT,
) -> Interpreter:
    """`python -c CODE ARGUMENTS` in this environment, which writes to two open descriptors."""
    program = {
        "code": code,
        "arguments": [str(argument) for argument in arguments],
        "directory": str(cwd),
        "environment": dict(os.environ),
    }
    line = _ask(_nursery(ready), program, stdout, stderr).makefile("r")
    return Interpreter(int(line.readline()), line)


def run(
    code: str, *arguments: object, ready: str, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """The same to its end."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as error:
        told = (out.fileno(), error.fileno())
        interpreter = start(code, *arguments, ready=ready, cwd=cwd, stdout=told[0], stderr=told[1])
        returned = interpreter.wait()
        for file in (out, error):
            file.seek(0)
        return subprocess.CompletedProcess(("-c",), returned, out.read(), error.read())


# Where they are forked -----------------------------------------------------------------------


@cache
def _nursery(ready: str) -> socket.socket:
    """Asks a process that has imported so much for another; it ends with this one."""
    names = tuple(READY)
    place = names.index(ready)
    if place == 0:
        own, other = socket.socketpair()
        command = (sys.executable, __file__, str(other.fileno()))
        subprocess.Popen(command, pass_fds=(other.fileno(),), stdin=subprocess.DEVNULL, cwd=ROOT)
        other.close()
    else:
        own = _ask(_nursery(names[place - 1]), {})
    own.sendall(json.dumps(READY[ready]).encode() + b"\n")
    return own


def _ask(nursery: socket.socket, wanted: dict[str, Any], *descriptors: int) -> socket.socket:
    """The end of a line to a new process, of which `wanted` says what it is to do."""
    own, other = socket.socketpair()
    with other:
        socket.send_fds(nursery, [b"."], [other.fileno(), *descriptors])
    own.sendall(json.dumps(wanted).encode() + b"\n")
    return own


def _serve(parent: socket.socket) -> None:
    """Import what is asked for, then fork as often as is asked for."""
    for name in json.loads(_line_from(parent)):
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        asked, descriptors, *_ = socket.recv_fds(parent, 1, 3)
        if not asked:
            os._exit(0)
        if os.fork() == 0:
            break
        for descriptor in descriptors:
            os.close(descriptor)
    parent.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    line = socket.socket(fileno=descriptors[0])
    wanted = json.loads(_line_from(line))
    if wanted:
        _run(line, wanted, descriptors[1:])
    else:
        _serve(line)


def _run(line: socket.socket, program: dict[str, Any], descriptors: Sequence[int]) -> None:
    """Run a program as `python -c` does, and say how it ended."""
    child = os.fork()
    if child:
        for descriptor in descriptors:
            os.close(descriptor)
        line.sendall(f"{child}\n".encode())
        _, status = os.waitpid(child, 0)
        line.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
        os._exit(0)
    line.close()
    for number, descriptor in enumerate(descriptors, start=1):
        os.dup2(descriptor, number)
        os.close(descriptor)
    # Anew: a stream remembers what kind of file it writes to.
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(program["environment"])
    os.chdir(program["directory"])
    sys.argv = ["-c", *program["arguments"]]
    sys.path[0] = ""
    sys.modules["__main__"] = ModuleType("__main__")
    os._exit(_code_of(program["code"]))


def _code_of(code: str) -> int:
    """The exit code of a program; threads of libraries that did not come along are not awaited."""
    ended = 0
    try:
        exec(code, vars(sys.modules["__main__"]))
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        ended = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        ended = 1
    util._exit_function()
    try:
        sys.stdout.flush()
    except OSError:
        ended = 120
    return ended


def _line_from(end: socket.socket) -> bytes:
    """What was sent, without reading what follows."""
    content = b""
    while not content.endswith(b"\n"):
        more = end.recv(1)
        if not more:
            os._exit(0)
        content += more
    return content


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
