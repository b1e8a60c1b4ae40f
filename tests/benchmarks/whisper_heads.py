"""Which encoder heads whisper-tiny.en can lose, by several rankings, measured on human speech.

    python tests/benchmarks/whisper_heads.py input     # attribution on cut against padded input
    python tests/benchmarks/whisper_heads.py table     # WER and latency
    python tests/benchmarks/whisper_heads.py table --repair least-squares --repair-clips 80 \
        --rankings reconstruction --budgets 6 9 12 --neurons 0.25 0.5 --draws 3

`--draws` takes calibration clips of several draws, in the place of the first ones; `--neurons` are
shares of the encoder's neurons that go by `reconstruction` with all heads left, in the first draw.

Needs the directory that HIBPRUNE_REAL names; tests/real_speech.py says how its clips are split.
Settings were chosen on calibration clips by settings_search.py (searches/whisper_settings.yaml).
Where nothing is repaired heads are silenced, which equals removing them; decoding is
greedy, in batches. Each part writes tests/benchmarks/results/whisper_<part>.json as its rows come,
and under `--repair` whisper_<part>_<repair>.json; `--output` names another file.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from transformers import PreTrainedModel

from hibprune.attribution import HeadInformationBottleneck, MethodBase
from hibprune.attribution.methods import Occlusion, Random, Reconstruction
from hibprune.attribution.session import Sample, Session
from hibprune.compression.plan import Budget, lowest_units, make_plan
from hibprune.compression.remove import copy_without
from hibprune.compression.repair import repair
from hibprune.compression.settings import RepairKind
from hibprune.data import DurationLimits, Utterance
from hibprune.deployment.export import export_onnx
from hibprune.evaluation.latency import BenchmarkSettings, measure_latency
from hibprune.execution.files import write_text
from hibprune.execution.machine import describe_machine, installed_versions
from hibprune.execution.runtime import ONNX_DIRECTORY, Timed
from hibprune.models.attention import positions_fitted, silenced
from hibprune.models.checkpoint import Checkpoint
from hibprune.models.layerwise import calibration_clip
from hibprune.recipe import load_recipe
from hibprune.records.measurements import Evaluation, paired_change
from hibprune.records.medium import SOUND
from hibprune.records.statistics import bootstrap_interval, spearman
from hibprune.records.units import Head, Kind, Scores, Unit
from hibprune.stages.load import load
from hibprune.tasks import Batch, Target
from hibprune.tasks.seq2seq import SpeechRecognitionSeq2Seq

ROOT = Path(__file__).resolve().parents[2]
TIMED_TOKENS = 20
sys.path.insert(0, str(ROOT / "tests"))
from real_speech import lay_out  # noqa: E402

AT_ONCE = 20
AMOUNTS = {
    "heads": "{:d} heads",
    "heads_of_every_layer": "{:d} of every layer",
    "neurons": "{:.0%} of neurons",
}
"""How much is removed in a row of the table, and what is said of it."""
POOL = 168
"""Clips that several draws are taken from."""
BUDGETS = (1, 3, 6, 9, 12)
RANKINGS = ("hib", "occlusion", "hib, paper", "reconstruction", "random")
LIMITS = DurationLimits(max_seconds=30)

Record = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Speech:
    """The model and the two sets of clips."""

    checkpoint: Checkpoint
    task: SpeechRecognitionSeq2Seq
    calibration: tuple[Utterance, ...]
    repaired_on: tuple[Utterance, ...]
    validation: tuple[Utterance, ...]

    def drawn(self, seed: int, calibration: int, repaired_on: int) -> Speech:
        """The same with calibration clips drawn from all that there are."""
        clips = random.Random(seed).sample(self.repaired_on, max(calibration, repaired_on))
        return replace(self, calibration=tuple(clips[:calibration]), repaired_on=tuple(clips))

    def waveform(self, clip: Utterance) -> np.ndarray:
        return np.asarray(self.checkpoint.read(clip.content, LIMITS))

    def sample(self, clip: Utterance, silence: float = 0.0) -> Sample:
        """The clip on the frames it has, after `silence` seconds more."""
        rate = self.checkpoint.preprocessor.part.sampling_rate
        waveform = np.pad(self.waveform(clip), (0, round(silence * rate)))[: 30 * rate]
        return Sample(clip.id, self.checkpoint.calibration_inputs(waveform), self.tokens(clip))

    def padded(self, clip: Utterance) -> Batch:
        """The clip as the model is used: padded to 30 s."""
        inputs = self.checkpoint.inputs(self.waveform(clip))
        return Batch((clip.id,), inputs, (self.tokens(clip),), (0,))

    def tokens(self, clip: Utterance) -> tuple[int, ...]:
        return self.task.encode(str(clip.target), self.checkpoint.vocabulary)


def loaded(calibration: int, repaired_on: int, validation: int, directory: Path) -> Speech:
    """`repaired_on` clips in front of those for validation; the first are scored on."""
    recipe = load_recipe(
        lay_out(directory, max(calibration, repaired_on), validation),
        [f"calibration.samples={max(calibration, repaired_on)}"],
    )
    material = load(recipe, torch.device("cpu"))
    # The longest clip is 15 s; a model that has lost its thread would go on to the limit.
    task = SpeechRecognitionSeq2Seq(kind="asr-seq2seq", max_new_tokens=80)
    clips = material.calibration.utterances
    return Speech(
        material.checkpoint, task, clips[:calibration], clips, material.validation.utterances
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["input", "table"])
    parser.add_argument("--calibration", type=int, default=24)
    parser.add_argument("--validation", type=int, default=100)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--random-seeds", type=int, default=5)
    parser.add_argument("--repair", choices=get_args(RepairKind), default="none")
    parser.add_argument("--repair-clips", type=int, default=0)
    parser.add_argument("--budgets", nargs="+", type=int, default=BUDGETS)
    parser.add_argument("--of-every-layer", nargs="+", type=int, default=())
    parser.add_argument("--neurons", nargs="+", type=float, default=())
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--rankings", nargs="+", choices=RANKINGS, default=RANKINGS)
    parser.add_argument("--output", help="the file of the rows, if it is to be another")
    arguments = parser.parse_args()
    report: dict[str, Any] = {
        "command": f"python tests/benchmarks/whisper_heads.py {described(parser, arguments)}",
        "machine": describe_machine().model_dump(),
        "versions": installed_versions(),
        "rows": [],
    }
    repaired = "" if arguments.repair == "none" else f"_{arguments.repair.replace('-', '_')}"
    kind = f"{arguments.part}{repaired}"
    path = ROOT / (arguments.output or f"tests/benchmarks/results/whisper_{kind}.json")
    if path.is_file():
        kept = json.loads(path.read_text())
        report["rows"] = kept["rows"] if kept["command"] == report["command"] else []

    def record(row: dict[str, Any]) -> None:
        print(json.dumps(row), flush=True)
        report["rows"].append(row)
        write_text(path, json.dumps(report, indent=1) + "\n")

    with tempfile.TemporaryDirectory() as directory:
        pool = arguments.repair_clips if arguments.draws == 1 else POOL
        speech = loaded(arguments.calibration, pool, arguments.validation, Path(directory))
        part = {"input": cut_against_padded, "table": table}[arguments.part]
        part(speech, arguments, report["rows"], record)


def cut_against_padded(
    speech: Speech, arguments: argparse.Namespace, rows: list[dict[str, Any]], record: Record
) -> None:
    """Teacher-forced loss, and the heads' ranking by occlusion, on cut and on padded input."""
    model = speech.checkpoint.model
    inputs: dict[str, list[Batch]] = {
        "padded to 30 s": [speech.padded(clip) for clip in speech.calibration]
    }
    for silence in (0.0, 1.0, 2.0, 5.0):
        samples = [speech.sample(clip, silence) for clip in speech.calibration]
        inputs[f"cut after {silence:g} s of silence"] = [
            Batch((sample.id,), sample.inputs, (sample.target,), (0,)) for sample in samples
        ]
    heads = [Head(layer, index) for layer in range(4) for index in range(6)]
    found: dict[str, list[float]] = {}
    for name, batches in inputs.items():
        start = time.perf_counter()
        whole = mean_loss(speech, batches)
        seconds = time.perf_counter() - start
        found[name] = []
        for head in heads:
            with silenced(model, [head]):
                found[name].append(mean_loss(speech, batches) - whole)
        record(
            {
                "input": name,
                "loss": round(whole, 4),
                "seconds_per_clip": round(seconds / len(batches), 3),
                "spearman_of_occlusion_with_padded": round(
                    spearman(found["padded to 30 s"], found[name]), 3
                ),
            }
        )


