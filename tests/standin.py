"""Stand-ins of whole tasks: a tiny model, a few dozen clips or texts and a recipe in a directory.

The models of sound are untrained, so that their metrics are those of guessing; the model of text
has learned its task. Everything else is as in earnest.
"""

from __future__ import annotations

import csv
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny_models import CLASSES, HEADS, LAYERS, TINY_MODELS
from transformers import Wav2Vec2FeatureExtractor

SAMPLING_RATE = 16_000
CALIBRATION_CLIPS, VALIDATION_CLIPS = 20, 30
SLOWLY_VALIDATED = 10
"""Validation clips of the recognisers with a decoder, which take their time over each."""
LABELS = tuple(f"w{number}" for number in range(CLASSES))
SLOTS = {"action": ["on", "off"], "object": ["none", "lamp", "heat"]}
TEXTS = ("ONE", "TWO WORDS", "IT'S THREE", "FOUR", "A FIVE")
SPOKEN = ("fr", "de", "en")
"""Languages of the stand-in that is told one."""
ALL_HEADS = LAYERS * HEADS
STAND_INS = (
    "keyword_spotting",
    "intents",
    "speech_recognition",
    "encoder_decoder",
    "encoder_decoder_of_languages",
    "encoder_decoder_on_waveforms",
    "text_classification",
)
GOOD, BAD = ("good", "great", "lovely"), ("bad", "awful", "dull")
FILLERS = ("the", "a", "was", "and", "very", "it", "we", "saw", "with", "of", "film", "plot")
SENTIMENTS = ("NEGATIVE", "POSITIVE")
LONGEST_TEXT = 48
"""Tokens, with the two special ones."""
"""The makers below."""


@dataclass(frozen=True)
class StandIn:
    """A task in a directory; paths in its recipe are relative to it."""

    root: Path

    @property
    def recipe(self) -> Path:
        return self.root / "recipe.yaml"

    @property
    def model(self) -> Path:
        return self.root / "model"

    def content(self) -> dict[str, Any]:
        """The recipe as plain YAML values."""
        return dict(yaml.safe_load(self.recipe.read_text()))

    def write(self, content: dict[str, Any]) -> None:
        """Replace the recipe."""
        self.recipe.write_text(yaml.safe_dump(content, sort_keys=False))

    def rows(self, split: str) -> list[dict[str, str]]:
        """The lines of a manifest, `calibration` or `validation`."""
        return [json.loads(line) for line in self._manifest(split).read_text().splitlines()]

    def write_rows(self, split: str, rows: list[dict[str, str]]) -> None:
        """Replace a manifest."""
        self._manifest(split).write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    def clip(self, split: str, number: int) -> Path:
        """A sound file of a split."""
        return self.root / split / f"{number}.wav"

    def _manifest(self, split: str) -> Path:
        return self.root / f"{split}.jsonl"


def keyword_spotting(root: Path) -> StandIn:
    """One label per clip."""
    targets = [{"label": label} for label in LABELS]
    model = _classifier(dict(enumerate(LABELS)))
    return _stand_in(root, {"kind": "keyword-spotting"}, model, targets)


def quick_keyword_spotting(root: Path, budget: dict[str, Any] | None = None) -> StandIn:
    """The same scored by weights alone, within a budget if one is given."""
    stand_in = keyword_spotting(root)
    content = stand_in.content()
    content["attribution"] = {"method": "magnitude"}
    if budget is not None:
        content["budget"] = budget
    stand_in.write(content)
    return stand_in


def loud_keyword_spotting(root: Path) -> StandIn:
    """A keyword spotter whose heads speak so loudly that silencing some changes what it says."""
    stand_in = keyword_spotting(root)
    path = stand_in.model / "model.safetensors"
    weights = load_file(path)
    for name, weight in weights.items():
        if name.endswith("attention.out_proj.weight") or name == "projector.weight":
            weights[name] = 40 * weight
    save_file(weights, path, metadata={"format": "pt"})
    return stand_in


def intents(root: Path) -> StandIn:
    """Two slots per clip."""
    targets = [
        {"action": action, "object": thing}
        for action in SLOTS["action"]
        for thing in SLOTS["object"]
    ]
    names = [label for labels in SLOTS.values() for label in labels]
    task = {"kind": "intent-classification", "slots": SLOTS}
    return _stand_in(root, task, _classifier(dict(enumerate(names))), targets)


