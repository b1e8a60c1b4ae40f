"""`README.md` of the directory: a model card as the Hugging Face Hub reads it."""

from __future__ import annotations

from typing import NamedTuple

import yaml

from hibprune.records.manifest import Manifest
from hibprune.records.medium import MediumName
from hibprune.report import wording
from hibprune.report.caveats import caveats
from hibprune.report.gates import gates_sentence
from hibprune.report.markdown import fenced, plain, table
from hibprune.report.ranking import scored_by
from hibprune.report.summary import SummaryRow, summary_rows


class Deployment(NamedTuple):
    """How the Hub and the two libraries call what a task needs."""

    pipeline_tag: str
    torch_class: str
    onnx_class: str
    preprocessor_class: str
    running: str
    """The lines of an example from `inputs` to what is printed."""


def deployment(task: str) -> Deployment:
    """Names of pipeline and classes for a task."""
    logits = 'logits = model(input_values=inputs["input_values"]).logits\n'
    label = "print(model.config.id2label[int(logits.argmax(-1))])"
    if task == "text-classification":
        return Deployment(
            "text-classification",
            "AutoModelForSequenceClassification",
            "ORTModelForSequenceClassification",
            "AutoTokenizer",
            f"logits = model(**inputs).logits\n{label}",
        )
    if task == "asr-ctc":
        return Deployment(
            "automatic-speech-recognition",
            "AutoModelForCTC",
            "ORTModelForCTC",
            "AutoProcessor",
            f"{logits}print(preprocessor.batch_decode(logits.argmax(-1)))",
        )
    if task == "asr-seq2seq":
        return Deployment(
            "automatic-speech-recognition",
            "AutoModelForSpeechSeq2Seq",
            "ORTModelForSpeechSeq2Seq",
            "AutoProcessor",
            "tokens = model.generate(**inputs)\n"
            "print(preprocessor.batch_decode(tokens, skip_special_tokens=True))",
        )
    if task == "intent-classification":
        label = "print(logits)  # one group of classes per slot; `hibprune predict` reads them"
    return Deployment(
        "audio-classification",
        "AutoModelForAudioClassification",
        "ORTModelForAudioClassification",
        "AutoFeatureExtractor",
        f"{logits}{label}",
    )


class Example(NamedTuple):
    """An input of one medium in the examples: on the command line, and from there to `inputs`."""

    argument: str
    imports: str
    preparing: str
    caution: str
    """What whoever deploys the ONNX model has to keep in mind of its inputs."""


EXAMPLES: dict[MediumName, Example] = {
    "sound": Example(
        "clip.wav",
        "import soundfile\n",
        'sound, rate = soundfile.read("clip.wav")  # one channel, 16 kHz\n'
        'inputs = preprocessor(sound, sampling_rate=rate, return_tensors="pt")',
        "The ONNX model takes `input_values` only, no attention mask: clips in one batch must be "
        "of equal length. Send clips of different length one by one.",
    ),
    "text": Example(
        '"A text to judge."',
        "",
        'inputs = preprocessor("A text to judge.", return_tensors="pt")',
        "A text longer than the model takes was left out of every figure, not cut short; a "
        "tokenizer told to truncate may change what a text means.",
    ),
}


