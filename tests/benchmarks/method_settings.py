"""What settings of any method, and rounds of removal, do on the quickstart.

    python tests/benchmarks/method_settings.py '{method: gates, penalty: 0.1}' '{method: head-iba}'
    python tests/benchmarks/method_settings.py --rounds 4 '{method: occlusion}'

A line of JSON for each setting: accuracy on calibration and validation clips after removing shares
of the heads, global and layerwise, and seconds of scoring. Settings are chosen by calibration.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import yaml
from hib_settings import _sample
from pydantic import TypeAdapter
from transformers import PreTrainedModel

from hibprune.attribution import Method, Session
from hibprune.data import Utterance
from hibprune.evaluation import evaluate
from hibprune.loading import Material, load
from hibprune.planning import Budget, Round, Schedule, make_plan
from hibprune.recipe import Recipe, load_recipe
from hibprune.records import Head, Scores
from hibprune.runtime import choose_device, torch_predict
from hibprune.surgery import copy_without

ROOT = Path(__file__).parents[2]
SHARES = (0.4, 0.5, 0.6, 2 / 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", nargs="+", help="the recipe's attribution section, in YAML")
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes/quickstart.yaml")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shares", type=float, nargs="*", default=SHARES)
    arguments = parser.parse_args()
    loaded = load_recipe(arguments.recipe)
    recipe = loaded.recipe
    material = load(loaded, choose_device("cpu"))
    samples = [_sample(recipe, material, clip) for clip in material.calibration.utterances]
    for text in arguments.settings:
        method: Any = TypeAdapter(Method).validate_python(yaml.safe_load(text))
        method = method.for_task(recipe.task.kind)

        def score(model: PreTrainedModel, method: Any = method) -> Scores:
            scores: Scores = method.attribute(
                model, samples, recipe.task.loss, Session(seed=arguments.seed)
            )
            return scores

        start = time.perf_counter()
        # The first round scores the same model, whatever goes in it.
        first = score(material.checkpoint.model)
        row: dict[str, Any] = {
            "setting": yaml.safe_load(text),
            "rounds": arguments.rounds,
            "seed": arguments.seed,
            "seconds": round(time.perf_counter() - start, 1),
            "split_half": first.split_half,
        }
        for scope in ("global", "layerwise"):
            for share in arguments.shares:
                budget = Budget(fraction=share, scope=scope)
                gone: tuple[Head, ...] = ()
                rounds = Schedule(rounds=arguments.rounds).rounds_for(budget, first.heads)
                for number in range(1, rounds + 1):
                    left = copy_without(material.checkpoint.model, gone)
                    scores = score(left) if gone else first
                    part = Round(number, rounds, gone)
                    gone = (*gone, *make_plan(scores, budget, part).removed)
                smaller = copy_without(material.checkpoint.model, gone)
                row[f"{scope} {share:.0%}"] = {
                    "calibration": _accuracy(
                        recipe, material, smaller, material.calibration.utterances
                    ),
                    "validation": _accuracy(
                        recipe, material, smaller, material.validation.utterances
                    ),
                }
        print(json.dumps(row), flush=True)


def _accuracy(
    recipe: Recipe, material: Material, model: PreTrainedModel, clips: tuple[Utterance, ...]
) -> float:
    limits = recipe.validation.durations
    result = evaluate(torch_predict(model), material.checkpoint, recipe.task, clips, limits)
    return round(result.value, 4)


if __name__ == "__main__":
    main()
