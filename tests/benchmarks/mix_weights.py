"""What an error in one kind of units should weigh against others, on calibration clips alone.

    python tests/benchmarks/mix_weights.py recipes/quickstart.yaml

For each limit of cost and each weight of channels: the mix, repaired in closed form, and how far it
is from the original (mean KL divergence of outputs) on the quarter of the calibration clips that is
kept out of scoring and repair. Writes tests/benchmarks/results/mix_weights.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from transformers import PreTrainedModel

from hibprune.compression.rank_mixture import RankMixture
from hibprune.compression.unit_mixture import Mixture
from hibprune.execution.files import write_text
from hibprune.execution.machine import describe_machine, installed_versions
from hibprune.execution.output import open_output
from hibprune.execution.progress import Narrator
from hibprune.execution.runtime import choose_device
from hibprune.recipe import load_recipe
from hibprune.records.units import Currency, Kind
from hibprune.stages.budget import Counting
from hibprune.stages.load import load
from hibprune.stages.mix import scored_pools
from hibprune.stages.mix_limits import without_steps
from hibprune.stages.repair import calibration_clips, repaired_copy
from hibprune.stages.run import Run
from hibprune.stages.score import calibration_targets

LIMITS: tuple[tuple[Currency, float], ...] = (
    ("multiply_adds", 0.5),
    ("multiply_adds", 0.3),
    ("parameters", 0.5),
    ("parameters", 0.3),
)
RESULT = Path(__file__).parent / "results/mix_weights.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--weights", type=float, nargs="+", default=(1, 4, 16, 64))
    arguments = parser.parse_args()
    # A budget of a loss keeps a quarter of the clips out of scoring and repair.
    loaded = load_recipe(arguments.recipe, ["budget={metric_drop: 0.01}", "removal={}"])
    rows = []
    with tempfile.TemporaryDirectory() as directory, open_output(Path(directory)):
        device = choose_device("cpu")
        run = Run(
            loaded, load(loaded, device), Path(directory), device, Narrator(Console(quiet=True))
        )
        scores = scored_pools(run, calibration_targets(run))
        clips = calibration_clips(run)
        counting = Counting(run.recipe, run.checkpoint, run.material.references)
        for currency, share in LIMITS:
            for weight in arguments.weights:
                weights: dict[Kind, float] = {"head": 1.0, "neuron": 1.0, "channel": weight}
                count = counting.in_currency(currency)
                mixture = RankMixture(Mixture.of(scores, weights, 0, count), count)
                units = mixture.within(share * mixture.whole).units
                model, _ = repaired_copy(without_steps(run), units, clips=clips)
                row = {
                    "budget": {currency: share},
                    "channel_weight": weight,
                    "gone": {
                        kind: sum(unit.kind == kind for unit in units)
                        for kind in ("head", "neuron", "channel")
                    },
                    "divergence": round(divergence(run, model), 5),
                }
                print(json.dumps(row), flush=True)
                rows.append(row)
    report = {
        "command": f"python tests/benchmarks/mix_weights.py {arguments.recipe}",
        "machine": describe_machine().model_dump(),
        "versions": installed_versions(),
        "rows": rows,
    }
    write_text(RESULT, json.dumps(report, indent=1) + "\n")


def divergence(run: Run, model: PreTrainedModel) -> float:
    """Mean KL divergence of a model's outputs from the original's, on clips held out."""
    held_out, checkpoint, total = run.material.held_out, run.checkpoint, 0.0
    assert held_out is not None
    for clip in held_out.utterances:
        inputs = checkpoint.inputs(checkpoint.read(clip.content, run.recipe.calibration.durations))
        with torch.no_grad():
            before, after = (
                one(**inputs).logits.double().log_softmax(-1) for one in (checkpoint.model, model)
            )
        total += float((before.exp() * (before - after)).sum(-1).mean())
    return total / len(held_out.utterances)


if __name__ == "__main__":
    main()
