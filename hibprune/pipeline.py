"""The chain: load, measure, score, choose, remove, repair, recover, export, convert, report.

Scoring and choosing take turns for as many rounds as the recipe's schedule says.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from hibprune.execution.files import plain_disk_errors, require_own
from hibprune.execution.output import LOG_FILE, check_output, open_output
from hibprune.execution.processes import ALONE, Processes
from hibprune.execution.progress import Narrator
from hibprune.execution.runtime import choose_device
from hibprune.recipe import LoadedRecipe, unused_settings
from hibprune.records.manifest import Manifest
from hibprune.records.variants import ORIGINAL
from hibprune.stages.choose import choose
from hibprune.stages.example import exemplified
from hibprune.stages.export import export
from hibprune.stages.findings import Findings, Made
from hibprune.stages.load import load, load_in_step, skipped_lines
from hibprune.stages.measure import (
    benchmarked,
    exported_original,
    measure_others,
    measured_original,
)
from hibprune.stages.outcome import Outcome, Training, write_outcome
from hibprune.stages.recover import help_recovering, measured_repaired, recovered
from hibprune.stages.remove import prune, reload
from hibprune.stages.repair import help_repairing, repaired
from hibprune.stages.run import Run
from hibprune.stages.score import calibration_targets, help_scoring
from hibprune.stages.sherpa import sherpa_files
from hibprune.stages.variants import converted, planned_variants, workbench
from hibprune.stages.waveform import waveform_graph


def run_recipe(
    loaded: LoadedRecipe, directory: Path, narrator: Narrator, processes: Processes = ALONE
) -> Manifest:
    """Run a recipe into a directory, taking up what an earlier run of it finished there.

    This process leads where there are several; the others are to `help_with_recipe`.

    Raises:
        UserError: recipe, model, data or machine are at fault; nothing is written before they
            have been checked.
    """
    check_output(directory)
    material, device = load_in_step(loaded, narrator)
    notes = (*unused_settings(loaded.recipe), *material.notes)
    for line in (*notes, *skipped_lines(material)):
        narrator.say(line)
    return run_loaded(Run(loaded, material, directory, device, narrator, processes))


def run_loaded(run: Run, prepare: Callable[[], object] = lambda: None) -> Manifest:
    """Run a recipe whose model and data are loaded; `prepare` is called in the open directory.

    Raises:
        UserError: as `run_recipe`.
    """
    directory = run.directory
    # Writers of other libraries raise errors of their own when the disk is full.
    log = run.narrator.log_to(directory / LOG_FILE)
    with open_output(directory), plain_disk_errors(directory), log:
        prepare()
        return _chain(run)


def help_with_recipe(
    loaded: LoadedRecipe, directory: Path, narrator: Narrator, processes: Processes
) -> None:
    """Score, repair and train on a share of the samples in a run that another process leads.

    Writes nothing that stays.

    Raises:
        UserError: as in that run.
    """
    device = choose_device(loaded.recipe.device)
    run = Run(loaded, load(loaded, device), directory, device, narrator, processes)
    help_scoring(run)
    help_repairing(run)
    if run.recipe.recover is not None:
        help_recovering(run)


def _chain(run: Run) -> Manifest:
    with workbench(run) as bench:
        original, *others = planned_variants(run.recipe)
        exported = exported_original(run, bench, original)
        baseline = measured_original(run, bench, original, exported)
        choice = choose(run)
        removal = prune(run, choice.plan)
        saved = repaired(run, choice.plan, choice.recovered)
        training = None
        if run.recipe.recover is not None:
            before = measured_repaired(run, choice.plan, saved)
            training = Training(recovered(run, choice.plan, saved), before)
        made = saved if training is None else training.recovered
        pruned = reload(run)
        parity = export(run, choice.plan, made.key, pruned, baseline.result.evaluation)
        heard, spoken = waveform_graph(run, parity.key), sherpa_files(run, pruned, parity.key)
        found = Findings(
            {ORIGINAL: Made(original, exported.key, parity=exported)}, {ORIGINAL: baseline}
        )
        targets = calibration_targets(run)
        for plan in others:
            if plan.precision == "fp32":
                found.made[plan.name] = Made(plan, parity.key, parity=parity)
            else:
                assert plan.parent is not None
                parent = found.made[plan.parent]
                lower = converted(run, bench, plan, parent.key, targets)
                found.made[plan.name] = Made(plan, lower.key, converted=lower)
        measure_others(run, bench, found)
        timed = {
            name: (partial(bench.directory, plan), key) for name, (plan, key) in found.timed.items()
        }
        benchmark = benchmarked(run, timed)
        example = exemplified(run, found, bench.directory)
    with run.narrator.step("report") as narration:
        require_own(run.directory)
        manifest = write_outcome(
            Outcome(
                loaded=run.loaded,
                material=run.material,
                device=run.device.type,
                choice=choice,
                removal=removal,
                saved=saved,
                training=training,
                found=found,
                benchmark=benchmark,
                example=example,
                waveform=heard,
                sherpa=spoken,
            ),
            run.directory,
        )
        narration.found(f"{run.directory / 'report.md'}")
    return manifest
