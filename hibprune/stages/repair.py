"""The repair of a run: the pruned model's weights are fitted, and the model is saved."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hibprune.compression.factoring import factor
from hibprune.compression.projection_ranks import wanted_ranks
from hibprune.compression.remove import copy_without, save_model
from hibprune.compression.repair import repair
from hibprune.data import Utterance
from hibprune.deployment.own_words import CONFIG_KEY
from hibprune.evaluation.metric import predict_targets
from hibprune.execution.files import (
    plain_disk_errors,
    scratch_directory,
    write_files_via_temporary,
)
from hibprune.execution.output import STEPS
from hibprune.execution.progress import StepNarration
from hibprune.execution.steps import Done, Step
from hibprune.models.layerwise import CalibrationClip, calibration_clip
from hibprune.models.preprocessing import SoundPreprocessor
from hibprune.records.repair import (
    FactoredProjection,
    PrunedModel,
    Repair,
    factored_weights,
)
from hibprune.records.units import Plan, Unit, is_of_decoder
from hibprune.report.numbers import count
from hibprune.stages.credibility import credible_factors, credible_repair
from hibprune.stages.load import encoded_target
from hibprune.stages.run import Run, once
from hibprune.stages.self_description import config_properties, preparation_properties
from hibprune.tasks import Target
from hibprune.tasks.generation import with_mask
from hibprune.tasks.seq2seq import fed_tokens

REPAIRED = f"{STEPS}/repaired"
"""Where the repaired model lies that a recovered one is made of."""


@dataclass(frozen=True)
class Start:
    """A model that lost some units and was recovered, from which others go; all of its weights.

    `key` stands for the step that made it.
    """

    units: tuple[Unit, ...]
    weights: Mapping[str, Tensor]
    key: str

    def model(self, run: Run) -> PreTrainedModel:
        """The model itself, on the run's device."""
        made = copy_without(run.checkpoint.model, self.units)
        made.load_state_dict(dict(self.weights))
        return made


def repaired(run: Run, plan: Done[Plan], start: Start | None = None) -> Done[PrunedModel]:
    """Remove a plan's units from a copy of the model, repair what stays, and save it.

    Where some are gone already, from the model recovered in between (`start`).
    """
    settings, share = run.recipe.removal, run.recipe.budget.ranks
    units = plan.result.units
    # What is trained on is kept as it was, or a killed training could not be taken up.
    place = "" if run.recipe.recover is None else REPAIRED

    def compute(_: Step[PrunedModel], narration: StepNarration) -> PrunedModel:
        if settings.repair != "none":
            run.processes.tell((plan.result, start))
        model, found, factored = finished_copy(run, plan.result, narration.advance, start=start)

        files = saved_files(run, model, units, place)
        return PrunedModel(repair=found, files=files, factored=factored)

    def credible(kept: PrunedModel) -> bool:
        ranks = wanted_ranks(copy_without(run.checkpoint.model, units), plan.result, share)
        if not credible_factors(kept.factored, ranks, settings.repair):
            return False
        if not kept.files or kept.repair is None:
            return len(kept.files) > 0 and settings.repair == "none"
        clips = len(run.material.repair.utterances)
        return credible_repair(kept.repair, settings.repair, clips, units, settings.refine_steps)

    done = once(
        run,
        "repair",
        {
            "plan": plan.key,
            **repair_inputs(run),
            **({"ranks": share} if share else {}),
            **({"place": place} if place else {}),
            **({"attention_mask": True} if run.recipe.export.attention_mask else {}),
        },
        PrunedModel,
        compute,
        lambda done: "; ".join(
            filter(None, (repair_line(done.repair), factored_line(done.factored)))
        ),
        lambda done: list(done.files),
        credible,
        version=3,
    )
    run.processes.tell(None)
    return done


def saved_files(
    run: Run, model: PreTrainedModel, units: Iterable[Unit], place: str = ""
) -> tuple[str, ...]:
    """Save a model that lost some units with what its users need beside it; returns the files.

    Its settings say of it what its graphs will. The place is one below the directory.

    Raises:
        OutputError: the disk is full, or the directory cannot be written to.
    """

    def write(directory: Path) -> None:
        task, prepared = run.recipe.task, run.checkpoint.preprocessor.part
        described = copy.copy(task.deployed(model))
        described.config = copy.deepcopy(described.config)
        setattr(described.config, CONFIG_KEY, config_properties(run, model, units))
        save_model(described, directory)
        extractor = task.deployed_extractor(prepared)
        if run.recipe.export.attention_mask:
            extractor = with_mask(extractor)
        if isinstance(run.checkpoint.preprocessor, SoundPreprocessor):
            extractor = copy.copy(extractor)
            setattr(extractor, CONFIG_KEY, preparation_properties(run))
        for part in (extractor, run.checkpoint.vocabulary.tokenizer):
            if part is not None:
                part.save_pretrained(directory)

    target = run.directory / place
    with plain_disk_errors(run.directory):
        target.mkdir(parents=True, exist_ok=True)
    names = write_files_via_temporary(target, write)
    return tuple(f"{place}/{name}" if place else name for name in names)


def help_repairing(run: Run) -> None:
    """Take a share of the repair whenever the leader has one to do, until it is over."""
    while (told := run.processes.hear()) is not None:
        plan, start = told
        finished_copy(run, plan, start=start)


