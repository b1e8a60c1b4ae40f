"""The command line: no logic here, and nothing heavy imported before a command runs."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hibprune import __version__
from hibprune.errors import UserError, import_fault

try:
    import click

    from hibprune.execution.console import (
        GATE_FAILED,
        PlainGroup,
        require_packages,
        say,
        say_json,
    )
except ImportError as error:
    # There is nothing yet to say it with.
    fault = import_fault(error)
    if fault is None:
        raise
    sys.stderr.write(f"error: {fault}\n")
    sys.exit(2)

if TYPE_CHECKING:
    from hibprune.recipe import LoadedRecipe

RECIPE = click.argument("recipe", type=click.Path(path_type=Path))
OVERRIDES = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY.PATH=VALUE",
    help="Override a value of the recipe; may be repeated.",
)


@click.group(cls=PlainGroup)
@click.version_option(__version__, prog_name="hibprune")
def main() -> None:
    """Make speech transformers smaller by removing attention heads, and prove what it cost."""


def share_the_processor() -> None:
    """Let torch's idle threads sleep instead of spinning; to be called before torch is imported.

    Spinning threads of runs that share their cores mostly wait for each other: two quickstarts at
    once crawl. A run that has the machine to itself is a little slower for it; set
    OMP_WAIT_POLICY=ACTIVE there.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def with_device(overrides: tuple[str, ...], device: str | None) -> tuple[str, ...]:
    """Overrides of a recipe with that of `--device`, which counts more than the others."""
    return overrides if device is None else (*overrides, f"device={device}")


def opened(recipe: Path, overrides: tuple[str, ...]) -> LoadedRecipe:
    """The recipe with its overrides, once the libraries that it imports are there and quiet.

    Raises:
        UserError: a line for each fault in it.
    """
    require_packages()

    from hibprune.execution.progress import quiet_libraries

    quiet_libraries()

    from hibprune.recipe import load_recipe

    return load_recipe(recipe, overrides)


