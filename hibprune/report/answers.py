"""The report's section on answers that changed: which inputs pruning lost, and which it won."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from hibprune.errors import shortened
from hibprune.execution.files import read_text_bounded
from hibprune.execution.output import PREDICTIONS
from hibprune.records.manifest import Manifest
from hibprune.records.variants import ORIGINAL
from hibprune.report.bars import Drawn
from hibprune.report.markdown import table
from hibprune.report.template import filled_page

NAMED = 20
"""Inputs that the table shows; all of them are in the files."""
LONGEST = 80
Pair = tuple[dict[str, Any], dict[str, Any]]
"""What the original and the judged variant said of one input."""


TITLE = "Answers that changed"
MAX_AUDIO_BYTES = 600_000
"""Of all clips in a page together, before they are encoded as text."""


class Clip(NamedTuple):
    """A sound file in base64, and the clip's name."""

    name: str
    encoded: str


def changed_clips(
    manifest: Manifest, directory: Path, sound_of: Callable[[str], bytes | None]
) -> Drawn | None:
    """Players of the clips in the table, as many as there is room for; None without any.

    `sound_of` gives a clip's WAV by its id.
    """
    _, changed = _compared(manifest, directory)
    names = [one["id"] for one, _ in changed[:NAMED]]
    clips, room = [], MAX_AUDIO_BYTES
    for name in names:
        sound = sound_of(name)
        if sound is not None and len(sound) <= room:
            room -= len(sound)
            clips.append(Clip(name, base64.b64encode(sound).decode()))
    if not clips:
        return None
    fewer = "" if len(clips) == len(names) else f"; {len(clips)} of {len(names)} have room here"
    reading = f"As the model hears them: one channel, at its rate{fewer}."
    return Drawn(filled_page("clips.html.jinja", {"clips": clips, "reading": reading}), False)


def changed_answers(manifest: Manifest, directory: Path) -> str:
    """A table of the inputs the judged variant answers otherwise, the worst first.

    Read from the answers that the run left; empty where there are none to compare.
    """
    both, ordered = _compared(manifest, directory)
    if not both:
        return ""
    medium = manifest.medium
    if not ordered:
        said = f"{manifest.held.name} says the same of every {medium.one} as the original."
        return f"## {TITLE}\n\n{said}"
    worse = sum(_change(pair) > 0 for pair in ordered)
    better = sum(_change(pair) < 0 for pair in ordered)
    rows = [
        (
            one["id"],
            _words(one.get("reference")),
            _words(one["prediction"]),
            _words(other["prediction"]),
            _verdict(_change((one, other))),
        )
        for one, other in ordered[:NAMED]
    ]
    said = (
        f"Of {medium.counted(both)}, {manifest.held.name} answers {len(ordered)} otherwise "
        f"than the original: {worse} worse, {better} better."
    )
    shown = f"The first {NAMED} of them; all" if len(ordered) > NAMED else "All"
    header = [medium.one, "truth", "original", manifest.held.name, ""]
    return "\n\n".join(
        [
            f"## {TITLE}",
            said,
            table("lllll", header, rows),
            f"*{shown} answers of every variant lie in `predictions/`.*",
        ]
    )


def _compared(manifest: Manifest, directory: Path) -> tuple[int, list[Pair]]:
    """How many inputs both models answered, and the answers that differ, the worst first."""
    before = _answers(directory, ORIGINAL)
    after = _answers(directory, manifest.held.name)
    both = [(before[name], one) for name, one in after.items() if name in before]
    changed = [pair for pair in both if pair[0]["prediction"] != pair[1]["prediction"]]
    return len(both), sorted(changed, key=lambda pair: (-_change(pair), pair[0]["id"]))


def _answers(directory: Path, variant: str) -> dict[str, dict[str, Any]]:
    path = directory / PREDICTIONS / f"{variant}.jsonl"
    if not path.is_file():
        return {}
    rows = (json.loads(line) for line in read_text_bounded(path, within=directory).splitlines())
    return {row["id"]: row for row in rows}


def _change(pair: Pair) -> float:
    """By how many errors the second answer is worse."""
    before, after = (float(one.get("errors") or 0.0) for one in pair)
    return after - before


def _verdict(change: float) -> str:
    return "worse" if change > 0 else "better" if change < 0 else "neither"


def _words(answer: object) -> str:
    if isinstance(answer, dict):
        return shortened(", ".join(f"{slot}={label}" for slot, label in answer.items()), LONGEST)
    return shortened(str(answer or "–"), LONGEST)
