"""What HIB's open settings do on the quickstart: starting scale of A_r, bottleneck, score, β.

    python tests/benchmarks/hib_settings.py            # about 20 minutes on 2 cores

For each setting: split-half rank correlation of the scores, on demand their rank correlation with
the scores of another seed, and accuracy with a share of the heads silenced (which equals removing
them). Choices
are made on the calibration clips; the validation column is reported beside them. Random removal
(5 seeds) is the baseline. Results go to tests/benchmarks/results/hib_settings.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hibprune.attention import silenced
from hibprune.attribution import HeadInformationBottleneck, Sample, Session
from hibprune.attribution.random import Random
from hibprune.data import Utterance
from hibprune.evaluation import evaluate
from hibprune.loading import Material, load
from hibprune.machine import describe_machine, installed_versions
from hibprune.planning import Budget, make_plan
from hibprune.recipe import Recipe, load_recipe
from hibprune.records import Scores
from hibprune.runtime import choose_device, torch_predict
from hibprune.statistics import spearman

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "tests/benchmarks/results/hib_settings.json"
SHARES = (0.25, 0.4, 0.5, 2 / 3)

SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    *(
        {"bottleneck": "mutual-information", "score": "information", "beta": beta}
        for beta in (10.0, 1.0, 100.0)
    ),
    *({"initial_scale": scale} for scale in (0.01, 1.0)),
    {"bottleneck": "mutual-information", "beta": 10.0},
    {"beta": 100.0},
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes/quickstart.yaml")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of the settings to run")
    parser.add_argument("--other-seed", action="store_true", help="score twice, compare ranks")
    arguments = parser.parse_args()
    loaded = load_recipe(arguments.recipe)
    recipe = loaded.recipe
    material = load(loaded, choose_device("cpu"))
    rows: list[dict[str, Any]] = [
        {"setting": "none removed", **accuracies(recipe, material, None)},
        {"setting": "random, mean of 5 seeds", **random_removal(recipe, material)},
    ]
    _show(rows[0])
    _show(rows[1])
    chosen = range(len(SETTINGS)) if arguments.only is None else arguments.only
    for fields in (SETTINGS[number] for number in chosen):
        start = time.perf_counter()
        first = _scores(recipe, material, fields, seed=0)
        seconds = time.perf_counter() - start
        rows.append(
            {
                "setting": fields,
                "seconds": round(seconds, 1),
                "split_half": first.split_half,
                "other_seed": _other_seed(recipe, material, fields, first)
                if arguments.other_seed
                else None,
                **accuracies(recipe, material, first),
            }
        )
        _show(rows[-1])
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(
        json.dumps(
            {
                "command": "python tests/benchmarks/hib_settings.py",
                "machine": describe_machine().model_dump(),
                "versions": installed_versions(),
                "shares_removed": SHARES,
                "rows": rows,
            },
            indent=1,
        )
        + "\n"
    )


def _scores(recipe: Recipe, material: Material, fields: dict[str, Any], seed: int) -> Scores:
    method = HeadInformationBottleneck(method="hib", **fields).for_task(recipe.task.kind)
    samples = [sample(recipe, material, clip) for clip in material.calibration.utterances]
    return method.attribute(
        material.checkpoint.model, samples, recipe.task.loss, Session(seed=seed)
    )


def _other_seed(recipe: Recipe, material: Material, fields: dict[str, Any], first: Scores) -> float:
    second = _scores(recipe, material, fields, seed=1)
    return spearman(list(first.values.values()), list(second.values.values()))


def sample(recipe: Recipe, material: Material, clip: Utterance) -> Sample:
    checkpoint = material.checkpoint
    waveform = checkpoint.read(clip.content, recipe.calibration.durations)
    assert clip.target is not None
    target = recipe.task.encode(clip.target, checkpoint.vocabulary)
    return Sample(clip.id, checkpoint.inputs(waveform), target)


def accuracies(
    recipe: Recipe,
    material: Material,
    scores: Scores | None,
    scope: Literal["global", "layerwise"] = "global",
) -> dict[str, Any]:
    shares: Sequence[float] = SHARES if scores is not None else (0.0,)
    found: dict[str, Any] = {"calibration": [], "validation": []}
    for share in shares:
        removed = (
            make_plan(scores, Budget(fraction=share, scope=scope)).removed
            if scores is not None
            else ()
        )
        model = material.checkpoint.model
        with silenced(model, removed):
            for name, clips in (
                ("calibration", material.calibration.utterances),
                ("validation", material.validation.utterances),
            ):
                result, _ = evaluate(
                    torch_predict(model),
                    material.checkpoint,
                    recipe.task,
                    clips,
                    recipe.validation.durations,
                )
                found[name].append(round(result.value, 4))
    return found


def random_removal(recipe: Recipe, material: Material) -> dict[str, Any]:
    model = material.checkpoint.model
    runs = [
        accuracies(
            recipe,
            material,
            Random(method="random").attribute(model, [], recipe.task.loss, Session(seed=seed)),
        )
        for seed in range(5)
    ]
    return {
        name: [round(float(value), 4) for value in np.mean([run[name] for run in runs], axis=0)]
        for name in ("calibration", "validation")
    }


def _show(row: dict[str, Any]) -> None:
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
