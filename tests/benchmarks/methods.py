"""Every attribution method on the quickstart: seconds, stability, accuracy after removal.

    python tests/benchmarks/methods.py                 # all, with each method's own defaults
    python tests/benchmarks/methods.py taylor lrp '{method: hib, score: information}'

Prints a JSON line for each: seconds of scoring, split-half rank correlation, and accuracy on the
calibration and validation clips with a share of the heads silenced (which equals removing them),
for each of the shares of hib_settings.py, by a global and by a layerwise ranking.
"""

from __future__ import annotations

import argparse
import json
import time

import yaml
from hib_settings import ROOT, SHARES, accuracies, sample
from pydantic import TypeAdapter

from hibprune.attribution import METHODS, Method, MethodBase, Session
from hibprune.loading import load
from hibprune.recipe import load_recipe
from hibprune.runtime import choose_device


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    names = [method.name() for method in METHODS]
    parser.add_argument("methods", nargs="*", default=names, help="names, or settings as YAML")
    loaded = load_recipe(ROOT / "recipes/quickstart.yaml")
    recipe, material = loaded.recipe, load(loaded, choose_device("cpu"))
    samples = [sample(recipe, material, clip) for clip in material.calibration.utterances]
    for given in parser.parse_args().methods:
        settings = yaml.safe_load(given)
        if isinstance(settings, str):
            settings = {"method": settings}
        method: MethodBase = TypeAdapter(Method).validate_python(settings)
        method = method.for_task(recipe.task.kind)
        start = time.perf_counter()
        scores = method.attribute(
            material.checkpoint.model, samples, recipe.task.loss, Session(seed=recipe.seed)
        )
        seconds = time.perf_counter() - start
        row = {
            "settings": settings,
            "seconds": round(seconds, 1),
            "split_half": scores.split_half,
            "shares_removed": SHARES,
            "global": accuracies(recipe, material, scores),
            "layerwise": accuracies(recipe, material, scores, "layerwise"),
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
