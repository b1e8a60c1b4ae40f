"""Draws that are balanced and repeatable, unreadable clips, and clips on both sides."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from data_standins import write_clip

from hibprune.data import (
    AudioFile,
    Content,
    DurationLimits,
    EncodedAudio,
    Selection,
    Target,
    Text,
    Utterance,
    drawing_order,
    missing_audio,
    overlap,
    read_waveform,
    require_disjoint,
    usable,
)
from hibprune.errors import UserError

NOWHERE = EncodedAudio(b"")


def labelled(**counts: int) -> list[Utterance]:
    return [
        Utterance(f"{label}/{number}", NOWHERE, label)
        for label, count in counts.items()
        for number in range(count)
    ]


def files(directory: Path, count: int, silent: tuple[int, ...] = ()) -> list[Utterance]:
    """`count` clips; those in `silent` hold zeros."""
    found = []
    for number in range(count):
        path = directory / f"{number}.wav"
        write_clip(path, 200 + number, 0.2)
        if number in silent:
            soundfile.write(path, np.zeros(3200), 16_000)
        found.append(Utterance(path.name, AudioFile(path), "yes"))
    return found


def read(content: Content) -> np.ndarray:
    assert not isinstance(content, Text)
    return read_waveform(content, 16_000, DurationLimits())


def select(
    candidates: list[Utterance], samples: int | None = None, max_unreadable: float = 0.01
) -> Selection:
    return usable(candidates, "calibration", read, samples, max_unreadable)


def test_draws_are_balanced_until_a_class_runs_out() -> None:
    clips = labelled(yes=50, no=20, go=3)
    order = drawing_order(clips, seed=0)
    assert sorted(one.id for one in order) == sorted(one.id for one in clips)
    assert Counter(one.target for one in order[:9]) == {"yes": 3, "no": 3, "go": 3}
    assert Counter(one.target for one in order[:43]) == {"yes": 20, "no": 20, "go": 3}
    for n in range(1, 10):
        counts = Counter(one.target for one in order[:n])
        assert max(counts.values()) - min(counts.get(name, 0) for name in counts) <= 1


def test_draws_balance_combinations_of_slots() -> None:
    intents: list[Target] = [
        {"action": "bring", "object": "shoes"},
        {"action": "bring", "object": "socks"},
        {"action": "increase", "object": "volume"},
    ]
    clips = [
        Utterance(f"{intent}:{number}", NOWHERE, target)
        for intent, target in enumerate(intents)
        for number in range(4 + 10 * intent)
    ]
    drawn = drawing_order(clips, seed=1)[:12]
    assert Counter(str(one.target) for one in drawn) == {str(intent): 4 for intent in intents}


def test_draws_repeat_with_the_seed_whatever_the_order_of_the_files() -> None:
    clips = labelled(yes=30, no=30)
    order = [one.id for one in drawing_order(clips, seed=7)]
    assert order == [one.id for one in drawing_order(clips[::-1], seed=7)]
    assert order != [one.id for one in drawing_order(clips, seed=8)]
    plain = drawing_order(clips, seed=7, balanced=False)
    assert Counter(one.target for one in plain[:30])["yes"] not in (0, 30)


def test_two_unreadable_clips_in_two_hundred_are_replaced(tmp_path: Path) -> None:
    clips = files(tmp_path, 205, silent=(0, 150))
    selection = select(clips, 200)
    assert len(selection.utterances) == 200
    assert selection.skipped == (("0.wav", "silent"), ("150.wav", "silent"))
    assert selection.utterances[-1].id == "201.wav"


def test_more_unreadable_clips_stop_the_run_with_their_names(tmp_path: Path) -> None:
    clips = files(tmp_path, 205, silent=(0, 1, 2))
    with pytest.raises(UserError) as error:
        select(clips, 200)
    assert str(error.value) == (
        "calibration: 3 of the first 3 clips cannot be used, more than max_unreadable (0.01) "
        "allows: 0.wav: silent; 1.wav: silent; 2.wav: silent; mend or remove them"
    )


def test_a_small_set_cannot_spare_a_clip(tmp_path: Path) -> None:
    clips = files(tmp_path, 10, silent=(4,))
    with pytest.raises(UserError, match=r"1 of the first 5 clips .* allows: 4\.wav: silent; "):
        select(clips)
    assert len(select(clips, max_unreadable=0.1).utterances) == 9


def test_at_the_share_exactly_clips_are_skipped(tmp_path: Path) -> None:
    assert len(select(files(tmp_path, 100, silent=(50,))).utterances) == 99


def test_fewer_clips_than_asked_for(tmp_path: Path) -> None:
    clips = files(tmp_path, 100, silent=(3,))
    with pytest.raises(UserError) as error:
        select(clips, 101)
    assert str(error.value) == (
        "calibration: 101 clips asked for, but there are 100; ask for fewer or add data"
    )
    with pytest.raises(UserError) as error:
        select(clips, 100)
    assert str(error.value) == (
        "calibration: 100 clips asked for, but there are 100, 1 of them unreadable; "
        "ask for fewer or add data"
    )


def test_identity_follows_names_targets_and_contents(tmp_path: Path) -> None:
    clips = files(tmp_path, 3)
    identity = select(clips).identity
    assert identity == select(files(tmp_path, 3)).identity
    relabelled = [Utterance(one.id, one.content, "no") for one in clips]
    write_clip(tmp_path / "other.wav", 999)
    replaced = [*clips[:2], Utterance(clips[2].id, AudioFile(tmp_path / "other.wav"), "yes")]
    changed = [relabelled, replaced, clips[::-1], clips[:2]]
    assert len({identity, *(select(one).identity for one in changed)}) == 5


def test_progress_counts_usable_clips(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    clips = files(tmp_path, 4, silent=(1,))
    usable(
        clips,
        "validation",
        read,
        samples=3,
        max_unreadable=0.25,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_missing_audio(tmp_path: Path) -> None:
    clips = files(tmp_path, 3)
    (tmp_path / "1.wav").unlink()
    assert missing_audio(clips) == ["1.wav"]


def test_the_same_file_by_another_name_overlaps(tmp_path: Path) -> None:
    clips = files(tmp_path, 4)
    (tmp_path / "link.wav").symlink_to(tmp_path / "2.wav")
    link = Utterance("link.wav", AudioFile(tmp_path / "link.wav"), "yes")
    assert overlap(clips[:3], [link, clips[3]]) == [("2.wav", "link.wav")]


def test_copies_overlap(tmp_path: Path) -> None:
    clips = files(tmp_path, 4)
    copy = Utterance("copy", EncodedAudio((tmp_path / "0.wav").read_bytes()), "yes")
    with pytest.raises(UserError) as error:
        require_disjoint(clips[:3], [copy, clips[1], clips[3]])
    assert str(error.value) == (
        "calibration and validation share 2 clips: 0.wav = copy; 1.wav; "
        "validate on clips that the heads were not chosen on"
    )
    require_disjoint(clips[:3], clips[3:])


def test_segments_overlap_when_they_share_sound(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "noise.wav", seconds=5.0)

    def segment(start: float) -> Utterance:
        return Utterance(f"@{start}", AudioFile(path, start, 1.0), "_silence_")

    assert overlap([segment(0)], [segment(1.0), segment(3.0)]) == []
    assert overlap([segment(0)], [segment(0.9)]) == [("@0", "@0.9")]
    assert overlap([segment(0)], [Utterance("all", AudioFile(path), "x")]) == [("@0", "all")]


def test_missing_files_do_not_hide_an_overlap(tmp_path: Path) -> None:
    clips = files(tmp_path, 2)
    gone = Utterance("gone.wav", AudioFile(tmp_path / "gone.wav"), "yes")
    assert overlap([gone, *clips], clips[1:]) == [("1.wav", "1.wav")]
