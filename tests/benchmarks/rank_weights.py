"""What an error of a rank should weigh against one of a unit, on calibration clips alone.

    python tests/benchmarks/rank_weights.py recipes/quickstart.yaml

For each limit of cost: units alone, ranks alone, and both at each weight; repaired and factored in
closed form, and how far that is from the original (mean KL divergence of outputs) on the quarter of
the calibration clips that is kept out of scoring and repair. A line of JSON each.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from passing_run import divergence, passing_run

from hibprune.compression.projection_ranks import layered
from hibprune.compression.rank_mixture import RankMixture, Ranks, by_weights
from hibprune.compression.rank_spectra import Spectra, rank_spectra
from hibprune.compression.unit_mixture import Mixture
from hibprune.models.hidden_states import HiddenStates
from hibprune.records.units import Plan, Scores, Unit
from hibprune.stages.budget import Counting
from hibprune.stages.mix import WEIGHTS, scored_pools
from hibprune.stages.mix_limits import without_steps
from hibprune.stages.repair import calibration_clips, finished_copy
from hibprune.stages.run import Run
from hibprune.stages.score import calibration_targets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--parameters", type=float, nargs="+", default=(0.5, 0.3, 0.2))
    parser.add_argument("--weights", type=float, nargs="+", default=(4, 1, 0.25))
    arguments = parser.parse_args()
    with passing_run(arguments.recipe) as run:
        scores = scored_pools(run, calibration_targets(run))
        ways: list[tuple[Sequence[Scores], float | None]] = [(scores, None), ((), 1.0)]
        ways += [(scores, weight) for weight in arguments.weights]
        for share in arguments.parameters:
            for own, weight in ways:
                print(json.dumps(tried(run, share, own, weight, run.directory)), flush=True)


def tried(
    run: Run, share: float, scores: Sequence[Scores], weight: float | None, scratch: Path
) -> dict[str, object]:
    """What comes of a limit, by units of some kinds and, at a weight, by ranks."""
    clips, model = calibration_clips(run), run.checkpoint.model
    count = Counting(run.recipe, run.checkpoint, run.material.references).in_currency("parameters")

    def spectra(mixes: Sequence[Sequence[Unit]]) -> list[Spectra]:
        return rank_spectra(model, clips, list(map(set, mixes)), HiddenStates(scratch, 2**30))

    ranks = None if weight is None else Ranks(spectra, by_weights(1.0), weight)
    mixture = RankMixture(Mixture.of(scores, WEIGHTS, 0, count), count, ranks)
    mix = mixture.within(share * mixture.whole)
    plan = Plan.of(mix.units, (), layered(mix.ranks))
    finished, _, _ = finished_copy(without_steps(run), plan, clips=clips)
    return {
        "parameters": share,
        "units": bool(scores),
        "rank_weight": weight,
        "gone": len(mix.units),
        "factored": len(mix.ranks),
        "divergence": round(divergence(run, finished), 5),
    }


if __name__ == "__main__":
    main()
