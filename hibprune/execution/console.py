"""What a command prints and how it ends: plain lines, and no traceback for what is not ours."""

from __future__ import annotations

import errno
import io
import os
import sys
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from hibprune.errors import UserError, import_fault, printable, shortened, without_temporary

BAD_INPUT, GATE_FAILED, INTERRUPTED, NOBODY_READS = 2, 3, 130, 141
"""Exit codes; the last two are what a shell makes of SIGINT and SIGPIPE."""

TAKES_NO_MORE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
"""What the system says of a standard output that cannot be written to."""

REPORT_PAGE = "report.html"
LONGEST_LINE = 1000
"""Characters of an error; paths may be long, what a recipe holds is quoted in part."""


class PlainGroup(click.Group):
    """A group of commands that end in plain lines, whatever of what is not ours goes wrong."""

    def invoke(self, ctx: click.Context) -> Any:
        with _plain_errors():
            try:
                Path.cwd()
            except OSError as error:
                raise UserError("the working directory is gone: change to another") from error
            return super().invoke(ctx)

    def main(self, *arguments: Any, **options: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                # A terminal that cannot show a sign shows another.
                stream.reconfigure(errors="replace")
        try:
            return super().main(*arguments, **options)
        except OSError as error:
            # What is wrong with a file names it.
            if error.filename is not None or error.errno not in TAKES_NO_MORE:
                raise
            say_errors(output_fault(error))
            _let_go_of_the_output()
            sys.exit(BAD_INPUT)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Print a user's fault as plain lines and exit with 2; let defects of ours show a traceback."""
    try:
        yield
    except UserError as error:
        say_errors(without_temporary(str(error)))
        try:
            sys.stdout.flush()
        except OSError:
            _let_go_of_the_output()
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        click.echo("stopped: the same command goes on from here", err=True)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        _let_go_of_the_output()
        sys.exit(NOBODY_READS)
    except (ImportError, RuntimeError) as error:
        fault = import_fault(error)
        if fault is None:
            raise
        say_errors(fault)
        sys.exit(BAD_INPUT)


def output_fault(error: OSError) -> str:
    """Why what a command says cannot be written."""
    reason = (error.strerror or str(error)).lower()
    return f"standard output: cannot be written: {reason}: send it elsewhere"


def say(line: str) -> None:
    """Print a line of text in which a stranger's words may be."""
    click.echo(printable(line))


def show_in_browser(page: Path) -> None:
    """Open a page in the user's browser; says so where there is none.

    Raises:
        UserError: there is no such page.
    """
    if not page.is_file():
        raise UserError(f"{page}: no such page: run again, or copy it along")
    if not webbrowser.open(page.resolve().as_uri()):
        click.echo(f"no browser is to be had here: open {printable(str(page))} yourself", err=True)


def typed() -> tuple[str, ...]:
    """The command as it was typed, by the name that it has for its users."""
    return ("hibprune", *sys.argv[1:])


def say_json(text: str) -> None:
    """Print JSON as it is, but for what would steer a terminal, which JSON can escape."""
    click.echo("".join(map(_escaped, text)))


def _escaped(letter: str) -> str:
    return letter if letter == "\n" or printable(letter) == letter else f"\\u{ord(letter):04x}"


def say_errors(text: str) -> None:
    """Print each line of an error's text on standard error."""
    for line in text.splitlines():
        click.echo(f"error: {printable(shortened(line, LONGEST_LINE))}", err=True)


def _let_go_of_the_output() -> None:
    """Throw away what waits to be written, which would fail once more when Python ends."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
