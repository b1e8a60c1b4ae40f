"""Build the quickstart assets: a small keyword spotter and its clips, from synthetic speech.

Debian packages needed: espeak-ng flite festival festvox-kallpc16k festvox-kdlpc16k
festvox-us-slt-hts. Python packages: torch transformers soundfile scipy numpy.

Usage: python build.py [--output DIR] [--work DIR] [--steps N] [--seed N] [--threads N]

Speech is synthesized once into WORK/speech and reused when the same WORK is given again.
Everything else (clips, manifests, model, build.json) is written anew into OUTPUT.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import platform
import random
import shutil
import subprocess
import tempfile
import time
import wave
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import scipy.signal
import soundfile
import torch
import transformers
from transformers import (
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForSequenceClassification,
)


def listed(text: str) -> list[str]:
    """The words of a text."""
    return text.split()


RATE = 16_000
KEYWORDS = ["yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"]
LABELS = [*KEYWORDS, "_unknown_", "_silence_"]
# The auxiliary words of Speech Commands v0.01, then some more.
UNKNOWN_WORDS = listed(
    "bed bird cat dog eight five four happy house marvin nine one seven sheila six three tree two "
    "wow zero backward forward follow learn visual water music table green money"
)

# eSpeak NG: voice = accent + variant. A variant belongs to one split only, whatever the accent.
ACCENTS = listed(
    "en-us en-gb en-gb-scotland en-gb-x-rp en-gb-x-gbclan en-gb-x-gbcwmd en-029 en-us-nyc"
)
TRAIN_VARIANTS = listed(
    "m1 m2 m3 m5 m6 m8 f1 f2 f4 klatt klatt2 klatt4 klatt5 klatt6 adam Alicia Andy Annie "
    "AnxiousAndy antonio anika aunty benjamin boris caleb croak Denis Diogo ed grandma grandpa "
    "gustave Henrique Hugo iven iven2 iven3 iven4 john kaukovalta Lee Marcelo Marco Mario max "
    "michel Miguel mike Nguyen norbert pablo paul pedro quincy RicishayMax RicishayMax2 "
    "RicishayMax3 rob robert robosoft robosoft2 robosoft3 robosoft4 robosoft5 robosoft6 robosoft7 "
    "robosoft8 sandro shelby Storm travis Tweaky UniRobot"
)
VALIDATION_ESPEAK = [
    ("en-us", "m4"),
    ("en-gb", "m7"),
    ("en-us", "f3"),
    ("en-gb-x-rp", "f5"),
    ("en-us", "klatt3"),
    ("en-gb", "Andrea"),
    ("en-us", "Alex"),
    ("en-us", "belinda"),
    ("en-gb-scotland", "david"),
    ("en-gb-x-rp", "Gene"),
    ("en-us", "edward"),
    ("en-gb", "linda"),
    ("en-us-nyc", "Michael"),
    ("en-gb-x-gbclan", "Jacky"),
    ("en-029", "victor"),
    ("en-gb-x-gbcwmd", "zac"),
]
TRAIN_FLITE = ["kal16", "awb", "slt"]
VALIDATION_FLITE = ["rms"]
TRAIN_FESTIVAL = ["kal_diphone", "cmu_us_slt_arctic_hts"]
VALIDATION_FESTIVAL = ["ked_diphone"]
CALIBRATION_VOICES = 20

FFT_SIZE = 24_000
FFT_BINS = FFT_SIZE // 2 + 1


@dataclass(frozen=True)
class Voice:
    """One synthetic voice; `detail` is what its synthesizer calls it."""

    engine: str
    detail: str

    @property
    def name(self) -> str:
        """Name used in manifests and file names."""
        return f"{self.engine}-{self.detail}".replace("+", "-").replace("_", "-").lower()


@dataclass(frozen=True)
class Request:
    """One utterance to synthesize; pitch and speed are factors around the voice's own."""

    word: str
    take: str
    pitch: float
    speed: float


@dataclass(frozen=True)
class Utterance:
    """A trimmed word at 16 kHz."""

    word: str
    take: str
    voice: str
    samples: np.ndarray


