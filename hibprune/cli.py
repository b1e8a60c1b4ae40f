"""The command line: no logic here, and nothing heavy imported before a command runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hibprune import __version__
from hibprune.errors import UserError, import_fault

try:
    import click

    from hibprune.execution.console import GATE_FAILED, PlainGroup, say, say_json, typed
    from hibprune.execution.libraries import quiet_libraries, require_packages, share_the_processor
    from hibprune.execution.options import (
        DEVICE,
        OVERRIDES,
        QUIET,
        RECIPE,
        TARGETS,
        TIMEOUT,
        VARIANT,
        compared_options,
        output_option,
        with_device,
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


@click.group(cls=PlainGroup)
@click.version_option(__version__, prog_name="hibprune")
def main() -> None:
    """Make speech transformers smaller without training, and prove what it cost."""


def opened(recipe: Path, overrides: tuple[str, ...], offline: bool = False) -> LoadedRecipe:
    """The recipe with its overrides, once the libraries that a run imports are there and quiet.

    Raises:
        UserError: a line for each fault in it.
    """
    require_packages()
    quiet_libraries()

    from hibprune.stages.sources import open_recipe

    return open_recipe(recipe, overrides, offline)


@main.command()
@RECIPE
@output_option("<recipe name>")
@OVERRIDES
@DEVICE
@click.option("--json", "as_json", is_flag=True, help="Print the manifest on standard output.")
@QUIET
def run(
    recipe: Path,
    output: Path | None,
    overrides: tuple[str, ...],
    device: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Score, remove, repair, train if asked to, validate, export and benchmark as RECIPE says.

    Under torchrun, several processes score the samples and train together.

    Exit codes: 0 done, also where a gate is undecided; 2 bad recipe, data or model; 3 a gate failed
    (everything is written).
    """
    share_the_processor()

    from hibprune.execution.processes import joined

    with joined() as ranks:
        loaded = opened(recipe, with_device(overrides, device))
        directory = output or Path("exported_models") / loaded.recipe.name

        from rich.console import Console

        from hibprune.execution.progress import Narrator, Terminal
        from hibprune.pipeline import help_with_recipe, run_recipe

        if not ranks.leads:
            help_with_recipe(loaded, directory, Narrator(Console(quiet=True)), ranks)
            return
        console = Terminal(stderr=as_json)
        narrator = Narrator(console, console.is_terminal and not quiet)
        manifest = run_recipe(loaded, directory, narrator, ranks)
    if as_json:
        say_json(manifest.model_dump_json(indent=1))
    elif not quiet:
        from hibprune.report.terminal import closing_table

        console.print(closing_table(manifest))

    from hibprune.report.gates import verdict_lines

    for line in verdict_lines(manifest.gates):
        click.echo(line, err=True)
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
@compared_options
@output_option("<recipe name>-compare", "In that of a run, its scores are taken up.")
@OVERRIDES
@DEVICE
@click.option("--json", "as_json", is_flag=True, help="Print the result on standard output.")
@QUIET
def compare(
    recipe: Path,
    output: Path | None,
    overrides: tuple[str, ...],
    device: str | None,
    as_json: bool,
    quiet: bool,
    **wished: Any,
) -> None:
    """Hold attribution methods against each other on RECIPE's model and data.

    Scores once by every method, silences the lowest heads share by share, or removes them and
    repairs what stays, and measures. Writes compare.md, .json, .csv, .png and .svg.
    """
    share_the_processor()
    overrides = with_device(overrides, device)
    loaded = opened(recipe, overrides)
    directory = output or Path("exported_models") / f"{loaded.recipe.name}-compare"

    from hibprune.comparing import Request, compare_recipe
    from hibprune.execution.progress import Narrator, Terminal
    from hibprune.report.comparison import summary_lines

    console = Terminal(stderr=as_json)
    narrator = Narrator(console, console.is_terminal and not quiet)
    comparison = compare_recipe(loaded, overrides, Request(**wished), directory, narrator, typed())
    if as_json:
        say_json(comparison.model_dump_json(indent=1))
    elif not quiet:
        for line in summary_lines(comparison):
            say(line)


