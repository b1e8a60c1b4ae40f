"""A small BERT that tells praise from blame, its texts and a recipe on it.

    python tests/benchmarks/text_model.py DIRECTORY [--epochs N] [--threads N] [--seed N]

Texts are the sentences from reviews of films and of goods that the source package of
vaderSentiment 3.3.2 (MIT licence; Hutto & Gilbert 2014) brings along, each rated by people from −4
to 4; pip fetches it. Those rated above 0.5 are positive, below −0.5 negative, the others are left
out. 200 texts are for calibration and 600 for validation, drawn by the seed; the model is trained
from noise on the others. Nothing is selected: the model is the one of the last step.

DIRECTORY gets source/, model/, both manifests, text_sentiment.yaml and build.json.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import shutil
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

PACKAGE = "vaderSentiment==3.3.2"
INNER = "additional_resources/hutto_ICWSM_2014.tar.gz"
RATED = ("movieReviewSnippets_GroundTruth.txt", "amazonReviewSnippets_GroundTruth.txt")
LABELS = ("negative", "positive")
UNDECIDED = 0.5
CALIBRATION, VALIDATION = 200, 600
VOCABULARY = 4000
LONGEST = 64
"""Tokens of a text in training."""


@dataclass(frozen=True)
class Rated:
    """A sentence and whether people found it positive."""

    text: str
    label: str


def fetched(directory: Path) -> bytes:
    """The texts' archive out of the source package, which pip fetches where it is not there."""
    found = sorted(directory.glob("*.tar.gz")) if directory.is_dir() else []
    if not found:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        options = ["--no-binary", ":all:", "--dest", str(directory), PACKAGE]
        subprocess.run([*pip, *options], check=True)
        found = sorted(directory.glob("*.tar.gz"))
    with tarfile.open(found[0]) as package:
        (name,) = (one for one in package.getnames() if one.endswith(INNER))
        member = package.extractfile(name)
        assert member is not None
        return member.read()


def rated(archive: bytes) -> list[Rated]:
    """All sentences that people agreed on, each once."""
    texts: dict[str, str] = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as inner:
        for name in inner.getnames():
            if not name.endswith(RATED):
                continue
            member = inner.extractfile(name)
            assert member is not None
            for line in member.read().decode("utf-8", errors="replace").splitlines():
                _, rating, text = line.split("\t", 2)
                if abs(float(rating)) > UNDECIDED:
                    texts.setdefault(text.strip().lower(), LABELS[float(rating) > 0])
    return [Rated(text, label) for text, label in texts.items() if text]


def make_tokenizer(texts: list[Rated], directory: Path) -> BertTokenizerFast:
    """Pieces of words of the training texts."""
    words = BertWordPieceTokenizer(lowercase=True)
    words.train_from_iterator(
        (one.text for one in texts), vocab_size=VOCABULARY, show_progress=False
    )
    words.save_model(str(directory))
    return BertTokenizerFast(str(directory / "vocab.txt"))


def make_model(tokenizer: BertTokenizerFast) -> BertForSequenceClassification:
    """Four layers of four heads."""
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=256,
            max_position_embeddings=128,
            hidden_dropout_prob=0.3,
            attention_probs_dropout_prob=0.1,
            id2label=dict(enumerate(LABELS)),
            label2id={label: place for place, label in enumerate(LABELS)},
        )
    )


def train(
    model: BertForSequenceClassification,
    tokenizer: BertTokenizerFast,
    texts: list[Rated],
    epochs: int,
    seed: int,
) -> None:
    """All weights, in batches of 32 texts of like length."""
    rng, batch = random.Random(seed), 32
    steps = epochs * (len(texts) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=5e-4, total_steps=steps, pct_start=0.1, cycle_momentum=False
    )
    model.train()
    done = 0
    for epoch in range(1, epochs + 1):
        order = sorted(rng.sample(texts, len(texts)), key=lambda one: len(one.text) // 16)
        batches = [order[place : place + batch] for place in range(0, len(order), batch)]
        rng.shuffle(batches)
        running = 0.0
        for chosen in batches[: len(texts) // batch]:
            inputs = tokenizer(
                [one.text for one in chosen],
                padding=True,
                truncation=True,
                max_length=LONGEST,
                return_tensors="pt",
            )
            labels = torch.tensor([LABELS.index(one.label) for one in chosen])
            loss = model(**inputs, labels=labels).loss
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            done += 1
            running += loss.item()
        print(f"epoch {epoch}/{epochs} loss {running / (len(texts) // batch):.3f}", flush=True)
    model.eval()


@torch.no_grad()
def accuracy(
    model: BertForSequenceClassification, tokenizer: BertTokenizerFast, texts: list[Rated]
) -> float:
    """The share of texts answered as people rated them."""
    right = 0
    for one in texts:
        inputs = tokenizer(one.text, truncation=True, max_length=128, return_tensors="pt")
        right += LABELS[int(model(**inputs).logits.argmax())] == one.label
    return right / len(texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    directory, seed = arguments.directory, arguments.seed
    directory.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(seed)
    started = time.monotonic()
    texts = rated(fetched(directory / "source"))
    random.Random(seed).shuffle(texts)
    calibration, validation = texts[:CALIBRATION], texts[CALIBRATION : CALIBRATION + VALIDATION]
    training = texts[CALIBRATION + VALIDATION :]
    for name, rows in (("calibration", calibration), ("validation", validation)):
        lines = (json.dumps({"text": one.text, "label": one.label}) + "\n" for one in rows)
        (directory / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    shutil.copy(Path(__file__).with_name("text_sentiment.yaml"), directory)
    tokenizer = make_tokenizer(training, directory)
    model = make_model(tokenizer)
    train(model, tokenizer, training, arguments.epochs, seed)
    model.save_pretrained(directory / "model")
    tokenizer.save_pretrained(directory / "model")
    figures = {
        "accuracy": {
            "calibration": accuracy(model, tokenizer, calibration),
            "validation": accuracy(model, tokenizer, validation),
        },
        "training_texts": len(training),
        "positive_share": sum(one.label == "positive" for one in texts) / len(texts),
        "epochs": arguments.epochs,
        "seed": seed,
        "seconds": round(time.monotonic() - started, 1),
    }
    (directory / "build.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
