"""Part of the card's section on use: clients that know neither hibprune nor a library of models."""

from __future__ import annotations

from hibprune.records.manifest import Manifest
from hibprune.report.markdown import fenced

PLAIN_PYTHON = """\
import json
import numpy
import onnxruntime
import soundfile

session = onnxruntime.InferenceSession("onnx/model.onnx")
about = session.get_modelmeta().custom_metadata_map
sound, rate = soundfile.read("clip.wav", dtype="float32")  # one channel, 16 kHz
if json.loads(about["hibprune.normalised"]):
    sound = (sound - sound.mean()) / numpy.sqrt(sound.var() + 1e-7)
inputs = {"input_values": sound[None]}
(logits,) = session.run(["logits"], inputs)
print(json.loads(about["hibprune.labels"])[logits.argmax()])"""
PLAIN_JAVASCRIPT = """\
import { InferenceSession, Tensor } from "onnxruntime-node"; // or "onnxruntime-web"
import { readFileSync } from "node:fs";

const settings = JSON.parse(readFileSync("preprocessor_config.json"));
const { id2label } = JSON.parse(readFileSync("config.json"));
if (settings.do_normalize) {
  const mean = samples.reduce((sum, one) => sum + one, 0) / samples.length;
  const variance = samples.reduce((sum, one) => sum + (one - mean) ** 2, 0) / samples.length;
  samples = samples.map((one) => (one - mean) / Math.sqrt(variance + 1e-7));
}
const session = await InferenceSession.create("onnx/model.onnx");
const inputs = { input_values: new Tensor("float32", samples, [1, samples.length]) };
const { logits } = await session.run(inputs);
console.log(id2label[logits.data.indexOf(Math.max(...logits.data))]);"""

SHERPA = """\
import numpy
import sherpa_onnx
import soundfile

recognizer = sherpa_onnx.OfflineRecognizer.from_whisper(
    encoder="{encoder}", decoder="{decoder}", tokens="{tokens}"{language}
)
stream = recognizer.create_stream()
sound, rate = soundfile.read("clip.wav", dtype="float32")  # one channel
sound = numpy.pad(sound, (rate // 200, rate // 40))  # silence
stream.accept_waveform(rate, sound)
recognizer.decode_stream(stream)
print(stream.result.text.strip())"""
MASK_IN_PYTHON = 'inputs["attention_mask"] = numpy.ones((1, len(sound)), numpy.int64)\n'
MASK_IN_JAVASCRIPT = """\
const ones = new BigInt64Array(samples.length).fill(1n);
inputs.attention_mask = new Tensor("int64", ones, [1, samples.length]);
"""
"""What tells a graph that takes a mask that all of a clip is its own."""


def without_a_library(manifest: Manifest, has_labels: bool) -> list[str]:
    """How to run the graphs with ONNX Runtime alone, and what else there is for others.

    `has_labels`: a clip gets one label, so that this takes a few lines.
    """
    told = (
        "`example/` holds an input, the tensors that the graphs take of it, and what each variant "
        "gives out: whoever feeds the model elsewhere can compare. `hibprune verify .` does so, "
        "and checks every file."
    )
    others = [*_waveform(manifest), *_sherpa(manifest), told]
    if not has_labels:
        return others
    return [
        "With ONNX Runtime alone; the graph says what it wants and which label is which:",
        fenced(_masked(PLAIN_PYTHON, "(logits,)", MASK_IN_PYTHON, manifest), "python"),
        "The same in JavaScript, `samples` being a Float32Array of one channel:",
        fenced(_masked(PLAIN_JAVASCRIPT, "const { log", MASK_IN_JAVASCRIPT, manifest), "js"),
        *others,
    ]


def _masked(lines: str, running: str, mask: str, manifest: Manifest) -> str:
    """Lines with those that make a mask before the one that is `running` the graph."""
    return lines.replace(running, mask + running) if manifest.attention_mask else lines


def _waveform(manifest: Manifest) -> list[str]:
    """What the graph that takes the waveform takes, where there is one."""
    if manifest.waveform is None:
        return []
    return [
        f"`{manifest.waveform.path}` does the feature extractor's work by itself: it takes the "
        "samples as `waveform` (batch, samples), float32 between −1 and 1 at the model's rate, and "
        f"gives out what `{manifest.waveform.made_from}` does."
        f"{' The mask is that of the samples.' if manifest.attention_mask else ''}"
    ]


def _sherpa(manifest: Manifest) -> list[str]:
    """How sherpa-onnx loads its files, where there are some."""
    files = manifest.sherpa
    if files is None:
        return []
    language = "" if files.language is None else f', language="{files.language}"'
    return [
        "With sherpa-onnx, in fp32, on clips of up to 29 s. Its frames lie 5 ms behind Whisper's: "
        "with so much silence in front, and a little behind, it says what `hibprune predict` says; "
        "without, a word here and there is another:",
        fenced(
            SHERPA.format(
                encoder=files.encoder, decoder=files.decoder, tokens=files.tokens, language=language
            ),
            "python",
        ),
    ]