def table(
    speech: Speech, arguments: argparse.Namespace, rows: list[dict[str, Any]], record: Record
) -> None:
    """WER on validation clips and ONNX latency at 5 s with 1 to 12 heads gone.

    Rows that are there already are kept. Of the random draws the first alone is timed.
    """
    done = {_place(row) for row in rows}
    checkpoint = speech.checkpoint
    spectrograms = [
        checkpoint.inputs(speech.waveform(clip))["input_features"] for clip in speech.validation
    ]

    def word_errors(removed: Sequence[Unit], smaller: PreTrainedModel | None = None) -> Evaluation:
        if smaller is None:
            with silenced(checkpoint.model, removed):
                said = transcribe(spectrograms, speech, checkpoint.model)
        else:
            said = transcribe(spectrograms, speech, smaller)
        return speech.task.evaluate(
            said, [str(clip.target) for clip in speech.validation], checkpoint.vocabulary
        )

    with tempfile.TemporaryDirectory() as scratch:
        original = exported(speech, checkpoint.model, Path(scratch, "original"))
        unpruned = word_errors([])
        if not done:
            record({"ranking": "none removed", **measured(unpruned)})
        for ranking in compared(arguments):
            for draw in range(arguments.draws):
                own = speech
                if arguments.draws > 1:
                    own = speech.drawn(draw, arguments.calibration, arguments.repair_clips)
                rows_wanted = [
                    row for row in ranking.rows(arguments, draw) if _place(row) not in done
                ]
                if not rows_wanted:
                    continue
                scores, seconds = scored(own, ranking)
                for row in rows_wanted:
                    removed = ranking.removed(scores, row)
                    found: dict[str, Any] = {}
                    smaller = None
                    if ranking.seed == 0 or arguments.repair != "none":
                        smaller = copy_without(checkpoint.model, removed)
                        found = repaired(own, smaller, arguments.repair)
                    if ranking.seed == 0 and draw == 0:
                        pruned = exported(speech, smaller, Path(scratch, "pruned"))
                        found.update(latency(original, pruned, checkpoint))
                    if ranking.kind == "head":
                        row["removed"] = [f"{head.layer}.{head.index}" for head in removed]
                    record(
                        {
                            **row,
                            "scoring_seconds": round(seconds, 1),
                            "split_half": rounded(scores.split_half),
                            **measured(word_errors(removed, smaller), unpruned),
                            **found,
                        }
                    )


