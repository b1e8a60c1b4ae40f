"""A small HuBERT that recognises synthetic speech with CTC, its clips and a recipe on it.

    python tests/benchmarks/ctc_model.py DIRECTORY [--steps N] [--threads N] [--seed N]

Speech, voices, noises and rooms are the quickstart's (recipes/quickstart/build.py, which says what
must be installed). A clip is two to four words of one voice with short gaps between them. The
encoder starts from the quickstart's weights. Voices of the calibration clips are left out of
training here, though the encoder it starts from has heard them; those of the validation clips were
never heard at all. Nothing is selected: the model is the one of the last step. To the 60 clips of
calibration.jsonl, calibration_300.jsonl adds 240 others of the same voices, for draws that differ
and for repair; training.jsonl has 1500 of what is trained on, for recovery.

Words are short beside what the convolutions see, half a second, so that this recogniser leans on
its heads little: its WER of 11 % becomes 24 to 28 % with all but one of them silenced, and rankings
of heads differ by a point or two (tests/benchmarks/results/ctc_words).

DIRECTORY gets model/, clips/, four manifests, ctc_words.yaml, build.json, and
speech/, the synthesis, which is reused when the script runs again.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.fft
import soundfile
import torch
from torch.nn import functional
from transformers import (
    HubertConfig,
    HubertForCTC,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForSequenceClassification,
)

from hibprune.execution.machine import describe_machine
from hibprune.records.measurements import Evaluation
from hibprune.tasks.error_rate import error_rate as rate_of_errors
from hibprune.tasks.normalising import normalised

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "recipes/quickstart"
sys.path.insert(0, str(QUICKSTART))
import build as quickstart  # noqa: E402
from build import RATE, Conditions, Utterance, log, write_text  # noqa: E402

RECIPE = Path(__file__).with_name("ctc_words.yaml")
TOKENS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyz"]
WORD_COUNTS = (2, 3, 4)
GAP = (0.04, 0.25)
"""Seconds of pause after a word."""
GRID = RATE // 2
"""Clips are a multiple of this long, so that some are of one length: they batch without padding."""
MARGIN = RATE // 8
"""Samples without speech that a clip has at least."""
LONGEST = 6 * RATE
"""Four words of 0.98 s, their gaps and a margin."""
CALIBRATION_VARIANTS = 9
"""Of eSpeak NG, in both their accents."""
CALIBRATION_OTHERS = ("flite-awb", "festival-kal-diphone")
NOT_OF_THE_ENCODER = {
    *("model_type", "architectures", "id2label", "label2id", "vocab_size"),
    *("dtype", "transformers_version"),
}
"""What a configuration says besides."""
CALIBRATION_CLIPS, REPAIR_CLIPS, VALIDATION_CLIPS, TRAINING_CLIPS = 60, 240, 120, 1500


@dataclass(frozen=True)
class Sentence:
    """Words that one voice says one after another."""

    words: tuple[Utterance, ...]

    @property
    def text(self) -> str:
        """The transcript."""
        return " ".join(word.word for word in self.words)

    @property
    def voice(self) -> str:
        """Who says it."""
        (voice,) = {word.voice for word in self.words}
        return voice


# --------------------------------------------------------------------------------------------------
# Rendering: words become a noisy clip


class SentenceRenderer:
    """Turns sentences into clips under given conditions, with its own noises and rooms."""

    def __init__(self, conditions: Conditions, seed: int, noises: int, rooms: int) -> None:
        self.conditions = conditions
        self.places = quickstart.Renderer(conditions, seed, 0, rooms)
        self.rng = self.places.rng
        self.noises = [quickstart.make_noise(self.rng, LONGEST) for _ in range(noises)]

    def speech(self, sentence: Sentence) -> np.ndarray:
        """The words at one speed in one room, with pauses between them."""
        samples = [word.samples for word in sentence.words]
        speed = self.rng.uniform(*self.conditions.speed)
        speed = max(speed, max(map(len, samples)) / (0.98 * RATE))
        pieces = [
            np.interp(np.arange(0, len(word) - 1, speed), np.arange(len(word)), word) / 32768
            for word in samples
        ]
        pauses = [round(self.rng.uniform(*GAP) * RATE) for _ in pieces]
        starts = np.cumsum([0, *(len(p) + gap for p, gap in zip(pieces, pauses, strict=True))])
        track = np.zeros(starts[-1] + quickstart.FFT_SIZE, dtype=np.float32)
        # Filtering is linear: the words filtered apart add up to the sentence filtered.
        factor = self._place()
        for start, piece in zip(starts, pieces, strict=False):
            spectrum = scipy.fft.rfft(piece.astype(np.float32), quickstart.FFT_SIZE)
            heard = scipy.fft.irfft(spectrum * factor, quickstart.FFT_SIZE)
            track[start : start + quickstart.FFT_SIZE] += heard
        return track[: starts[-1]]

    def render(self, sentences: Sequence[Sentence]) -> np.ndarray:
        """Clips of unit power, all as long as the longest needs."""
        tracks = [self.speech(sentence) for sentence in sentences]
        length = GRID * -(-(max(map(len, tracks)) + MARGIN) // GRID)
        clips = np.zeros((len(tracks), length), dtype=np.float32)
        for clip, track in zip(clips, tracks, strict=True):
            start = self.rng.integers(length - len(track) + 1)
            clip[start : start + len(track)] = track
            decibels = self.rng.uniform(*self.conditions.snr)
            clip += self._noise(length) * np.sqrt(np.mean(track**2)) * 10 ** (-decibels / 20)
        return clips / clips.std(axis=1, keepdims=True)

    def _place(self) -> np.ndarray:
        """Frequency response of a random equalizer, and sometimes a room."""
        factor = self.places.equalizers[self.rng.integers(len(self.places.equalizers))]
        if self.rng.random() < self.conditions.reverb_share:
            factor = factor * self.places.rooms[self.rng.integers(len(self.places.rooms))]
        return factor

    def _noise(self, length: int) -> np.ndarray:
        noise = self.noises[self.rng.integers(len(self.noises))]
        start = self.rng.integers(len(noise) - length + 1)
        return noise[start : start + length]


# --------------------------------------------------------------------------------------------------
# Who says what


@dataclass(frozen=True)
class Speech:
    """Words of three sets of voices that have no voice in common."""

    training: list[Utterance]
    calibration: list[Utterance]
    repair: list[Utterance]
    validation: list[Utterance]


def speak(cache: Path, seed: int, threads: int) -> Speech:
    """The quickstart's words; some of its training voices say the calibration clips here."""
    voices, validation_voices = quickstart.all_voices()
    variants = random.Random(seed).sample(quickstart.TRAIN_VARIANTS, CALIBRATION_VARIANTS)
    kept_apart = {voice.name for voice in voices if voice.detail.split("+")[-1] in variants}
    kept_apart.update(CALIBRATION_OTHERS)
    words = quickstart.synthesize(voices, "train", cache, seed, threads)
    return Speech(
        training=[word for word in words if word.voice not in kept_apart],
        # Their takes for calibration are as rich in keywords as the validation voices' words.
        calibration=[w for w in words if w.voice in kept_apart and w.take.startswith("c")],
        repair=[w for w in words if w.voice in kept_apart and not w.take.startswith("c")],
        validation=quickstart.synthesize(validation_voices, "validation", cache, seed, threads),
    )


