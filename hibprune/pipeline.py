"""The chain: load, baseline, attribute, plan, prune, validate, export, benchmark, report.

Attribute and plan take turns for as many rounds as the recipe's schedule says.
"""

from __future__ import annotations

from pathlib import Path

from hibprune.execution.files import plain_disk_errors, require_own
from hibprune.execution.output import LOG_FILE, check_output, open_output
from hibprune.execution.processes import ALONE, Ranks
from hibprune.execution.progress import Narrator
from hibprune.execution.runtime import choose_device
from hibprune.recipe import LoadedRecipe
from hibprune.records.manifest import Manifest
from hibprune.stages import chain
from hibprune.stages.load import load, loaded_line, skipped_lines
from hibprune.stages.outcome import Outcome, write_outcome
from hibprune.stages.repair import repaired
from hibprune.stages.run import Run
from hibprune.stages.score import choose, help_scoring


def run_recipe(
    loaded: LoadedRecipe, directory: Path, narrator: Narrator, ranks: Ranks = ALONE
) -> Manifest:
    """Run a recipe into a directory, taking up what an earlier run of it finished there.

    This process leads where there are several `ranks`; the others are to `help_with_recipe`.

    Raises:
        UserError: recipe, model, data or machine are at fault; nothing is written before they
            have been checked.
    """
    check_output(directory)
    device = choose_device(loaded.recipe.device)
    with narrator.step("load") as narration:
        material = load(loaded, device, narration.advance)
        narration.found(loaded_line(material, device))
    for line in (*material.notes, *skipped_lines(material)):
        narrator.say(line)
    # Writers of other libraries raise errors of their own when the disk is full.
    with open_output(directory), plain_disk_errors(directory):
        narrator.log_to(directory / LOG_FILE)
        return _chain(Run(loaded, material, directory, device, narrator, ranks))


def help_with_recipe(
    loaded: LoadedRecipe, directory: Path, narrator: Narrator, ranks: Ranks
) -> None:
    """Score a share of the samples in a run that another rank leads; writes nothing.

    Raises:
        UserError: as in that run.
    """
    device = choose_device(loaded.recipe.device)
    help_scoring(Run(loaded, load(loaded, device), directory, device, narrator, ranks))


def _chain(run: Run) -> Manifest:
    baseline = chain.baseline(run)
    choice = choose(run)
    removal = chain.prune(run, choice.plan)
    saved = repaired(run, choice.plan)
    smaller = chain.reload(run)
    pruned = chain.validate(run, saved, smaller)
    parity = chain.export(run, choice.plan, baseline, pruned, smaller)
    exported = chain.validate_exported(run, parity, smaller)
    benchmark = chain.benchmark(run, parity)
    with run.narrator.step("report") as narration:
        require_own(run.directory)
        manifest = write_outcome(
            Outcome(
                loaded=run.loaded,
                material=run.material,
                device=run.device.type,
                baseline=baseline,
                choice=choice,
                removal=removal,
                saved=saved,
                pruned=pruned,
                parity=parity,
                exported=exported,
                benchmark=benchmark,
            ),
            run.directory,
        )
        narration.found(f"{run.directory / 'report.md'}")
    return manifest