def _place(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in ("ranking", "draw", "seed", *AMOUNTS))


@dataclass(frozen=True)
class Ranking:
    """A method with its name in the table, and what it scores; after so much silence, by a seed."""

    name: str
    method: MethodBase
    silence: float = 0.0
    seed: int = 0
    kind: Kind = "head"

    def rows(self, arguments: argparse.Namespace, draw: int) -> list[dict[str, Any]]:
        """What a row of the table is known by, for each budget."""
        about: dict[str, Any] = {"ranking": self.name, "seed": self.seed}
        if arguments.draws > 1:
            about["draw"] = draw
        if self.kind == "neuron":
            return [{**about, "neurons": share} for share in arguments.neurons if draw == 0]
        return [
            *({**about, "heads": number} for number in arguments.budgets),
            *({**about, "heads_of_every_layer": number} for number in arguments.of_every_layer),
        ]

    def removed(self, scores: Scores, row: dict[str, Any]) -> tuple[Unit, ...]:
        """The units that go by the budget of a row."""
        if "heads" in row:
            return make_plan(scores, Budget(heads=row["heads"])).removed
        if "heads_of_every_layer" in row:
            budget = Budget(heads=row["heads_of_every_layer"], scope="layerwise")
            return make_plan(scores, budget).removed
        return lowest_units(scores, Budget(heads=1, neurons=row["neurons"]), "neuron")


def compared(arguments: argparse.Namespace) -> Iterator[Ranking]:
    """The rankings asked for."""
    hib = partial(HeadInformationBottleneck, method="hib", precision=arguments.precision)
    reconstruction = Reconstruction(method="reconstruction")
    every = [
        Ranking("hib", hib()),
        Ranking("occlusion", Occlusion(method="occlusion")),
        Ranking("hib, paper", hib(paper=True, beta=10.0, steps=arguments.steps)),
        Ranking("reconstruction", reconstruction),
        Ranking("reconstruction", reconstruction, kind="neuron"),
        *(
            Ranking("random", Random(method="random"), seed=seed)
            for seed in range(arguments.random_seeds)
        ),
    ]
    for name in arguments.rankings:
        yield from (one for one in every if one.name == name)


def repaired(speech: Speech, smaller: PreTrainedModel, kind: RepairKind) -> dict[str, Any]:
    """Fit what stays, in place; returns how long that took."""
    if kind == "none":
        return {}
    checkpoint = speech.checkpoint
    start = time.perf_counter()
    clips = [calibration_clip(checkpoint, speech.waveform(clip)) for clip in speech.repaired_on]
    with tempfile.TemporaryDirectory() as scratch:
        repair(checkpoint.model, smaller, clips, kind, Path(scratch), 2 << 30)
    return {"repair_seconds": round(time.perf_counter() - start, 1)}


