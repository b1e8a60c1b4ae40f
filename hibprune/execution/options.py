"""Arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce, wraps
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
OPEN = click.option("--open", "opens", is_flag=True, help="Open report.html in the browser.")
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


EXPLAINED = (
    click.option(
        "--clip",
        "clips",
        multiple=True,
        metavar="FILE",
        help="A sound file to explain, for a text task a text; may be repeated. Default: the first "
        "two of the validation set.",
    ),
    click.option(
        "--head",
        "heads",
        multiple=True,
        metavar="L.H",
        help="A head to draw, layer and head from 0 on; may be repeated. Default: the four that "
        "AttAttr finds most on.",
    ),
    click.option(
        "--parts",
        metavar="PART,…",
        help="What to find out: maps, inputs, tree, degradation, functions, stacks, triggers, "
        "gates, or all. Default: all but gates, which train the model many times; with --clip "
        "maps, inputs, tree and functions, which take seconds.",
    ),
    click.option(
        "--layer",
        type=click.IntRange(min=0),
        metavar="NUMBER",
        help="Behind which layer the bottleneck sits that attributes to frames or tokens. Default: "
        "three quarters of the way up.",
    ),
    click.option(
        "--samples",
        type=click.IntRange(min=0),
        default=40,
        show_default=True,
        metavar="NUMBER",
        help="Of the validation set, for degradation, stacks, triggers and gates; 0 for all.",
    ),
    click.option(
        "--penalties",
        metavar="NUMBER,…",
        help="What an open gate costs, in units of the task's loss; a training for each. Default: "
        "0,0.01,0.03,0.1,0.3,1.",
    ),
)
"""Those of `explain`, in the order they are told of."""


def explained_options(command: Command) -> Command:
    """All options of an explanation."""
    return reduce(lambda done, option: option(done), reversed(EXPLAINED), command)


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
    type=NamedPath(path_type=Path, dir_okay=False, readable=False),
    help="Write the gates as JUnit XML, which CI services show as tests. In the directory that is "
    "written its name must end in .xml.",
)


def output_option(name: str, remark: str = "") -> Callable[[Command], Command]:
    """`--output` of a command that writes to a directory of this name unless it is told another."""
    said = f"Directory to write; default exported_models/{name}. {remark}".strip()
    return click.option("--output", type=NamedPath(path_type=Path), help=said)


@dataclass(frozen=True)
class Given:
    """What is said to every command that works through a recipe into a directory."""

    recipe: Path
    output: Path | None
    overrides: tuple[str, ...]
    as_json: bool
    quiet: bool

    def directory(self, name: str) -> Path:
        """Where to write; a default of this name unless another was asked for."""
        return self.output or Path("exported_models") / name


def recipe_options(
    name: str, remark: str = "", printed: str = "the result"
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A recipe and the options that go with it, handed to a command as one `Given`."""
    told = f"Print {printed} on standard output."
    json = click.option("--json", "as_json", is_flag=True, help=told)
    options = (RECIPE, output_option(name, remark), OVERRIDES, DEVICE, json, QUIET)

    def decorated(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def called(
            recipe: Path,
            output: Path | None,
            overrides: tuple[str, ...],
            device: str | None,
            as_json: bool,
            quiet: bool,
            **others: Any,
        ) -> None:
            told = with_device(overrides, device)
            command(Given(recipe, output, told, as_json, quiet), **others)

        return reduce(lambda done, option: option(done), reversed(options), called)

    return decorated


def with_device(overrides: tuple[str, ...], device: str | None) -> tuple[str, ...]:
    """Overrides of a recipe with that of `--device`, which counts more than the others."""
    return overrides if device is None else (*overrides, f"device={device}")
