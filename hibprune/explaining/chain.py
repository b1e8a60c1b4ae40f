"""The chain of an explanation: load, look at clips, look at heads over all clips, write."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hibprune.data import ContentFault
from hibprune.errors import UserError, shortened
from hibprune.execution.files import plain_disk_errors, require_own
from hibprune.execution.machine import describe_machine, installed_versions
from hibprune.execution.output import EXPLANATION, LOG_FILE, check_output, open_output
from hibprune.execution.progress import Narrator
from hibprune.execution.steps import kept_result
from hibprune.explaining.attention_kinds import compared_stacks
from hibprune.explaining.attribution_tree import tree_of
from hibprune.explaining.degradation import degraded, inputs_of, usual_layer
from hibprune.explaining.head_functions import found_functions, with_scores
from hibprune.explaining.maps import maps_of
from hibprune.explaining.request import OF_CLIPS, Choice, Request, choose, named_heads
from hibprune.explaining.subjects import Subject, subjects
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
    Stacks,
    Triggers,
)
from hibprune.records.units import Head, Scores
from hibprune.report.explanation import write_explanation
from hibprune.stages.load import load_in_step, skipped_lines
from hibprune.stages.outcome import model_summary
from hibprune.stages.run import Run
from hibprune.stages.score import ATTRIBUTE, attribute, calibration_targets


@dataclass
class Findings:
    """What the parts have found so far, and a line for each that is left out."""

    maps: list[ClipMaps] = field(default_factory=list)
    inputs: list[InputAttribution] = field(default_factory=list)
    degradation: Degradation | None = None
    functions: HeadFunctions | None = None
    stacks: Stacks | None = None
    trees: list[AttributionTree] = field(default_factory=list)
    triggers: Triggers | None = None
    left_out: list[str] = field(default_factory=list)


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
    found = Findings()
    explained: list[Subject] = []
    if set(OF_CLIPS) & set(choice.parts):
        explained, lines = subjects(run, choice.clips)
        found.left_out += lines
    if "maps" in choice.parts:
        _maps(run, choice, explained, found)
    if "inputs" in choice.parts:
        _inputs(run, choice, explained, found)
    if "tree" in choice.parts:
        for subject in explained:
            try:
                found.trees.append(tree_of(run, subject).result)
            except UserError as error:
                found.left_out.append(f"tree of {shortened(subject.clip.id)}: left out: {error}")
    if "degradation" in choice.parts:
        try:
            found.degradation = degraded(run, choice.samples).result
        except (UserError, ContentFault) as error:
            found.left_out.append(f"degradation: left out: {error}")
    if "functions" in choice.parts:
        _functions(run, choice, found)
    if "stacks" in choice.parts:
        try:
            found.stacks = compared_stacks(run, choice.samples)
        except UserError as error:
            found.left_out.append(f"stacks: left out: {error}")
    if "triggers" in choice.parts:
        try:
            found.triggers = found_triggers(run, choice.samples).result
        except (UserError, ContentFault) as error:
            found.left_out.append(f"triggers: left out: {error}")
    return explained, found


def _maps(run: Run, choice: Choice, explained: Sequence[Subject], found: Findings) -> None:
    heads: list[Head] = []
    if choice.heads:
        heads, missing = named_heads(choice.heads, heads_of(run.checkpoint.model))
        found.left_out += missing
        if not heads:
            return
    for subject in explained:
        try:
            found.maps.append(maps_of(run, subject, heads).result)
        except UserError as error:
            found.left_out.append(f"maps of {shortened(subject.clip.id)}: left out: {error}")


def _inputs(run: Run, choice: Choice, explained: Sequence[Subject], found: Findings) -> None:
    layers = len(encoder_layers(run.checkpoint.model))
    layer = usual_layer(run.checkpoint.model) if choice.layer is None else choice.layer
    if layer >= layers:
        found.left_out.append(f"--layer {layer}: no such layer: they are 0 to {layers - 1}")
        return
    for subject in explained:
        try:
            found.inputs.append(inputs_of(run, subject, layer).result)
        except UserError as error:
            found.left_out.append(f"inputs of {shortened(subject.clip.id)}: left out: {error}")


def _functions(run: Run, choice: Choice, found: Findings) -> None:
    try:
        functions = found_functions(run).result
    except UserError as error:
        found.left_out.append(f"functions: left out: {error}")
        return
    found.left_out += functions.skipped
    # On a clip's page scores are shown where there are some: to make them may take minutes.
    if not choice.of_a_clip or kept_result(run.directory, ATTRIBUTE, Scores) is not None:
        functions = with_scores(functions, attribute(run, calibration_targets(run)).result)
    found.functions = functions
