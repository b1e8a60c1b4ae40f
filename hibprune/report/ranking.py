"""How heads were scored and how far the ranking can be trusted, in words."""

from __future__ import annotations

from hibprune.records.manifest import AttributionSummary, Manifest
from hibprune.records.ranking import RankingFault
from hibprune.report.numbers import capitalised, listing

SAYS_NOTHING = "the ranking of heads says nothing"
FAULTS: dict[RankingFault, str] = {
    "equal": "all scores are equal but for rounding",
    "unstable": "halves of the samples rank the heads no more alike than chance would",
    "noise": "heads differ by no more than the samples of one head do",
}


def score_label(manifest: Manifest) -> str:
    """What a head's score is: `hib score (similarity), mean over 200 samples`."""
    attribution = manifest.attribution
    kind = attribution.settings.get("score")
    name = f"{attribution.method} score" + (f" ({kind})" if kind else "")
    if len(manifest.rounds) > 1:
        name = f"{name} of the head's last round"
    # Without a split-half correlation there are too few samples, or no scores of single ones.
    if attribution.split_half is None:
        return name
    return f"{name}, mean over {attribution.samples} samples"


def scored_by(attribution: AttributionSummary) -> str:
    """The method and what it looked at: `hib on 200 samples`."""
    if not attribution.samples:
        return f"{attribution.method}, which looks at no data"
    return f"{attribution.method} on {samples(attribution.samples)}"


def samples(number: int) -> str:
    """`1 sample`, `200 samples`."""
    return f"{number} {'sample' if number == 1 else 'samples'}"


def ranking_finding(fault: RankingFault) -> str:
    """That a ranking says nothing, and why."""
    return f"{SAYS_NOTHING}: {FAULTS[fault]}"


def empty_ranking_sentence(manifest: Manifest) -> str | None:
    """That heads were chosen by a ranking that says nothing; None where they were not."""
    attribution, rounds = manifest.attribution, manifest.rounds
    if not manifest.heads.removed_count:
        return None
    if len(rounds) < 2:
        if attribution.ranking_fault is None:
            return None
        found = ranking_finding(attribution.ranking_fault)
    else:
        empty = {number: one.ranking_fault for number, one in enumerate(rounds, start=1)}
        reasons = [f"{number} ({FAULTS[fault]})" for number, fault in empty.items() if fault]
        if not reasons:
            return None
        found = f"{SAYS_NOTHING} in round {listing(reasons)}"
    return f"{capitalised(found)}. Which heads went is chance."


def ranking_sentence(manifest: Manifest) -> str:
    """What the split-half correlation says about the ranking, and what it does not."""
    attribution = manifest.attribution
    split_half = attribution.split_half
    if split_half is None:
        if not attribution.samples:
            reason = f"{attribution.method} looks at no data"
        elif attribution.samples < 4:
            reason = "it takes four samples"
        else:
            reason = f"{attribution.method} scores all samples together, not one by one"
        return f"There is no split-half correlation: {reason}."
    if attribution.ranking_fault is not None:
        reading = ranking_finding(attribution.ranking_fault)
    elif split_half >= 0.9:
        reading = "other samples of the same kind would give nearly the same ranking"
    elif split_half >= 0.7:
        reading = "the coarse ranking is settled, heads near the cut may swap with other samples"
    else:
        reading = (
            "the ranking depends much on which samples were drawn: use more, "
            "or read the choice of heads as partly chance"
        )
    first = " in the first round" if len(manifest.rounds) > 1 else ""
    return (
        f"Split-half rank correlation {split_half:.2f}{first}: {reading}. It speaks of the "
        "ranking's stability; whether the ranking is a good one, the metric after removal says."
    )
