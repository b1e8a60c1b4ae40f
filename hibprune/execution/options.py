"""Arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

RECIPE = click.argument("recipe", type=click.Path(path_type=Path))
OVERRIDES = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY.PATH=VALUE",
    help="Override a value of the recipe; may be repeated.",
)
DEVICE = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Override the device."
)
QUIET = click.option(
    "--quiet", is_flag=True, help="No progress bars and nothing after the last step: for logs."
)
TIMEOUT = click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=300.0,
    show_default=True,
    metavar="SECONDS",
    help="How long the model may take to load, and for each input.",
)


class NamedPath(click.Path):
    """A path that has a name: an empty one, such as of a variable that is not set, is no path.

    It would stand for the directory where one happens to be.
    """

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """The path. Raises click.BadParameter."""
        if value == "":
            self.fail("it is empty: name a directory or leave the option out", param, ctx)
        return super().convert(value, param, ctx)


def output_option(name: str, remark: str = "") -> Callable[[Command], Command]:
    """`--output` of a command that writes to a directory of this name unless it is told another."""
    said = f"Directory to write; default exported_models/{name}. {remark}".strip()
    return click.option("--output", type=NamedPath(path_type=Path), help=said)


def with_device(overrides: tuple[str, ...], device: str | None) -> tuple[str, ...]:
    """Overrides of a recipe with that of `--device`, which counts more than the others."""
    return overrides if device is None else (*overrides, f"device={device}")