def repair_inputs(run: Run) -> dict[str, Any]:
    """What the weights of a repaired model depend on beside the model and what was removed."""
    settings = run.recipe.removal
    return {
        "kind": settings.repair,
        "clips": None if settings.repair == "none" else run.material.repair.identity,
        **({"refine": settings.refine_steps} if settings.refine else {}),
    }


def repaired_copy(
    run: Run,
    units: Iterable[Unit],
    progress: Callable[[int, int], None] = lambda done, total: None,
    clips: Sequence[CalibrationClip] | None = None,
    start: Start | None = None,
) -> tuple[PreTrainedModel, Repair | None]:
    """A copy of the model without some units, repaired together with the run's other processes.

    `clips` are those of `calibration_clips`, where they are at hand; `start` is the model that lost
    some of the units before. With `removal.repair: none`
    there is no repair, and the weights stay.

    Raises:
        UserError: as `repair`.
    """
    settings, gone = run.recipe.removal, tuple(units)
    before = run.checkpoint.model if start is None else start.model(run)
    gone_before = set() if start is None else set(start.units)
    model = copy_without(before, [unit for unit in gone if unit not in gone_before])
    if settings.repair == "none":
        return model, None
    with _scratch(run) as scratch:
        found = repair(
            run.checkpoint.model,
            model,
            calibration_clips(run, gone) if clips is None else clips,
            settings.repair,
            scratch,
            int(settings.memory_gib * 2**30),
            progress,
            settings.refine_steps,
            run.processes,
        )
    return model, found


def finished_copy(
    run: Run,
    plan: Plan,
    progress: Callable[[int, int], None] = lambda done, total: None,
    clips: Sequence[CalibrationClip] | None = None,
    start: Start | None = None,
) -> tuple[PreTrainedModel, Repair | None, tuple[FactoredProjection, ...]]:
    """A repaired copy, of which projections have become two matrices where that is planned.

    `clips` are those of `calibration_clips`, where they are at hand; `start` is the model that lost
    some units before.
    """
    settings, gone = run.recipe.removal, plan.units
    if clips is None:
        clips = [] if settings.repair == "none" else calibration_clips(run, gone)
    model, found = repaired_copy(run, gone, progress, clips, start)
    ranks = wanted_ranks(model, plan, run.recipe.budget.ranks)
    if not ranks:
        return model, found, ()
    with _scratch(run) as scratch:
        factored = factor(
            run.checkpoint.model,
            model,
            clips,
            settings.repair,
            ranks,
            scratch,
            int(settings.memory_gib * 2**30),
            progress,
            run.processes,
        )
    return model, found, factored


@contextmanager
def _scratch(run: Run) -> Iterator[Path]:
    """A directory for hidden states; only the leader has the run's at hand."""
    if run.processes.leads:
        with scratch_directory(run.directory) as scratch:
            yield scratch
    else:
        with TemporaryDirectory() as elsewhere:
            yield Path(elsewhere)


def calibration_clips(run: Run, units: Iterable[Unit] = ()) -> list[CalibrationClip]:
    """What removal of some units is repaired on, as the model is used on it.

    With what a decoder is fed where units of it are gone: the transcripts that the data give, or
    what the model itself says, as `calibration.labels` has it.

    Raises:
        UserError: the model says nothing that a decoder could be fed of some clip.
    """
    limits, checkpoint = run.recipe.calibration.durations, run.checkpoint
    utterances = run.material.repair.utterances
    fed: Sequence[Tensor | None] = [None] * len(utterances)
    if any(is_of_decoder(unit.stack) for unit in units):
        fed = _transcripts_fed(run, utterances)
    return [
        calibration_clip(checkpoint, checkpoint.read(clip.content, limits), tokens)
        for clip, tokens in zip(utterances, fed, strict=True)
    ]


def _transcripts_fed(run: Run, clips: Sequence[Utterance]) -> list[Tensor]:
    """What a decoder is fed of each clip's transcript (1, tokens)."""
    recipe, checkpoint = run.recipe, run.checkpoint
    targets: Sequence[Target | None] = [clip.target for clip in clips]
    if recipe.calibration.labels == "model":
        targets = predict_targets(
            recipe.task.torch_predict(checkpoint.model),
            checkpoint,
            recipe.task,
            clips,
            recipe.calibration.durations,
        )
    found = []
    for clip, target in zip(clips, targets, strict=True):
        assert target is not None, "a clip without a transcript"
        encoded = encoded_target(recipe, checkpoint, clip, target)
        found.append(fed_tokens(checkpoint.model.config, [encoded], torch.device("cpu"))[0])
    return found


def factored_line(factored: Sequence[FactoredProjection]) -> str | None:
    """How many projections became two matrices, and their weights; None where none did."""
    if not factored:
        return None
    before, after = factored_weights(factored)
    return f"{len(factored)} projections factored, {count(before)} → {count(after)} weights"


def repair_line(repair: Repair | None) -> str:
    """What repair came to, in a line."""
    if repair is None:
        return "no repair: the weights that stay are as they were"
    if not repair.sublayers:
        return "nothing to repair"
    before = sum(one.before for one in repair.sublayers) / len(repair.sublayers)
    after = sum(one.after for one in repair.sublayers) / len(repair.sublayers)
    stepped = sum(one.kept for one in repair.refinements)
    refined = (
        f", {stepped} of {len(repair.refinements)} layers refined" if repair.refinements else ""
    )
    return (
        f"{repair.kind} on {repair.clips + repair.held_out} clips, {len(repair.sublayers)} "
        f"sublayers: error {before:.1%} → {after:.1%} of what they write"
        f"{refined}"
    )
