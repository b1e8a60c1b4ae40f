"""What recovery is given of each clip: inputs as the model is used on it, and what is said."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from hibprune.compression.augmentation import augmented
from hibprune.compression.training_clips import TrainingClip
from hibprune.data import DurationLimits, Text, Utterance, probe_seconds
from hibprune.models.layerwise import CalibrationClip, calibration_clip
from hibprune.models.preprocessing import SoundPreprocessor
from hibprune.stages.own_labels import own_labels
from hibprune.stages.recovery_clips import labels_used, recovery_seed
from hibprune.stages.run import Run
from hibprune.tasks import Encoded, Target

ROOM_BYTES = 2**30
"""For inputs that are kept from one time to the next."""


class RecoveryInputs:
    """The clips of a recovery by their place; those that are the same each time are made once."""

    def __init__(
        self, run: Run, clips: Sequence[Utterance], targets: Mapping[str, Encoded] | None
    ) -> None:
        assert run.recipe.recover is not None
        self._checkpoint = run.checkpoint
        self._settings = run.recipe.recover
        self._limits = recovery_limits(run)
        self._seed = recovery_seed(run.recipe)
        self._clips = clips
        self._targets = targets
        self._kept: dict[int, CalibrationClip] = {}
        self._room = ROOM_BYTES
        self._lengths = [self._length(clip) for clip in clips]

    @property
    def lengths(self) -> Sequence[float]:
        """Seconds of sound, or tokens of text."""
        return self._lengths

    def read(self, place: int, draw: int | None) -> TrainingClip:
        """A clip as it is or, where it is to vary, as it sounds at this draw."""
        clip = self._clips[place]
        varied = draw is not None and self._settings.augment.changes
        heard = self._made(clip, f"{clip.id}/{draw}") if varied else self._same(place)
        return TrainingClip(
            id=clip.id,
            inputs=heard.inputs,
            frames=heard.frames,
            target=None if self._targets is None else self._targets[clip.id],
        )

    def _same(self, place: int) -> CalibrationClip:
        if place in self._kept:
            return self._kept[place]
        made = self._made(self._clips[place], None)
        size = sum(value.nbytes for value in made.inputs.values())
        if size <= self._room:
            self._room -= size
            self._kept[place] = made
        return made

    def _made(self, clip: Utterance, draw: str | None) -> CalibrationClip:
        reading = self._checkpoint.read(clip.content, self._limits)
        prepare = self._checkpoint.preprocessor
        if draw is not None and isinstance(prepare, SoundPreprocessor):
            shortest = max(prepare.shortest, self._limits.min_seconds)
            longest = min(prepare.longest, self._limits.max_seconds)
            reading = augmented(
                np.asarray(reading),
                prepare.sampling_rate,
                self._settings.augment,
                f"{self._seed}/{draw}",
                (shortest, longest),
            )
        return calibration_clip(self._checkpoint, reading)

    def _length(self, clip: Utterance) -> float:
        if isinstance(clip.content, Text):
            reading = self._checkpoint.read(clip.content, self._limits)
            inputs = self._checkpoint.inputs(reading)
            return float(next(iter(inputs.values())).shape[1])
        return probe_seconds(clip.content, self._limits)


def recovery_limits(run: Run) -> DurationLimits:
    """How long clips of recovery may be: those of calibration have been held to its own limits."""
    settings = run.recipe.recover
    assert settings is not None
    return (run.recipe.calibration if settings.data is None else settings).durations


def encoded_targets(
    run: Run, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Encoded] | None:
    """What is to be said of each clip in the model's numbers; None where that is not looked at.

    What the original says where that is asked for, or there are no labels to feed a decoder. Clips
    of which it says nothing that can be fed are left out, and told of.
    """
    clips = run.material.recovery.utterances
    used = labels_used(run.recipe, clips)
    if used is None:
        return None
    targets = {clip.id: clip.target for clip in clips}
    if used == "model":
        targets = _said_by_the_original(run)
    found: dict[str, Encoded] = {}
    for name, target in targets.items():
        try:
            assert target is not None
            found[name] = run.recipe.task.encode(target, run.checkpoint.vocabulary)
        except ValueError:
            # The data set's own targets were seen to when they were loaded.
            continue
    if len(found) < len(targets):
        lost = run.recipe.task.medium.counted(len(targets) - len(found))
        run.narrator.say(
            f"recover: {lost} left out, of which the original says nothing to learn from"
        )
    return found


def _said_by_the_original(run: Run) -> dict[str, Target | None]:
    """What the original says of every clip, kept like the result of any step."""
    done = own_labels(
        run,
        "label-recovery",
        {"clips": run.material.recovery.identity},
        run.material.recovery.utterances,
        recovery_limits(run),
        "recovery",
    )
    return dict(done.result)
