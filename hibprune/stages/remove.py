"""Removal in a run: what it takes away, and the pruned model as its users will load it."""

from __future__ import annotations

from hibprune.compression.projection_ranks import take_shape, wanted_ranks
from hibprune.compression.remove import copy_without
from hibprune.evaluation.footprint import measure_footprint
from hibprune.evaluation.work import window_of
from hibprune.execution.progress import StepNarration
from hibprune.execution.steps import Done, Step
from hibprune.models.checkpoint import Checkpoint, load_checkpoint
from hibprune.models.source import ModelSource
from hibprune.records.measurements import Removal
from hibprune.records.units import Plan
from hibprune.stages.credibility import credible_removal
from hibprune.stages.run import Run, once


def prune(run: Run, plan: Done[Plan]) -> Done[Removal]:
    """Count what removal takes away."""
    length = run.recipe.benchmark.lengths(run.recipe.task.medium)[0]
    tokens, window = decoded_tokens(run), window_of(run.checkpoint.preprocessor)

    share = run.recipe.budget.ranks

    def prune(_: Step[Removal], narration: StepNarration) -> Removal:
        smaller = copy_without(run.checkpoint.model, plan.result.units)
        take_shape(smaller, wanted_ranks(smaller, plan.result, share))
        example = run.checkpoint.preprocessor.example(length, 1)
        before, after = (
            measure_footprint(model, example, length, tokens, window)
            for model in (run.checkpoint.model, smaller)
        )
        return Removal(before=before, after=after)

    return once(
        run,
        "prune",
        {
            "plan": plan.key,
            length.unit: length.value,
            "decoded_tokens": tokens,
            **({"ranks": share} if share else {}),
        },
        Removal,
        prune,
        lambda removal: (
            f"{removal.before.parameters / 1e6:.2f} → "
            f"{removal.after.parameters / 1e6:.2f} M parameters"
        ),
        credible=credible_removal,
        version=3,
    )


def decoded_tokens(run: Run) -> int | None:
    """How many tokens a decoder says for a validation clip of median length."""
    return run.recipe.task.decoded_tokens(run.material.references, run.checkpoint.vocabulary)


def reload(run: Run) -> Checkpoint:
    """Load the pruned model from the directory, as its users will."""
    own = ModelSource(source=str(run.directory.resolve()))
    return load_checkpoint(own, run.recipe.task, run.loaded.root, run.device)
