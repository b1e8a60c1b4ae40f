"""How well a latency table foretells what projections take as two matrices, in whole models.

    python tests/benchmarks/rank_times.py recipes/quickstart.yaml

The table is measured as in a run with `budget.speedup`. Then models are exported and timed whose
projections all are of a rank at which a share of their weights is gone, with all heads and neurons
and with half of them, in turn with the same model of whole projections. A line of JSON each:
milliseconds that ranks save, foretold and measured, as shares of the original's time. The first
is on the projections that were timed alone.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median

from passing_run import passing_run

from hibprune.compression.projection_times import projection_time
from hibprune.compression.remove import copy_without
from hibprune.models.low_rank import projections_of, ranks_within
from hibprune.stages.budget import mixed_kinds
from hibprune.stages.latency_table import encoder_units_beyond, latency_table
from hibprune.stages.run import Run
from hibprune.stages.trial_exports import export_without, time_together


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--variant", default="pruned")
    parser.add_argument("--shares", type=float, nargs="+", default=(0.25, 0.5, 0.75, 0.9))
    arguments = parser.parse_args()
    sets = ["budget={speedup: 2}", f"gates.variant={arguments.variant}"]
    with passing_run(arguments.recipe, sets) as run:
        tabulated(run, arguments.shares, run.directory)


def tabulated(run: Run, shares: list[float], scratch: Path) -> None:
    pools = mixed_kinds(run.recipe, run.checkpoint.model)
    done = latency_table(run, pools, ranks=True)
    table = done.result
    assert table.ranks is not None
    time = projection_time(table)
    alone = {
        "seconds": round(done.seconds, 1),
        "projections": len(table.ranks.projections),
        "median_miss": round(time.error, 3),
        "milliseconds": round(table.whole_milliseconds, 2),
    }
    print(json.dumps(alone), flush=True)
    export_without(run, (), scratch / "all")
    for left in (1.0, 0.5):
        gone = encoder_units_beyond(run, pools, left)
        smaller = copy_without(run.checkpoint.model, gone)
        sizes = {
            place: (one.out_features, one.in_features)
            for place, one in projections_of(smaller).items()
        }
        export_without(run, gone, scratch / f"{left}")
        for share in shares:
            ranks = ranks_within(smaller, share)
            thinner = scratch / f"{left}-{share}"
            export_without(run, gone, thinner, ranks)
            times = time_together(
                run, {"all": scratch / "all", "whole": scratch / f"{left}", "thinner": thinner}
            )
            saved = sum(time(*sizes[n]) - time(*sizes[n], rank) for n, rank in ranks.items())
            rounds = zip(times["all"], times["whole"], times["thinner"], strict=True)
            row = {
                "units_left": left,
                "weights_gone": share,
                "foretold": round(saved / table.whole_milliseconds, 3),
                "measured": round(median((whole - thin) / most for most, whole, thin in rounds), 3),
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
