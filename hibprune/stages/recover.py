"""The recovery of a run: the repaired model is trained towards the original, and saved."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_model
from torch import Tensor
from transformers import PreTrainedModel

from hibprune.compression.distillation import Distillation
from hibprune.compression.projection_ranks import take_shape, wanted_ranks
from hibprune.compression.recover import Session, recover
from hibprune.compression.remove import copy_without
from hibprune.compression.trained_weights import trained_weights
from hibprune.compression.training_plan import Recovering
from hibprune.compression.training_state import TrainingState, load_state, save_state
from hibprune.data import Utterance
from hibprune.evaluation.metric import evaluate, metric_line
from hibprune.execution.output import STEPS
from hibprune.execution.processes import ALONE
from hibprune.execution.progress import StepNarration
from hibprune.execution.steps import Done, Step
from hibprune.models.low_rank import ProjectionPlace, ranks_by_layer
from hibprune.recipe import RecoverSettings
from hibprune.records.measurements import Evaluation
from hibprune.records.recovery import RecoveredModel, Recovery
from hibprune.records.repair import PrunedModel, Repair
from hibprune.records.units import Plan, Unit, heads_by_layer
from hibprune.report.numbers import counted, duration, four_decimals
from hibprune.stages.credibility import credible_evaluation, credible_recovery
from hibprune.stages.recovery_clips import held_out_count, recovery_seed
from hibprune.stages.recovery_inputs import RecoveryInputs, encoded_targets
from hibprune.stages.recovery_lines import broken_line, recovery_line, told_as
from hibprune.stages.repair import (
    REPAIRED,
    Start,
    repair_inputs,
    repaired_copy,
    saved_files,
)
from hibprune.stages.rounds import step_name
from hibprune.stages.run import Run, once
from hibprune.tasks import Encoded

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Training:
    """What all processes have to know to recover a model together."""

    units: tuple[Unit, ...]
    weights: Mapping[str, Tensor]
    repair: Repair | None
    targets: Mapping[str, Encoded] | None
    state: TrainingState | None
    ranks: Mapping[ProjectionPlace, int]
    """Of the projections that are two matrices."""


def measured_repaired(run: Run, plan: Done[Plan], saved: Done[PrunedModel]) -> Done[Evaluation]:
    """Measure the repaired model under PyTorch: what recovery is held against."""
    clips, task = run.material.validation, run.recipe.task

    def measure(_: Step[Evaluation], narration: StepNarration) -> Evaluation:
        model = repaired_model(run, plan.result)
        found, _predictions = evaluate(
            task.torch_predict(model),
            run.checkpoint,
            task,
            clips.utterances,
            run.recipe.validation.durations,
            narration.advance,
        )
        return found

    return once(
        run,
        "evaluate-repaired",
        {"model": saved.key, "validation": clips.identity},
        Evaluation,
        measure,
        metric_line,
        credible=lambda kept: credible_evaluation(kept, len(clips.utterances)),
        said="repaired",
    )


def recovered(run: Run, plan: Done[Plan], saved: Done[PrunedModel]) -> Done[RecoveredModel]:
    """Train the repaired model on the clips of recovery, and save it with the best weights.

    A training that was killed goes on after its last checkpoint. One that breaks off leaves the
    best weights so far, which may be the repaired ones, and says so.

    Raises:
        UserError: too few clips, or a model that gives out nothing to learn from.
        OutputError: the disk is full, at a checkpoint or at the end.
    """

    def compute(step: Step[RecoveredModel], narration: StepNarration) -> RecoveredModel:
        model = repaired_model(run, plan.result)
        return _trained(run, step, narration, plan.result.units, model, saved.result.repair)

    done = _recovering(run, "recover", {"repaired": saved.key}, compute)
    run.processes.tell(None)
    return done


def recovered_between(
    run: Run, number: int, units: Sequence[Unit], start: Start | None
) -> tuple[Done[RecoveredModel], Start]:
    """The model after a round, without some units: repaired, and recovered from what it was before.

    Raises:
        UserError: as `recovered`.
    """
    place = f"{STEPS}/round-{number}"

    def compute(step: Step[RecoveredModel], narration: StepNarration) -> RecoveredModel:
        def repairing(done: int, total: int) -> None:
            narration.advance(0, total, f"repaired {done} of {total} layers")

        # The others are waiting for samples to score.
        model, repair = repaired_copy(replace(run, processes=ALONE), units, repairing, start=start)
        return _trained(run, step, narration, tuple(units), model, repair, place)

    inputs = {
        "gone": heads_by_layer(units),
        "repair": repair_inputs(run),
        "from": None if start is None else start.key,
    }
    done = _recovering(run, step_name("recover-round", number), inputs, compute, number)
    model = _of_shape(run, units)
    load_model(model, run.directory / place / WEIGHTS, device=str(run.device))
    return done, Start(tuple(units), _on_cpu(model), done.key)


def _recovering(
    run: Run,
    name: str,
    made_from: Mapping[str, object],
    compute: Callable[[Step[RecoveredModel], StepNarration], RecoveredModel],
    number: int | None = None,
) -> Done[RecoveredModel]:
    """A recovery, at the end of a run or behind the round of that number."""
    settings = _settings(run)
    done = once(
        run,
        name,
        {
            **made_from,
            "clips": run.material.recovery.identity,
            "limits": [settings.durations.min_seconds, settings.durations.max_seconds],
            "seed": run.recipe.seed,
            "settings": settings.model_dump(mode="json", exclude={"data", "limit"}),
        },
        RecoveredModel,
        compute,
        recovery_line,
        lambda found: list(found.files),
        lambda kept: credible_recovery(kept, len(run.material.recovery.utterances)),
        timed=frozenset({"seconds"}),
        said=told_as(name, number),
    )
    _checkpoint(run, name).unlink(missing_ok=True)
    if done.result.recovery.broke_off:
        run.narrator.say(broken_line(done.result.recovery, told_as(name, number)))
    return done


def _trained(
    run: Run,
    step: Step[RecoveredModel],
    narration: StepNarration,
    units: tuple[Unit, ...],
    model: PreTrainedModel,
    repair: Repair | None,
    place: str = "",
) -> RecoveredModel:
    """Train a model with the run's other processes, and save it in a place of the directory."""
    targets = encoded_targets(run, narration.advance)
    moving = trained_weights(model, _settings(run).train, repair)
    checkpoint = _checkpoint(run, step.name)
    shapes = {name: weight.shape for name, weight in moving.items()}
    state = load_state(checkpoint, step.key, shapes, run.directory)
    if state is not None:
        run.narrator.say(f"{step.name}: going on after {counted(state.step, 'step')} of training")
    ranks = {
        (int(layer), path): rank
        for layer, own in ranks_by_layer(model).items()
        for path, rank in own.items()
    }
    work = Training(units, _on_cpu(model), repair, targets, state, ranks)
    run.processes.tell(work)
    session = Session(
        processes=run.processes,
        state=state,
        save=lambda new: save_state(checkpoint, step.key, new),
        progress=_Progress(narration),
    )
    recovery, seconds = _train(run, model, work, session)
    files = saved_files(run, model, units, place)
    return RecoveredModel(recovery=recovery, seconds=seconds, files=files)


