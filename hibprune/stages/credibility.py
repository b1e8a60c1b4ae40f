"""Whether what an earlier run kept can be the result of its step: shapes, ranges, sums.

Records are files that anybody may have changed; one that cannot be right is made again.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from hibprune.execution.steps import Partial
from hibprune.records.measurements import (
    Benchmark,
    Evaluation,
    Footprint,
    Measurement,
    Parity,
    Removal,
)
from hibprune.records.precision import Precision
from hibprune.records.recovery import RecoveredModel
from hibprune.records.repair import FactoredProjection, Repair
from hibprune.records.units import ENCODER, POOLS, Head, Scores, Unit
from hibprune.records.variants import Converted

MAX_SCORE = 1e100
"""Of a score's absolute value; squares of what is below are finite."""
MAX_HEADS = 10_000
"""The largest encoders of speech have some hundreds."""
ROUNDING = 1e-6


def credible_scores(scores: Scores, heads: Sequence[Head], samples: Sequence[str]) -> bool:
    """Whether scores are of these heads, from these samples, and each is a number."""
    return (
        scores.heads == tuple(heads)
        and scores.samples in ((), tuple(samples))
        and well_formed(scores)
    )


def well_formed(scores: Scores) -> bool:
    """Whether there is one finite score for every head, sample by sample or of all together."""
    return (
        0 < len(scores.heads) == len(set(scores.heads)) <= MAX_HEADS
        and all(
            0 <= place < MAX_HEADS for head in scores.heads for place in (head.layer, head.index)
        )
        and len(scores.per_sample) in (1, max(1, len(scores.samples)))
        and all(len(row) == len(scores.heads) for row in scores.per_sample)
        and all(abs(score) < MAX_SCORE for row in scores.per_sample for score in row)
    )


def credible_partial(partial: Partial, heads: Sequence[Head], samples: Sequence[str]) -> Partial:
    """What there was of the scores of these heads; nothing where it cannot be that."""
    widths = {len(row) for row in partial.rows.values()}
    training = partial.training
    credible = (
        widths <= {len(heads)}
        and partial.rows.keys() <= set(samples)
        and (partial.steps is None or partial.steps > 0)
        and (training is None or (training.steps > 0 and 0 <= training.share <= 1))
    )
    return partial if credible else Partial({})


def credible_targets(targets: Mapping[str, object], samples: Sequence[str]) -> bool:
    """Whether there is a target for each of these samples and for no other."""
    return targets.keys() == set(samples)


def credible_evaluation(evaluation: Evaluation, inputs: int) -> bool:
    """Whether a metric over so many inputs has a value that its errors add up to."""
    if evaluation.n != inputs or not _in_range(evaluation):
        return False
    faults = evaluation.faults
    if faults is not None and not (0 <= faults.empty <= 1 and 0 <= faults.looping <= 1):
        return False
    errors, counted = evaluation.errors, evaluation.counted
    if not errors and not counted:
        return True
    if not len(errors) == len(counted) == inputs or min((*errors, *counted)) < 0:
        return False
    total = sum(counted)
    rate = sum(errors) / total if total else math.nan
    value = 1 - rate if evaluation.higher_is_better else rate
    return abs(value - evaluation.value) < ROUNDING


def _in_range(measurement: Measurement) -> bool:
    low, high = measurement.interval
    most = 1.0 if measurement.higher_is_better else math.inf
    ordered = -ROUNDING <= low <= high <= most + ROUNDING
    return ordered and 0 <= measurement.value <= most


def credible_removal(removal: Removal) -> bool:
    """Whether the counts are those of a model from which something was taken."""

    def sound(footprint: Footprint) -> bool:
        return footprint.parameters > 0 and footprint.macs > 0

    before, after = removal.before, removal.after
    smaller = after.parameters <= before.parameters and after.macs <= before.macs
    return smaller and sound(before) and sound(after)


