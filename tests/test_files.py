"""Files are opened within bounds: regular ones, up to a size, and without waiting."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from hibprune.execution.files import (
    UnfitFileError,
    open_bounded,
    read_bounded,
    read_text_bounded,
    sha256_of,
)

pytestmark = pytest.mark.timeout(20)


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def an_endless_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)
    try:
        # Names of sockets are short: the whole path may be too long.
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


def a_directory(path: Path) -> None:
    path.mkdir()


def a_loop(path: Path) -> None:
    path.symlink_to(path)


def a_huge_file(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**40)


@pytest.mark.parametrize("read", [open_bounded, read_bounded, read_text_bounded, sha256_of])
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (a_pipe, "a pipe, not a file"),
        (an_endless_device, "a device, not a file"),
        (a_socket, "a socket, not a file"),
        (a_directory, "Is a directory"),
        (a_loop, "Too many levels of symbolic links"),
        (lambda path: None, "No such file or directory"),
        (a_huge_file, "larger than "),
    ],
)
def test_what_is_not_read(
    tmp_path: Path, read: Callable[[Path], object], make: Callable[[Path], None], reason: str
) -> None:
    path = tmp_path / "file"
    make(path)
    with pytest.raises(OSError, match=reason) as error:
        read(path)
    assert (error.value.strerror or "").startswith(reason)


def test_the_bound_is_the_last_size_that_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    assert read_bounded(path, 10) == b"0123456789"
    with pytest.raises(UnfitFileError):
        read_bounded(path, 9)


def test_text_is_read_as_python_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes("größe\r\nzwei\rdrei\n".encode())
    assert read_text_bounded(path) == path.read_text(encoding="utf-8") == "größe\nzwei\ndrei\n"
    path.write_bytes(b"caf\xe9")
    with pytest.raises(UnicodeDecodeError):
        read_text_bounded(path)


def test_a_file_that_holds_more_than_its_size_says() -> None:
    path = Path("/proc/self/environ")
    if not path.exists() or path.stat().st_size:
        pytest.skip("needs Linux")
    with pytest.raises(UnfitFileError):
        read_bounded(path, 1)


@pytest.mark.parametrize("name", ["a\0b", "half \ud800"])
def test_names_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnfitFileError):
        open_bounded(tmp_path / name)


def test_links_are_followed_unless_forbidden(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_text("held")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link").symlink_to(tmp_path / "real" / "file")
    (inside / "directory").symlink_to(tmp_path / "real")
    (inside / "own").write_text("own")
    for name in ("link", "directory/file"):
        assert read_text_bounded(inside / name) == "held"
        with pytest.raises(UnfitFileError, match="behind a link"):
            open_bounded(inside / name, within=inside)
    assert read_text_bounded(inside / "own", within=inside) == "own"
    # The directory itself may be reached by a link.
    (tmp_path / "there").symlink_to(inside)
    assert read_bounded(tmp_path / "there" / "own", within=tmp_path / "there") == b"own"
    for outside in (tmp_path / "real" / "file", inside / ".." / "real" / "file"):
        with pytest.raises(UnfitFileError, match="not inside"):
            open_bounded(outside, within=inside)


def test_nothing_is_left_open(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12")
    before = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    for _ in range(20):
        with pytest.raises(UnfitFileError):
            read_bounded(path, 1)
        with pytest.raises(IsADirectoryError):
            open_bounded(tmp_path)
    after = len(list(Path("/proc/self/fd").iterdir())) if before else 0
    assert after == before
