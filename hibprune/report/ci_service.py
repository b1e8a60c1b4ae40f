"""What a CI service shows of a run: its gates as tests, its verdict on the page of the job."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

from hibprune.errors import UserError, printable
from hibprune.execution.files import read_fault
from hibprune.execution.named_files import append_named, write_named
from hibprune.execution.output import JUNIT_SUFFIX
from hibprune.records.manifest import Manifest
from hibprune.report.gates import gate_line, gate_summary
from hibprune.report.markdown import plain
from hibprune.report.page import variants_table, verdict
from hibprune.report.template import paragraphs


def require_apart_from_run(directory: Path, junit: Path | None, summary: str | None) -> None:
    """See that what CI is told goes into no file of the run in `directory`.

    Raises:
        UserError: it might.
    """
    if junit is not None and _within(directory, junit):
        raise UserError(f"--junit: {junit}: a directory when the run is done: name a file")
    if junit is not None and _within(junit, directory) and junit.suffix != JUNIT_SUFFIX:
        raise UserError(
            f"--junit: {junit}: in the directory of the run, whose files have such names: "
            f"name a {JUNIT_SUFFIX} file or one elsewhere"
        )
    if summary and _within(Path(summary), directory):
        raise UserError(
            f"GITHUB_STEP_SUMMARY: {summary}: in the directory of the run: name a file elsewhere "
            "or choose another --output"
        )


def _within(path: Path, directory: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(directory))


def tell_ci(manifest: Manifest, junit: Path | None, summary: str | None) -> None:
    """Write the gates to the file `junit`, and append to the file `summary`, where there is one.

    Raises:
        UserError: a file cannot be written to.
    """
    if junit is not None:
        with _plain_faults("--junit", junit):
            write_named(junit, junit_xml(manifest))
    if summary:
        with _plain_faults("GITHUB_STEP_SUMMARY", summary):
            append_named(Path(summary), job_summary(manifest))


@contextmanager
def _plain_faults(place: str, file: Path | str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{place}: {file} cannot be written to: {read_fault(error)}: name another file; the "
            "run is finished"
        ) from error


def junit_xml(manifest: Manifest) -> str:
    """JUnit XML with a test for every gate; an undecided one counts as skipped.

    A run without gates has one test that passes, since CI takes an empty suite for a fault.
    """
    count = {
        which: sum(gate.verdict == which for gate in manifest.gates)
        for which in ("failed", "undecided")
    }
    seconds = sum(manifest.steps.values())
    suite = ElementTree.Element(
        "testsuite",
        {
            "name": printable(manifest.recipe),
            "tests": str(max(1, len(manifest.gates))),
            "failures": str(count["failed"]),
            "errors": "0",
            "skipped": str(count["undecided"]),
            "time": f"{seconds:.3f}",
        },
    )
    name = f"hibprune.{printable(manifest.recipe)}"
    if not manifest.gates:
        ElementTree.SubElement(suite, "testcase", {"classname": name, "name": "run", "time": "0"})
    for gate in manifest.gates:
        case = ElementTree.SubElement(
            suite, "testcase", {"classname": name, "name": gate.name, "time": "0"}
        )
        if gate.verdict == "failed":
            fault = ElementTree.SubElement(case, "failure", {"message": gate_line(gate)})
            fault.text = f"{manifest.judged}: {gate_line(gate)}"
        elif gate.verdict == "undecided":
            ElementTree.SubElement(case, "skipped", {"message": gate_line(gate)})
        else:
            ElementTree.SubElement(case, "system-out").text = gate_summary(gate)
    suites = ElementTree.Element("testsuites")
    suites.append(suite)
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def job_summary(manifest: Manifest) -> str:
    """Markdown for the page of a job: the verdict and all variants."""
    title = f"### hibprune: {plain(manifest.recipe)}"
    return paragraphs([title, variants_table(manifest), *verdict(manifest)]) + "\n"
