"""Parts of a checkpoint as transformers reads them; whatever it raises becomes a plain line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from textwrap import shorten
from typing import Any

import transformers
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase, SequenceFeatureExtractor

from hibprune.errors import UserError, missing_package
from hibprune.models.source import EXTRACTOR_FILES, TOKENIZER_FILES
from hibprune.models.staging import StagedCheckpoint

WEIGHTS = "its weights (model.safetensors)"
PARTS = {
    "AutoConfig": "its config.json",
    "AutoFeatureExtractor": "its feature extractor (preprocessor_config.json)",
    "AutoTokenizer": "its tokenizer (tokenizer_config.json, vocab.json)",
}
FILES = {"AutoFeatureExtractor": EXTRACTOR_FILES, "AutoTokenizer": TOKENIZER_FILES}
KINDS: dict[str, tuple[type, str]] = {
    "AutoFeatureExtractor": (SequenceFeatureExtractor, "feature extractor of sound"),
    "AutoTokenizer": (PreTrainedTokenizerBase, "tokenizer"),
}
"""What those classes must make: a settings file may name any class of transformers."""
TELLING = (OSError, ValueError, RuntimeError, SafetensorError)
"""Errors whose text is a sentence; of others, such as a KeyError, the type has to be told, too."""
LONGEST_REASON = 200


def pretrained(auto_class: str, staged: StagedCheckpoint, **options: Any) -> Any:
    """A part of a checkpoint, by the Auto class of transformers that reads it.

    Raises:
        UserError: it is not there or damaged, or needs a package that is not installed.
    """
    part = PARTS.get(auto_class, WEIGHTS)
    files = FILES.get(auto_class)
    if files is not None and not any((staged.directory / name).is_file() for name in files):
        raise UserError(
            f"{staged.source}: cannot read {part}: no such file in it: "
            "copy all files of the checkpoint"
        )
    with plain_faults(f"{staged.source}: cannot read {part}", staged):
        found = getattr(transformers, auto_class).from_pretrained(
            staged.directory, local_files_only=True, trust_remote_code=False, **options
        )
    kind, called = KINDS.get(auto_class, (object, ""))
    if not isinstance(found, kind):
        named = type(found).__name__
        raise UserError(
            f"{staged.source}: cannot read {part}: it says class {named}, which is no {called}"
        )
    return found


@contextmanager
def plain_faults(
    place: str, staged: StagedCheckpoint | None = None, remedy: str = ""
) -> Iterator[None]:
    """Turn whatever a library raises over a checkpoint into one line: `place`, reason, `remedy`.

    Raises:
        UserError: something was raised within.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        # What tokenizers' Rust code raises when it gives up is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        package = missing_package(error)
        if package is not None:
            raise UserError(
                f"{place}: it needs the package '{package}', which is not installed: "
                f"pip install {package}"
            ) from error
        reason = reason_of(error)
        shown = reason if staged is None else staged.named(reason)
        raise UserError(
            f"{place}: {shorten(shown, LONGEST_REASON, placeholder=' …')}{remedy}"
        ) from error


def reason_of(error: BaseException) -> str:
    """What an error says, on one line."""
    if isinstance(error, MemoryError) or "not enough memory" in str(error):
        return "it does not fit into memory"
    said = re.sub(r"\s+", " ", str(error)).strip()
    if said.startswith("Can't load"):
        # What follows is advice on repositories of the same name.
        return "some of its files are missing: copy all files of the checkpoint"
    named = type(error).__name__
    if not said:
        return named
    return said if isinstance(error, TELLING) else f"{named}: {said}"