def model_card(manifest: Manifest, recipe_yaml: str) -> str:
    """Write the card: front matter, results, use, removed heads, limits, recipe."""
    sections = [
        _front_matter(manifest),
        f"# {plain(manifest.recipe)}",
        _what_it_is(manifest),
        *(f"**{plain(sentence)}**" for sentence in caveats(manifest)),
        _results(manifest),
        _use(manifest),
        _removed(manifest),
        _limits(manifest),
        "## Recipe\n\nMade by `hibprune run` with this recipe; its paths start from where it lay:"
        f"\n\n{fenced(recipe_yaml, 'yaml')}",
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(manifest: Manifest) -> str:
    fields: dict[str, object] = {
        "library_name": "transformers",
        "pipeline_tag": deployment(manifest.task).pipeline_tag,
        "tags": ["hibprune", "pruned", "onnx", manifest.model.family],
        # The Hub's metric ids are lower-case.
        "metrics": [manifest.metric.name.lower()],
    }
    if manifest.model.on_hub:
        fields["base_model"] = manifest.model.source
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---"


def _what_it_is(manifest: Manifest) -> str:
    revision = f" at revision {plain(manifest.model.revision)}" if manifest.model.revision else ""
    metric = wording.metric_sentence(manifest.metric, manifest.medium)
    return (
        f"{plain(manifest.model.source)}{revision} for {plain(manifest.task)}, made smaller by "
        "removing attention heads with hibprune; it was not trained afterwards. "
        f"{wording.heads_sentence(manifest)} {metric}"
    )


def _results(manifest: Manifest) -> str:
    rows = [_result(row) for row in summary_rows(manifest)]
    settings = "; ".join(wording.by_setting(manifest.latency))
    latency = (
        f" Latency is the median ({plain(settings)}) on {plain(manifest.machine.processor)}."
        if settings
        else ""
    )
    return "\n\n".join(
        [
            "## Results",
            table("lrrr", ["", "original", "pruned", "change"], rows),
            f"Ranges are 95 % intervals; the metric is over "
            f"{manifest.medium.counted(manifest.metric.n)}.{latency} "
            f"{plain(gates_sentence(manifest.gates))} All figures, pictures and limits: "
            "[report.md](report.md).",
            "![Score of every head, the removed ones crossed out](figures/heads.png)",
        ]
    )


def _result(row: SummaryRow) -> list[str]:
    pairs = (
        (row.label, row.label_detail),
        (row.original, row.original_detail),
        (row.pruned, row.pruned_detail),
        (row.change, row.change_detail),
    )
    return [f"{figure} ({detail})" if detail else figure for figure, detail in pairs]


def _use(manifest: Manifest) -> str:
    names, example = deployment(manifest.task), EXAMPLES[manifest.input]
    return "\n\n".join(
        [
            "## Use",
            "At once, from the command line:",
            fenced(f"hibprune predict . {example.argument}", "sh"),
            "With ONNX Runtime through Optimum (hibprune not needed):",
            fenced(_onnx_example(names, example), "python"),
            "With PyTorch. Uneven and empty layers need hibprune's loading code, so import it "
            "before `from_pretrained`; transformers must be 4.57, later ones cannot read pruned "
            "heads:",
            fenced(_torch_example(names), "python"),
        ]
    )


def _onnx_example(names: Deployment, example: Example) -> str:
    return f"""\
{example.imports}from optimum.onnxruntime import {names.onnx_class}
from transformers import {names.preprocessor_class}

directory = "."  # this directory, or its id on the Hub
model = {names.onnx_class}.from_pretrained(directory, subfolder="onnx")
preprocessor = {names.preprocessor_class}.from_pretrained(directory)
{example.preparing}
{names.running}"""


def _torch_example(names: Deployment) -> str:
    return f"""\
import hibprune  # first: teaches transformers to load pruned layers
from transformers import {names.torch_class}

model = {names.torch_class}.from_pretrained(".").eval()"""


def _removed(manifest: Manifest) -> str:
    if not manifest.heads.removed_count:
        return "## Removed heads\n\nNone."
    rows = [
        (layer, ", ".join(map(str, indices)))
        for layer, indices in sorted(manifest.heads.removed.items())
        if indices
    ]
    return (
        "## Removed heads\n\nBy their original indices, layer 0 nearest the "
        f"{manifest.medium.name}; scored by "
        f"{plain(scored_by(manifest.attribution))}.\n\n"
        f"{table('ll', ['layer', 'removed heads'], rows)}"
    )


def _limits(manifest: Manifest) -> str:
    medium = manifest.medium
    limits = [
        EXAMPLES[medium.name].caution,
        f"The metric holds for the {manifest.metric.n} validation {medium.many}; try other "
        f"{medium.variety} before deploying.",
        "No training followed the removal of heads.",
        "Licence and intended use are those of the original model.",
    ]
    if manifest.latency:
        limits.insert(2, "Latency holds for the machine and settings named above.")
    return "\n".join(["## Limits", "", *(f"- {limit}" for limit in limits)])
