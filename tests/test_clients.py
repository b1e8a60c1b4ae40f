"""Clients of others on an exported model: transformers.js and ONNX Runtime on WebAssembly.

Optimum, ONNX Runtime in Python and in Node, and PyTorch are tried in the tests of export, variants
and card.
"""

from __future__ import annotations

import functools
import http.server
import json
import queue
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from browsers import CHROMIUM
from commands import invoke
from in_node import (
    TRANSFORMERS_JS,
    asked_in_node,
    lay_out,
    needs,
    needs_transformers,
    settings,
)
from standin import StandIn

IN_A_BROWSER = """\
const raw = await (await fetch("clip.f32")).arrayBuffer();
const samples = new Float32Array(raw);
const device = "wasm";
const tell = (found) => fetch("told", { method: "POST", body: JSON.stringify(found) });
"""
WEB_ASSEMBLY = """\
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
tell(found);
"""
VARIANTS = {"fp32": ("pruned", 1e-3), "q8": ("pruned-int8", 0.05), "fp16": ("pruned-fp16", 0.05)}
"""By the names of transformers.js: the variant, and by how much a probability may differ."""


in_a_browser = [
    needs_transformers,
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed"),
]


def asked_in_a_browser(directory: Path, program: str) -> Any:
    """What a page tells the server that it came from, which serves nothing but a directory."""
    told: queue.Queue[str] = queue.Queue()

    class Serving(http.server.SimpleHTTPRequestHandler):
        def do_POST(self) -> None:
            told.put(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    failed = "catch((why) => tell({ failed: String(why) }))"
    (directory / "ask.html").write_text(
        f'<script type="module">{IN_A_BROWSER}(async () => {{ {program} }})().{failed};</script>'
    )
    place = functools.partial(Serving, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), place) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = subprocess.Popen(
            [
                CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu",
                "--remote-debugging-port=0", f"--user-data-dir={directory / 'profile'}",
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
                f"http://127.0.0.1:{server.server_port}/ask.html",
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            return json.loads(told.get(timeout=240))
        finally:
            browser.terminate()
            browser.wait(30)
            server.shutdown()


def predicted(output: Path, clip: Path, dtype: str) -> Any:
    """What `predict` says: the text, or each label's probability."""
    asked = ("predict", output, clip, "--variant", VARIANTS[dtype][0], "--json")
    if output.name == "encoder_decoder":
        return json.loads(invoke(*asked).stdout)["prediction"]
    return json.loads(invoke(*asked, "--scores").stdout)["scores"]


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(TRANSFORMERS_JS, id="transformers.js", marks=needs_transformers),
        pytest.param(WEB_ASSEMBLY, id="onnxruntime-web", marks=needs("onnxruntime-web")),
    ],
)
def test_javascript_says_what_predict_says(
    finished_in_int8: Callable[[str], Path], stand_in: StandIn, tmp_path: Path, program: str
) -> None:
    output, clip = finished_in_int8("keyword_spotting"), stand_in.clip("validation", 0)
    lay_out(tmp_path, output, clip)
    told = asked_in_node(tmp_path, settings("audio-classification", "fp32", "q8") + program)
    for dtype in ("fp32", "q8"):
        wanted = pytest.approx(predicted(output, clip, dtype), abs=VARIANTS[dtype][1])
        assert told[dtype] == wanted


@needs_transformers
def test_whisper_in_javascript_hears_what_predict_hears(
    recogniser_in_all_precisions: Path, stand_in: StandIn, tmp_path: Path
) -> None:
    output, clip = recogniser_in_all_precisions, stand_in.clip("validation", 0)
    lay_out(tmp_path, output, clip)
    asked = settings("automatic-speech-recognition", "fp32", "q8", "fp16")
    told = asked_in_node(tmp_path, asked + TRANSFORMERS_JS)
    assert told == {dtype: predicted(output, clip, dtype) for dtype in VARIANTS}


@pytest.mark.parametrize(
    ("task", "dtypes"),
    [
        pytest.param("audio-classification", ("fp32", "q8"), marks=in_a_browser),
        pytest.param("automatic-speech-recognition", ("fp32", "q8", "fp16"), marks=in_a_browser),
    ],
)
def test_a_browser_says_what_predict_says(
    finished_in_int8: Callable[[str], Path],
    recogniser_in_all_precisions: Path,
    stand_in: StandIn,
    tmp_path: Path,
    task: str,
    dtypes: Sequence[str],
) -> None:
    """On WebAssembly, without a network."""
    classifies = task == "audio-classification"
    output = finished_in_int8("keyword_spotting") if classifies else recogniser_in_all_precisions
    clip = stand_in.clip("validation", 0)
    lay_out(tmp_path, output, clip)
    told = asked_in_a_browser(tmp_path, settings(task, *dtypes, browser=True) + TRANSFORMERS_JS)
    for dtype in dtypes:
        wanted = predicted(output, clip, dtype)
        assert told[dtype] == pytest.approx(wanted, abs=VARIANTS[dtype][1] if classifies else None)
