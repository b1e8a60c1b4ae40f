"""What settings of attribution methods do, judged on the calibration clips alone.

    python tests/benchmarks/settings_search.py recipes/quickstart.yaml SETTINGS.yaml

SETTINGS.yaml lists sections as a recipe's `attribution` has them, each with `rounds` if there are
several (tests/benchmarks/searches). For each: seconds of scoring, split-half rank correlation, and
the metric (a recogniser's token accuracy) on the calibration clips with a share of the heads
silenced, which equals removing them. `area` is the mean over the shares. Rows go to
tests/benchmarks/results/<name of SETTINGS>.json as they come; those already there are kept.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter
from transformers import PreTrainedModel

from hibprune.attribution import Method, MethodBase
from hibprune.attribution.session import Sample, Session
from hibprune.comparing.measuring import batches_of_one_length, evaluate_silenced
from hibprune.compression.plan import Budget, Round, Schedule, make_plan
from hibprune.compression.remove import copy_without
from hibprune.execution.files import write_text
from hibprune.execution.machine import describe_machine, installed_versions
from hibprune.execution.runtime import choose_device
from hibprune.models.attention import heads_of
from hibprune.recipe import LoadedRecipe, load_recipe
from hibprune.records.units import Head, Scores
from hibprune.stages.load import Material, load

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Bench:
    """A recipe's model and calibration clips."""

    loaded: LoadedRecipe
    material: Material
    samples: list[Sample]
    batches: list[list[int]]

    def scored(self, model: PreTrainedModel, method: MethodBase, seed: int) -> Scores:
        return method.attribute(model, self.samples, self.loaded.recipe.task.loss, Session(seed))

    def metric(self, plans: list[tuple[Head, ...]]) -> list[float]:
        """The metric on the calibration clips, as the model is used, without some heads."""
        task, checkpoint = self.loaded.recipe.task, self.material.checkpoint
        measure = task.measure(task.curve_metric or task.metric_name, checkpoint.vocabulary)
        clips = self.material.calibration.utterances
        limits = self.loaded.recipe.calibration.durations
        found = evaluate_silenced(checkpoint, measure, clips, limits, self.batches, plans)
        return [evaluation.value for evaluation in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("settings", type=Path)
    parser.add_argument("--samples", type=int, help="calibration clips; default the recipe's")
    parser.add_argument("--shares", type=float, nargs="+", default=(0.25, 0.4, 0.5, 0.6, 0.7))
    parser.add_argument("--scopes", nargs="+", default=("global", "layerwise"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    bench = prepared(arguments.recipe, arguments.samples)
    place = RESULTS / f"{arguments.settings.stem}.json"
    report: dict[str, Any] = {
        "clips": len(bench.samples),
        "metric_unpruned": round(bench.metric([()])[0], 4),
        "shares": list(arguments.shares),
        "machine": describe_machine().model_dump(),
        "versions": installed_versions(),
        "rows": [],
    }
    wanted = yaml.safe_load(arguments.settings.read_text())
    if place.is_file():
        kept = json.loads(place.read_text())
        if (kept["clips"], kept["shares"]) == (report["clips"], report["shares"]):
            report["rows"] = [row for row in kept["rows"] if row["settings"] in wanted]
    done = [row["settings"] for row in report["rows"]]
    for settings in (settings for settings in wanted if settings not in done):
        fields = dict(settings)
        rounds = fields.pop("rounds", 1)
        method = TypeAdapter(Method).validate_python(fields)
        row = tried(bench, method.for_task(bench.loaded.recipe.task.kind), rounds, arguments)
        print(json.dumps({**settings, **row}), flush=True)
        report["rows"].append({"settings": settings, **row})
        write_text(place, json.dumps(report, indent=1) + "\n")


def prepared(recipe: Path, samples: int | None) -> Bench:
    overrides = [] if samples is None else [f"calibration.samples={samples}"]
    loaded = load_recipe(recipe, overrides)
    material = load(loaded, choose_device("cpu"))
    checkpoint, limits = material.checkpoint, loaded.recipe.calibration.durations
    clips = material.calibration.utterances
    ready = [
        Sample(
            clip.id,
            checkpoint.calibration_inputs(checkpoint.read(clip.content, limits)),
            loaded.recipe.task.encode(clip.target or "", checkpoint.vocabulary),
        )
        for clip in clips
    ]
    return Bench(loaded, material, ready, batches_of_one_length(checkpoint, clips, limits))


def tried(
    bench: Bench, method: MethodBase, rounds: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    model = bench.material.checkpoint.model
    start = time.perf_counter()
    first = bench.scored(model, method, arguments.seed)
    seconds = time.perf_counter() - start
    half = first.split_half
    row: dict[str, Any] = {
        "rounds": rounds,
        "seconds": round(seconds, 1),
        "split_half": None if half is None else round(half, 3),
    }
    for scope in arguments.scopes:
        plans = []
        for share in arguments.shares:
            budget, gone = Budget(fraction=share, scope=scope), tuple[Head, ...]()
            number = Schedule(rounds=rounds).rounds_for(budget, heads_of(model))
            for part in range(1, number + 1):
                left = copy_without(model, gone)
                scores = bench.scored(left, method, arguments.seed) if gone else first
                gone = (*gone, *make_plan(scores, budget, Round(part, number, gone)).removed)
            plans.append(gone)
        found = bench.metric(plans)
        row[scope] = [round(value, 4) for value in found]
        row[f"{scope} area"] = round(sum(found) / len(found), 4)
    return row


if __name__ == "__main__":
    main()
