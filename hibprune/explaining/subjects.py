"""What is explained: a clip or text, what the model says of it, what its positions stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from hibprune.attribution.base import Sample
from hibprune.data import Content, ContentFault
from hibprune.data.contents import content_digest
from hibprune.errors import UserError, shortened
from hibprune.explaining.words import word_spans
from hibprune.models.attention import frame_count, input_length
from hibprune.models.checkpoint import Checkpoint
from hibprune.models.families import has_decoder
from hibprune.models.preprocessing import Reading, SoundPreprocessor
from hibprune.records.explanation import Axis, ExplainedClip, Span, Spectrogram
from hibprune.stages.load import reader
from hibprune.stages.run import Run
from hibprune.tasks import Target, answer_text

SHOWN = 2
"""Validation clips that are explained where none is named."""
COLUMNS, ROWS = 240, 64
"""Of a spectrogram."""
WINDOW_SECONDS = 0.025
FLOOR_DECIBELS = -80.0

LONGEST_NAME = 300
"""Letters of a path that a line shows."""


@dataclass(frozen=True)
class Subject:
    """A clip or text with the model's answer as the target of its `sample`."""

    content: Content
    reading: Reading
    sample: Sample
    clip: ExplainedClip
    identity: str
    """A digest of the clip's content."""

    @property
    def axis(self) -> Axis:
        return self.clip.axis


def subjects(run: Run, named: Sequence[str]) -> tuple[list[Subject], list[str]]:
    """The clips or texts named, or the first of the validation set, and a line for each unfit."""
    checkpoint = run.checkpoint
    if named:
        given = [(name, checkpoint.preprocessor.content(name)) for name in named]
    else:
        shown = run.material.validation.utterances[:SHOWN]
        given = [(clip.id, clip.content) for clip in shown]
    found, lines = [], []
    for name, content in given:
        place = f"--clip {shortened(name, LONGEST_NAME)}" if named else shortened(name)
        try:
            found.append(subject_of(run, name, content))
        except ContentFault as fault:
            lines.append(f"{place}: left out: {fault.reason}")
        except UserError as error:
            lines.append(f"{place}: left out: {error}")
    return found, lines


def subject_of(run: Run, name: str, content: Content) -> Subject:
    """A clip or text by its name.

    Raises:
        ContentFault: it cannot be read, or is longer than the recipe or the model takes.
        UserError: the model gives no answer to it that can be explained.
    """
    checkpoint, task = run.checkpoint, run.recipe.task
    reading = reader(checkpoint, run.recipe.validation)(content)
    inputs = checkpoint.inputs(reading)
    output = task.torch_predict(checkpoint.model)(inputs)[0]
    if not np.isfinite(output).all():
        raise UserError("the model's outputs are not finite: it cannot take this")
    said: Target = task.decode(output, checkpoint.vocabulary)
    try:
        target = task.encode(said, checkpoint.vocabulary)
    except ValueError as error:
        raise UserError(f"what the model says of it cannot be explained: {error}") from error
    sample = Sample(name, checkpoint.calibration_inputs(reading), target)
    axis = _axis(run, reading, sample, output)
    power = None
    if axis.seconds is not None:
        power = spectrogram(heard(checkpoint, reading), _rate(checkpoint))
    clip = ExplainedClip(id=name, said=answer_text(said), axis=axis, spectrogram=power)
    return Subject(content, reading, sample, clip, content_digest(content))


def follows_time(checkpoint: Checkpoint) -> bool:
    """Whether positions of the encoder follow each other in time, as patches of AST do not."""
    sound = isinstance(checkpoint.preprocessor, SoundPreprocessor)
    return sound and hasattr(checkpoint.model, "_get_feat_extract_output_lengths")


def _axis(run: Run, reading: Reading, sample: Sample, output: np.ndarray) -> Axis:
    checkpoint = run.checkpoint
    positions = frame_count(checkpoint.model, input_length(checkpoint.model, sample.inputs))
    if isinstance(reading, str):
        return Axis(positions=positions, tokens=tokens_of(checkpoint, sample))
    if not follows_time(checkpoint):
        return Axis(positions=positions)
    seconds = len(heard(checkpoint, reading)) / _rate(checkpoint)
    words: tuple[Span, ...] = ()
    if run.recipe.task.kind == "asr-ctc":
        words = word_spans(output, checkpoint.vocabulary.tokenizer, positions)
    return Axis(positions=positions, seconds=seconds, words=words)


def tokens_of(checkpoint: Checkpoint, sample: Sample) -> tuple[str, ...]:
    """The tokens of a text, as its tokenizer writes them."""
    numbers = sample.inputs["input_ids"][0].tolist()
    return tuple(map(str, checkpoint.preprocessor.part.convert_ids_to_tokens(numbers)))


def _rate(checkpoint: Checkpoint) -> int:
    assert isinstance(checkpoint.preprocessor, SoundPreprocessor)
    return checkpoint.preprocessor.sampling_rate


def heard(checkpoint: Checkpoint, reading: Reading) -> np.ndarray:
    """The waveform with the silence that `calibration_inputs` adds."""
    waveform = np.asarray(reading)
    if not has_decoder(checkpoint.model):
        return waveform
    return np.pad(waveform, (0, -len(waveform) % (_rate(checkpoint) // 2)))


def spectrogram(waveform: np.ndarray, rate: int) -> Spectrogram:
    """Power in dB below the loudest cell, in windows of 25 ms, pooled to what a picture shows."""
    size = min(len(waveform), round(WINDOW_SECONDS * rate))
    starts = np.linspace(0, len(waveform) - size, min(COLUMNS, len(waveform))).astype(int)
    windows = np.stack([waveform[start : start + size] for start in starts]) * np.hanning(size)
    power = np.square(np.abs(np.fft.rfft(windows)))
    ends = np.linspace(0, power.shape[1], min(ROWS, power.shape[1]) + 1).round().astype(int)
    rows = np.stack([power[:, a:b].mean(axis=1) for a, b in pairwise(ends)])
    decibels = 10 * np.log10(np.maximum(rows, 1e-12) / max(float(rows.max()), 1e-12))
    shown = np.maximum(decibels, FLOOR_DECIBELS).round()
    return Spectrogram(decibels=tuple(map(tuple, shown.tolist())), highest_hertz=rate / 2)
