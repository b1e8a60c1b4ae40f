"""What a model says of itself: in its graphs, its config.json and its preprocessor_config.json.

Whoever runs it elsewhere has no recipe and no manifest at hand.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from transformers import PreTrainedModel

from hibprune.deployment.own_words import in_graph
from hibprune.models.low_rank import ranks_by_layer
from hibprune.models.preprocessing import SoundPreprocessor
from hibprune.records.units import POOLS, Unit, heads_by_layer
from hibprune.stages.run import Run


def config_properties(run: Run, model: PreTrainedModel, units: Iterable[Unit]) -> dict[str, object]:
    """What config.json says of a model that lost some units; labels stand there anyway."""
    described = {
        **task_properties(run),
        **removed_properties(units),
        **input_properties(run),
        **made_properties(run, model),
    }
    return {key: value for key, value in described.items() if key != "labels"}


def graph_properties(
    run: Run, units: Iterable[Unit], metric: str, original: float
) -> dict[str, object]:
    """What the graphs of any model say about themselves that lost some units."""
    return in_graph(
        {
            "recipe": run.recipe.name,
            **task_properties(run),
            **removed_properties(units),
            "metric": {"name": metric, "original": original},
        }
    )


def task_properties(run: Run) -> dict[str, object]:
    """The task, also as a recipe describes it."""
    task = run.recipe.task
    return {"task": task.kind, "task_settings": task.model_dump(mode="json")}


def removed_properties(units: Iterable[Unit]) -> dict[str, object]:
    """Heads of the encoder by their original indices, of all else how many, layer by layer."""
    gone = list(units)
    by_pool = {pool: heads_by_layer(one for one in gone if one.is_of(pool)) for pool in POOLS}
    return {"removed_heads": by_pool.pop("head")} | {
        f"removed_{pool}s": {layer: len(indices) for layer, indices in layers.items()}
        for pool, layers in by_pool.items()
    }


def made_properties(run: Run, model: PreTrainedModel) -> dict[str, object]:
    """How the model was made, beside what was removed of it."""
    removal, ranks = run.recipe.removal, ranks_by_layer(model)
    repair = {
        "kind": removal.repair,
        "refined": removal.refine is not None,
        "recovered": run.recipe.recover is not None,
    }
    return {"repair": repair, **({"projection_ranks": ranks} if ranks else {})}


def input_properties(run: Run) -> dict[str, object]:
    """What whoever runs the model elsewhere has to know of what goes in and comes out."""
    task, properties = run.recipe.task, preparation_properties(run)
    if task.fields.kind != "text":
        properties["labels"] = run.checkpoint.vocabulary.labels
    if task.generation is not None:
        properties["generation"] = task.generation.model_dump(mode="json")
    return properties


def preparation_properties(run: Run) -> dict[str, object]:
    """How inputs are prepared, which of sound preprocessor_config.json says as well.

    `normalised` sound has mean 0 and variance 1 clip by clip; limits are None where there are none.
    """
    task, prepare = run.recipe.task, run.checkpoint.preprocessor
    properties: dict[str, object] = {
        f"min_{task.medium.unit}": prepare.shortest,
        f"max_{task.medium.unit}": prepare.longest if math.isfinite(prepare.longest) else None,
    }
    if isinstance(prepare, SoundPreprocessor):
        extractor = prepare.feature_extractor
        properties["sampling_rate"] = prepare.sampling_rate
        properties["normalised"] = bool(getattr(extractor, "do_normalize", False))
        properties["padding"] = _padding_rule(run)
        properties["attention_mask"] = run.recipe.export.attention_mask
    return properties


def _padding_rule(run: Run) -> str:
    """What may stand behind a clip to fill it up."""
    if run.recipe.export.attention_mask:
        return "zeros behind shorter clips of a batch, after normalisation, where the mask is 0"
    if run.checkpoint.model.main_input_name == "input_values":
        return "none: clips in a batch are of equal length"
    return "silence, up to the length that the feature extractor fills"
