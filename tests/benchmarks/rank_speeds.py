"""What ranks are worth in a budget of speed, on calibration clips alone.

    python tests/benchmarks/rank_speeds.py recipes/quickstart.yaml

A latency table is measured once, or taken from the directory of a run (`--run`). For each speed
that it foretells: units alone, and units and ranks at each weight of these; repaired and factored
in closed form, and how far that is from the original (mean KL divergence of outputs) on the quarter
of the calibration clips that is kept out of scoring and repair. A line of JSON each.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from passing_run import divergence, passing_run

from hibprune.compression.latency_costs import latency_cost
from hibprune.compression.projection_ranks import layered
from hibprune.compression.projection_times import projection_time
from hibprune.compression.rank_mixture import Mix, Mixes, Ranks
from hibprune.compression.rank_spectra import Spectra, rank_spectra
from hibprune.compression.unit_mixture import Mixture
from hibprune.execution.steps import kept_result
from hibprune.models.hidden_states import HiddenStates
from hibprune.records.latency_table import LatencyTable
from hibprune.records.units import Plan, Unit
from hibprune.stages.budget import Counting, mixed_kinds
from hibprune.stages.latency_table import LATENCY_TABLE, latency_table
from hibprune.stages.mix import RANK_WEIGHT, WEIGHTS, scored_pools
from hibprune.stages.mix_limits import without_steps
from hibprune.stages.repair import calibration_clips, finished_copy
from hibprune.stages.run import Run
from hibprune.stages.score import calibration_targets
from hibprune.stages.speedup import NEAR


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--speeds", type=float, nargs="+", default=(1.5, 2.0, 2.5))
    parser.add_argument("--weights", type=float, nargs="+", default=(RANK_WEIGHT,))
    arguments = parser.parse_args()
    with passing_run(arguments.recipe) as run:
        for speed, weight, mix in chosen(run, arguments.run, arguments.speeds, arguments.weights):
            plan = Plan.of(mix.units, (), layered(mix.ranks))
            finished, _, _ = finished_copy(without_steps(run), plan, clips=calibration_clips(run))
            row = {
                "speed": speed,
                "rank_weight": weight,
                "gone": len(mix.units),
                "factored": len(mix.ranks),
                "error": round(mix.error, 5),
                "divergence": round(divergence(run, finished), 6),
                "parameters": sum(weight.numel() for weight in finished.parameters()),
            }
            print(json.dumps(row), flush=True)


def chosen(
    run: Run, earlier: Path | None, speeds: Sequence[float], weights: Sequence[float]
) -> list[tuple[float, float | None, Mix]]:
    """For each speed a mix of units alone, and some of units and ranks."""
    model = run.checkpoint.model
    kept = None if earlier is None else kept_result(earlier, LATENCY_TABLE, LatencyTable)
    table = kept[0] if kept else latency_table(run, mixed_kinds(run.recipe, model), True).result
    count = Counting(run.recipe, run.checkpoint, run.material.references)
    scores = scored_pools(run, calibration_targets(run))
    units = Mixture.of(scores, WEIGHTS, 0, count.in_currency("multiply_adds"))
    cost = latency_cost(table, units.places, units.cost)
    states, time = HiddenStates(run.directory, 2**30), projection_time(table)

    def spectra(mixes: Sequence[Sequence[Unit]]) -> list[Spectra]:
        return rank_spectra(model, calibration_clips(run), list(map(set, mixes)), states)

    found: list[tuple[float, float | None, Mix]] = []
    for speed in speeds:
        limit = table.original_milliseconds / speed
        found.append((speed, None, Mixes(units, cost).cheapest(limit)))
        for weight in weights:
            ranks = Ranks(spectra, time, weight)
            found.append((speed, weight, Mixes(units, cost, ranks, limit, NEAR).cheapest(limit)))
    return found


if __name__ == "__main__":
    main()