def measured(evaluation: Evaluation, unpruned: Evaluation | None = None) -> dict[str, Any]:
    found = {
        "wer": round(evaluation.value, 4),
        "interval": [round(bound, 4) for bound in evaluation.interval],
    }
    rise = None if unpruned is None else paired_change(unpruned, evaluation)
    return found if rise is None else {**found, "rise": [round(bound, 4) for bound in rise]}


def exported(speech: Speech, model: PreTrainedModel, directory: Path) -> Timed:
    """The work of `TIMED_TOKENS` tokens, as the stored figures were measured."""
    task = speech.task
    shutil.rmtree(directory, ignore_errors=True)
    (directory / ONNX_DIRECTORY).mkdir(parents=True)
    export_onnx(
        task.deployed(model),
        directory / ONNX_DIRECTORY,
        task.export_task,
        18,
        task.exported_files,
    )
    timed = task.onnx_timed(directory, "cpu", 1, TIMED_TOKENS)
    return lambda inputs: {"transcript": timed(inputs)["transcript"]}


def latency(original: Timed, pruned: Timed, checkpoint: Checkpoint) -> dict[str, Any]:
    settings = BenchmarkSettings(seconds=(5.0,), repetitions=8, warmup=1)
    models = {"original": original, "pruned": pruned}
    ((_, times),) = measure_latency(models, checkpoint.preprocessor.example, settings, SOUND)
    before, after = (times["transcript"][name] for name in models)
    interval = bootstrap_interval(
        [before, after], lambda one, other, axis: np.median(one, axis) / np.median(other, axis)
    )
    medians = [float(np.median(one)) for one in (before, after)]
    return {
        "milliseconds": [round(median) for median in medians],
        "speed_up": round(medians[0] / medians[1], 3),
        "speed_up_interval": [round(bound, 3) for bound in interval],
    }


def scored(speech: Speech, ranking: Ranking) -> tuple[Scores, float]:
    samples = [speech.sample(clip, ranking.silence) for clip in speech.calibration]
    start = time.perf_counter()
    scores = ranking.method.for_task(speech.task.kind).attribute(
        speech.checkpoint.model,
        samples,
        speech.task.loss,
        Session(seed=ranking.seed),
        ranking.kind,
    )
    return scores, time.perf_counter() - start


def mean_loss(speech: Speech, batches: list[Batch]) -> float:
    model, found = speech.checkpoint.model, []
    for batch in batches:
        with torch.no_grad(), positions_fitted(model, batch.inputs):
            found.append(float(speech.task.loss(model, batch)))
    return sum(found) / len(found)


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def transcribe(inputs: list[torch.Tensor], speech: Speech, model: PreTrainedModel) -> list[Target]:
    """What a model says of validation clips; those of long transcripts are decoded together."""
    predict = speech.task.torch_predict(model)
    said: dict[int, Target] = {}
    order = sorted(range(len(inputs)), key=lambda clip: len(str(speech.validation[clip].target)))
    for start in range(0, len(inputs), AT_ONCE):
        clips = order[start : start + AT_ONCE]
        tokens = predict({"input_features": torch.cat([inputs[clip] for clip in clips])})
        for clip, row in zip(clips, tokens, strict=True):
            said[clip] = speech.task.decode(row, speech.checkpoint.vocabulary)
    return [said[clip] for clip in range(len(inputs))]


def repaired_table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: WER in percent of every ranking and budget, the median of the draws and its range.

    As it stands in hibprune/attribution/README.md.
    """
    cells: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        for kind in AMOUNTS.keys() & row.keys():
            amount = AMOUNTS[kind].format(row[kind]).replace("%", " %")
            cells.setdefault(row["ranking"], {}).setdefault(amount, []).append(row["wer"])
    amounts = list(dict.fromkeys(amount for own in cells.values() for amount in own))
    lines = [["removed", *amounts], [":--", *["--:"] * len(amounts)]]
    for ranking, own in cells.items():
        found = [own.get(amount) for amount in amounts]
        lines.append([f"`{ranking}`", *("–" if one is None else _median(one) for one in found)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _median(values: Sequence[float]) -> str:
    middle = statistics.median(values)
    if len(values) == 1:
        return f"{100 * middle:.1f}"
    return f"{100 * middle:.1f} ({100 * min(values):.1f}–{100 * max(values):.1f})"


def described(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> str:
    """The part and the options that are not as they are usually."""
    words = [arguments.part]
    for name, value in vars(arguments).items():
        if name != "part" and value != parser.get_default(name):
            values = value if isinstance(value, list) else [value]
            words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return shlex.join(words)


if __name__ == "__main__":
    main()
