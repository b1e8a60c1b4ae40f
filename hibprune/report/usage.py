"""Section of the model card on use: snippets that run as they stand, from inside the directory."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import NamedTuple

from hibprune.records.generation import GenerationSettings
from hibprune.records.manifest import Manifest
from hibprune.records.variants import PRUNED, Variant
from hibprune.report.markdown import fenced
from hibprune.report.other_clients import without_a_library

WAVEFORM_WITH_MASK = ("moonshine",)
"""Families whose graphs take a mask beside the samples."""


UNBOUND = "use_io_binding=False"
"""What keeps Optimum from making room on a GPU for what a graph gives out, before it does."""


class Usage(NamedTuple):
    """How the Hub and the two libraries call what a task needs, and the lines that use it."""

    pipeline_tag: str
    torch_class: str
    onnx_class: str
    preprocessor_class: str
    running: str
    """From `inputs` to what is printed; `{limit}` where a decoder is told where to end."""


LOGITS = 'logits = model(input_values=inputs["input_values"]).logits\n'
LABEL = "print(model.config.id2label[int(logits.argmax(-1))])"
AUDIO_CLASSIFICATION = Usage(
    "audio-classification",
    "AutoModelForAudioClassification",
    "ORTModelForAudioClassification",
    "AutoFeatureExtractor",
    LOGITS + LABEL,
)
USAGES = {
    "keyword-spotting": AUDIO_CLASSIFICATION,
    "speaker-identification": AUDIO_CLASSIFICATION,
    "intent-classification": AUDIO_CLASSIFICATION._replace(
        running=f"{LOGITS}print(logits)  # a group of classes per slot; `hibprune predict` reads "
        "them"
    ),
    "text-classification": Usage(
        "text-classification",
        "AutoModelForSequenceClassification",
        "ORTModelForSequenceClassification",
        "AutoTokenizer",
        f"logits = model(**inputs).logits\n{LABEL}",
    ),
    "asr-ctc": Usage(
        "automatic-speech-recognition",
        "AutoModelForCTC",
        "ORTModelForCTC",
        "AutoProcessor",
        f"{LOGITS}print(preprocessor.batch_decode(logits.argmax(-1)))",
    ),
    "asr-seq2seq": Usage(
        "automatic-speech-recognition",
        "AutoModelForSpeechSeq2Seq",
        "ORTModelForSpeechSeq2Seq",
        "AutoProcessor",
        "tokens = model.generate(**inputs, {generation})\n"
        "print(preprocessor.batch_decode(tokens, skip_special_tokens=True))",
    ),
}


def usage_section(manifest: Manifest) -> str:
    """On the command line, with ONNX Runtime and with PyTorch."""
    usage = _usage(manifest)
    argument = '"A text to judge."' if manifest.input == "text" else "clip.wav"
    return "\n\n".join(
        [
            "## Use",
            "At once, from the command line, in this directory:",
            fenced(f"hibprune predict . {argument}", "sh"),
            "With ONNX Runtime through Optimum (hibprune not needed):",
            fenced(_onnx_example(usage, manifest), "python"),
            *_other_precisions(usage, manifest),
            *without_a_library(manifest, USAGES[manifest.task] is AUDIO_CLASSIFICATION),
            _torch_needs(manifest),
            fenced(_torch_example(usage, manifest), "python"),
        ]
    )


def _usage(manifest: Manifest) -> Usage:
    """How a task's models are used, with a mask where their graphs take one."""
    usage = USAGES[manifest.task]
    if not manifest.attention_mask:
        return usage
    masked = usage.running.replace('input_values=inputs["input_values"]', "**inputs")
    # Optimum's own class for transcripts hands on the waveform alone.
    custom = {"onnx_class": "ORTModelForCustomTasks"} if _is_ctc(manifest) else {}
    return usage._replace(running=masked, **custom)


def _other_precisions(usage: Usage, manifest: Manifest) -> list[str]:
    """How to load the graphs in lower precision, where there are some."""
    lower = [one for one in manifest.variants if one.precision != "fp32" and not one.is_rival]
    if not lower:
        return []
    loading = "\n".join(_loading(usage, one, manifest) for one in lower)
    return [
        "The same model in lower precision lies beside it; load it by its names:",
        fenced(f"from optimum.onnxruntime import {usage.onnx_class}\n\n{loading}", "python"),
    ]


def _loading(usage: Usage, variant: Variant, manifest: Manifest) -> str:
    names = [PurePosixPath(file.path).name for file in variant.files if file.path is not None]
    options = {"file_name": names[0]}
    if len(names) > 1:
        encoder, decoder = names
        # Optimum looks for a second decoder where the first is named, merged or not.
        options = {
            "encoder_file_name": encoder,
            "decoder_file_name": decoder,
            "decoder_with_past_file_name": decoder,
        }
    named = "".join(f'    {option}="{name}",\n' for option, name in options.items())
    named += f"    {UNBOUND},\n" if _has_fewer_keys(manifest) else ""
    return (
        f"model = {usage.onnx_class}.from_pretrained(  # {variant.precision}\n"
        f'    ".",\n    subfolder="onnx",\n{named})'
    )


def _has_fewer_keys(manifest: Manifest) -> bool:
    """Whether a decoder lost heads: of its keys Optimum would bind as many as if all were there."""
    pools = (manifest.decoder_heads, manifest.cross_heads)
    return any(units is not None and units.removed_count for units in pools)


