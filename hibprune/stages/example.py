"""An example in a run: an input made up for the model, and what each variant makes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import soundfile

from hibprune.data import AudioFile, Content, ContentFault, DurationLimits, Text
from hibprune.execution.files import write_text, write_via_temporary
from hibprune.execution.progress import StepNarration
from hibprune.execution.steps import Done, Step
from hibprune.models.masking import padded
from hibprune.models.preprocessing import SoundPreprocessor, TextPreprocessor
from hibprune.records.example import DIRECTORY, Example, ExampleOutput
from hibprune.records.variants import VariantPlan
from hibprune.stages.findings import Findings
from hibprune.stages.run import Run, once

SECONDS = 1.0
TONE = (200.0, 2000.0)
"""Hz at the beginning and the end of the tone."""
LOUDNESS, NOISE = 0.3, 0.02
SENTENCE = "This is an example."
TOKENS = 8


def exemplified(
    run: Run, found: Findings, directory_of: Callable[[VariantPlan], Path]
) -> Done[Example]:
    """Write `example/`: a rising tone or a sentence, its tensors, and what variants give out.

    Made up, so that nobody's recording travels with the model. `directory_of` tells where the
    graphs of a variant lie.
    """
    variants = {
        name: found.made[name] for name in found.measured if not found.made[name].plan.is_rival
    }

    def make(_: Step[Example], narration: StepNarration) -> Example:
        name, content = _written_input(run)
        limits = run.recipe.validation.durations
        inputs = run.checkpoint.inputs(run.checkpoint.read(content, limits))
        if run.recipe.export.attention_mask:
            inputs = padded([inputs])
        task, vocabulary = run.recipe.task, run.checkpoint.vocabulary
        outputs = {}
        for variant, made in variants.items():
            # On the processor, as whoever checks it may have no GPU.
            given = task.onnx_predict(directory_of(made.plan), "cpu")(inputs)
            file = _write_array(run.directory, variant, given)
            outputs[variant] = ExampleOutput(file=file, says=task.decode(given[0], vocabulary))
        tensors = {
            name: _write_array(run.directory, name, tensor.numpy())
            for name, tensor in inputs.items()
        }
        return Example(input=name, tensors=tensors, outputs=outputs)

    return once(
        run,
        "example",
        {
            "variants": {name: made.key for name, made in variants.items()},
            "durations": run.recipe.validation.durations.model_dump(mode="json"),
        },
        Example,
        make,
        lambda example: f"{run.directory / example.input}",
        lambda example: example.files,
        lambda kept: _credible(kept, variants),
    )


def _credible(kept: Example, variants: Mapping[str, object]) -> bool:
    inside = all(Path(name).parent == Path(DIRECTORY) for name in kept.files)
    return inside and kept.outputs.keys() == variants.keys()


def _write_array(directory: Path, name: str, array: np.ndarray) -> str:
    place = f"{DIRECTORY}/{name}.npy"
    write_via_temporary(directory / place, lambda path: np.save(path, array))
    return place


def _written_input(run: Run) -> tuple[str, Content]:
    """The example's input as a file, by its place in the directory, and what is in it."""
    preprocessor = run.checkpoint.preprocessor
    limits = run.recipe.validation.durations
    if isinstance(preprocessor, TextPreprocessor):
        place, text = f"{DIRECTORY}/input.txt", _known(preprocessor, limits)
        write_text(run.directory / place, text + "\n")
        return place, Text(text)
    assert isinstance(preprocessor, SoundPreprocessor)
    place, rate = f"{DIRECTORY}/input.wav", preprocessor.sampling_rate
    taken = limits.within(preprocessor.shortest, preprocessor.longest)
    seconds = min(max(SECONDS, taken.min_seconds), taken.max_seconds)
    tone = rising_tone(seconds, rate)
    write_via_temporary(
        run.directory / place, lambda path: soundfile.write(path, tone, rate, subtype="PCM_16")
    )
    return place, AudioFile(run.directory / place)


def rising_tone(seconds: float, rate: int) -> np.ndarray:
    """A tone that rises from 200 to 2000 Hz in a little seeded noise, shape (samples,)."""
    times = np.arange(round(seconds * rate)) / rate
    low, high = TONE
    phase = 2 * np.pi * (low * times + (high - low) * times**2 / (2 * seconds))
    noise = np.random.default_rng(0).standard_normal(len(times))
    return np.asarray(LOUDNESS * np.sin(phase) + NOISE * noise, dtype=np.float32)


def _known(preprocessor: TextPreprocessor, limits: DurationLimits) -> str:
    """A sentence, or words of the tokenizer where it knows none of that."""
    try:
        preprocessor.read(Text(SENTENCE), limits)
    except ContentFault:
        special = set(preprocessor.tokenizer.all_special_ids)
        numbers = sorted(set(preprocessor.tokenizer.get_vocab().values()) - special)
        return str(preprocessor.tokenizer.decode(numbers[:TOKENS]))
    return SENTENCE