def speech_recognition(root: Path) -> StandIn:
    """A transcript per clip; the tokenizer knows capital letters and the apostrophe."""
    from transformers import Wav2Vec2CTCTokenizer

    tokens = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ", "'"]
    root.mkdir(parents=True, exist_ok=True)
    vocabulary = root / "vocab.json"
    vocabulary.write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    model = TINY_MODELS[0].build("AutoModelForCTC")
    stand_in = _stand_in(root, {"kind": "asr-ctc"}, model, [{"text": text} for text in TEXTS])
    Wav2Vec2CTCTokenizer(str(vocabulary)).save_pretrained(stand_in.model)
    return stand_in


def encoder_decoder(root: Path) -> StandIn:
    """A transcript per clip, for a tiny Whisper with a window of one second."""
    return _whisper(root)


def encoder_decoder_of_languages(root: Path) -> StandIn:
    """The same with languages to be told; their tokens are not in the order of the published ones.

    So that what a tokenizer guesses from that order is not what the generation settings say.
    """
    stand_in = _whisper(root, SPOKEN)
    content = stand_in.content()
    content["task"]["language"] = "de"
    stand_in.write(content)
    return stand_in


def _whisper(root: Path, languages: tuple[str, ...] = ()) -> StandIn:
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperTokenizer
    from transformers import WhisperForConditionalGeneration as Whisper

    letters = [*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ'.,", "Ġ"]
    spoken, tasks = [f"<|{language}|>" for language in languages], ["transcribe", "translate"]
    told = [*spoken, *(f"<|{task}|>" for task in tasks if languages)]
    special = ["<|endoftext|>", "<|startoftranscript|>", *told, "<|notimestamps|>"]
    root.mkdir(parents=True, exist_ok=True)
    numbers = {token: number for number, token in enumerate([*letters, *special])}
    (root / "vocab.json").write_text(json.dumps(numbers))
    (root / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = WhisperTokenizer(str(root / "vocab.json"), str(root / "merges.txt"))
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    torch.manual_seed(0)
    model = Whisper(
        WhisperConfig(
            vocab_size=len(numbers),
            d_model=32,
            encoder_layers=LAYERS,
            decoder_layers=LAYERS,
            encoder_attention_heads=HEADS,
            decoder_attention_heads=HEADS,
            encoder_ffn_dim=37,
            decoder_ffn_dim=37,
            num_mel_bins=16,
            max_source_positions=50,
            max_target_positions=40,
            decoder_start_token_id=numbers["<|startoftranscript|>"],
            bos_token_id=numbers["<|endoftext|>"],
            eos_token_id=numbers["<|endoftext|>"],
            pad_token_id=numbers["<|endoftext|>"],
            suppress_tokens=None,
            begin_suppress_tokens=None,
        )
    )
    _make_sensitive(model)
    _keep_generation_settings(model)
    model.generation_config.suppress_tokens = [numbers[token] for token in special[1:]]
    model.generation_config.is_multilingual = bool(languages)
    if languages:
        model.generation_config.lang_to_id = {token: numbers[token] for token in spoken}
        model.generation_config.task_to_id = {task: numbers[f"<|{task}|>"] for task in tasks}
    model.generation_config.no_timestamps_token_id = numbers["<|notimestamps|>"]
    task = {"kind": "asr-seq2seq", "max_new_tokens": 12}
    texts = [{"text": text.lower()} for text in TEXTS]
    stand_in = _stand_in(root, task, model, texts, SLOWLY_VALIDATED)
    WhisperFeatureExtractor(feature_size=16, chunk_length=1).save_pretrained(stand_in.model)
    tokenizer.save_pretrained(stand_in.model)
    return stand_in


def encoder_decoder_on_waveforms(root: Path) -> StandIn:
    """A transcript per clip, for a tiny Moonshine with the oddities of the published ones.

    Heads of 12 features, padded to 16, of which 0.9 turn, rounded down to an even number; a
    tokenizer of word pieces that falls back on bytes; a longest length in its own settings.
    """
    from transformers import MoonshineConfig, MoonshineForConditionalGeneration

    tokenizer = _word_pieces()
    torch.manual_seed(0)
    model = MoonshineForConditionalGeneration(
        MoonshineConfig(
            vocab_size=len(tokenizer),
            hidden_size=12 * HEADS,
            intermediate_size=37,
            encoder_num_hidden_layers=LAYERS,
            decoder_num_hidden_layers=LAYERS,
            encoder_num_attention_heads=HEADS,
            decoder_num_attention_heads=HEADS,
            pad_head_dim_to_multiple_of=8,
            max_position_embeddings=40,
            decoder_start_token_id=tokenizer.bos_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    _make_sensitive(model)
    _keep_generation_settings(model)
    model.generation_config.max_length = 40
    task = {"kind": "asr-seq2seq", "max_new_tokens": 12}
    texts = [{"text": text.lower()} for text in TEXTS]
    stand_in = _stand_in(root, task, model, texts, SLOWLY_VALIDATED)
    Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True).save_pretrained(
        stand_in.model
    )
    tokenizer.save_pretrained(stand_in.model)
    return stand_in


def _make_sensitive(model: Any) -> None:
    """Enlarge its weights until what it says depends on the clip and on the heads."""
    with torch.no_grad():
        for name, weight in model.model.named_parameters():
            if weight.dim() > 1 and "embed" not in name:
                weight.mul_(16)


def _keep_generation_settings(model: Any) -> None:
    """Let loading take them from their file; transformers else makes them from config.json anew."""
    model.generation_config._from_model_config = False


def _word_pieces() -> Any:
    """Byte-pair encoding as Llama's, which Moonshine took over, learnt on the transcripts."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    pieces.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    pieces.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, show_progress=False)
    pieces.train_from_iterator([text.lower() for text in TEXTS], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=pieces, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def text_classification(root: Path) -> StandIn:
    """A tiny DistilBERT that knows: what is said after "but" counts."""
    from transformers import DistilBertTokenizerFast

    stand_in = StandIn(root)
    root.mkdir(parents=True, exist_ok=True)
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    (root / "vocab.txt").write_text("\n".join((*special, "but", *GOOD, *BAD, *FILLERS)))
    tokenizer = DistilBertTokenizerFast(str(root / "vocab.txt"))
    _sentiment_model(tokenizer).save_pretrained(stand_in.model)
    tokenizer.save_pretrained(stand_in.model)
    generator = random.Random(0)
    said: set[str] = set()
    for split, count in (("calibration", CALIBRATION_CLIPS), ("validation", VALIDATION_CLIPS)):
        rows: list[dict[str, str]] = []
        while len(rows) < count:
            text, positive = _opinion(generator)
            if text not in said:
                rows.append({"text": text, "label": SENTIMENTS[positive]})
            said.add(text)
        stand_in.write_rows(split, rows)
    stand_in.write(_recipe({"kind": "text-classification"}, "tokens", [8, 24], [16]))
    return stand_in


def _opinion(generator: random.Random) -> tuple[str, bool]:
    """A text of 3 to 15 words and whether its last judgement is a good one."""

    def fillers() -> list[str]:
        return generator.choices(FILLERS, k=generator.randint(0, 4))

    first, last = generator.random() < 0.5, generator.random() < 0.5
    judgements = [generator.choice(GOOD if good else BAD) for good in (first, last)]
    words = [*fillers(), judgements[0], *fillers(), "but", *fillers(), judgements[1], *fillers()]
    return " ".join(words), last


def _sentiment_model(tokenizer: Any) -> Any:
    """Trained for a second or two, to where it makes no mistake."""
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    torch.manual_seed(0)
    model = DistilBertForSequenceClassification(
        DistilBertConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=LONGEST_TEXT,
            dim=32,
            n_layers=LAYERS,
            n_heads=HEADS,
            hidden_dim=37,
            initializer_range=0.08,
            id2label=dict(enumerate(SENTIMENTS)),
            label2id={label: number for number, label in enumerate(SENTIMENTS)},
            dropout=0.0,
            attention_dropout=0.0,
            seq_classif_dropout=0.0,
        )
    )
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    generator = random.Random(1)
    for _ in range(80):
        texts, labels = zip(*(_opinion(generator) for _ in range(32)), strict=True)
        inputs = tokenizer(list(texts), padding=True, return_tensors="pt")
        optimiser.zero_grad()
        model(**inputs, labels=torch.tensor(labels).long()).loss.backward()
        optimiser.step()
    return model.eval()


def _classifier(labels: dict[int, str]) -> Any:
    model = TINY_MODELS[0].build()
    model.config.id2label = labels
    model.config.label2id = {label: number for number, label in labels.items()}
    return model


def _stand_in(
    root: Path,
    task: dict[str, Any],
    model: Any,
    targets: list[dict[str, str]],
    validation: int = VALIDATION_CLIPS,
) -> StandIn:
    stand_in = StandIn(root)
    model.save_pretrained(stand_in.model)
    Wav2Vec2FeatureExtractor(return_attention_mask=False).save_pretrained(stand_in.model)
    generator = np.random.default_rng(0)
    for split, count in (("calibration", CALIBRATION_CLIPS), ("validation", validation)):
        (root / split).mkdir()
        rows = []
        for number in range(count):
            place = number % len(targets)
            write_clip(stand_in.clip(split, number), generator, 300 + 60 * place)
            rows.append({"audio": f"{split}/{number}.wav", **targets[place]})
        stand_in.write_rows(split, rows)
    content = _recipe(task, "seconds", [0.5, 1.0], [0.5])
    content["validation"]["allow_chance_baseline"] = True
    stand_in.write(content)
    return stand_in


def _recipe(
    task: dict[str, Any], unit: str, exported: list[float], timed: list[float]
) -> dict[str, Any]:
    return {
        "model": {"source": "model"},
        "task": task,
        "calibration": {
            "source": {"kind": "manifest", "path": "calibration.jsonl"},
            "samples": CALIBRATION_CLIPS,
        },
        "validation": {"source": {"kind": "manifest", "path": "validation.jsonl"}},
        "attribution": {"method": "hib", "steps": 3, "batch_size": 7},
        "budget": {"fraction": 0.4},
        # Lower precisions have tests of their own; here they would take most of the time.
        "export": {unit: exported, "batches": [1, 2], "variants": ["fp32"]},
        "benchmark": {unit: timed, "repetitions": 3, "warmup": 1, "rivals": False},
    }


def as_csv(stand_in: StandIn) -> dict[str, Any]:
    """Texts and labels once more as CSV files; returns the source of either split."""
    for split in ("calibration", "validation"):
        with (stand_in.root / f"{split}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["review", "verdict"])
            writer.writeheader()
            for row in stand_in.rows(split):
                # Quoted, so that lines and rows are not the same number.
                writer.writerow({"review": row["text"] + "\n", "verdict": row["label"]})
    named = {"text": "review", "label": "verdict"}
    return {
        split: {"kind": "manifest", "path": f"{split}.csv", **named}
        for split in ("calibration", "validation")
    }


def as_dataset(stand_in: StandIn) -> dict[str, Any]:
    """The same as a `save_to_disk` directory, with class names of its own."""
    import datasets

    classes = datasets.ClassLabel(names=["negative", "positive"])
    features = datasets.Features({"sentence": datasets.Value("string"), "label": classes})
    splits = {
        split: datasets.Dataset.from_dict(
            {
                "sentence": [row["text"] for row in stand_in.rows(split)],
                "label": [row["label"].lower() for row in stand_in.rows(split)],
            },
            features=features,
        )
        for split in ("calibration", "validation")
    }
    datasets.DatasetDict(splits).save_to_disk(str(stand_in.root / "reviews"))
    renamed = {"negative": "NEGATIVE", "positive": "POSITIVE"}
    common = {"kind": "datasets", "path": "reviews", "text": "sentence", "label_names": renamed}
    return {split: {**common, "split": split} for split in splits}


def write_clip(path: Path, generator: np.random.Generator, hertz: float = 440.0) -> None:
    """A noisy tone of about 0.3 s."""
    times = np.arange(round(SAMPLING_RATE * generator.uniform(0.25, 0.32))) / SAMPLING_RATE
    noise = generator.normal(scale=0.05, size=len(times))
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * hertz * times) + noise, SAMPLING_RATE)


def lower_ranks(stand_in: StandIn) -> None:
    """Let the matrices of the encoder's layers be of rank 4."""
    from safetensors.torch import load_file, save_file

    path = stand_in.model / "model.safetensors"
    weights = load_file(path)
    for name, weight in weights.items():
        if "encoder.layers" in name and weight.dim() == 2:
            left, values, right = torch.linalg.svd(weight, full_matrices=False)
            weights[name] = (left[:, :4] * values[:4]) @ right[:4]
    save_file(weights, path, {"format": "pt"})
