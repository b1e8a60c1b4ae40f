"""Which utterances are used: a seeded order, the readable ones of it, and no overlap."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hibprune.data.contents import content_digest, content_size
from hibprune.data.utterances import AudioFile, Content, ContentFault, Utterance
from hibprune.errors import UserError, shortened
from hibprune.records.medium import SOUND

NAMED_IN_ERRORS = 3

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Selection:
    """Utterances that can be read, those skipped as (id, reason), and a digest of the first.

    `identity` is SHA-256 over ids, targets and contents in order.
    """

    utterances: tuple[Utterance, ...]
    skipped: tuple[tuple[str, str], ...]
    identity: str
    described: tuple[str, ...] = ()
    """What `identity` is a digest of: a line for each utterance."""

    def first(self, number: int) -> Selection:
        """The first of them, with a digest of their own."""
        if number >= len(self.utterances):
            return self
        described = self.described[:number]
        return Selection(self.utterances[:number], self.skipped, _identity(described), described)

    def after(self, number: int) -> Selection:
        """Those behind the first, with a digest of their own."""
        described = self.described[number:]
        return Selection(self.utterances[number:], (), _identity(described), described)


def _identity(described: Sequence[str]) -> str:
    return hashlib.sha256("".join(f"{line}\n" for line in described).encode()).hexdigest()


def drawing_order(
    utterances: Sequence[Utterance], seed: int, balanced: bool = True
) -> list[Utterance]:
    """All utterances in a seeded order whose first n are the draw of n, the rest replacements.

    `balanced` takes labels (or combinations of slots) in turn, so that classes of the first n
    differ by at most one clip until a class runs out; texts and unlabelled clips are shuffled.
    The order depends on ids and targets, not on the order given.
    """
    generator = random.Random(seed)
    classes: dict[str, list[Utterance]] = defaultdict(list)
    for utterance in sorted(utterances, key=lambda utterance: utterance.id):
        classes[_class_of(utterance) if balanced else ""].append(utterance)
    names = sorted(classes)
    generator.shuffle(names)
    for name in names:
        generator.shuffle(classes[name])
    rounds = max((len(members) for members in classes.values()), default=0)
    return [
        classes[name][turn] for turn in range(rounds) for name in names if turn < len(classes[name])
    ]


def usable(
    candidates: Sequence[Utterance],
    place: str,
    read: Callable[[Content], object],
    samples: int | None = None,
    max_unreadable: float = 0.01,
    progress: Progress | None = None,
    identified: Callable[[Content], str] = content_digest,
) -> Selection:
    """The first `samples` candidates that can be read, or all; later ones replace the unreadable.

    `read` raises ContentFault for a clip or text that cannot be used. Raises UserError once more
    than `max_unreadable` of those to be examined cannot: with the default, 1 clip in 100 or 2 in
    200 are skipped, and among fewer than 100 none, since a small set cannot spare one unnoticed.
    Raises it too when fewer than `samples` remain. `identified` is a digest of what was read, or
    raises ContentFault.
    """
    wanted = len(candidates) if samples is None else samples
    if wanted > len(candidates):
        raise UserError(_too_few(place, wanted, candidates, 0))
    chosen: list[Utterance] = []
    skipped: list[tuple[str, str]] = []
    described: list[str] = []
    for utterance in candidates:
        if len(chosen) == wanted:
            break
        try:
            read(utterance.content)
            content = identified(utterance.content)
        except ContentFault as fault:
            skipped.append((utterance.id, fault.reason))
            to_examine = min(wanted + len(skipped), len(candidates))
            # In floating point 0.29 * 100 is a little less than 29, which is allowed.
            if len(skipped) > max_unreadable * to_examine + 1e-9:
                examined = _counted(len(chosen) + len(skipped), candidates)
                raise UserError(_too_many(place, skipped, examined, max_unreadable)) from None
            continue
        chosen.append(utterance)
        described.append(json.dumps([utterance.id, utterance.target, content], sort_keys=True))
        if progress is not None:
            progress(len(chosen), wanted)
    if samples is not None and len(chosen) < samples:
        raise UserError(_too_few(place, samples, candidates, len(skipped)))
    return Selection(tuple(chosen), tuple(skipped), _identity(described), tuple(described))


def missing_audio(utterances: Sequence[Utterance]) -> list[str]:
    """Ids of the clips that there is no file of: a check that reads nothing."""
    return [
        utterance.id
        for utterance in utterances
        if isinstance(utterance.content, AudioFile) and not os.path.lexists(utterance.content.path)
    ]


def overlap(
    calibration: Sequence[Utterance], validation: Sequence[Utterance]
) -> list[tuple[str, str]]:
    """Pairs of ids, one from either side, that are the same file or have the same content.

    A text has the content of another that is equal but for white space around it.

    Segments of one file are the same when they share sound. Files are hashed only where both
    sides have one of that size; files that cannot be read count as different.
    """
    pairs = _same_file(calibration, validation) | _same_content(calibration, validation)
    return sorted(pairs)


def require_disjoint(
    used: Sequence[Utterance],
    validation: Sequence[Utterance],
    place: str = "calibration",
    purpose: str = "the heads were not chosen on",
) -> None:
    """Raise UserError with examples when what is used in a `place` and validation overlap."""
    pairs = overlap(used, validation)
    if pairs:
        examples = _listed([one if one == other else f"{one} = {other}" for one, other in pairs])
        raise UserError(
            f"{place} and validation share {_counted(len(pairs), validation)}: {examples}; "
            f"validate on {validation[0].medium.many} that {purpose}"
        )


def _class_of(utterance: Utterance) -> str:
    if isinstance(utterance.target, dict):
        return json.dumps(utterance.target, sort_keys=True)
    return utterance.target or ""


def _same_file(
    calibration: Sequence[Utterance], validation: Sequence[Utterance]
) -> set[tuple[str, str]]:
    files: dict[str, list[tuple[str, AudioFile]]] = defaultdict(list)
    for utterance in calibration:
        if isinstance(utterance.content, AudioFile):
            files[os.path.realpath(utterance.content.path)].append(
                (utterance.id, utterance.content)
            )
    return {
        (name, utterance.id)
        for utterance in validation
        if isinstance(utterance.content, AudioFile)
        for name, audio in files.get(os.path.realpath(utterance.content.path), [])
        if _share_sound(audio, utterance.content)
    }


def _share_sound(one: AudioFile, other: AudioFile) -> bool:
    def end(audio: AudioFile) -> float:
        return float("inf") if audio.seconds is None else audio.start_seconds + audio.seconds

    # Neighbouring segments meet in floating point: less than a sample in common is nothing.
    margin = 1e-6
    return one.start_seconds + margin < end(other) and other.start_seconds + margin < end(one)


def _same_content(
    calibration: Sequence[Utterance], validation: Sequence[Utterance]
) -> set[tuple[str, str]]:
    ours, theirs = _by_size(calibration), _by_size(validation)
    pairs = set()
    for size in ours.keys() & theirs.keys():
        here, there = _by_content(ours[size]), _by_content(theirs[size])
        for content in here.keys() & there.keys():
            pairs |= {(one, other) for one in here[content] for other in there[content]}
    return pairs


def _by_size(utterances: Sequence[Utterance]) -> dict[int, list[Utterance]]:
    grouped: dict[int, list[Utterance]] = defaultdict(list)
    for utterance in utterances:
        try:
            grouped[content_size(utterance.content)].append(utterance)
        except ContentFault:
            continue
    return grouped


def _by_content(utterances: Sequence[Utterance]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = defaultdict(list)
    for utterance in utterances:
        try:
            grouped[content_digest(utterance.content)].append(utterance.id)
        except ContentFault:
            continue
    return grouped


def _too_few(place: str, wanted: int, candidates: Sequence[Utterance], unreadable: int) -> str:
    lost = f", {unreadable} of them unreadable" if unreadable else ""
    return (
        f"{place}: {_counted(wanted, candidates)} asked for, but there are "
        f"{len(candidates)}{lost}; ask for fewer or add data"
    )


def _too_many(
    place: str, skipped: list[tuple[str, str]], examined: str, max_unreadable: float
) -> str:
    named = _listed([f"{name}: {reason}" for name, reason in skipped])
    return (
        f"{place}: {len(skipped)} of the first {examined} cannot be used, more than "
        f"max_unreadable ({max_unreadable:g}) allows: {named}; mend or remove them"
    )


def _counted(count: int, utterances: Sequence[Utterance]) -> str:
    medium = utterances[0].medium if utterances else SOUND
    return medium.counted(count)


def _listed(names: list[str]) -> str:
    more = len(names) - NAMED_IN_ERRORS
    return "; ".join(map(shortened, names[:NAMED_IN_ERRORS])) + (
        f"; and {more} more" if more > 0 else ""
    )
