"""Programs in JavaScript, run by Node on an exported model, with what packages there are."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

MODULES = Path(os.environ.get("HIBPRUNE_NODE_MODULES", "node_modules")).resolve()
IN_NODE = """\
import { readFileSync } from "node:fs";
const raw = readFileSync("clip.f32");
const samples = new Float32Array(raw.buffer, raw.byteOffset, raw.length / 4);
const device = "cpu";
const tell = (found) => console.log(JSON.stringify(found));
"""
TRANSFORMERS_JS = """\
const { pipeline, env } = await import(TRANSFORMERS);
env.allowLocalModels = true;
env.allowRemoteModels = false;
env.localModelPath = PLACE;
if (device == "wasm") {
  env.useBrowserCache = false;
  env.backends.onnx.wasm.wasmPaths = new URL("node_modules/onnxruntime-web/dist/", location).href;
  env.backends.onnx.wasm.numThreads = 1;
}
const found = {};
for (const dtype of DTYPES) {
  const ask = await pipeline(TASK, "model", { dtype, device });
  if (TASK == "automatic-speech-recognition") found[dtype] = (await ask(samples)).text;
  else for (const one of await ask(samples, { top_k: null }))
    (found[dtype] ??= {})[one.label] = one.score;
}
await tell(found);
"""


def needs(package: str) -> Any:
    """Skips a test where Node or one of its packages is absent."""
    return pytest.mark.skipif(
        not (shutil.which("node") and (MODULES / package).is_dir()),
        reason=f"no Node with {package} in HIBPRUNE_NODE_MODULES",
    )


needs_transformers = needs("@huggingface/transformers")


def lay_out(directory: Path, output: Path, clip: Path) -> None:
    """A model, a clip and the JavaScript packages side by side."""
    (directory / "model").symlink_to(output)
    (directory / "node_modules").symlink_to(MODULES)
    soundfile.read(clip, dtype="float32")[0].astype(np.float32).tofile(directory / "clip.f32")


def asked_in_node(directory: Path, program: str) -> Any:
    """What a program prints as JSON, run beside what was laid out."""
    return json.loads(_run(IN_NODE + program, directory, directory).splitlines()[-1])


def said_by_the_card(output: Path, clip: Path, directory: Path) -> str:
    """What the JavaScript of a model's card prints of a clip."""
    (script,) = re.findall(r"```js\n(.*?)```", (output / "README.md").read_text(), re.DOTALL)
    samples = json.dumps(soundfile.read(clip, dtype="float32")[0].tolist())
    (directory / "node_modules").symlink_to(MODULES)
    return _run(f"let samples = new Float32Array({samples});\n{script}", directory, output).strip()


def _run(program: str, place: Path, directory: Path) -> str:
    (place / "ask.mjs").write_text(program)
    said = subprocess.run(
        ["node", place / "ask.mjs"], cwd=directory, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    return said.stdout


def settings(task: str, *dtypes: str, browser: bool = False) -> str:
    """What is asked, as constants of the program."""
    package = "/node_modules/@huggingface/transformers/dist/transformers.js"
    return (
        f"const TASK = {json.dumps(task)}; const DTYPES = {json.dumps(dtypes)};"
        f"const TRANSFORMERS = {json.dumps(package if browser else '@huggingface/transformers')};"
        f"const PLACE = {json.dumps('/' if browser else '.')};"
    )
