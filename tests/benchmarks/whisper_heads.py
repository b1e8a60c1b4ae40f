"""WER of whisper-tiny.en on human speech with encoder heads silenced, by several rankings.

    HIBPRUNE_REAL=… python tests/benchmarks/whisper_heads.py       # about 40 minutes on 2 cores

Needs the directory that HIBPRUNE_REAL names (models/whisper-tiny.en, speech/uqm-dev). Clips are
split with random.seed(0): the first `--calibration` are scored on, the next `--validation` measured
on. Heads are silenced, which equals removing them; decoding is greedy, in batches. Results go to
tests/benchmarks/results/whisper_heads.json as they come.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from hibprune.attention import positions_fitted, silenced
from hibprune.attribution import HeadInformationBottleneck, MethodBase, Sample, Session
from hibprune.attribution.occlusion import Occlusion
from hibprune.attribution.random import Random
from hibprune.checkpoint import Checkpoint, ModelSource, load_checkpoint
from hibprune.data import AudioFile, DurationLimits, Utterance
from hibprune.machine import describe_machine, installed_versions
from hibprune.planning import Budget, make_plan
from hibprune.records import Head
from hibprune.tasks import Batch, Target
from hibprune.tasks.seq2seq import SpeechRecognitionSeq2Seq

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "tests/benchmarks/results/whisper_heads.json"
REAL = Path(os.environ.get("HIBPRUNE_REAL", ROOT.parent / "shared/real"))
BUDGETS = (1, 3, 6, 9)
AT_ONCE = 20
LIMITS = DurationLimits(max_seconds=30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calibration", type=int, default=16)
    parser.add_argument("--validation", type=int, default=100)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--random-seeds", type=int, default=3)
    arguments = parser.parse_args()

    # The longest clip is 15 s; a model that has lost its thread would go on to the limit.
    task = SpeechRecognitionSeq2Seq(kind="asr-seq2seq", max_new_tokens=80)
    source = ModelSource(source=str(REAL / "models/whisper-tiny.en"))
    checkpoint = load_checkpoint(source, task, ROOT, torch.device("cpu"))
    clips = shuffled_clips()
    calibration = clips[: arguments.calibration]
    validation = clips[arguments.calibration :][: arguments.validation]
    samples = [sample_of(clip, task, checkpoint) for clip in calibration]
    inputs = [checkpoint.inputs(read(clip, checkpoint))["input_features"] for clip in validation]
    report: dict[str, Any] = {
        "command": f"python tests/benchmarks/whisper_heads.py {describe(arguments)}",
        "machine": describe_machine().model_dump(),
        "versions": installed_versions(),
        "loss_on_calibration": losses(calibration, samples, task, checkpoint),
        "rows": [],
    }

    def record(row: dict[str, Any]) -> None:
        print(json.dumps(row), flush=True)
        report["rows"].append(row)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")

    def measured(removed: Iterable[Head]) -> dict[str, Any]:
        with silenced(checkpoint.model, removed):
            said = transcribe(inputs, task, checkpoint)
        references = [clip.target or "" for clip in validation]
        result = task.evaluate(said, references, checkpoint.vocabulary)
        return {"wer": round(result.value, 4), "interval": [round(x, 4) for x in result.interval]}

    record({"ranking": "none removed", **measured(())})
    for name, method, seed in rankings(arguments):
        start = time.perf_counter()
        scores = method.attribute(checkpoint.model, samples, task.loss, Session(seed=seed))
        seconds = time.perf_counter() - start
        for heads in BUDGETS:
            plan = make_plan(scores, Budget(heads=heads))
            record(
                {
                    "ranking": name,
                    "seed": seed,
                    "heads": heads,
                    "removed": [[head.layer, head.index] for head in plan.removed],
                    "scoring_seconds": round(seconds, 1),
                    "split_half": scores.split_half,
                    **measured(plan.removed),
                }
            )


def rankings(arguments: argparse.Namespace) -> Iterable[tuple[str, MethodBase, int]]:
    yield "occlusion", Occlusion(method="occlusion"), 0
    for seed in range(arguments.random_seeds):
        yield "random", Random(method="random"), seed
    for beta in (0.1, 1.0, 10.0):
        yield (
            f"hib, mutual information, beta {beta:g}",
            HeadInformationBottleneck(
                method="hib",
                beta=beta,
                steps=arguments.steps,
                bottleneck="mutual-information",
                score="information",
            ),
            0,
        )
    yield (
        "hib, paper, beta 10",
        HeadInformationBottleneck(method="hib", beta=10.0, steps=arguments.steps),
        0,
    )


def shuffled_clips() -> list[Utterance]:
    root = REAL / "speech/uqm-dev"
    rows = [json.loads(line) for line in (root / "manifest.jsonl").read_text().splitlines()]
    random.Random(0).shuffle(rows)
    return [Utterance(row["audio"], AudioFile(root / row["audio"]), row["text"]) for row in rows]


def read(clip: Utterance, checkpoint: Checkpoint) -> Any:
    return checkpoint.read(clip.content, LIMITS)


def sample_of(clip: Utterance, task: SpeechRecognitionSeq2Seq, checkpoint: Checkpoint) -> Sample:
    target = task.encode(str(clip.target), checkpoint.vocabulary)
    return Sample(clip.id, checkpoint.calibration_inputs(read(clip, checkpoint)), target)


def transcribe(
    inputs: list[torch.Tensor], task: SpeechRecognitionSeq2Seq, checkpoint: Checkpoint
) -> list[Target]:
    predict = task.torch_predict(checkpoint.model)
    said: list[Target] = []
    for start in range(0, len(inputs), AT_ONCE):
        tokens = predict({"input_features": torch.cat(inputs[start : start + AT_ONCE])})
        said.extend(task.decode(row, checkpoint.vocabulary) for row in tokens)
    return said


def losses(
    clips: list[Utterance],
    samples: list[Sample],
    task: SpeechRecognitionSeq2Seq,
    checkpoint: Checkpoint,
) -> dict[str, float]:
    """Teacher-forced loss of the unpruned model on padded input and on input cut to the clip."""
    found: dict[str, list[float]] = {"padded": [], "cut": []}
    for clip, sample in zip(clips, samples, strict=True):
        padded = checkpoint.inputs(read(clip, checkpoint))
        for name, inputs in (("padded", padded), ("cut", sample.inputs)):
            batch = Batch((clip.id,), inputs, (sample.target,), (0,))
            with torch.no_grad(), positions_fitted(checkpoint.model, inputs):
                found[name].append(float(task.loss(checkpoint.model, batch)))
    return {name: round(sum(values) / len(values), 4) for name, values in found.items()}


def describe(arguments: argparse.Namespace) -> str:
    return " ".join(
        f"--{name.replace('_', '-')} {value}" for name, value in vars(arguments).items()
    )


if __name__ == "__main__":
    main()