def _torch_needs(manifest: Manifest) -> str:
    """What a model that lost heads, or parts of other kinds, wants before it is loaded."""
    if manifest.heads.removed_count or _has_fewer_keys(manifest):
        return (
            "With PyTorch. Layers with fewer heads need hibprune's loading code, so import it "
            "before `from_pretrained`, which else stops at a missing `_prune_heads`; transformers "
            "must be 4.57, later ones cannot read pruned heads:"
        )
    return (
        "With PyTorch. Layers of shapes of their own need hibprune's loading code, so import it "
        "before `from_pretrained`, which else stops at weights of other sizes where there are such:"
    )


def _onnx_example(usage: Usage, manifest: Manifest) -> str:
    arguments = 'directory, subfolder="onnx"'
    arguments += f", {UNBOUND}" if _has_fewer_keys(manifest) else ""
    return f"""\
{_sound_import(manifest)}from optimum.onnxruntime import {usage.onnx_class}
from transformers import {usage.preprocessor_class}

directory = "."  # this directory, or its id on the Hub
model = {usage.onnx_class}.from_pretrained({arguments})
{_from_input_to_answer(usage, manifest)}"""


def _torch_example(usage: Usage, manifest: Manifest) -> str:
    return f"""\
import hibprune  # first: teaches transformers to load pruned layers
{_sound_import(manifest)}from transformers import {usage.torch_class}, {usage.preprocessor_class}

directory = "."
model = {usage.torch_class}.from_pretrained(directory).eval()
{_from_input_to_answer(usage, manifest)}"""


def _sound_import(manifest: Manifest) -> str:
    return "" if manifest.input == "text" else "import soundfile\n"


def _from_input_to_answer(usage: Usage, manifest: Manifest) -> str:
    running = usage.running
    if manifest.generation is not None:
        running = running.format(generation=_generation(manifest.generation, _window(manifest)))
    return f"""\
preprocessor = {usage.preprocessor_class}.from_pretrained(directory)
{_inputs(manifest)}
{running}"""


def _inputs(manifest: Manifest) -> str:
    if manifest.input == "text":
        return 'inputs = preprocessor("A text to judge.", return_tensors="pt")'
    with_mask = manifest.attention_mask or manifest.model.family in WAVEFORM_WITH_MASK
    mask = ", return_attention_mask=True" if with_mask else ""
    return (
        'sound, rate = soundfile.read("clip.wav")  # one channel, 16 kHz\n'
        f'inputs = preprocessor(sound, sampling_rate=rate, return_tensors="pt"{mask})'
    )


def _generation(settings: GenerationSettings, window: float | None) -> str:
    """The arguments of `generate` with which the model was measured."""
    language = "" if settings.language is None else f'language="{settings.language}", '
    limit = str(settings.max_new_tokens)
    if window is not None:
        limit = str(settings.max_tokens(window))
    elif settings.max_tokens_per_second is not None:
        by_length = f"max(1, int(len(sound) / rate * {settings.max_tokens_per_second:g}))"
        limit = f"min({settings.max_new_tokens}, {by_length})"
    return f"{language}max_new_tokens={limit}"


def _window(manifest: Manifest) -> float | None:
    return manifest.counted_work.window_seconds


def caution(manifest: Manifest) -> str:
    """What whoever deploys the ONNX model has to keep in mind of its inputs."""
    if manifest.input == "text":
        return (
            "A text longer than the model takes was left out of every figure, not cut short; a "
            "tokenizer told to truncate may change what a text means."
        )
    window = _window(manifest)
    if window is not None:
        return (
            f"Every clip is filled up to {window:g} s with silence, so that clips of any length up "
            f"to that can share a batch; longer ones were left out of every figure: of what is "
            f"longer the feature extractor keeps the first {window:g} s."
        )
    if manifest.model.family in WAVEFORM_WITH_MASK:
        return (
            "The ONNX encoder takes `input_values` and an `attention_mask`. Filling clips up to "
            "one length changes what the model says of the shorter ones, masked or not: clips in "
            "one batch must be of equal length. Send clips of different length one by one."
        )
    if manifest.attention_mask:
        return _masked_caution(manifest)
    return (
        "The ONNX model takes `input_values` only, no attention mask: clips in one batch must "
        "be of equal length. Send clips of different length one by one."
        f"{_padding_sentence(manifest)}"
    )


def _masked_caution(manifest: Manifest) -> str:
    """How clips of different lengths share a batch."""
    cut = " cut the logits of each clip at its own number of frames:" if _is_ctc(manifest) else ""
    int8 = any(one.precision == "int8" and not one.is_rival for one in manifest.variants)
    return (
        "The ONNX model takes `input_values` and an `attention_mask` (int64, 1 on a clip's own "
        "samples, 0 behind them): fill the shorter clips of a batch up with zeros, after "
        f"normalisation, and{cut} every clip gets what it gets alone."
        + (
            " Not so in int8, where all clips of a batch share one range of numbers: send them one "
            "by one there."
            if int8
            else ""
        )
        + _padding_sentence(manifest)
    )


def _is_ctc(manifest: Manifest) -> bool:
    return manifest.task == "asr-ctc"


def _padding_sentence(manifest: Manifest) -> str:
    """What the validation clips say of padding, where that was looked at."""
    effect = manifest.variant(PRUNED).padding
    if effect is None:
        return ""
    changed = f"{effect.changed or 'none'} of {effect.n} get"
    return (
        f" Of validation clips filled up with silence in batches of {effect.batch}, by up to "
        f"{effect.longest:.3g} times their length, {changed} another answer than alone."
    )