@main.command()
@RECIPE
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Directory to write; default exported_models/<recipe name>.",
)
@OVERRIDES
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Override the device.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest on standard output.")
@click.option("--quiet", is_flag=True, help="No progress bars and no closing table: for logs.")
def run(
    recipe: Path,
    output: Path | None,
    overrides: tuple[str, ...],
    device: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Score, remove, validate, export and benchmark as RECIPE says.

    Under torchrun, several processes score the samples together.

    Exit codes: 0 done, also where a gate is undecided; 2 bad recipe, data or model; 3 a gate failed
    (everything is written).
    """
    share_the_processor()
    require_packages()

    from rich.console import Console

    from hibprune.execution.processes import joined
    from hibprune.execution.progress import Terminal

    console = Terminal(stderr=as_json)
    with joined() as ranks:
        loaded = opened(recipe, with_device(overrides, device))
        directory = output or Path("exported_models") / loaded.recipe.name
        bars = console.is_terminal and not quiet

        from hibprune.execution.progress import Narrator
        from hibprune.pipeline import help_with_recipe, run_recipe

        if not ranks.leads:
            help_with_recipe(loaded, directory, Narrator(Console(quiet=True)), ranks)
            return
        manifest = run_recipe(loaded, directory, Narrator(console, bars), ranks)
    if as_json:
        say_json(manifest.model_dump_json(indent=1))
    elif not quiet:
        from hibprune.report.terminal import closing_table

        console.print(closing_table(manifest))

    from hibprune.report.gates import gate_line

    for gate in manifest.gates:
        if gate.verdict != "passed":
            click.echo(f"gate {gate.verdict}: {gate_line(gate)}", err=True)
    if any(gate.verdict == "failed" for gate in manifest.gates):
        if ranks.count > 1:
            click.echo(
                f"exit code {GATE_FAILED}: everything is written; torchrun calls that a failed "
                "process and exits with 1",
                err=True,
            )
        sys.exit(GATE_FAILED)


@main.command()
@RECIPE
@click.option(
    "--methods",
    default="all",
    show_default=True,
    metavar="METHOD,…",
    help="E.g. hib,hib:beta=10:score=similarity,random. A name has the recipe's settings where it "
    "is the recipe's method, else its defaults; `:setting=value` changes one.",
)
@click.option(
    "--fractions",
    default="0.1,0.2,0.3,0.4,0.5,0.6,0.7",
    show_default=True,
    help="Shares of the heads to remove, rounded down to whole heads.",
)
@click.option("--scope", default="global,layerwise", show_default=True, help="One or both.")
@click.option(
    "--seeds", default=5, show_default=True, help="Draws of the random baseline, from the recipe's."
)
@click.option(
    "--metric", help="Of the curves; default token-accuracy for asr-seq2seq, the task's otherwise."
)
@click.option(
    "--points",
    default="0.1,0.3,0.5",
    show_default=True,
    help="Fractions to measure the task's own metric at, where the curves show another.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Directory to write; default exported_models/<recipe name>-compare. In that of a run, its "
    "scores are taken up.",
)
@OVERRIDES
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Override the device.")
@click.option("--json", "as_json", is_flag=True, help="Print the result on standard output.")
@click.option("--quiet", is_flag=True, help="No progress bars and no closing lines: for logs.")
def compare(
    recipe: Path,
    methods: str,
    fractions: str,
    scope: str,
    seeds: int,
    metric: str | None,
    points: str,
    output: Path | None,
    overrides: tuple[str, ...],
    device: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Hold attribution methods against each other on RECIPE's model and data.

    Scores once by every method, silences the lowest heads share by share and measures. Writes
    curves, areas with intervals, costs and rank correlations as compare.md, .json, .csv, .png and
    .svg.
    """
    share_the_processor()
    overrides = with_device(overrides, device)
    loaded = opened(recipe, overrides)
    directory = output or Path("exported_models") / f"{loaded.recipe.name}-compare"

    from hibprune.comparing import Wishes, compare_recipe
    from hibprune.execution.progress import Narrator, Terminal
    from hibprune.report.comparison import summary_lines

    console = Terminal(stderr=as_json)
    comparison = compare_recipe(
        loaded,
        overrides,
        Wishes(methods, fractions, scope, seeds, metric, points),
        directory,
        Narrator(console, console.is_terminal and not quiet),
        ("hibprune", *sys.argv[1:]),
    )
    if as_json:
        say_json(comparison.model_dump_json(indent=1))
    elif not quiet:
        for line in summary_lines(comparison):
            say(line)


@main.command()
@RECIPE
@OVERRIDES
@click.option("--offline", is_flag=True, help="Do not ask the Hugging Face Hub.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def check(recipe: Path, overrides: tuple[str, ...], offline: bool, as_json: bool) -> None:
    """Validate RECIPE without running it: keys, values, model, data and their overlap.

    Says of both sets of data how many clips, classes and hours they hold and which clips a run
    would skip. Headers are read, nothing is decoded: silence and NaN are not noticed. What is not
    on this machine is "not checked".

    \b
    --json prints one object, also when the recipe has faults:
      schema_version  1
      recipe          path of the recipe
      ok              whether there are no faults
      faults          plain lines, as on standard error
      not_checked     plain lines: what was not looked at
      notes           plain lines: what is odd about model and labels; only where there is any
      data            two objects, for calibration and validation:
        use, kind, medium   what for, kind of source, sound or text
        inputs              clips or texts listed
        drawn               those a run would take
        looked_at           those whose header or text was read
        hours               of the usable ones; null for text
        classes             label: how many; null without labels
        skipped             [{id, reason}] that cannot be used
        passed_over         [{id, reason}] files that are not taken up
      A value is null where it could not be found out.

    Exit codes: 0 in order, 2 faults.
    """
    from hibprune.data.paths import legible
    from hibprune.records.check import CheckReport

    try:
        loaded = opened(recipe, overrides)
    except UserError as error:
        lines = map(legible, str(error).splitlines())
        report = CheckReport(recipe=legible(str(recipe)), ok=False, faults=tuple(lines))
    else:
        from rich.console import Console

        from hibprune.execution.progress import counted
        from hibprune.stages.check import check_recipe

        with counted(Console(stderr=True)) as progress:
            report = check_recipe(loaded, offline, progress)
    if as_json:
        # Plain ASCII: what would steer a terminal is escaped.
        click.echo(json.dumps(report.model_dump(), indent=1))
    else:
        from hibprune.report.checking import check_lines

        for line in check_lines(report):
            say(line)
    if report.faults:
        raise UserError("\n".join(report.faults))


@main.command()
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Directory to write; default exported_models/correlate-<first>-<second>.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result on standard output.")
def correlate(first: Path, second: Path, output: Path | None, as_json: bool) -> None:
    """Correlate the head scores of two finished runs, by directory: two tasks, or two methods.

    Prints Spearman's and Pearson's correlation and writes correlate.json, .png and .svg.
    """
    require_packages()

    from hibprune.execution.progress import quiet_libraries

    quiet_libraries()

    from hibprune.comparing.correlate import correlate_runs, correlation_lines, correlation_name

    directory = output or Path("exported_models") / correlation_name(first, second)
    correlation = correlate_runs(first, second, directory)
    if as_json:
        say_json(correlation.model_dump_json(indent=1))
    else:
        for line in correlation_lines(correlation):
            say(line)


@main.command()
@click.option("--markdown", is_flag=True, help="Print the reference for people instead.")
def schema(markdown: bool) -> None:
    """Print the JSON schema of recipes."""
    if markdown:
        from hibprune.recipe.reference import reference_markdown

        click.echo(reference_markdown(), nl=False)
        return

    from hibprune.recipe import Recipe

    click.echo(json.dumps(Recipe.model_json_schema(), indent=1))


@main.command()
def methods() -> None:
    """List the attribution methods: what they do, where they come from, what they cost."""
    from hibprune.attribution import METHODS

    width = max(len(method.name()) for method in METHODS)
    for method in METHODS:
        click.echo(f"{method.name():<{width}}  {method.title}")
        click.echo(f"{'':<{width}}  source: {method.source}")
        click.echo(f"{'':<{width}}  cost:   {method.cost}")


@main.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.argument("inputs", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=300.0,
    show_default=True,
    metavar="SECONDS",
    help="How long the model may take to load, and for each input.",
)
def predict(directory: Path, inputs: tuple[str, ...], as_json: bool, timeout: float) -> None:
    """Run the exported model of DIRECTORY on INPUTS and print what it says of each.

    INPUTS are sound files; for a text task they are the texts themselves, each one argument.
    """
    require_packages()

    from hibprune.execution.progress import quiet_libraries

    quiet_libraries()

    from hibprune.deployment.predict import answers

    for answer in answers(directory, inputs, timeout):
        if as_json:
            line = {answer.argument_name: answer.argument, "prediction": answer.prediction}
            click.echo(json.dumps(line))
        else:
            say(answer.line)
