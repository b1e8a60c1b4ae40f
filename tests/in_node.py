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


def needs(package: str) -> Any:
    """Skips a test where Node or one of its packages is absent."""
    return pytest.mark.skipif(
        not (shutil.which("node") and (MODULES / package).is_dir()),
        reason=f"no Node with {package} in HIBPRUNE_NODE_MODULES",
    )


def answered(program: str, directory: Path, clip: Path, place: Path) -> Any:
    """What a program prints as JSON of a clip, in a place where the model is called `model`."""
    (place / "model").symlink_to(directory)
    soundfile.read(clip, dtype="float32")[0].astype(np.float32).tofile(place / "clip.f32")
    return json.loads(_run(program, place, place).splitlines()[-1])


def said_by_the_card(directory: Path, clip: Path, place: Path) -> str:
    """What the JavaScript of a directory's card prints of a clip."""
    (script,) = re.findall(r"```js\n(.*?)```", (directory / "README.md").read_text(), re.DOTALL)
    samples = json.dumps(soundfile.read(clip, dtype="float32")[0].tolist())
    return _run(f"let samples = new Float32Array({samples});\n{script}", place, directory).strip()


def _run(program: str, place: Path, directory: Path) -> str:
    (place / "node_modules").symlink_to(MODULES)
    (place / "ask.mjs").write_text(program)
    said = subprocess.run(
        ["node", place / "ask.mjs"], cwd=directory, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    return said.stdout