def help_recovering(run: Run) -> None:
    """Take a share of the training whenever the leader has one to do, until it is over."""
    while (work := run.processes.hear()) is not None:
        help_training(run, work)


def help_training(run: Run, work: Training) -> None:
    """Take a share of one training that the leader is at."""
    model = _of_shape(run, work.units, work.ranks)
    model.load_state_dict(dict(work.weights))
    _train(run, model, work, Session(processes=run.processes, state=work.state))


def repaired_model(run: Run, plan: Plan) -> PreTrainedModel:
    """The repaired model that recovery starts from, on the run's device."""
    model = copy_without(run.checkpoint.model, plan.units)
    take_shape(model, wanted_ranks(model, plan, run.recipe.budget.ranks))
    load_model(model, run.directory / REPAIRED / WEIGHTS, device=str(run.device))
    return model


def _settings(run: Run) -> RecoverSettings:
    settings = run.recipe.recover
    assert settings is not None, "a recipe without recovery"
    return settings


def _checkpoint(run: Run, step: str) -> Path:
    """Where a training that is under way lies."""
    return run.directory / STEPS / f"{step}.partial.safetensors"


def _of_shape(
    run: Run, units: Sequence[Unit], ranks: Mapping[ProjectionPlace, int] | None = None
) -> PreTrainedModel:
    """A copy of the original of a pruned model's shape, whatever its weights."""
    model = copy_without(run.checkpoint.model, units)
    take_shape(model, ranks or {})
    return model


def _on_cpu(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in model.state_dict().items()}


def _train(
    run: Run, model: PreTrainedModel, work: Training, session: Session
) -> tuple[Recovery, float]:
    recipe, settings = run.recipe, _settings(run)
    utterances = [
        clip
        for clip in run.material.recovery.utterances
        if work.targets is None or clip.id in work.targets
    ]
    learned, held = _split(run, utterances)
    inputs = RecoveryInputs(run, utterances, work.targets)
    room = settings.batch_seconds
    if recipe.task.medium.unit == "tokens":
        room = float(settings.batch_tokens)
    work_to_do = Recovering(
        original=run.checkpoint.model,
        pruned=model,
        weights=trained_weights(model, settings.train, work.repair),
        loss=Distillation(recipe.task, settings.loss, settings.temperature),
        clips=inputs,
        learned=learned,
        held=held,
        settings=settings,
        room=room,
        seed=recovery_seed(recipe),
        may_cut=work.targets is None,
        seen_elsewhere=settings.data is not None,
        kept_bytes=int(recipe.removal.memory_gib * 2**30),
    )
    return recover(work_to_do, session)


def _split(run: Run, clips: Sequence[Utterance]) -> tuple[list[int], list[int]]:
    """The places of the clips to learn from and of those held out, which are drawn by the seed.

    Raises:
        UserError: there are too few for both.
    """
    number = held_out_count(run.recipe, len(clips))
    generator = torch.Generator().manual_seed(recovery_seed(run.recipe))
    order = torch.randperm(len(clips), generator=generator).tolist()
    return sorted(order[number:]), sorted(order[:number])


class _Progress:
    """Shows the steps taken, the loss, and the time that is left at this pace."""

    def __init__(self, narration: StepNarration) -> None:
        self._narration = narration
        self._began: tuple[float, int] | None = None

    def __call__(self, done: int, total: int, loss: float | None) -> None:
        now = time.monotonic()
        if self._began is None:
            self._began = (now, done)
        began, first = self._began
        left = ""
        if done > first:
            left = f", {duration((now - began) / (done - first) * (total - done))} left"
        shown = "" if loss is None else f", loss {four_decimals(loss)}"
        self._narration.advance(done, total, f"step {done} of {total}{shown}{left}")
