"""The training clips of the quickstart's build script, as files: what recovery may learn from.

Speech is synthesized as `recipes/quickstart/build.py` does it, by the same voices and words as its
model was trained on, and each utterance becomes one clip under the conditions of its training.

    python tests/benchmarks/training_clips.py --work DIR

writes DIR/training.jsonl and DIR/clips/training; DIR/speech keeps the synthesis. It needs what the
build script needs.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import soundfile

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "recipes/quickstart"))

import build  # noqa: E402

SILENCE_EVERY = 12
"""One clip in so many is noise alone, as one class in twelve is."""
AT_ONCE = 64
SEED = 0


def write_clips(work: Path, threads: int) -> Path:
    """Synthesize, render and store; returns the manifest."""
    voices, _ = build.all_voices()
    spoken = build.synthesize(voices, "train", work / "speech", SEED, threads)
    words: list[build.Utterance | None] = []
    for number, item in enumerate(one for one in spoken if one.take.startswith("t")):
        words.append(item)
        if number % (SILENCE_EVERY - 1) == 0:
            words.append(None)
    renderer = build.Renderer(build.TRAIN_CONDITIONS, SEED + 10, 120, 60)
    folder = work / "clips/training"
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for begin in range(0, len(words), AT_ONCE):
        part = words[begin : begin + AT_ONCE]
        clips = renderer.render([None if item is None else item.samples for item in part])
        for place, (item, clip) in enumerate(zip(part, clips, strict=True), start=begin):
            level = renderer.rng.uniform(0.3, 0.9) if item else 10 ** renderer.rng.uniform(-2, -0.7)
            samples = (clip * (level / np.abs(clip).max())).astype(np.float32)
            name = f"{place:05d}.ogg"
            soundfile.write(
                folder / name, samples, build.RATE, format="OGG", subtype="VORBIS",
                compression_level=0.4,
            )  # fmt: skip
            label = build.label_of(item) if item else build.LABELS[-1]
            rows.append({"audio": f"clips/training/{name}", "label": label})
    manifest = work / "training.jsonl"
    build.write_text(manifest, "".join(json.dumps(row) + "\n" for row in rows))
    return manifest


def main() -> None:
    """Read the command line and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    manifest = write_clips(options.work, options.threads)
    print(f"{len(manifest.read_text().splitlines())} clips: {manifest}")


if __name__ == "__main__":
    main()
