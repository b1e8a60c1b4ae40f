"""What padding changes: clips in batches of the extractor's against the same one by one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from transformers import Wav2Vec2FeatureExtractor

from hibprune.data import DurationLimits, Utterance
from hibprune.execution.runtime import Predict
from hibprune.models.checkpoint import Checkpoint
from hibprune.models.masking import own_outputs, padded
from hibprune.models.preprocessing import SoundPreprocessor
from hibprune.records.padding import PaddingEffect
from hibprune.tasks import Target, TaskBase

CLIPS, BATCH = 24, 8


def padding_effect(
    predict: Predict,
    checkpoint: Checkpoint,
    task: TaskBase,
    utterances: Sequence[Utterance],
    limits: DurationLimits,
    alone: Sequence[Target],
    masked: bool,
) -> PaddingEffect | None:
    """How many of the first clips are answered in a padded batch as they are `alone`.

    None for models whose extractor fills every clip up to one length, and where all clips are of
    one length. `masked`: the graph takes masks, and is told which samples are a clip's own.
    """
    preprocessor = checkpoint.preprocessor
    if not isinstance(preprocessor, SoundPreprocessor) or task.generation is not None:
        return None
    extractor = preprocessor.feature_extractor
    if not isinstance(extractor, Wav2Vec2FeatureExtractor):
        return None
    clips = [np.asarray(checkpoint.read(one.content, limits)) for one in utterances[:CLIPS]]
    said: list[Target] = []
    longest = 1.0
    for start in range(0, len(clips), BATCH):
        some = clips[start : start + BATCH]
        lengths = list(map(len, some))
        longest = max(longest, max(lengths) / min(lengths))
        outputs: Iterable[np.ndarray]
        if masked:
            inputs = padded([checkpoint.inputs(clip) for clip in some])
            outputs = own_outputs(task, checkpoint.model.config, inputs, predict(inputs))
        else:
            name = extractor.model_input_names[0]
            filled = extractor(
                some, sampling_rate=preprocessor.sampling_rate, padding=True, return_tensors="pt"
            )
            outputs = predict({name: filled[name]})
        said += [task.decode(output, checkpoint.vocabulary) for output in outputs]
    if longest == 1.0:
        return None
    equal = sum(one == other for one, other in zip(said, alone, strict=False))
    return PaddingEffect(n=len(clips), equal=equal, batch=BATCH, longest=longest)
