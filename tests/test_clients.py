"""Clients of others on an exported model: transformers.js and ONNX Runtime on WebAssembly, in Node.

Optimum, ONNX Runtime in Python and in Node, and PyTorch are tried in the tests of export, variants
and card.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import invoke
from in_node import READING, TRANSFORMERS_JS, answered, needs
from standin import StandIn

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
    found = answered(program, output, clip, tmp_path)
    for dtype, variant, tolerance in (("fp32", "pruned", 1e-3), ("q8", "pruned-int8", 0.05)):
        asked = ("predict", output, clip, "--variant", variant, "--scores", "--json")
        expected = json.loads(invoke(*asked).stdout)["scores"]
        assert found[dtype] == pytest.approx(expected, abs=tolerance)
