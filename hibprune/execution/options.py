"""Arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
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
TARGETS = click.option(
    "--targets",
    required=True,
    metavar="BUDGET=NUMBER,…",
    help="What is asked for: parameters=0.7,0.5,0.3, speedup=1.25,1.5,2, or so of multiply_adds, "
    "size_mb or metric_drop. Each takes the "
    "place of the recipe's budget; its kinds and min_heads_per_layer stay.",
)
VARIANT = click.option(
    "--variant",
    default="pruned",
    show_default=True,
    metavar="NAME",
    help="Which of its models: pruned, pruned-int8 or int8, pruned-fp16 or fp16.",
)
TIMEOUT = click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=300.0,
    show_default=True,
    metavar="SECONDS",
    help="How long the model may take to load, and for each input.",
)
COMPARED = (
    click.option(
        "--methods",
        default="all",
        show_default=True,
        metavar="METHOD,…",
        help="E.g. hib,hib:beta=10:score=similarity,random. A name has the recipe's settings where "
        "it is the recipe's method, else its defaults; `:setting=value` changes one.",
    ),
    click.option(
        "--fractions",
        default="0.1,0.2,0.3,0.4,0.5,0.6,0.7",
        show_default=True,
        help="Shares of the heads to remove, rounded down to whole heads.",
    ),
    click.option("--scope", default="global,layerwise", show_default=True, help="One or both."),
    click.option(
        "--seeds",
        default=5,
        show_default=True,
        help="Draws of the random baseline, from the recipe's.",
    ),
    click.option(
        "--metric",
        help="Of the curves; default token-accuracy for asr-seq2seq, the task's otherwise.",
    ),
    click.option(
        "--points",
        default="0.1,0.3,0.5",
        show_default=True,
        help="Fractions to measure the task's own metric at, where the curves show another.",
    ),
    click.option(
        "--repair",
        default="none",
        show_default=True,
        metavar="REPAIR,…",
        help="What is done with the weights that stay, e.g. none,mean,least-squares. With a "
        "repair, each point removes its heads from a copy, repairs that and measures it.",
    ),
)
"""Those of `compare`, in the order they are told of."""


def compared_options(command: Command) -> Command:
    """All options of a comparison."""
    return reduce(lambda done, option: option(done), reversed(COMPARED), command)


class NamedPath(click.Path):
    """A path that has a name: an empty one, such as of a variable that is not set, is no path.

    It would stand for the directory where one happens to be.
    """

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """The path. Raises click.BadParameter."""
        if value == "":
            self.fail("it is empty: name a directory or leave the option out", param, ctx)
        return super().convert(value, param, ctx)


JUNIT = click.option(
    "--junit",
    metavar="FILE",
    type=NamedPath(path_type=Path, dir_okay=False),
    help="Write the gates as JUnit XML, which CI services show as tests.",
)


def output_option(name: str, remark: str = "") -> Callable[[Command], Command]:
    """`--output` of a command that writes to a directory of this name unless it is told another."""
    said = f"Directory to write; default exported_models/{name}. {remark}".strip()
    return click.option("--output", type=NamedPath(path_type=Path), help=said)


def with_device(overrides: tuple[str, ...], device: str | None) -> tuple[str, ...]:
    """Overrides of a recipe with that of `--device`, which counts more than the others."""
    return overrides if device is None else (*overrides, f"device={device}")
