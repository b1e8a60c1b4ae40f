"""Commands on the directories that runs leave: show, verify, push, predict and correlate."""

from __future__ import annotations

import json
from pathlib import Path

import click

from hibprune.errors import UserError, printable
from hibprune.execution.console import REPORT_PAGE, say, say_json, show_in_browser
from hibprune.execution.libraries import quiet_libraries, require_packages
from hibprune.execution.options import OPEN, TIMEOUT, VARIANT, output_option

DIRECTORY = click.argument("directory", type=click.Path(path_type=Path))


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@output_option("correlate-<run>-<run>…")
@click.option("--json", "as_json", is_flag=True, help="Print the result on standard output.")
def correlate(runs: tuple[Path, ...], output: Path | None, as_json: bool) -> None:
    """Correlate the head scores of finished RUNS, by directory: of several tasks, or methods.

    Prints Spearman's and Pearson's correlation of each two and writes correlate.json, .png and
    .svg: of two runs head against head, of more a matrix, and correlate-1-2.png and so on beside.
    """
    require_packages()
    quiet_libraries()

    from hibprune.comparing.correlate import correlate_all, correlation_name

    directory = output or Path("exported_models") / correlation_name(*runs)
    correlation, lines = correlate_all(runs, directory)
    if as_json:
        say_json(correlation.model_dump_json(indent=1))
    else:
        for line in lines:
            say(line)


@click.command()
@DIRECTORY
@click.argument("inputs", nargs=-1, required=True)
@VARIANT
@click.option("--scores", is_flag=True, help="Add the probability of every label.")
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="NUMBER",
    help="How many inputs may share a pass, of one length or with masks; not in int8.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@TIMEOUT
def predict(
    directory: Path,
    inputs: tuple[str, ...],
    variant: str,
    scores: bool,
    batch: int,
    as_json: bool,
    timeout: float,
) -> None:
    """Run the exported model of DIRECTORY on INPUTS and print what it says of each.

    INPUTS are sound files, directories, which stand for all sound files below them, and manifests
    (.jsonl or .csv, with a column `audio`, or `text` for a text task); for a text task else the
    texts themselves, each one argument.

    DIRECTORY is that of a run, or a copy of its onnx/ and its configuration files.
    """
    require_packages()
    quiet_libraries()

    from hibprune.deployment.predict import answers

    def note(line: str) -> None:
        click.echo(f"note: {printable(line)}", err=True)

    for answer in answers(directory, inputs, timeout, variant, batch, scores, note):
        if as_json:
            click.echo(json.dumps(answer.fields))
        else:
            say(answer.line)


@click.command()
@DIRECTORY
@click.option("--json", "as_json", is_flag=True, help="Print the manifest.")
@OPEN
def show(directory: Path, as_json: bool, opens: bool) -> None:
    """Print what a finished run in DIRECTORY found: its variants, which to deploy, its gates."""
    from hibprune.execution.output import read_manifest

    manifest = read_manifest(directory)
    if opens:
        show_in_browser(directory / REPORT_PAGE)
    if as_json:
        say_json(manifest.model_dump_json(indent=1))
        return

    from hibprune.execution.progress import Terminal
    from hibprune.report.terminal import closing_table

    Terminal().print(closing_table(manifest))


@click.command()
@DIRECTORY
@TIMEOUT
def verify(directory: Path, timeout: float) -> None:
    """Check DIRECTORY, copied from wherever it was made: every file, and every variant at work.

    Compares the digests that the run left, loads each variant that is there, runs the example that
    comes with it, and holds what comes out against what the run found. Needs neither the original
    model nor data.

    Exit codes: 0 in order, 2 something is wrong.
    """
    _verified(directory, timeout)


@click.command()
@DIRECTORY
@click.argument("repository")
@click.option("--private", is_flag=True, help="A new repository is private.")
@click.option("--dry-run", is_flag=True, help="Say what would be uploaded, and upload nothing.")
@TIMEOUT
def push(directory: Path, repository: str, private: bool, dry_run: bool, timeout: float) -> None:
    """Upload DIRECTORY to REPOSITORY, owner/name on the Hub, once `verify` finds it in order.

    Takes the files that the manifest names: neither the log nor the records of steps, nor what
    else lies there. Without a token, in HF_TOKEN or from a login, it only says what it would do.

    Exit codes: 0 uploaded or said, 2 something is wrong.
    """
    require_packages()
    quiet_libraries()

    from hibprune.deployment.push import (
        LOG_IN,
        is_logged_in,
        prepared_upload,
        require_repository_name,
    )
    from hibprune.deployment.push import push as pushed

    require_repository_name(repository)
    upload = prepared_upload(directory)
    _verified(directory, timeout)
    for line in upload.lines:
        say(line)
    if dry_run or not is_logged_in():
        say(f"would go to {repository}; nothing is uploaded")
        if not is_logged_in():
            say(f"no token: {LOG_IN}")
        return
    say(f"uploaded to {pushed(upload, repository, private)}")


def _verified(directory: Path, timeout: float) -> None:
    """Say what `verify` finds in order. Raises UserError, a line for each thing that is not."""
    require_packages()
    quiet_libraries()

    from hibprune.deployment.verify import verify as verified

    faults = []
    for check in verified(directory, timeout):
        if check.is_fault:
            faults.append(check.line)
        else:
            say(check.line)
    if faults:
        raise UserError("\n".join(f"{directory}: {fault}" for fault in faults))
