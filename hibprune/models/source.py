"""Where a checkpoint lies, on this disk or on the Hub, and which of its files are taken."""

from __future__ import annotations

import json
import re
from pathlib import Path

from pydantic import Field

from hibprune.errors import UserError
from hibprune.execution.files import open_bounded, read_bounded, read_fault
from hibprune.records.base import Settings

CONFIGURATION_FILES = ("config.json", "generation_config.json")
EXTRACTOR_FILES = ("preprocessor_config.json", "processor_config.json")
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "normalizer.json", "vocab.json", "vocab.txt", "merges.txt", "bpe.codes", "tokenizer.model",
    "sentencepiece.bpe.model", "spiece.model", "spm.model",
)  # fmt: skip
"""What transformers reads of a checkpoint beside its weights. Code, adapters, chat templates and
whatever else may lie there are left where they are."""

SAFETENSORS, PICKLE = "model.safetensors", "pytorch_model.bin"
INDEX = ".index.json"
"""Weights in several files come with a table of which tensor lies in which."""
MAX_INDEX_BYTES = 2**26
DEEPEST = 30
"""Levels of lists and objects in settings; published ones take five."""
PLAIN_NAME = re.compile(r"[\w][\w.-]*", re.ASCII)


class ModelSource(Settings):
    """Which checkpoint: a directory (relative to the recipe) or a Hub id, and its revision.

    Weights come as safetensors. `pickle: true` also accepts `pytorch_model.bin`, read with torch's
    weights-only loader. Code that comes with a checkpoint is never run.
    """

    source: str = Field(min_length=1)
    revision: str | None = None
    pickle: bool = False

    def local_directory(self, root: Path) -> Path | None:
        """The directory meant, or None when the source is a Hub id."""
        try:
            directory = root / Path(self.source).expanduser()
            return directory if directory.is_dir() else None
        except (OSError, RuntimeError, ValueError):
            # A name longer than the system's, the home of nobody, a null character.
            return None

    def problems(self, root: Path) -> list[str]:
        """Why the source cannot be right, without loading or downloading anything."""
        directory = self.local_directory(root)
        if directory is None:
            if self.source.count("/") == 1 and not self.source.startswith((".", "/", "~")):
                return []
            return [f"{self.source}: no such directory, and not a Hub id (owner/name)"]
        if not (directory / "config.json").is_file():
            return [f"{self.source}: no config.json in it: not a Hugging Face model directory"]
        if not _weights_named(directory, self.pickle):
            hint = "" if self.pickle else " (model.pickle: true also accepts pytorch_model.bin)"
            return [f"{self.source}: no model.safetensors in it{hint}"]
        return []

    def find(self, root: Path) -> Path:
        """The directory on this disk, downloaded from the Hub where it is an id.

        Raises:
            UserError: it is neither here nor there.
        """
        return self.local_directory(root) or _from_hub(self)


def weight_files(directory: Path, pickle: bool, source: str) -> list[str]:
    """Names of the files that hold a checkpoint's weights; an index of several comes first.

    As transformers chooses: safetensors before pickles, one file before several. `source` is the
    checkpoint's name for errors.

    Raises:
        UserError: there are none, or an index names files that are not there or not in here.
    """
    first = _weights_named(directory, pickle)
    if first is None:
        raise UserError(
            f"{source}: no safetensors weights: set model.pickle: true to read "
            "pytorch_model.bin (weights only), or model.revision to one that has them"
        )
    return [first, *_shards(directory, first, source)] if first.endswith(INDEX) else [first]


def _weights_named(directory: Path, pickle: bool) -> str | None:
    kinds = (SAFETENSORS, PICKLE) if pickle else (SAFETENSORS,)
    names = (name for kind in kinds for name in (kind, f"{kind}{INDEX}"))
    return next((name for name in names if (directory / name).is_file()), None)