def dealt(utterances: Sequence[Utterance], clips: int, seed: int) -> list[Sentence]:
    """Sentences of the voices in turn; no utterance is used twice."""
    rng = random.Random(seed)
    decks: dict[str, list[Utterance]] = {}
    for item in utterances:
        decks.setdefault(item.voice, []).append(item)
    for deck in decks.values():
        rng.shuffle(deck)
    sentences = []
    for number in range(clips):
        turn, place = divmod(number, len(decks))
        deck = list(decks.values())[place]
        count = WORD_COUNTS[turn % len(WORD_COUNTS)]
        sentences.append(Sentence(tuple(deck.pop() for _ in range(count))))
    return sentences


def drawn(utterances: Sequence[Utterance], batch: int, seed: int) -> Iterator[list[Sentence]]:
    """Batches for training, each of sentences with equally many words.

    First the kind of synthesizer is drawn, then the voice, then keyword or not, then the utterance.
    """
    rng = random.Random(seed)
    voices: dict[str, tuple[list[Utterance], list[Utterance]]] = {}
    for item in utterances:
        voices.setdefault(item.voice, ([], []))[item.word in quickstart.KEYWORDS].append(item)
    espeak = [name for name in voices if name.startswith("espeak")]
    others = [name for name in voices if not name.startswith("espeak")]
    while True:
        count, sentences = rng.choice(WORD_COUNTS), []
        for _ in range(batch):
            said = voices[rng.choice(others if rng.random() < 0.2 else espeak)]
            words = (rng.choice(said[rng.random() < 0.6]) for _ in range(count))
            sentences.append(Sentence(tuple(words)))
        yield sentences