@dataclass(frozen=True)
class Conditions:
    """How roughly a clip is treated: ranges of speed, SNR in dB, equalizer in dB, reverberation."""

    speed: tuple[float, float]
    snr: tuple[float, float]
    eq_db: float
    reverb_share: float
    reverb_decay: tuple[float, float]
    reverb_level: tuple[float, float]


TRAIN_CONDITIONS = Conditions((0.84, 1.2), (3.0, 40.0), 9.0, 0.5, (0.05, 0.4), (0.1, 0.9))
CLIP_CONDITIONS = Conditions((0.95, 1.05), (15.0, 40.0), 3.0, 0.3, (0.05, 0.2), (0.1, 0.4))


# --------------------------------------------------------------------------------------------------
# Files


def write_file(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write` on a temporary name beside `path`, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    write(temporary)
    temporary.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name and rename it."""
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8") and None)


def log(message: str) -> None:
    """Print a line with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {message}", flush=True)


# --------------------------------------------------------------------------------------------------
# Synthesis


def all_voices() -> tuple[list[Voice], list[Voice]]:
    """Training and validation voices; each training variant speaks with two accents."""
    train = []
    for index, variant in enumerate(TRAIN_VARIANTS):
        accents = (ACCENTS[index % len(ACCENTS)], ACCENTS[(index * 3 + index // 8 + 1) % 8])
        train += [Voice("espeak", f"{accent}+{variant}") for accent in sorted(set(accents))]
    train += [Voice("flite", name) for name in TRAIN_FLITE]
    train += [Voice("festival", name) for name in TRAIN_FESTIVAL]
    validation = [Voice("espeak", f"{accent}+{variant}") for accent, variant in VALIDATION_ESPEAK]
    validation += [Voice("flite", name) for name in VALIDATION_FLITE]
    validation += [Voice("festival", name) for name in VALIDATION_FESTIVAL]
    return train, validation


def plan_voice(voice: Voice, split: str, seed: int) -> list[Request]:
    """What one voice says: takes differ in pitch and speed."""
    rng = random.Random(f"{seed}/{voice.name}")
    fixed = voice.detail.endswith("_hts")  # this voice has no pitch or speed to turn

    def request(word: str, take: str) -> Request:
        pitch, speed = rng.uniform(0.85, 1.2), rng.uniform(0.85, 1.25)
        return Request(word, take, 1.0 if fixed else pitch, 1.0 if fixed else speed)

    if split == "validation":
        plan = [request(word, f"v{take}") for word in KEYWORDS for take in range(2)]
        return plan + [request(word, "v0") for word in rng.sample(UNKNOWN_WORDS, 4)]
    if fixed:
        return [request(word, "t0") for word in KEYWORDS + UNKNOWN_WORDS]
    if voice.engine == "espeak":
        plan = [request(word, f"t{take}") for word in KEYWORDS for take in range(3)]
        plan += [request(word, "t0") for word in rng.sample(UNKNOWN_WORDS, 18)]
    else:
        plan = [request(word, f"t{take}") for word in KEYWORDS for take in range(12)]
        plan += [request(word, f"t{take}") for word in UNKNOWN_WORDS for take in range(3)]
    # Takes for the calibration clips; none of them is trained on.
    return plan + [request(word, "c0") for word in KEYWORDS + rng.sample(UNKNOWN_WORDS, 2)]


def read_wave(data: bytes) -> tuple[np.ndarray, int]:
    """Samples in [-1, 1] and rate of a 16-bit mono RIFF file (lengths may be those of a pipe)."""
    with wave.open(io.BytesIO(data)) as reader:
        rate = reader.getframerate()
    start = data.index(b"data") + 8
    body = data[start : start + (len(data) - start) // 2 * 2]
    return np.frombuffer(body, dtype="<i2").astype(np.float64) / 32768, rate


def trim(samples: np.ndarray, rate: int) -> np.ndarray:
    """Resample to 16 kHz, cut the silence at both ends, scale the peak to 0.9."""
    if rate != RATE:
        divisor = np.gcd(rate, RATE)
        samples = scipy.signal.resample_poly(samples, RATE // divisor, rate // divisor)
    frame = RATE // 100
    padded = np.pad(samples, (0, -len(samples) % frame)).reshape(-1, frame)
    level = np.sqrt((padded**2).mean(axis=1))
    loud = np.flatnonzero(level > 0.01 * level.max())
    if level.max() < 1e-4 or not len(loud):
        return np.zeros(0)
    start, stop = max(0, loud[0] - 2) * frame, (loud[-1] + 3) * frame
    word = samples[start:stop]
    return word * (0.9 / np.abs(word).max())


def speak_espeak(voice: Voice, requests: list[Request], folder: Path) -> list[np.ndarray]:
    """Synthesize with eSpeak NG, one process a word."""
    words = []
    for item in requests:
        pitch = round(min(99.0, max(0.0, 50 + 120 * (item.pitch - 1))))
        command = ["espeak-ng", "-v", voice.detail, "-s", str(round(150 * item.speed)), "-p"]
        command += [str(pitch), "--stdout", item.word]
        output = subprocess.run(command, check=True, capture_output=True, cwd=folder).stdout
        words.append(trim(*read_wave(output)))
    return words


def speak_flite(voice: Voice, requests: list[Request], folder: Path) -> list[np.ndarray]:
    """Synthesize with Flite, one process a word."""
    base = {"kal16": 105.0, "awb": 125.0, "slt": 175.0, "rms": 100.0}[voice.detail]
    words = []
    for item in requests:
        path = folder / "flite.wav"
        command = ["flite", "-voice", voice.detail, "-t", item.word, "-o", str(path), "--setf"]
        command += [f"duration_stretch={1 / item.speed:.3f}", "--setf"]
        command += [f"int_f0_target_mean={base * item.pitch:.1f}"]
        subprocess.run(command, check=True, capture_output=True)
        words.append(trim(*read_wave(path.read_bytes())))
    return words


def speak_festival(voice: Voice, requests: list[Request], folder: Path) -> list[np.ndarray]:
    """Synthesize with Festival, one process for all words."""
    lines = [f"(voice_{voice.detail})"]
    for index, item in enumerate(requests):
        if not voice.detail.endswith("_hts"):
            lines.append(f"(Parameter.set 'Duration_Stretch {1 / item.speed:.3f})")
            lines.append(
                f"(set! int_lr_params '((target_f0_mean {105 * item.pitch:.1f}) (target_f0_std 14) "
                "(model_f0_mean 170) (model_f0_std 34)))"
            )
        wav = f'"{folder / str(index)}.wav"'
        lines.append(f'(utt.save.wave (utt.synth (Utterance Text "{item.word}")) {wav})')
    script = folder / "script.scm"
    script.write_text("\n".join(lines) + "\n", encoding="utf-8")
    subprocess.run(["festival", "-b", str(script)], check=True, capture_output=True)
    return [
        trim(*read_wave((folder / f"{index}.wav").read_bytes())) for index in range(len(requests))
    ]


def synthesize_voice(voice: Voice, requests: list[Request], cache: Path) -> list[Utterance]:
    """Utterances of one voice, from the cache where it holds the same plan."""
    plan = json.dumps([asdict(item) for item in requests])
    path = cache / f"{voice.name}.npz"
    if path.exists():
        with np.load(path) as stored:
            if str(stored["plan"]) == plan:
                pieces = np.split(stored["samples"], stored["ends"][:-1])
                return utterances_of(voice, requests, pieces)
    speak = {"espeak": speak_espeak, "flite": speak_flite, "festival": speak_festival}
    with tempfile.TemporaryDirectory() as folder:
        words = speak[voice.engine](voice, requests, Path(folder))
    pieces = [np.round(word * 32767).astype(np.int16) for word in words]
    content = {
        "plan": np.array(plan),
        "samples": np.concatenate(pieces),
        "ends": np.cumsum([len(piece) for piece in pieces]),
    }

    def save(temporary: Path) -> None:
        with temporary.open("wb") as stream:
            np.savez(stream, **content)

    write_file(path, save)
    return utterances_of(voice, requests, pieces)


def utterances_of(
    voice: Voice, requests: list[Request], pieces: list[np.ndarray]
) -> list[Utterance]:
    """Pair requests with audio, leaving out what is empty or does not fit in a second."""
    return [
        Utterance(item.word, item.take, voice.name, piece)
        for item, piece in zip(requests, pieces, strict=True)
        if 0.1 * RATE < len(piece) < 0.95 * RATE
    ]


def synthesize(
    voices: list[Voice], split: str, cache: Path, seed: int, threads: int
) -> list[Utterance]:
    """All utterances of a split."""
    with ThreadPoolExecutor(threads) as pool:
        jobs = [
            pool.submit(synthesize_voice, voice, plan_voice(voice, split, seed), cache)
            for voice in voices
        ]
        return [utterance for job in jobs for utterance in job.result()]


# --------------------------------------------------------------------------------------------------
# Rendering: a word becomes a noisy one-second clip


def make_noise(rng: np.random.Generator, length: int) -> np.ndarray:
    """Unit-power noise: random colour and equalizer, slow swell, sometimes hum."""
    bins = length // 2 + 1
    frequency = np.arange(bins) * RATE / length
    shape = (np.maximum(frequency, 30.0) / 1000.0) ** (-rng.uniform(-0.2, 1.2))
    shape *= random_equalizer(rng, bins, 10.0)
    spectrum = shape * (rng.standard_normal(bins) + 1j * rng.standard_normal(bins))
    spectrum[frequency < 20] = 0
    noise = np.fft.irfft(spectrum, length)
    moments = np.arange(length) / RATE
    swell = rng.uniform(0, 0.5) * np.sin(
        2 * np.pi * rng.uniform(0.2, 3) * moments + rng.uniform(0, 7)
    )
    noise = noise / noise.std() * (1 + swell)
    if rng.random() < 0.4:
        base = rng.choice([50.0, 60.0, 100.0, 120.0])
        hum = sum(
            rng.uniform(0, 1) / k * np.sin(2 * np.pi * base * k * moments + rng.uniform(0, 7))
            for k in range(1, 8)
        )
        noise = noise + rng.uniform(0.2, 2.0) * hum / np.std(hum)
    return (noise / noise.std()).astype(np.float32)


def random_equalizer(rng: np.random.Generator, bins: int, decibels: float) -> np.ndarray:
    """A smooth random gain over frequency."""
    knots = rng.uniform(-decibels, decibels, 8)
    return 10 ** (np.interp(np.linspace(0, 7, bins), np.arange(8), knots) / 20)


def room_response(rng: np.random.Generator, conditions: Conditions) -> np.ndarray:
    """Spectrum of a direct path followed by exponentially decaying noise."""
    length = int(0.4 * RATE)
    decay = rng.uniform(*conditions.reverb_decay)
    tail = rng.standard_normal(length) * np.exp(-6.9 * np.arange(length) / RATE / decay)
    tail[: int(rng.uniform(0.001, 0.01) * RATE)] = 0
    response = tail * rng.uniform(*conditions.reverb_level) / np.sqrt((tail**2).sum())
    response[0] = 1.0
    return np.fft.rfft(response, FFT_SIZE)


class Renderer:
    """Turns words into clips under given conditions, with its own noises and rooms."""

    def __init__(self, conditions: Conditions, seed: int, noises: int, rooms: int) -> None:
        self.conditions = conditions
        self.rng = np.random.default_rng(seed)
        self.noises = [make_noise(self.rng, 3 * RATE) for _ in range(noises)]
        self.rooms = np.stack([room_response(self.rng, conditions) for _ in range(rooms)])
        self.rooms = self.rooms.astype(np.complex64)
        self.equalizers = np.stack(
            [random_equalizer(self.rng, FFT_BINS, conditions.eq_db) for _ in range(rooms)]
        ).astype(np.float32)

    def noise(self) -> np.ndarray:
        """One second of noise; two noises mixed half of the time."""
        total = np.zeros(RATE, dtype=np.float32)
        for weight in (1.0, self.rng.uniform(0, 1) * (self.rng.random() < 0.5)):
            if weight:
                noise = self.noises[self.rng.integers(len(self.noises))]
                start = self.rng.integers(len(noise) - RATE)
                total += weight * noise[start : start + RATE]
        return total / total.std()

    def render(self, words: list[np.ndarray | None]) -> np.ndarray:
        """Clips of one second, of unit power; None gives a clip without speech."""
        rng, conditions = self.rng, self.conditions
        clips = np.zeros((len(words), RATE), dtype=np.float32)
        for row, word in zip(clips, words, strict=True):
            if word is None:
                continue
            speed = max(rng.uniform(*conditions.speed), len(word) / (0.98 * RATE))
            steps = np.arange(0, len(word) - 1, speed)
            shifted = np.interp(steps, np.arange(len(word)), word)
            start = rng.integers(RATE - len(steps) + 1)
            row[start : start + len(steps)] = shifted / 32768
        factors = self.equalizers[rng.integers(len(self.equalizers), size=len(words))]
        wet = rng.random(len(words)) < conditions.reverb_share
        rooms = self.rooms[rng.integers(len(self.rooms), size=len(words))]
        factors = np.where(wet[:, None], factors * rooms, factors).astype(np.complex64)
        spectra = torch.fft.rfft(torch.from_numpy(clips), n=FFT_SIZE)
        treated = torch.fft.irfft(spectra * torch.from_numpy(factors), n=FFT_SIZE)
        clips = treated[:, :RATE].numpy()
        for row, word in zip(clips, words, strict=True):
            noise = self.noise()
            if word is None:
                row[:] = noise
                continue
            power = np.sqrt((row**2).sum() / min(len(word), RATE))
            row += noise * power * 10 ** (-rng.uniform(*conditions.snr) / 20)
        return clips / clips.std(axis=1, keepdims=True)


# --------------------------------------------------------------------------------------------------
# Stored clips


def store_clips(
    split: str, chosen: list[tuple[str, Utterance | None]], output: Path, seed: int
) -> list[dict[str, str]]:
    """Render and store the clips of a split as Ogg Vorbis, and write its manifest."""
    renderer = Renderer(CLIP_CONDITIONS, seed, 120, 60)
    clips = renderer.render([item.samples if item else None for _, item in chosen])
    folder, fresh = output / "clips" / split, output / "clips" / f".{split}.tmp"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    rows = []
    for index, ((label, item), clip) in enumerate(zip(chosen, clips, strict=True)):
        voice = item.voice if item else f"noise-{split}"
        word = item.word if item else "silence"
        name = f"{word}_{voice}_{index:03d}.ogg"
        level = renderer.rng.uniform(0.3, 0.9) if item else 10 ** renderer.rng.uniform(-2, -0.7)
        samples = clip * (level / np.abs(clip).max())
        soundfile.write(
            fresh / name, samples, RATE, format="OGG", subtype="VORBIS", compression_level=0.4
        )
        rows.append({"audio": f"clips/{split}/{name}", "label": label, "voice": voice})
    shutil.rmtree(folder, ignore_errors=True)
    fresh.replace(folder)
    write_text(output / f"{split}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return rows


def choose_clips(
    utterances: list[Utterance], voices: list[str], per_voice: int, seed: int
) -> list[tuple[str, Utterance | None]]:
    """The same number of clips of every class, and of every class but silence from every voice."""
    rng = random.Random(seed)
    chosen: list[tuple[str, Utterance | None]] = []
    for label in LABELS[:-1]:
        for voice in voices:
            spoken = [u for u in utterances if u.voice == voice and label_of(u) == label]
            chosen += [(label, item) for item in rng.sample(spoken, per_voice)]
    return chosen + [(LABELS[-1], None)] * (len(voices) * per_voice)


def label_of(utterance: Utterance) -> str:
    """Class of a spoken word."""
    return utterance.word if utterance.word in KEYWORDS else "_unknown_"


def load_clips(manifest: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples and classes of a stored manifest, as read back from the files."""
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    clips = []
    for row in rows:
        samples, rate = soundfile.read(manifest.parent / row["audio"], dtype="float32")
        if rate != RATE or samples.shape != (RATE,):
            raise ValueError(f"{row['audio']}: {samples.shape} samples at {rate} Hz")
        clips.append(torch.from_numpy(samples))
    return torch.stack(clips), torch.tensor([LABELS.index(row["label"]) for row in rows])


# --------------------------------------------------------------------------------------------------
# Model and training


def make_model() -> Wav2Vec2ForSequenceClassification:
    """Six layers of six heads at 32 frames a second, randomly initialised."""
    config = Wav2Vec2Config(
        hidden_size=192,
        num_hidden_layers=6,
        num_attention_heads=6,
        intermediate_size=384,
        conv_dim=(64, 96, 128, 160, 192),
        conv_kernel=(10, 8, 4, 4, 4),
        conv_stride=(5, 4, 4, 3, 2),
        num_feat_extract_layers=5,
        feat_extract_norm="group",
        conv_bias=False,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=16,
        classifier_proj_size=96,
        hidden_dropout=0.05,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.05,
        final_dropout=0.0,
        layerdrop=0.0,
        apply_spec_augment=False,
        mask_time_prob=0.0,
        mask_feature_prob=0.0,
        num_labels=len(LABELS),
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )
    return Wav2Vec2ForSequenceClassification(config)


def normalize(clips: torch.Tensor) -> torch.Tensor:
    """What Wav2Vec2FeatureExtractor does with do_normalize."""
    mean, variance = clips.mean(1, keepdim=True), clips.var(1, keepdim=True, unbiased=False)
    return (clips - mean) / torch.sqrt(variance + 1e-7)


def draw_batch(
    groups: dict[str, list[list[Utterance]]], rng: random.Random, size: int
) -> tuple[list[np.ndarray | None], list[int]]:
    """Words and classes of a batch: class first, then kind of synthesizer, then utterance."""
    words: list[np.ndarray | None] = []
    classes = []
    for _ in range(size):
        label = rng.choices(LABELS, weights=[1.0] * 10 + [2.0, 0.7])[0]
        classes.append(LABELS.index(label))
        if label == "_silence_":
            words.append(None)
        else:
            espeak, others = groups[label]
            words.append(rng.choice(others if rng.random() < 0.35 else espeak).samples)
    return words, classes


def accuracy(model: torch.nn.Module, clips: torch.Tensor, classes: torch.Tensor) -> float:
    """Share of clips classified rightly."""
    model.eval()
    with torch.no_grad():
        right = [
            (model(normalize(part)).logits.argmax(-1) == truth).sum().item()
            for part, truth in zip(clips.split(64), classes.split(64), strict=True)
        ]
    return sum(right) / len(classes)


def train(
    utterances: list[Utterance],
    watched: dict[str, tuple[torch.Tensor, torch.Tensor]],
    steps: int,
    batch: int,
    seed: int,
) -> torch.nn.Module:
    """Train and return the running mean of the weights at the last step (nothing is selected)."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    renderer = Renderer(TRAIN_CONDITIONS, seed + 1, 600, 300)
    groups: dict[str, list[list[Utterance]]] = {label: [[], []] for label in LABELS[:-1]}
    for item in utterances:
        groups[label_of(item)][not item.voice.startswith("espeak")].append(item)
    model = make_model()
    mean = copy.deepcopy(model)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.03}, {"params": plain, "weight_decay": 0.0}],
        lr=1e-3,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1e-3, total_steps=steps, pct_start=0.12, cycle_momentum=False
    )
    running, started = 0.0, time.monotonic()
    for step in range(1, steps + 1):
        words, classes = draw_batch(groups, rng, batch)
        clips = normalize(torch.from_numpy(renderer.render(words)))
        model.train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(clips).logits
        loss = torch.nn.functional.cross_entropy(
            logits.float(), torch.tensor(classes), label_smoothing=0.05
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        keep = min(0.997, step / (step + 10))
        with torch.no_grad():
            for average, weight in zip(mean.parameters(), model.parameters(), strict=True):
                average.lerp_(weight, 1 - keep)
        running += (loss.item() - running) * (0.02 if step > 50 else 1 / step)
        if step % 100 == 0:
            pace = (time.monotonic() - started) / step
            line = f"step {step}/{steps} loss {running:.3f} {pace:.3f} s/step"
            if step % 400 == 0 or step == steps:
                line += "".join(f" {k} {accuracy(mean, *v):.4f}" for k, v in watched.items())
            log(line)
    return mean.eval()


def save_model(model: torch.nn.Module, folder: Path) -> None:
    """Store float16 weights, configuration and feature extractor."""
    extractor = Wav2Vec2FeatureExtractor(
        feature_size=1,
        sampling_rate=RATE,
        padding_value=0.0,
        do_normalize=True,
        return_attention_mask=False,
    )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as fresh:
        copy.deepcopy(model).half().save_pretrained(fresh)
        extractor.save_pretrained(fresh)
        for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
            (Path(fresh) / name).chmod(0o644)
            (Path(fresh) / name).replace(folder / name)


# --------------------------------------------------------------------------------------------------
# Checks


def silence_heads(model: torch.nn.Module, heads: list[tuple[int, int]]) -> list[Any]:
    """Hooks that zero the given (layer, head) slices at the input of out_proj."""
    handles = []
    for index, layer in enumerate(model.wav2vec2.encoder.layers):
        silent = [head for at, head in heads if at == index]
        if not silent:
            continue
        mask = torch.ones(layer.attention.num_heads, layer.attention.head_dim)
        mask[silent] = 0
        keep = mask.flatten()
        handles.append(
            layer.attention.out_proj.register_forward_pre_hook(
                lambda _, inputs, keep=keep: (inputs[0] * keep,)
            )
        )
    return handles


def random_removal(
    model: torch.nn.Module, clips: torch.Tensor, classes: torch.Tensor, seeds: int
) -> list[float]:
    """Accuracy with two thirds of all heads silenced at random, a figure a seed."""
    config = model.config
    every = [(x, y) for x in range(config.num_hidden_layers) for y in range(6)]
    figures = []
    for seed in range(seeds):
        handles = silence_heads(model, random.Random(seed).sample(every, len(every) * 2 // 3))
        figures.append(accuracy(model, clips, classes))
        for handle in handles:
            handle.remove()
    return figures


def by_group(
    model: torch.nn.Module, manifest: Path, key: str, data: tuple[torch.Tensor, torch.Tensor]
) -> dict[str, float]:
    """Accuracy of each value of a manifest's field."""
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    figures = {}
    for value in dict.fromkeys(row[key] for row in rows):
        chosen = torch.tensor([row[key] == value for row in rows])
        figures[value] = round(accuracy(model, data[0][chosen], data[1][chosen]), 4)
    return figures


def fingerprint(manifest: Path) -> set[int]:
    """Checksums of a manifest's decoded clips."""
    clips, _ = load_clips(manifest)
    return {zlib.crc32(clip.numpy().tobytes()) for clip in clips}


def tool_version(command: list[str]) -> str:
    """First line that a program says about its version."""
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    lines = [line.strip() for line in (result.stdout + result.stderr).splitlines() if line.strip()]
    version = next((x for x in lines if any(c.isdigit() for c in x) and "(c)" not in x), "")
    return version.split("  Data at")[0]


def count_voices(rows: list[dict[str, str]]) -> int:
    """Number of speaking voices in a manifest."""
    return len({row["voice"] for row in rows if not row["voice"].startswith("noise-")})


def build(output: Path, work: Path, steps: int, batch: int, seed: int, threads: int) -> None:
    """All stages."""
    seconds: dict[str, float] = {}
    started = time.monotonic()
    train_voices, validation_voices = all_voices()
    cache = work / "speech"
    spoken = synthesize(train_voices, "train", cache, seed, threads)
    held_out = synthesize(validation_voices, "validation", cache, seed, threads)
    trained = [item for item in spoken if item.take.startswith("t")]
    spare = [item for item in spoken if item.take.startswith("c")]
    seconds["synthesis"] = time.monotonic() - started
    log(f"{len(trained)} training utterances of {len(train_voices)} voices")

    started = time.monotonic()
    espeak = [v.name for v in train_voices if v.engine == "espeak"]
    others = [v.name for v in train_voices if v.name in {"flite-awb", "festival-kal-diphone"}]
    others += ["flite-slt"]
    calibration_voices = random.Random(seed).sample(espeak, CALIBRATION_VOICES - 3) + others
    calibration = store_clips(
        "calibration", choose_clips(spare, calibration_voices, 1, seed), output, seed + 2
    )
    names = [voice.name for voice in validation_voices]
    validation = store_clips("validation", choose_clips(held_out, names, 2, seed), output, seed + 3)
    watched = {name: load_clips(output / f"{name}.jsonl") for name in ("calibration", "validation")}
    seconds["clips"] = time.monotonic() - started

    started = time.monotonic()
    model = train(trained, watched, steps, batch, seed)
    save_model(model, output / "model")
    seconds["training"] = time.monotonic() - started

    started = time.monotonic()
    stored = AutoModelForAudioClassification.from_pretrained(output / "model").float().eval()
    extractor = AutoFeatureExtractor.from_pretrained(output / "model")
    clips, classes = watched["validation"]
    inputs = extractor(list(clips.numpy()), sampling_rate=RATE, return_tensors="pt").input_values
    if (inputs - normalize(clips)).abs().max() > 1e-3:
        raise ValueError("the feature extractor and training normalize differently")
    full = accuracy(stored, clips, classes)
    removed = random_removal(stored, clips, classes, 5)
    manifests = [output / "calibration.jsonl", output / "validation.jsonl"]
    if fingerprint(manifests[0]) & fingerprint(manifests[1]):
        raise ValueError("a clip is in both splits")
    if {r["voice"] for r in calibration} & {r["voice"] for r in validation}:
        raise ValueError("a voice is in both splits")
    if {v.name for v in train_voices} & {v.name for v in validation_voices}:
        raise ValueError("a validation voice was trained on")
    files = [path for path in output.rglob("*") if path.suffix in {".ogg", ".safetensors"}]
    seconds["evaluation"] = time.monotonic() - started

    figures = {
        "validation": {
            "accuracy": round(full, 4),
            "n": len(classes),
            "by_class": by_group(stored, manifests[1], "label", watched["validation"]),
            "by_voice": by_group(stored, manifests[1], "voice", watched["validation"]),
        },
        "calibration": {
            "accuracy": round(accuracy(stored, *watched["calibration"]), 4),
            "n": len(calibration),
        },
        "random_removal_of_24_of_36_heads": {
            "accuracy_by_seed": [round(value, 4) for value in removed],
            "mean_accuracy": round(float(np.mean(removed)), 4),
            "mean_loss_points": round(100 * (full - float(np.mean(removed))), 2),
        },
        "voices": {
            "training": len(train_voices),
            "calibration": count_voices(calibration),
            "validation": count_voices(validation),
        },
        "training_utterances": len(trained),
        "training_clips_rendered": steps * batch,
        "steps": steps,
        "batch": batch,
        "seed": seed,
        "parameters": sum(p.numel() for p in stored.parameters()),
        "frames_per_clip": int(stored.wav2vec2.feature_extractor(clips[:1]).shape[-1]),
        "bytes_model_and_clips": sum(path.stat().st_size for path in files),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "threads": threads,
        "versions": {
            "espeak-ng": tool_version(["espeak-ng", "--version"]),
            "flite": tool_version(["flite", "--version"]),
            "festival": tool_version(["festival", "--version"]),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "soundfile": soundfile.__version__,
            "libsndfile": soundfile.__libsndfile_version__,
            "numpy": np.__version__,
            "scipy": scipy.__version__,
        },
    }
    write_text(output / "build.json", json.dumps(figures, indent=2) + "\n")
    log(json.dumps(figures, indent=2))


def main() -> None:
    """Read the command line and build."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    here = Path(__file__).resolve().parent
    parser.add_argument("--output", type=Path, default=here, help="default: this folder")
    parser.add_argument("--work", type=Path, help="keeps the synthesis; default: a temporary one")
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    arguments = (options.steps, options.batch, options.seed, options.threads)
    if options.work:
        build(options.output, options.work, *arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        build(options.output, Path(folder), *arguments)


if __name__ == "__main__":
    main()
