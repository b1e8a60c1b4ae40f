"""The command line: no logic here, and nothing heavy imported before a command runs."""

from __future__ import annotations

import sys

from hibprune import __version__
from hibprune.errors import import_fault

try:
    import click

    from hibprune.cli.directories import correlate, predict, push, show, verify
    from hibprune.cli.recipes import check, compare, explain, frontier, run
    from hibprune.cli.reference import methods, schema
    from hibprune.execution.console import PlainGroup
except ImportError as error:
    # There is nothing yet to say it with.
    fault = import_fault(error)
    if fault is None:
        raise
    sys.stderr.write(f"error: {fault}\n")
    sys.exit(2)

COMMANDS = (
    run, compare, explain, frontier, check, show, verify, push, predict, correlate, methods, schema,
)  # fmt: skip


@click.group(cls=PlainGroup)
@click.version_option(__version__, prog_name="hibprune")
def main() -> None:
    """Make speech transformers smaller without training, and prove what it cost."""


for command in COMMANDS:
    main.add_command(command)
