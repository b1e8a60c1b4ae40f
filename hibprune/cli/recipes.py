"""Commands on a recipe: run, compare, explain, frontier and check."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hibprune.errors import UserError
from hibprune.execution.console import (
    GATE_FAILED,
    REPORT_PAGE,
    say,
    say_json,
    show_in_browser,
    typed,
)
from hibprune.execution.libraries import quiet_libraries, require_packages, share_the_processor
from hibprune.execution.options import (
    JUNIT,
    OPEN,
    OVERRIDES,
    RECIPE,
    TARGETS,
    Given,
    compared_options,
    explained_options,
    recipe_options,
)

if TYPE_CHECKING:
    from hibprune.execution.progress import Narrator
    from hibprune.recipe import LoadedRecipe


def opened(recipe: Path, overrides: tuple[str, ...], offline: bool = False) -> LoadedRecipe:
    """The recipe with its overrides, once the libraries that a run imports are there and quiet.

    Raises:
        UserError: a line for each fault in it.
    """
    require_packages()
    quiet_libraries()

    from hibprune.stages.sources import open_recipe

    return open_recipe(recipe, overrides, offline)


def narrating(as_json: bool, quiet: bool) -> Narrator:
    """What tells of a command's steps: on standard error where JSON goes to standard output."""
    from hibprune.execution.progress import Narrator, Terminal

    console = Terminal(stderr=as_json)
    return Narrator(console, console.is_terminal and not quiet)


@click.command()
@recipe_options("<recipe name>", printed="the manifest")
@JUNIT
@OPEN
def run(given: Given, junit: Path | None, opens: bool) -> None:
    """Score, remove, repair, train if asked to, validate, export and benchmark as RECIPE says.

    Under torchrun, several processes score the samples and train together.

    Appends verdict and variants to the file that GITHUB_STEP_SUMMARY names, if it does.

    Exit codes: 0 done, also where a gate is undecided; 2 bad recipe, data or model; 3 a gate failed
    (everything is written).
    """
    share_the_processor()

    from hibprune.execution.processes import joined

    with joined() as processes:
        loaded = opened(given.recipe, given.overrides)
        directory = given.directory(loaded.recipe.name)
        summary = os.environ.get("GITHUB_STEP_SUMMARY")

        from rich.console import Console

        from hibprune.execution.progress import Narrator
        from hibprune.pipeline import help_with_recipe, run_recipe
        from hibprune.report.ci_service import require_apart_from_run, tell_ci

        require_apart_from_run(directory, junit, summary)
        if not processes.leads:
            help_with_recipe(loaded, directory, Narrator(Console(quiet=True)), processes)
            return
        narrator = narrating(given.as_json, given.quiet)
        manifest = run_recipe(loaded, directory, narrator, processes)
    if given.as_json:
        say_json(manifest.model_dump_json(indent=1))
    elif not given.quiet:
        from hibprune.report.terminal import closing_table

        narrator.console.print(closing_table(manifest))

    from hibprune.report.gates import verdict_lines

    tell_ci(manifest, junit, summary)
    if opens:
        show_in_browser(directory / REPORT_PAGE)

    for line in verdict_lines(manifest.gates):
        click.echo(line, err=True)
    if any(gate.verdict == "failed" for gate in manifest.gates):
        if processes.count > 1:
            click.echo(
                f"exit code {GATE_FAILED}: everything is written; torchrun calls that a failed "
                "process and exits with 1",
                err=True,
            )
        sys.exit(GATE_FAILED)


@click.command()
@compared_options
@recipe_options("<recipe name>-compare", "In that of a run, its scores are taken up.")
def compare(given: Given, **wished: Any) -> None:
    """Hold attribution methods against each other on RECIPE's model and data.

    Scores once by every method, silences the lowest heads share by share, or removes them and
    repairs what stays, and measures. Writes compare.md, .json, .csv, .png and .svg.
    """
    share_the_processor()
    loaded = opened(given.recipe, given.overrides)
    directory = given.directory(f"{loaded.recipe.name}-compare")

    from hibprune.comparing import Request, compare_recipe
    from hibprune.report.comparison import summary_lines

    narrator = narrating(given.as_json, given.quiet)
    comparison = compare_recipe(
        loaded, given.overrides, Request(**wished), directory, narrator, typed()
    )
    if given.as_json:
        say_json(comparison.model_dump_json(indent=1))
    elif not given.quiet:
        for line in summary_lines(comparison):
            say(line)


@click.command()
@explained_options
@recipe_options("<recipe name>-explain", "In that of a run, its scores are taken up.")
def explain(given: Given, **wished: Any) -> None:
    """Show what the heads of RECIPE's model do, on single clips and over its data.

    Writes explain.html with all pictures in it, the pictures beside it, and explain.json.
    """
    share_the_processor()
    loaded = opened(given.recipe, given.overrides)
    directory = given.directory(f"{loaded.recipe.name}-explain")

    from hibprune.explaining import Request, explain_recipe

    narrator = narrating(given.as_json, given.quiet)
    explanation = explain_recipe(loaded, Request(**wished), directory, narrator, typed())
    if given.as_json:
        say_json(explanation.model_dump_json(indent=1))


@click.command()
@TARGETS
@recipe_options("<recipe name>-frontier")
def frontier(given: Given, targets: str) -> None:
    """Run RECIPE at several budgets and show what each costs.

    Scores once; each budget is then removed, repaired, exported and measured as `run` does, in a
    directory of its own below points/ with its report and gates, and all models are timed in turn.
    Writes frontier.md, .json, .png and .svg, with the unpruned model and its plain int8 beside.
    """
    share_the_processor()
    loaded = opened(given.recipe, given.overrides)
    directory = given.directory(f"{loaded.recipe.name}-frontier")

    from hibprune.comparing.frontier import frontier as run_frontier
    from hibprune.report.frontier import frontier_table

    narrator = narrating(given.as_json, given.quiet)
    found = run_frontier(loaded, given.overrides, targets, directory, narrator, typed())
    if given.as_json:
        say_json(found.model_dump_json(indent=1))
    elif not given.quiet:
        narrator.console.print(frontier_table(found))


@click.command()
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
      notes           plain lines: what is odd or not used; only where there is any
      removes         plain lines: what would go, of how many; only where that is known
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
        from hibprune.stages.check import check_recipe

        with narrating(as_json=True, quiet=False).counted() as progress:
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
