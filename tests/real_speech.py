"""Where a published model and human speech lie, and a recipe on them: what is not ours to ship."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REAL = Path(os.environ.get("HIBPRUNE_REAL", ROOT.parent / "shared/real")).resolve()
SPEECH = REAL / "speech/uqm-dev"
RECIPE = ROOT / "tests/real/whisper_tiny_en.yaml"


def lay_out(root: Path, calibration: int, validation: int) -> Path:
    """The recipe in `root` beside links to what it names, and manifests of so many clips.

    Clips of uqm-dev are split by clip with random.seed(0), calibration first.
    """
    if not (SPEECH / "manifest.jsonl").is_file():
        raise SystemExit(f"no real recordings in {REAL}: set HIBPRUNE_REAL")
    root.mkdir(parents=True, exist_ok=True)
    for name in ("models", "speech"):
        (root / name).symlink_to(REAL / name)
    rows = [json.loads(line) for line in (SPEECH / "manifest.jsonl").read_text().splitlines()]
    random.seed(0)
    random.shuffle(rows)
    splits = {
        "calibration": rows[:calibration],
        "validation": rows[calibration : calibration + validation],
    }
    for name, clips in splits.items():
        (root / f"{name}.jsonl").write_text("".join(f"{json.dumps(clip)}\n" for clip in clips))
    return Path(shutil.copy(RECIPE, root))


def main() -> None:
    """Lay the recipe out in the directory given: `python tests/real_speech.py DIR 40 100`."""
    import sys

    directory, calibration, validation = sys.argv[1:]
    print(lay_out(Path(directory), int(calibration), int(validation)))


if __name__ == "__main__":
    main()