def store_clips(split: str, sentences: Sequence[Sentence], directory: Path, seed: int) -> None:
    """Render and store the clips of a split as FLAC, and write its manifest."""
    renderer = SentenceRenderer(quickstart.CLIP_CONDITIONS, seed, 120, 60)
    folder, fresh = directory / "clips" / split, directory / "clips" / f".{split}.tmp"
    for stale in (folder, fresh):
        shutil.rmtree(stale, ignore_errors=True)
    fresh.mkdir(parents=True)
    rows = []
    for number, sentence in enumerate(sentences):
        (clip,) = renderer.render([sentence])
        name = f"{number:03d}_{sentence.voice}_{sentence.text.replace(' ', '-')}.flac"
        soundfile.write(fresh / name, clip * renderer.rng.uniform(0.3, 0.9) / abs(clip).max(), RATE)
        audio = f"clips/{split}/{name}"
        rows.append({"audio": audio, "text": sentence.text, "voice": sentence.voice})
    fresh.replace(folder)
    write_text(directory / f"{split}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


# --------------------------------------------------------------------------------------------------
# Model and training


def make_tokenizer() -> Wav2Vec2CTCTokenizer:
    """Lower-case letters and the bar between words."""
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = Path(folder) / "vocab.json"
        vocabulary.write_text(json.dumps({token: place for place, token in enumerate(TOKENS)}))
        return Wav2Vec2CTCTokenizer(str(vocabulary))


def make_extractor() -> Wav2Vec2FeatureExtractor:
    """What the quickstart's model has, too."""
    return Wav2Vec2FeatureExtractor.from_pretrained(QUICKSTART / "model")


def make_model() -> HubertForCTC:
    """A HuBERT of the quickstart's shape with its encoder's weights and a new output layer."""
    spotter = Wav2Vec2ForSequenceClassification.from_pretrained(QUICKSTART / "model").float()
    shape = spotter.config.to_dict()
    shared = HubertConfig().to_dict().keys() & shape.keys() - NOT_OF_THE_ENCODER
    config = HubertConfig(**{name: shape[name] for name in shared}, vocab_size=len(TOKENS))
    model = HubertForCTC(config)
    model.hubert.load_state_dict(spotter.wav2vec2.state_dict())
    return model


def train(utterances: Sequence[Utterance], steps: int, batch: int, seed: int) -> HubertForCTC:
    """Train all weights with CTC; the new output layer learns faster than the rest.

    In bfloat16 where the processor has AVX-512: elsewhere that takes ten times as long as float32.
    """
    fast = "avx512f" in describe_machine().instruction_set
    torch.manual_seed(seed)
    renderer = SentenceRenderer(quickstart.TRAIN_CONDITIONS, seed + 1, 300, 300)
    tokenizer, model = make_tokenizer(), make_model().train()
    rates = [6e-4, 4e-3]
    optimizer = torch.optim.AdamW(
        [
            {"params": model.hubert.parameters(), "lr": rates[0]},
            {"params": model.lm_head.parameters(), "lr": rates[1]},
        ],
        betas=(0.9, 0.98),
        weight_decay=0.01,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=rates, total_steps=steps, pct_start=0.1, cycle_momentum=False
    )
    running, started = 0.0, time.monotonic()
    for step, sentences in zip(range(1, steps + 1), drawn(utterances, batch, seed), strict=False):
        clips = quickstart.normalize(torch.from_numpy(renderer.render(sentences)))
        targets = [tokenizer(sentence.text).input_ids for sentence in sentences]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=fast):
            logits = model(clips).logits
        loss = functional.ctc_loss(
            functional.log_softmax(logits.float(), dim=-1).transpose(0, 1),
            torch.tensor([token for target in targets for token in target]),
            torch.full((batch,), logits.shape[1]),
            torch.tensor([len(target) for target in targets]),
            blank=model.config.pad_token_id,
            zero_infinity=True,
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        running += (loss.item() - running) * (0.05 if step > 20 else 1 / step)
        if step % 10 == 0 or step == steps:
            pace = (time.monotonic() - started) / step
            log(f"step {step}/{steps} loss {running:.3f} {pace:.3f} s/step")
    return model.eval()


def save_model(model: HubertForCTC, folder: Path) -> None:
    """Store weights, configuration, tokenizer and feature extractor."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as fresh:
        for part in (model, make_tokenizer(), make_extractor()):
            part.save_pretrained(fresh)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(fresh, folder)


def error_rate(folder: Path, manifest: Path) -> Evaluation:
    """WER of the stored model on stored clips, by transformers' own means."""
    model = HubertForCTC.from_pretrained(folder).eval()
    tokenizer, extractor = make_tokenizer(), make_extractor()
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    said = []
    for row in rows:
        samples, rate = soundfile.read(manifest.parent / row["audio"], dtype="float32")
        inputs = extractor(samples, sampling_rate=rate, return_tensors="pt")
        with torch.no_grad():
            said.append(tokenizer.decode(model(inputs.input_values).logits[0].argmax(-1)))
    return rate_of_errors(said, [row["text"] for row in rows], normalised, "word")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--steps", type=int, default=1400)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    directory, seed, threads = arguments.directory, arguments.seed, arguments.threads
    torch.set_num_threads(threads)
    started = time.monotonic()
    said = speak(directory / "speech", seed, threads)
    log(f"{len(said.training)} training utterances")
    sentences = {
        "calibration": [
            *dealt(said.calibration, CALIBRATION_CLIPS, seed),
            *dealt(said.repair, REPAIR_CLIPS, seed),
        ],
        "validation": dealt(said.validation, VALIDATION_CLIPS, seed),
        "training": dealt(said.training, TRAINING_CLIPS, seed),
    }
    for place, (split, own) in enumerate(sentences.items()):
        store_clips(split, own, directory, seed + 2 + place)
    rows = (directory / "calibration.jsonl").read_text().splitlines(keepends=True)
    write_text(directory / "calibration_300.jsonl", "".join(rows))
    write_text(directory / "calibration.jsonl", "".join(rows[:CALIBRATION_CLIPS]))
    shutil.copy(RECIPE, directory)
    seconds = {"clips": round(time.monotonic() - started, 1)}
    started = time.monotonic()
    model = train(said.training, arguments.steps, arguments.batch, seed)
    save_model(model, directory / "model")
    seconds["training"] = round(time.monotonic() - started, 1)
    figures = {
        "wer": {
            split: error_rate(directory / "model", directory / f"{split}.jsonl").model_dump(
                include={"value", "interval", "n"}
            )
            for split in ("calibration", "validation")
        },
        "training_utterances": len(said.training),
        "steps": arguments.steps,
        "batch": arguments.batch,
        "seed": seed,
        "threads": threads,
        "seconds": seconds,
    }
    write_text(directory / "build.json", json.dumps(figures, indent=2) + "\n")
    log(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
