"""Findings in words: honest about noise, speed and what is not known; numbers as people write."""

from __future__ import annotations

import pytest
from manifests import (
    RECIPE,
    make_latency,
    make_manifest,
    make_measurement,
    make_variant,
    make_variants,
    of_word_errors,
    printed,
    report_of,
    rows_of,
    scored,
    section,
    unwrapped,
    with_variant,
)

from hibprune.records.base import Interval
from hibprune.records.manifest import RoundSummary, UnitSummary
from hibprune.records.variants import MissingVariant, VariantLatency
from hibprune.report.card import model_card
from hibprune.report.numbers import change, count, duration, megabytes, milliseconds
from hibprune.report.ranking import ranking_sentence, score_label
from hibprune.report.variants import deployment_sentences, missing_sentences, variant_rows
from hibprune.report.wording import (
    heads_sentence,
    metric_finding,
    metric_sentence,
    speed_finding,
    speed_sentences,
)


def test_overlapping_intervals_are_noise() -> None:
    finding = metric_finding(make_measurement(0.961), make_measurement(0.954), None)
    assert finding == "0.7 points worse, within the noise of 480 clips"


def test_a_fall_beyond_the_intervals_is_said_plainly() -> None:
    finding = metric_finding(make_measurement(0.961), make_measurement(0.81), None)
    assert finding == "15.1 points worse, more than the noise of 480 clips explains"


@pytest.mark.parametrize(
    ("paired", "verdict"),
    [((-0.02, -0.001), "more than"), ((-0.02, 0.0), "within"), ((0.001, 0.02), "more than")],
)
def test_the_paired_interval_overrules_the_overlap(
    paired: tuple[float, float], verdict: str
) -> None:
    before, after = make_measurement(0.961), make_measurement(0.954)
    finding = metric_finding(before, after, Interval(*paired))
    assert finding.startswith(f"0.7 points worse, {verdict} the noise of 480 clips")


def test_each_variant_is_judged_on_its_own_change() -> None:
    manifest = with_variant(make_manifest(), "pruned", change=Interval(-0.02, -0.001))
    lower = {"metric": make_measurement(0.953), "change": Interval(-0.03, 0.01)}
    manifest = with_variant(manifest, "pruned-int8", **lower)
    findings = {
        name: row[-1] for name, row in rows_of(section(report_of(manifest), "Accuracy")).items()
    }
    assert "0.7 points worse, more than the noise" in findings["pruned"]
    assert "0.8 points worse, within the noise" in findings["pruned-int8"]
    assert {row.name: row.finding for row in variant_rows(manifest)} == {
        "original": "",
        "original-int8": "no change",
        "pruned": "beyond noise",
        "pruned-int8": "within noise",
    }


def test_a_rise_of_wer_is_worse() -> None:
    before, after = make_measurement(0.06, name="WER"), make_measurement(0.12, name="WER")
    assert metric_finding(before, after, None).startswith("6.0 points worse, more than")
    assert metric_finding(after, before, None).startswith("6.0 points better, more than")


def test_equal_values_are_not_called_a_change() -> None:
    assert metric_finding(make_measurement(0.9), make_measurement(0.9), None) == (
        "the same value on 480 clips"
    )


def test_metric_sentence_names_direction_intervals_and_variant() -> None:
    sentence = metric_sentence(of_word_errors(0.06, 0.08))
    assert sentence.startswith(
        "WER (lower is better) went from 6.0 % (4.2–7.8) to 8.0 % (6.2–9.8) (pruned)"
    )


def test_a_variant_that_scores_otherwise_is_told() -> None:
    manifest = with_variant(make_manifest(), "pruned-int8", metric=make_measurement(0.5))
    row = rows_of(section(report_of(manifest), "Accuracy"))["pruned-int8"]
    assert row[0] == "50.0 %"
    assert row[-1].startswith("46.1 points worse, more than")
    held = manifest.model_copy(update={"judged": "pruned-int8"})
    assert "to 50.0 % (48.2–51.8) (pruned-int8): 46.1 points worse" in metric_sentence(held)


@pytest.mark.parametrize(
    ("ratio", "interval", "finding"),
    [
        (1.31, (1.28, 1.34), "1.31× as fast (1.28–1.34)"),
        (1.01, (0.98, 1.03), "no measurable speed-up (1.01×, 0.98–1.03)"),
        (1.006, (1.002, 1.009), "no measurable speed-up (1.01×, 1.00–1.01)"),
        (0.9, (0.88, 0.93), "slower: 0.90× as fast (0.88–0.93)"),
    ],
)
def test_speed_up(ratio: float, interval: tuple[float, float], finding: str) -> None:
    assert speed_finding(make_latency(1, ratio, interval)) == finding


