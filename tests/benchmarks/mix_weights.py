"""What an error in one kind of units should weigh against others, on calibration clips alone.

    python tests/benchmarks/mix_weights.py recipes/quickstart.yaml
    python tests/benchmarks/mix_weights.py DIRECTORY/whisper_tiny_en.yaml --of decoder [OPTION …]

For each limit of cost and each weight of channels, or of all units of a decoder: the mix, repaired
in closed form, and how far it is from the original (mean KL divergence of outputs; of a decoder's
where it is fed the transcripts) on the quarter of the calibration clips that is kept out of scoring
and repair. Writes tests/benchmarks/results/mix_weights.json, or what `--output` names.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections import Counter
from pathlib import Path

from passing_run import WITH_CLIPS_KEPT_OUT, divergence, passing_run

from hibprune.compression.rank_mixture import RankMixture
from hibprune.compression.unit_mixture import Mixture
from hibprune.execution.files import write_text
from hibprune.execution.machine import describe_machine, installed_versions
from hibprune.records.units import POOLS, Scores, is_of_decoder
from hibprune.stages.budget import Counting
from hibprune.stages.mix import WEIGHTS, scored_pools
from hibprune.stages.mix_limits import without_steps
from hibprune.stages.repair import calibration_clips, repaired_copy
from hibprune.stages.score import calibration_targets

ROOT = Path(__file__).resolve().parents[2]
LIMITS = ("multiply_adds=0.5", "multiply_adds=0.3", "parameters=0.5", "parameters=0.3")
RESULT = "tests/benchmarks/results/mix_weights.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--of", choices=("channel", "decoder"), default="channel")
    parser.add_argument("--weights", type=float, nargs="+", default=(1, 4, 16, 64))
    parser.add_argument("--limits", nargs="+", default=LIMITS)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--output", default=RESULT)
    arguments = parser.parse_args()
    # Where a recipe lies on one machine is not part of the command.
    recipe = arguments.recipe
    shown = str(Path("DIRECTORY", recipe.name) if recipe.is_absolute() else recipe)
    words = [shown if word == str(recipe) else word for word in sys.argv[1:]]
    rows = []
    with passing_run(recipe, (*WITH_CLIPS_KEPT_OUT, *arguments.set)) as run:
        scores = scored_pools(run, calibration_targets(run))
        clips = calibration_clips(run, [unit for one in scores for unit in one.heads])
        counting = Counting(run.recipe, run.checkpoint, run.material.references)
        for limit in arguments.limits:
            currency, share = limit.split("=")
            count = counting.in_currency(currency)
            for weight in arguments.weights:
                own = [weighed(one, arguments.of, weight) for one in scores]
                mixture = RankMixture(Mixture.of(own, WEIGHTS, 0, count), count)
                units = mixture.within(float(share) * mixture.whole).units
                model, _ = repaired_copy(without_steps(run), units, clips=clips)
                gone = Counter(pool for unit in units for pool in POOLS if unit.is_of(pool))
                row = {
                    "budget": {currency: float(share)},
                    f"{arguments.of}_weight": weight,
                    "gone": dict(gone),
                    "divergence": round(divergence(run, model), 5),
                }
                print(json.dumps(row), flush=True)
                rows.append(row)
    report = {
        "command": shlex.join(["python", "tests/benchmarks/mix_weights.py", *words]),
        "machine": describe_machine().model_dump(),
        "versions": installed_versions(),
        "rows": rows,
    }
    write_text(ROOT / arguments.output, json.dumps(report, indent=1) + "\n")


def weighed(scores: Scores, of: str, weight: float) -> Scores:
    """Scores times a weight, if they are of channels, or of a decoder's units."""
    unit = scores.heads[0]
    if not (is_of_decoder(unit.stack) if of == "decoder" else unit.kind == of):
        return scores
    rows = tuple(tuple(weight * score for score in row) for row in scores.per_sample)
    return scores.model_copy(update={"per_sample": rows})


if __name__ == "__main__":
    main()
