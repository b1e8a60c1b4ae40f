"""The chain of an explanation: load, look at clips, look at heads over all clips, write."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from hibprune.data import ContentFault
from hibprune.errors import OutputError, UserError, shortened
from hibprune.execution.files import plain_disk_errors, require_own
from hibprune.execution.machine import describe_machine, installed_versions
from hibprune.execution.output import EXPLANATION, LOG_FILE, check_output, open_output
from hibprune.execution.progress import Narrator
from hibprune.execution.steps import kept_result
from hibprune.explaining.attention_kinds import compared_stacks
from hibprune.explaining.attribution_tree import tree_of
from hibprune.explaining.degradation import degraded, inputs_of, usual_layer
from hibprune.explaining.explained_inputs import Subject, subjects
from hibprune.explaining.head_functions import found_functions, with_scores
from hibprune.explaining.kept_heads import kept_heads
from hibprune.explaining.maps import maps_of
from hibprune.explaining.request import OF_CLIPS, Choice, Request, choose, named_heads
from hibprune.explaining.triggers import found_triggers
from hibprune.models.attention import heads_of
from hibprune.models.layerwise import encoder_layers
from hibprune.recipe import LoadedRecipe
from hibprune.records.explanation import (
    AttributionTree,
    ClipMaps,
    Degradation,
    Explanation,
    HeadFunctions,
    InputAttribution,
    KeptHeads,
    Stacks,
    Triggers,
)
from hibprune.records.units import Head, Scores
from hibprune.report.explanation import write_explanation
from hibprune.stages.load import load_in_step, skipped_lines
from hibprune.stages.provenance import model_summary
from hibprune.stages.run import Run
from hibprune.stages.score import ATTRIBUTE, attribute, calibration_targets

Found = TypeVar("Found")


@dataclass
class Findings:
    """What the parts have found so far, and a line for each that is left out."""

    maps: list[ClipMaps] = field(default_factory=list)
    inputs: list[InputAttribution] = field(default_factory=list)
    degradation: Degradation | None = None
    functions: HeadFunctions | None = None
    stacks: Stacks | None = None
    kept: KeptHeads | None = None
    trees: list[AttributionTree] = field(default_factory=list)
    triggers: Triggers | None = None
    left_out: list[str] = field(default_factory=list)

    def attempt(self, place: str, compute: Callable[[], Found]) -> Found | None:
        """What a part finds, or None and a line where it serves no such clip, task or family.

        Raises:
            OutputError: what is found cannot be written, which no other part will mend.
        """
        try:
            return compute()
        except OutputError:
            raise
        except (UserError, ContentFault) as error:
            self.left_out.append(f"{place}: left out: {error}")
            return None

    def each(
        self, part: str, explained: Sequence[Subject], compute: Callable[[Subject], Found]
    ) -> list[Found]:
        """What a part finds on each clip that it serves. Raises OutputError as `attempt` does."""
        found = []
        for subject in explained:
            place = f"{part} of {shortened(subject.clip.id)}"
            one = self.attempt(place, partial(compute, subject))
            found += [] if one is None else [one]
        return found


def explain_recipe(
    loaded: LoadedRecipe,
    request: Request,
    directory: Path,
    narrator: Narrator,
    command: Sequence[str] = (),
) -> Explanation:
    """Explain what a recipe's model does on its data, taking up what is done in the directory.

    Raises:
        UserError: request, recipe, model or data are at fault; nothing is written before they have
            been checked.
    """
    choice = choose(request)
    check_output(directory)
    material, device = load_in_step(loaded, narrator, exports=False)
    for line in (*material.notes, *skipped_lines(material)):
        narrator.say(line)
    run = Run(loaded, material, directory, device, narrator)
    log = narrator.log_to(directory / LOG_FILE)
    with open_output(directory), plain_disk_errors(directory), log:
        explained, found = _explained(run, choice)
        for line in found.left_out:
            narrator.say(line)
        explanation = Explanation(
            recipe=loaded.recipe.name,
            command=shlex.join(command),
            model=model_summary(loaded, material),
            task=loaded.recipe.task.kind,
            medium=loaded.recipe.task.medium.name,
            device=device.type,
            seed=loaded.recipe.seed,
            clips=tuple(subject.clip for subject in explained),
            maps=tuple(found.maps),
            inputs=tuple(found.inputs),
            degradation=found.degradation,
            functions=found.functions,
            stacks=found.stacks,
            kept=found.kept,
            trees=tuple(found.trees),
            triggers=found.triggers,
            left_out=tuple(found.left_out),
            machine=describe_machine(),
            versions=installed_versions(),
        )
        with narrator.step("report") as narration:
            require_own(directory)
            write_explanation(explanation, directory)
            narration.found(f"{directory / f'{EXPLANATION}.html'}")
    return explanation


def _explained(run: Run, choice: Choice) -> tuple[list[Subject], Findings]:
    found, parts = Findings(), choice.parts
    explained: list[Subject] = []
    if set(OF_CLIPS) & set(parts):
        explained, lines = subjects(run, choice.clips)
        found.left_out += lines
    if "maps" in parts:
        _maps(run, choice, explained, found)
    if "inputs" in parts:
        _inputs(run, choice, explained, found)
    if "tree" in parts:
        found.trees = found.each("tree", explained, lambda one: tree_of(run, one).result)
    if "degradation" in parts:
        found.degradation = found.attempt(
            "degradation", lambda: degraded(run, choice.samples).result
        )
    if "functions" in parts:
        found.functions = found.attempt("functions", lambda: _functions(run, choice, found))
    if "stacks" in parts:
        found.stacks = found.attempt("stacks", lambda: compared_stacks(run, choice.samples))
    if "triggers" in parts:
        found.triggers = found.attempt(
            "triggers", lambda: found_triggers(run, choice.samples).result
        )
    if "gates" in parts:
        found.kept = found.attempt(
            "gates", lambda: kept_heads(run, choice.penalties, choice.samples)
        )
    return explained, found


def _maps(run: Run, choice: Choice, explained: Sequence[Subject], found: Findings) -> None:
    heads: list[Head] = []
    if choice.heads:
        heads, missing = named_heads(choice.heads, heads_of(run.checkpoint.model))
        found.left_out += missing
        if not heads:
            return
    found.maps = found.each("maps", explained, lambda one: maps_of(run, one, heads).result)


def _inputs(run: Run, choice: Choice, explained: Sequence[Subject], found: Findings) -> None:
    layers = len(encoder_layers(run.checkpoint.model))
    layer = usual_layer(run.checkpoint.model) if choice.layer is None else choice.layer
    if layer >= layers:
        found.left_out.append(f"--layer {layer}: no such layer: they are 0 to {layers - 1}")
        return
    found.inputs = found.each("inputs", explained, lambda one: inputs_of(run, one, layer).result)


def _functions(run: Run, choice: Choice, found: Findings) -> HeadFunctions:
    functions = found_functions(run).result
    found.left_out += functions.skipped
    # On a clip's page scores are shown where there are some: to make them may take minutes.
    if choice.of_a_clip and kept_result(run.directory, ATTRIBUTE, Scores) is None:
        return functions
    scores = found.attempt(
        "scores of functions", lambda: attribute(run, calibration_targets(run)).result
    )
    return functions if scores is None else with_scores(functions, scores)