def test_every_setting_has_its_sentence() -> None:
    latency = (make_latency(), make_latency(provider="CUDAExecutionProvider"))
    pruned = make_variant("pruned")
    sentences = speed_sentences(pruned.model_copy(update={"latency": latency}))
    assert sentences.count("Speed of pruned against the original") == 2
    untimed = pruned.model_copy(update={"latency": ()})
    assert speed_sentences(untimed) == "Latency was not measured."


@pytest.mark.parametrize(
    ("correlation", "words"),
    [
        (0.95, "correlation 0.95: other samples of the same kind would give nearly the same"),
        (0.8, "heads near the cut may swap"),
        (0.3, "partly chance"),
    ],
)
def test_split_half_is_explained(correlation: float, words: str) -> None:
    assert words in ranking_sentence(scored(split_half=correlation))


def test_split_half_of_rounds_is_the_first_ones() -> None:
    one = RoundSummary(removed={0: (1,)}, seconds=1.0, split_half=0.8)
    manifest = scored(split_half=0.8).model_copy(update={"rounds": (one, one)})
    assert "correlation 0.80 in the first round: " in ranking_sentence(manifest)


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        (0, "magnitude looks at no data"),
        (3, "it takes four samples"),
        (200, "magnitude scores all samples together, not one by one"),
    ],
)
def test_the_lack_of_split_half_is_explained(samples: int, reason: str) -> None:
    manifest = scored(method="magnitude", samples=samples, split_half=None)
    assert ranking_sentence(manifest) == f"There is no split-half correlation: {reason}."


@pytest.mark.parametrize(
    ("split_half", "rounds", "label"),
    [
        (0.9, 1, "hib score (similarity), mean over 200 samples"),
        # One score of all samples together is no mean over them.
        (None, 1, "hib score (similarity)"),
        (0.9, 2, "hib score (similarity) of the head's last round, mean over 200 samples"),
    ],
)
def test_scores_are_called_what_they_are(split_half: float | None, rounds: int, label: str) -> None:
    manifest = make_manifest()
    attribution = manifest.attribution.model_copy(update={"split_half": split_half})
    one = RoundSummary(removed={0: (1,)}, seconds=1.0, split_half=split_half)
    changed = make_manifest(attribution=attribution, rounds=(one,) * rounds)
    assert score_label(changed) == label


def test_numbers_are_written_as_people_write_them() -> None:
    assert [count(n) for n in (812, 25_300, 3_021_120, 94_371_712, 1_234_000_000)] == [
        "812",
        "25.3 k",
        "3.02 M",
        "94.4 M",
        "1.23 G",
    ]
    assert [megabytes(n) for n in (812_000, 378_300_000)] == ["0.81 MB", "378 MB"]
    assert [milliseconds(t) for t in (7.184, 55.21, 184.6)] == ["7.18 ms", "55.2 ms", "185 ms"]
    assert [duration(s) for s in (4.23, 133.2, 3900)] == ["4.2 s", "2 min 13 s", "1 h 5 min"]
    assert [change(100, after) for after in (67, 100, 120)] == ["−33 %", "0 %", "+20 %"]
    assert change(1000, 998) == "−0.2 %"
    assert change(0, 5) == "–"


@pytest.mark.parametrize(
    ("number", "written"),
    [(999, "999"), (999_700, "1.00 M"), (99_960, "100 k"), (5 * 10**13, "50.0 T")],
)
def test_counts_carry_over_to_the_next_unit(number: int, written: str) -> None:
    assert count(number) == written


# Which variant to deploy ---------------------------------------------------------------------


def slower(ratio: float) -> tuple[VariantLatency, ...]:
    return (make_latency(1, ratio, (ratio - 0.02, ratio + 0.02)),)


def test_the_smallest_variant_that_keeps_the_metric_is_to_be_deployed() -> None:
    """5.21 MB are 57 % less than 12.211."""
    told = deployment_sentences(make_manifest())
    assert told[0] == (
        "Deploy pruned-int8: accuracy within the noise of the original, −57 % in size and no "
        "faster at 15 s."
    )


def test_a_variant_that_loses_more_than_noise_is_not() -> None:
    manifest = with_variant(make_manifest(), "pruned-int8", metric=make_measurement(0.7))
    assert deployment_sentences(manifest)[0].startswith("Deploy pruned: ")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.961, "the same accuracy as the original"),
        (0.954, "accuracy within the noise of the original"),
        (0.999, "better accuracy than the original"),
    ],
)
def test_what_became_of_the_metric_is_not_called_noise_where_it_is_none(
    value: float, words: str
) -> None:
    manifest = make_manifest(
        variants=(make_variant("original", 0.961), make_variant("pruned", value))
    )
    assert deployment_sentences(manifest)[0].startswith(f"Deploy pruned: {words}, ")


