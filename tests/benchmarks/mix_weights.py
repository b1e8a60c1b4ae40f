"""What an error in one kind of units should weigh against others, on calibration clips alone.

    python tests/benchmarks/mix_weights.py recipes/quickstart.yaml

For each limit of cost and each weight of channels: the mix, repaired in closed form, and how far it
is from the original (mean KL divergence of outputs) on the quarter of the calibration clips that is
kept out of scoring and repair. Writes tests/benchmarks/results/mix_weights.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from passing_run import divergence, passing_run

from hibprune.compression.rank_mixture import RankMixture
from hibprune.compression.unit_mixture import Mixture
from hibprune.execution.files import write_text
from hibprune.execution.machine import describe_machine, installed_versions
from hibprune.records.units import Currency, Kind
from hibprune.stages.budget import Counting
from hibprune.stages.mix import scored_pools
from hibprune.stages.mix_limits import without_steps
from hibprune.stages.repair import calibration_clips, repaired_copy
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
    rows = []
    with passing_run(arguments.recipe) as run:
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


if __name__ == "__main__":
    main()
