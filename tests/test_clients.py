"""Clients of others on an exported model: transformers.js and ONNX Runtime on WebAssembly, in Node.

Optimum, ONNX Runtime in Python and in Node, and PyTorch are tried in the tests of export, variants
and card.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from commands import invoke
from standin import StandIn

MODULES = Path(os.environ.get("HIBPRUNE_NODE_MODULES", "node_modules")).resolve()
READING = """\
import { readFileSync } from "node:fs";
const raw = readFileSync("clip.f32");
const samples = new Float32Array(raw.buffer, raw.byteOffset, raw.length / 4);
"""
TRANSFORMERS_JS = (
    READING
    + """\
import { pipeline, env } from "@huggingface/transformers";
env.allowRemoteModels = false;
env.localModelPath = ".";
const found = {};
for (const dtype of ["fp32", "q8"]) {
  const spot = await pipeline("audio-classification", "model", { dtype, device: "cpu" });
  for (const one of await spot(samples, { top_k: null }))
    (found[dtype] ??= {})[one.label] = one.score;
}
console.log(JSON.stringify(found));
"""
)
WEB_ASSEMBLY = (
    READING
    + """\
import * as ort from "onnxruntime-web";
ort.env.wasm.numThreads = 1;
const mean = samples.reduce((sum, one) => sum + one, 0) / samples.length;
const variance = samples.reduce((sum, one) => sum + (one - mean) ** 2, 0) / samples.length;
const input = samples.map((one) => (one - mean) / Math.sqrt(variance + 1e-7));
const { id2label } = JSON.parse(readFileSync("model/config.json"));
const found = {};
for (const [dtype, name] of [["fp32", "model"], ["q8", "model_quantized"]]) {
  const session = await ort.InferenceSession.create(readFileSync(`model/onnx/${name}.onnx`));
  const tensor = new ort.Tensor("float32", input, [1, input.length]);
  const { logits } = await session.run({ input_values: tensor });
  const powers = Array.from(logits.data, Math.exp);
  const all = powers.reduce((sum, one) => sum + one, 0);
  found[dtype] = Object.fromEntries(powers.map((one, place) => [id2label[place], one / all]));
}
console.log(JSON.stringify(found));
"""
)


def needs(package: str) -> Any:
    return pytest.mark.skipif(
        not (shutil.which("node") and (MODULES / package).is_dir()),
        reason=f"no Node with {package} in HIBPRUNE_NODE_MODULES",
    )


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(
            TRANSFORMERS_JS, id="transformers.js", marks=needs("@huggingface/transformers")
        ),
        pytest.param(WEB_ASSEMBLY, id="onnxruntime-web", marks=needs("onnxruntime-web")),
    ],
)  # fmt: skip
def test_javascript_says_what_predict_says(
    finished_in_int8: Callable[[str], Path], stand_in: StandIn, tmp_path: Path, program: str
) -> None:
    output, clip = finished_in_int8("keyword_spotting"), stand_in.clip("validation", 0)
    (tmp_path / "model").symlink_to(output)
    (tmp_path / "node_modules").symlink_to(MODULES)
    soundfile.read(clip, dtype="float32")[0].astype(np.float32).tofile(tmp_path / "clip.f32")
    (tmp_path / "ask.mjs").write_text(program)
    said = subprocess.run(
        ["node", "ask.mjs"], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert said.returncode == 0, said.stderr
    found = json.loads(said.stdout.splitlines()[-1])
    for dtype, variant, tolerance in (("fp32", "pruned", 1e-3), ("q8", "pruned-int8", 0.05)):
        asked = ("predict", output, clip, "--variant", variant, "--scores", "--json")
        expected = json.loads(invoke(*asked).stdout)["scores"]
        assert found[dtype] == pytest.approx(expected, abs=tolerance)