def test_fewer_word_errors_are_better() -> None:
    assert "better WER than the original" in deployment_sentences(of_word_errors(0.2, 0.1))[0]
    assert deployment_sentences(of_word_errors(0.1, 0.2))[0].startswith("Deploy none")


def test_none_is_to_be_deployed_where_none_keeps_the_metric() -> None:
    variants = make_variants(after=0.5)
    manifest = make_manifest(variants=variants)
    manifest = with_variant(manifest, "pruned-int8", metric=make_measurement(0.6))
    told = deployment_sentences(manifest)
    assert told[0].startswith("Deploy none of the pruned variants")
    assert "pruned-int8 is nearest" in told[0]
    assert told[1].startswith(
        "Pruning lost: plain int8 of the original (6.04 MB, 1.01× at 15 s) keeps"
    )
    neither = with_variant(manifest, "original-int8", metric=make_measurement(0.5))
    assert "is not known to keep the accuracy" in deployment_sentences(neither)[1]
    assert not any("Pruning lost" in one for one in deployment_sentences(neither))


@pytest.mark.parametrize(
    ("size", "ratio", "said"),
    [
        (5_000_000, 1.3, "Pruning lost: plain int8 {} is smaller."),
        (5_000_000, 1.5, "Pruning lost: plain int8 {} is smaller and faster."),
        (6_000_000, 1.5, "Plain int8 {} is faster, but larger."),
        (6_000_000, 1.1, "Plain int8 {} is larger and slower."),
        (5_210_000, 1.3, "Plain int8 {} does as well."),
    ],
)  # fmt: skip
def test_where_pruning_lost_to_plain_int8_is_told(size: int, ratio: float, said: str) -> None:
    """Against a pruned int8 of 5.21 MB and 1.3 times the speed."""
    manifest = make_manifest()
    for one in manifest.variants:
        manifest = with_variant(manifest, one.name, latency=slower(1.3))
    manifest = with_variant(manifest, "original-int8", latency=slower(ratio), size_bytes=size)
    figures = f"of the original ({size / 1e6:.2f} MB, {ratio:.2f}× at 1 s)"
    assert deployment_sentences(manifest)[1:] == [said.format(figures)]


def test_nothing_is_said_of_a_rival_that_is_not_there() -> None:
    original, _, *pruned = make_variants()
    assert len(deployment_sentences(make_manifest(variants=(original, *pruned)))) == 1


def test_what_is_larger_and_faster_is_named() -> None:
    manifest = with_variant(make_manifest(), "pruned", latency=slower(1.6))
    manifest = with_variant(manifest, "pruned-int8", latency=slower(1.1))
    assert "Larger and faster: pruned (10.4 MB, 1.60× at 1 s)." in deployment_sentences(manifest)


def test_float16_that_is_slow_here_is_for_elsewhere() -> None:
    """The smallest, and slower than the original by all of its interval."""
    slow = make_variant("pruned-fp16").model_copy(
        update={"latency": slower(0.6), "size_bytes": 5_000_000}
    )
    told = deployment_sentences(make_manifest(variants=(*make_variants(), slow)))
    assert told[0].startswith("Deploy pruned-int8: ")
    assert "Smaller, but slower here: pruned-fp16 (5.00 MB, 0.60× at 1 s)." in told
    assert "Float16 is meant for GPUs and browsers." in told


def test_variants_that_could_not_be_made_are_told_with_the_reason() -> None:
    missing = (MissingVariant(name="pruned-fp16", precision="fp16", reason="it overflows"),)
    manifest = make_manifest(missing=missing, judged="pruned-fp16")
    assert missing_sentences(manifest) == ["pruned-fp16 was not made: it overflows."]
    for text in (report_of(manifest), model_card(manifest, RECIPE), printed(manifest)):
        # The recommendation is the next sentence.
        assert "pruned-fp16 was not made: it overflows. " in unwrapped(text)
    # What can be said is said of the pruned model in fp32, by its name.
    assert "(pruned)" in metric_sentence(manifest)


def test_neurons_are_told_of_where_no_head_goes() -> None:
    neurons = UnitSummary(
        total=148,
        share=0.25,
        scope="global",
        method="reconstruction",
        settings={},
        seconds=1.0,
        removed={0: tuple(range(37))},
        kept={0: 37, 1: 74},
    )
    heads = make_manifest().heads.model_copy(update={"removed": {}})
    sentence = heads_sentence(make_manifest(heads=heads, neurons=neurons))
    assert sentence == (
        "None of the 36 attention heads was removed. Of 148 neurons of the feed-forwards 37 were "
        "removed (25 %)."
    )
