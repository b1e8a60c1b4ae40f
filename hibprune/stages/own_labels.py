"""Labels that the model gives clips or texts by itself, kept like the result of any step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hibprune.data import DurationLimits, Utterance
from hibprune.evaluation.metric import predict_targets
from hibprune.execution.progress import StepNarration
from hibprune.execution.steps import Done, Step
from hibprune.stages.credibility import credible_targets
from hibprune.stages.run import Run, once
from hibprune.tasks import Target


def own_labels(
    run: Run,
    step: str,
    inputs: Mapping[str, Any],
    clips: Sequence[Utterance],
    limits: DurationLimits,
    use: str,
) -> Done[dict[str, Target]]:
    """What the original model says of every clip, by the clip's id.

    `step` is the step's name and `inputs` are what it depends on; `use` says what the clips are
    for, as the log has it.
    """
    task = run.recipe.task

    def label(_: Step[dict[str, Target]], narration: StepNarration) -> dict[str, Target]:
        said = predict_targets(
            task.torch_predict(run.checkpoint.model),
            run.checkpoint,
            task,
            clips,
            limits,
            narration.advance,
        )
        return dict(zip((clip.id for clip in clips), said, strict=True))

    return once(
        run,
        step,
        inputs,
        dict[str, Target],
        label,
        lambda said: f"{len(said)} {use} {task.medium.many} labelled by the model itself",
        credible=lambda kept: credible_targets(kept, [clip.id for clip in clips]),
    )
