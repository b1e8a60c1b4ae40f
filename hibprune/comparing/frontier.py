"""A recipe at several budgets: scored once, then each removed, repaired, exported and measured."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hibprune.comparing.request import amounts_of, fractions_of, parts_of
from hibprune.errors import UserError, did_you_mean, shortened
from hibprune.execution.files import digest, plain_disk_errors, require_own
from hibprune.execution.output import LOG_FILE, check_output, open_output
from hibprune.execution.progress import Narrator
from hibprune.execution.steps import hand_on
from hibprune.pipeline import run_loaded
from hibprune.recipe import LoadedRecipe, load_recipe
from hibprune.records.frontier import Frontier, FrontierPoint
from hibprune.records.manifest import Manifest
from hibprune.records.measurements import Benchmark
from hibprune.records.units import OneNumber, Pool
from hibprune.records.variants import Converted, Variant, VariantLatency
from hibprune.report.frontier import write_frontier
from hibprune.stages.budget import check_mix
from hibprune.stages.latency_table import LATENCY_TABLE
from hibprune.stages.load import load_in_step, skipped_lines
from hibprune.stages.measure import benchmarked
from hibprune.stages.run import Run
from hibprune.stages.variants import Workbench, planned_variants, workbench

POINTS = "points"
"""The directory of the runs, one for each budget."""
SHARED = (
    "label",
    "export-original",
    "measure-original",
    "attribute",
    "attribute-neurons",
    "attribute-channels",
    "attribute-decoder-neurons",
    LATENCY_TABLE,
    "convert-original-int8",
    "measure-original-int8",
)
"""Steps that come to the same whatever the budget."""
MAX_TARGETS = 50
ALONG: dict[OneNumber, str] = {
    "parameters": "0.7,0.5,0.3",
    "multiply_adds": "0.7,0.5,0.3",
    "size_mb": "20,10,5",
    "metric_drop": "0.005,0.01,0.02",
    "speedup": "1.25,1.5,2",
}
"""The budgets that a frontier goes along, with what could be asked."""
SHARES: tuple[OneNumber, ...] = ("parameters", "multiply_adds", "metric_drop")
"""Of which the numbers lie between 0 and 1."""
LEAVE_LESS: tuple[OneNumber, ...] = ("metric_drop", "speedup")
"""Of which more leaves a smaller model."""


@dataclass(frozen=True)
class Target:
    """One budget of a frontier, and the recipe with it."""

    name: OneNumber
    amount: float
    loaded: LoadedRecipe

    @property
    def label(self) -> str:
        """What it is called, also its directory."""
        return f"{self.name}-{self.amount:g}"


def frontier(
    loaded: LoadedRecipe,
    overrides: Sequence[str],
    targets: str,
    directory: Path,
    narrator: Narrator,
    command: Sequence[str] = (),
) -> Frontier:
    """Run a recipe at every budget of `targets`, taking up what is done in the directory.

    Raises:
        UserError: targets, recipe, model or data are at fault; nothing is written before they have
            been checked.
    """
    chosen = targets_of(loaded, overrides, targets)
    check_output(directory)
    material, device = load_in_step(chosen[0].loaded, narrator)
    for target in chosen[1:]:
        check_mix(target.loaded.recipe, material.checkpoint, material.references)
    for line in (*material.notes, *skipped_lines(material)):
        narrator.say(line)
    log = narrator.log_to(directory / LOG_FILE)
    with open_output(directory), plain_disk_errors(directory), log:
        runs = {
            target.label: Run(
                target.loaded, material, directory / POINTS / target.label, device, narrator
            )
            for target in chosen
        }
        manifests = _run_all(runs, narrator)
        timed = _timed_together(Run(loaded, material, directory, device, narrator), runs, manifests)
        found = _frontier(manifests, timed, shlex.join(command))
        with narrator.step("report") as narration:
            require_own(directory)
            write_frontier(found, directory)
            narration.found(f"{directory / 'frontier.md'}")
    return found


def targets_of(loaded: LoadedRecipe, overrides: Sequence[str], text: str) -> tuple[Target, ...]:
    """The budgets of `parameters=0.7,0.5` or `speedup=1.5,2`, each with its recipe.

    Those that leave most come first.

    Raises:
        UserError: they are not of that form, or no budgets.
    """
    names = tuple(ALONG)
    example = "give it as parameters=0.7,0.5,0.3"
    name, equals, amounts = text.partition("=")
    if not equals or not amounts.strip():
        raise UserError(f"--targets: {shortened(text)}: {example}")
    budget = next((one for one in names if one == name.strip()), None)
    if budget is None:
        hint = did_you_mean(name.strip(), names) or f": one of {', '.join(names)}"
        raise UserError(f"--targets: unknown budget '{shortened(name.strip())}'{hint}")
    number = len(parts_of("--targets", amounts))
    if number > MAX_TARGETS:
        raise UserError(f"--targets: should be at most {MAX_TARGETS}, not {number}")
    own = loaded.recipe.budget
    kept = {
        "min_heads_per_layer": own.min_heads_per_layer,
        **({} if own.kinds is None else {"kinds": list(own.kinds)}),
    }
    found = []
    example = f"give it as {budget}={ALONG[budget]}"
    read = fractions_of if budget in SHARES else amounts_of
    chosen = read("--targets", amounts, example)
    if not all(map(math.isfinite, chosen)):
        raise UserError(f"--targets: {shortened(amounts)}: {example}")
    for amount in chosen if budget in LEAVE_LESS else reversed(chosen):
        override = f"budget={json.dumps({budget: amount, **kept})}"
        found.append(Target(budget, amount, load_recipe(loaded.path, (*overrides, override))))
    return tuple(found)


def _run_all(runs: Mapping[str, Run], narrator: Narrator) -> dict[str, Manifest]:
    """The whole chain at every budget; what does not depend on it is computed by the first."""
    manifests: dict[str, Manifest] = {}
    first = next(iter(runs.values())).directory
    for label, run in runs.items():
        narrator.say(f"{label}:")
        shared = partial(hand_on, first, run.directory, SHARED)
        manifests[label] = run_loaded(run, shared if manifests else lambda: None)
    return manifests


def _timed_together(
    whole: Run, runs: Mapping[str, Run], manifests: Mapping[str, Manifest]
) -> Benchmark:
    """Time the models of all budgets in turn, with the original and its rivals."""
    first = next(iter(manifests))
    places: dict[str, tuple[Callable[[], Path], str]] = {}
    with workbench(whole) as bench:
        for label, run in runs.items():
            own = Workbench(run, bench.scratch / label, bench.inputs)
            plans = {plan.name: plan for plan in planned_variants(run.recipe)}
            for variant in manifests[label].variants:
                if variant.is_rival and label != first:
                    continue
                if variant.guard is not None:
                    own.converted[variant.name] = Converted(guard=variant.guard)
                name = variant.name if variant.is_rival else timed_name(label, variant.name)
                places[name] = partial(own.directory, plans[variant.name]), _key(variant)
        return benchmarked(whole, places).result


def timed_name(label: str, variant: str) -> str:
    """What a variant of one budget is called among those of all."""
    return f"{label}/{variant}"


def _key(variant: Variant) -> str:
    return digest(*(graph.sha256 for graph in variant.files))


def _frontier(manifests: Mapping[str, Manifest], benchmark: Benchmark, command: str) -> Frontier:
    def timed(variant: Variant, name: str) -> Variant:
        latency = tuple(VariantLatency.of(one, name) for one in benchmark.latencies)
        return variant.model_copy(update={"latency": latency})

    first = next(iter(manifests.values()))
    points = []
    for label, manifest in manifests.items():
        assert manifest.budget is not None
        removed: dict[Pool, int] = {"head": manifest.heads.removed_count}
        removed |= {pool: units.removed_count for pool, units in manifest.others.items()}
        points.append(
            FrontierPoint(
                label=label,
                directory=f"{POINTS}/{label}",
                budget=manifest.budget,
                removed=removed,
                factored=0 if manifest.ranks is None else len(manifest.ranks.factored),
                variants=tuple(
                    timed(one, timed_name(label, one.name))
                    for one in manifest.variants
                    if not one.is_rival
                ),
                missing=manifest.missing,
            )
        )
    return Frontier(
        recipe=first.recipe,
        command=command,
        model=first.model,
        task=first.task,
        metric=first.metric,
        rivals=tuple(timed(one, one.name) for one in first.variants if one.is_rival),
        points=tuple(points),
        machine=first.machine,
        versions=first.versions,
    )