@main.command()
@RECIPE
@TARGETS
@output_option("<recipe name>-frontier")
@OVERRIDES
@DEVICE
@click.option("--json", "as_json", is_flag=True, help="Print the result on standard output.")
@QUIET
def frontier(
    recipe: Path,
    targets: str,
    output: Path | None,
    overrides: tuple[str, ...],
    device: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run RECIPE at several budgets and show what each costs.

    Scores once; each budget is then removed, repaired, exported and measured as `run` does, in a
    directory of its own below points/ with its report and gates, and all models are timed in turn.
    Writes frontier.md, .json, .png and .svg, with the unpruned model and its plain int8 beside.
    """
    share_the_processor()
    overrides = with_device(overrides, device)
    loaded = opened(recipe, overrides)
    directory = output or Path("exported_models") / f"{loaded.recipe.name}-frontier"

    from hibprune.comparing.frontier import frontier as run_frontier
    from hibprune.execution.progress import Narrator, Terminal
    from hibprune.report.frontier import frontier_table

    console = Terminal(stderr=as_json)
    narrator = Narrator(console, console.is_terminal and not quiet)
    found = run_frontier(loaded, overrides, targets, directory, narrator, typed())
    if as_json:
        say_json(found.model_dump_json(indent=1))
    elif not quiet:
        console.print(frontier_table(found))


@main.command()
@RECIPE
@OVERRIDES
@click.option("--offline", is_flag=True, help="Do not ask the Hugging Face Hub.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def check(recipe: Path, overrides: tuple[str, ...], offline: bool, as_json: bool) -> None:
    """Validate RECIPE without running it: keys, values, model, data and their overlap.

    Says of all sets of data how many clips, classes and hours they hold and which clips a run
    would skip. Headers are read of all, and of a set the 20 clips that a run takes first decoded:
    silence and NaN in others are not noticed. What is not on this machine is "not checked".

    \b
    --json prints one object, also when the recipe has faults:
      schema_version  1
      recipe          path of the recipe
      ok              whether there are no faults
      faults          plain lines, as on standard error
      not_checked     plain lines: what was not looked at
      notes           plain lines: what is odd about model and labels; only where there is any
      data            objects for calibration, validation, and recover.data if given:
        use, kind, medium   what for, kind of source, sound or text
        inputs              clips or texts listed
        drawn               those a run would take
        looked_at           those whose header or text was read
        decoded             clips read whole; null for text
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
        loaded = opened(recipe, overrides, offline)
    except UserError as error:
        lines = map(legible, str(error).splitlines())
        report = CheckReport(recipe=legible(str(recipe)), ok=False, faults=tuple(lines))
    else:
        from hibprune.execution.progress import Narrator, Terminal
        from hibprune.stages.check import check_recipe

        console = Terminal(stderr=True)
        with Narrator(console, console.is_terminal).counted() as progress:
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
@output_option("correlate-<first>-<second>")
@click.option("--json", "as_json", is_flag=True, help="Print the result on standard output.")
def correlate(first: Path, second: Path, output: Path | None, as_json: bool) -> None:
    """Correlate the head scores of two finished runs, by directory: two tasks, or two methods.

    Prints Spearman's and Pearson's correlation and writes correlate.json, .png and .svg.
    """
    require_packages()
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
@VARIANT
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@TIMEOUT
def predict(
    directory: Path, inputs: tuple[str, ...], variant: str, as_json: bool, timeout: float
) -> None:
    """Run the exported model of DIRECTORY on INPUTS and print what it says of each.

    INPUTS are sound files; for a text task they are the texts themselves, each one argument.
    """
    require_packages()
    quiet_libraries()

    from hibprune.deployment.predict import answers

    for answer in answers(directory, inputs, timeout, variant):
        if as_json:
            line = {answer.argument_name: answer.argument, "prediction": answer.prediction}
            click.echo(json.dumps(line))
        else:
            say(answer.line)


if __name__ == "__main__":
    main()