def _shards(directory: Path, index: str, source: str) -> list[str]:
    """Names of the files that an index tells of."""
    content = read_json(real_file(directory, index, source), f"{source}: {index}", MAX_INDEX_BYTES)
    table = content.get("weight_map")
    if not isinstance(table, dict) or not table:
        raise UserError(f"{source}: {index}: no 'weight_map' in it: take another copy of it")
    ending = Path(index.removesuffix(INDEX)).suffix
    names = sorted({str(name) for name in table.values()})
    for name in names:
        shown = name[:60]
        if not PLAIN_NAME.fullmatch(name) or not name.endswith(ending):
            raise UserError(
                f"{source}: {index} names '{shown}', which is no {ending} file beside it: "
                "take another copy of the checkpoint"
            )
        if not (directory / name).is_file():
            raise UserError(
                f"{source}: {index} names {shown}, which is not there: "
                "copy all files of the checkpoint"
            )
    return names


def real_file(directory: Path, name: str, source: str) -> Path:
    """The regular file meant by a name in a checkpoint's directory, links followed to its end.

    Links may lead to files within the directory and, in the Hub's cache, to the cache's own.

    Raises:
        UserError: it leads elsewhere or is no regular file.
    """
    place = f"{source}: {name}"
    try:
        home = directory.resolve()
        found = (directory / name).resolve(strict=True)
        # snapshots/<revision>/<name> is a link to ../../blobs/<content>.
        cached = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
        if not found.is_relative_to(home) and not found.is_relative_to(cached):
            raise UserError(f"{place}: a link that leads out of its directory: put the file there")
        open_bounded(found).close()
    except (OSError, RuntimeError) as error:
        # Links in a circle are a RuntimeError of pathlib's.
        fault = read_fault(error) if isinstance(error, OSError) else "a link to itself"
        raise UserError(f"{place}: cannot be read: {fault}: take another copy of it") from error
    return found


def read_json(path: Path, place: str, max_bytes: int) -> dict[str, object]:
    """The object in a JSON file of at most `max_bytes`.

    Raises:
        UserError: it cannot be read or is none; begins with `place`.
    """
    try:
        content = json.loads(read_bounded(path, max_bytes))
    except OSError as error:
        raise UserError(f"{place}: {read_fault(error)}: take another copy of it") from error
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:100]
        raise UserError(f"{place}: no JSON ({reason}): take another copy of it") from error
    if not isinstance(content, dict):
        raise UserError(f"{place}: a JSON {type(content).__name__}, no object: take another copy")
    if _nests_deeper(content, DEEPEST):
        raise UserError(f"{place}: nested too deeply: take another copy of it")
    return content


def _nests_deeper(value: object, levels: int) -> bool:
    """Whether lists and objects lie in one another beyond so many levels; libraries recurse."""
    within = [value]
    for _ in range(levels):
        lists = [part for part in within if isinstance(part, list)]
        objects = [part.values() for part in within if isinstance(part, dict)]
        within = [part for group in (*lists, *objects) for part in group]
    return any(isinstance(part, list | dict) for part in within)


def _from_hub(source: ModelSource) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    from requests.exceptions import RequestException

    # The card for the licence that it states.
    small = ("README.md", *CONFIGURATION_FILES, *EXTRACTOR_FILES, *TOKENIZER_FILES)
    weights = ["model*.safetensors", f"{SAFETENSORS}{INDEX}"]
    pickled = ["pytorch_model*.bin", f"{PICKLE}{INDEX}"] if source.pickle else []
    try:
        return Path(
            snapshot_download(
                source.source,
                revision=source.revision,
                allow_patterns=[*small, *weights, *pickled],
            )
        )
    except HFValidationError as error:
        raise UserError(
            f"{source.source}: no such directory, and not a Hub id (owner/name)"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, RequestException, OSError) as error:
        raise UserError(
            f"{source.source}: not a directory here and not to be had from the Hub "
            f"({type(error).__name__}): check the name, the revision and the network"
        ) from error