def credible_benchmark(benchmark: Benchmark, names: Sequence[str], repetitions: int) -> bool:
    """Whether all variants were timed so often at every length, and each run took its time."""
    parts = [times for latency in benchmark.latencies for times in latency.times.values()]
    return len(parts) > 0 and all(
        set(times) == set(names)
        and all(len(own) == repetitions and min(own) > 0 for own in times.values())
        for times in parts
    )


def credible_parity(parity: Parity, tolerance: float) -> bool:
    """Whether something was compared, and all of it agreed as the recipe wants."""
    return (
        parity.tolerance == tolerance
        and len(parity.cases) > 0
        and all(case.max_abs_diff >= 0 and case.scale >= 0 for case in parity.cases)
        and all(case.relative_diff <= tolerance for case in parity.cases)
    )


def credible_repair(
    repair: Repair, kind: str, clips: int, units: Collection[Unit], refine_steps: int
) -> bool:
    """Whether so many clips could have told how to repair a model without these units."""
    stacks = {stack for _, stack in POOLS.values()}
    gone = Counter((unit.stack, unit.layer, unit.kind) for unit in units if unit.stack in stacks)
    told: Counter[tuple[str, int, str]] = Counter()
    for one in repair.sublayers:
        if min(one.removed, one.kept, one.strength or 0.0) < 0 or not 0 <= one.after <= one.before:
            return False
        # What is fitted where channels went is what reads them: the layer behind.
        layer = one.layer - 1 if one.kind == "channel" else one.layer
        told[one.stack, layer, one.kind] += one.removed
    layers = {one.layer for one in repair.sublayers if one.stack == ENCODER}
    refined = [one.layer for one in repair.refinements]
    return (
        repair.kind == kind
        and min(repair.clips, repair.held_out) >= 0
        and repair.clips + repair.held_out == clips
        and min(repair.frames, repair.tokens) >= 0
        and repair.frames + repair.tokens > 0
        and +told == gone
        and set(refined) == (layers if refine_steps else set())
        and len(refined) == len(set(refined))
        and all(
            0 <= one.steps <= refine_steps and min(one.before, one.after) >= 0
            for one in repair.refinements
        )
    )


def credible_recovery(kept: RecoveredModel, clips: int) -> bool:
    """Whether a training on up to so many clips can have gone so."""
    found = kept.recovery
    steps = [one.step for one in found.curve]
    losses = [loss for one in found.curve for loss in (one.training, one.held_out)]
    return (
        kept.seconds >= 0
        and len(kept.files) > 0
        and 0 < found.clips <= clips - found.held_out <= clips
        and 0 <= found.best_step <= found.steps <= found.planned
        and steps[:1] == [0]
        and steps == sorted(set(steps))
        and found.best_step in steps
        and steps[-1] <= found.steps
        and found.parameters > 0
        and all(loss is None or loss >= 0 for loss in losses)
    )


def credible_factors(
    factored: Sequence[FactoredProjection], ranks: Mapping[tuple[int, str], int], repair: str
) -> bool:
    """Whether these projections, of these ranks and no others, became two matrices."""
    return (
        len(factored) == len(ranks)
        and {(one.layer, one.name): one.rank for one in factored} == ranks
        and all(
            min(one.rows, one.columns) > one.rank
            and (one.error is None) == (repair == "none")
            and (one.error is None or one.error >= 0)
            for one in factored
        )
    )


def credible_conversion(converted: Converted, precision: Precision, max_drop: float) -> bool:
    """Whether a lower precision was made as the recipe wants, or there is a reason that it was not.

    Which reason, and which layers stayed in float32, nothing but making it again could tell.
    """
    guard = converted.guard
    if converted.fault is not None:
        return converted.fault.isprintable() and guard is None and not converted.in_float
    if precision != "int8":
        return guard is None
    return (
        guard is not None
        and guard.max_drop == max_drop
        and guard.measurements > 0
        and len(guard.in_float) == len(set(guard.in_float))
        and guard.drops.keys() >= set(guard.in_float)
    )
