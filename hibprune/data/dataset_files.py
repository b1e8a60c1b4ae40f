"""Where a Hugging Face data set is, and its splits as `datasets` loads them from there.

`datasets.load_dataset` takes a name for one of its own loaders, for a directory where the program
runs, or for a data set on the Hub, whichever comes first. Here a path starts from the recipe and
is settled before `datasets` sees it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hibprune.data.dataset_cards import files_on_card
from hibprune.data.paths import (
    NO_FILE,
    RowFiles,
    directory_fault,
    file_fault,
    inside,
    is_there,
    legible,
    located,
)
from hibprune.data.sound_files import (
    AUDIO_SUFFIXES,
    HIDDEN,
    LINKED_DIRECTORY,
    OTHER_AUDIO_SUFFIXES,
    UNREAD_FORMAT,
    is_hidden,
    refuse_special_files,
    walked,
)
from hibprune.errors import UserError

LOADERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".arrow": ("arrow", {}),
    ".csv": ("csv", {}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
    ".tsv": ("csv", {"sep": "\t"}),
    ".txt": ("text", {}),
}
"""For a single file, by its suffix."""

DATA_SUFFIXES = frozenset({*LOADERS, ".gz", ".ndjson", ".tar", ".zip"}) - {".txt"}
METADATA = frozenset({"metadata.csv", "metadata.jsonl", "metadata.parquet"})
SETTINGS = frozenset(
    {"config.json", "dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json"}
)
MIXED_CASE = "its ending is neither in lower nor in upper case"
NOT_LOADED = "not taken up by datasets"
PATTERN_CHARACTERS = "*?[]"
WHOLE = "train"
"""What `datasets` calls data without splits."""


@dataclass(frozen=True)
class DataPlace:
    """Where a data set is: an absolute path and what is there, or an id on the Hub."""

    kind: Literal["saved", "directory", "file", "hub"]
    name: str

    @property
    def files(self) -> RowFiles:
        """Where sound may lie that the rows only name."""
        if self.kind != "hub":
            path = Path(self.name)
            return RowFiles((path.parent if self.kind == "file" else path,), is_local=True)
        import datasets
        from huggingface_hub.constants import HF_HUB_CACHE

        caches = (
            datasets.config.HF_DATASETS_CACHE,
            datasets.config.DOWNLOADED_DATASETS_PATH,
            HF_HUB_CACHE,
        )
        return RowFiles(tuple(map(Path, caches)), is_local=False)


def find_dataset(path: str, base: Path) -> DataPlace:
    """What `path`, as written in a recipe in the directory `base`, stands for.

    Raises UserError when it is nowhere on disk and cannot be on the Hub.
    """
    place = located(path, base).absolute()
    if is_there(place) and place.is_dir():
        fault = directory_fault(place)
        if fault is not None:
            raise UserError(f"{place}: {fault}")
        saved = any(is_there(place / name) for name in ("dataset_dict.json", "state.json"))
        return _legible_to_patterns(DataPlace("saved" if saved else "directory", str(place)))
    fault = file_fault(place)
    if fault is None:
        if place.suffix.lower() not in LOADERS:
            raise UserError(
                f"{place}: no file of rows by its name; "
                f"those end in {', '.join(LOADERS)}; or give a directory"
            )
        return _legible_to_patterns(DataPlace("file", str(place)))
    if fault != NO_FILE or Path(path).suffix.lower() in LOADERS:
        raise UserError(f"{place}: {fault}")
    if not _hub_id_like(path):
        raise UserError(f"{place}: no such directory")
    if path in _packaged_loaders():
        raise UserError(
            f"{place}: no such directory, and '{path}' is a loader of datasets, not a data set: "
            "give the path of the data, from the recipe's directory"
        )
    if os.path.lexists(path):
        raise UserError(
            f"{place}: no such directory, but there is one where you are, which datasets would "
            f"take for '{path}' on the Hub: write its path from the recipe's directory"
        )
    return DataPlace("hub", path)


def _legible_to_patterns(place: DataPlace) -> DataPlace:
    # datasets would look for other files, in directories beside this one.
    special = next((one for one in PATTERN_CHARACTERS if one in place.name), None)
    if special is not None and place.kind != "saved":
        raise UserError(
            f"{place.name}: datasets takes the '{special}' in this path for a pattern: "
            "rename or move the data"
        )
    return place


def _hub_id_like(path: str) -> bool:
    """Whether `path` could be `name` or `owner/name` on the Hub, rather than a path on disk."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(path)
    except HFValidationError:
        return False
    return not path.startswith((".", "/", "~"))


def is_cached(hub_id: str) -> bool:
    """Whether `datasets` has made a data set of the Hub into a table on this machine before."""
    import datasets
    from datasets.naming import camelcase_to_snakecase

    *owner, name = hub_id.split("/")
    directory = "___".join([*owner, camelcase_to_snakecase(name)])
    return any(Path(datasets.config.HF_DATASETS_CACHE, directory).glob("*/*/*"))


def _packaged_loaders() -> Iterable[str]:
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    return {*_PACKAGED_DATASETS_MODULES, "generator", "spark", "cache", "folder_based_builder"}


@dataclass(frozen=True)
class Loaded:
    """A data set's splits by name, each a `datasets.Dataset`, and the files they were read from."""

    splits: dict[str, Any]
    files: frozenset[str] = frozenset()


def load_splits(place: DataPlace, name: str | None, revision: str | None) -> Loaded:
    """All splits of a data set, their sound not decoded.

    `name` and `revision` are those of `datasets.load_dataset`. Raises whatever `datasets` does, and
    UserError for files that are not the data set's own.
    """
    import datasets

    if place.kind == "hub":
        return Loaded(_built(_builder(place.name, name, revision)))
    top = Path(place.name)
    if place.kind == "file":
        loader, settings = LOADERS[top.suffix.lower()]
        builder = _builder(loader, name, None, data_files={WHOLE: [place.name]}, **settings)
        _refuse_foreign(_data_files(builder), top.parent)
        return Loaded(_built(builder))
    refuse_special_files(top)
    if place.kind == "directory":
        _refuse_foreign(files_on_card(top), top)
        builder = _builder(place.name, name, None)
        # Loading follows links on the way to the directory before it looks for files.
        _refuse_foreign(_data_files(builder), Path(os.path.realpath(top)))
        return Loaded(_built(builder), frozenset(_data_files(builder)))
    saved = datasets.load_from_disk(place.name)
    splits = dict(saved) if isinstance(saved, datasets.DatasetDict) else {_own_name(saved): saved}
    for split in splits.values():
        _refuse_foreign((file["filename"] for file in split.cache_files), top)
    return Loaded(splits)


def _builder(path: str, name: str | None, revision: str | None, **options: Any) -> Any:
    """A builder that takes sound files as they are, and words such as `none` for words."""
    import datasets

    def made(**more: Any) -> Any:
        return datasets.load_dataset_builder(path, name, revision=revision, **options, **more)

    builder = made()
    if getattr(builder.config, "keep_default_na", False):
        builder = made(keep_default_na=False)
    if getattr(builder, "BASE_FEATURE", None) is datasets.Audio:
        builder.BASE_FEATURE = _undecoded_audio()
    return builder


def _built(builder: Any) -> dict[str, Any]:
    builder.download_and_prepare()
    return dict(builder.as_dataset())


def _undecoded_audio() -> Any:
    """`datasets.Audio` that only notes where a file is; the original needs torchcodec for that."""
    import datasets

    class UndecodedAudio(datasets.Audio):  # type: ignore[misc]
        def encode_example(self, value: Any) -> dict[str, Any]:
            if isinstance(value, dict):
                return {"bytes": value.get("bytes"), "path": value.get("path")}
            return {"bytes": None, "path": str(value)}

    return UndecodedAudio


def _own_name(dataset: Any) -> str:
    """The split that data saved without others are of."""
    name = str(dataset.split or WHOLE)
    return name if name.isidentifier() else WHOLE


def taken_split(splits: Mapping[str, Any], split: str) -> Any:
    """The rows of a split, or of a slice or a sum of some (`train[:10%]+test`).

    Raises UserError when there is no such split.
    """
    import datasets

    if split in splits:
        return splits[split]
    lengths = {name: len(rows) for name, rows in splits.items()}
    try:
        spec = "+".join(splits) if split == "all" else split
        wanted = datasets.ReadInstruction.from_spec(spec).to_absolute(lengths)
    except (ValueError, AssertionError) as error:
        if str(error).startswith(("Unknown split", "Unrecognized")):
            raise UserError(_no_split(split, splits)) from error
        raise UserError(f"split '{split}' cannot be taken: {error}") from error
    parts = [splits[one.splitname].select(range(one.from_, one.to)) for one in wanted]
    return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)


def split_fault(names: Sequence[str], split: str) -> str | None:
    """Why `split`, which may be a slice or a sum, is in no data set with these; None if it may."""
    import datasets

    if split in (*names, "all"):
        return None
    try:
        # How long they are is not known; slices beyond an end are told when they are taken.
        datasets.ReadInstruction.from_spec(split).to_absolute(dict.fromkeys(names, 2**40))
    except (ValueError, AssertionError) as error:
        if str(error).startswith(("Unknown split", "Unrecognized")):
            return _no_split(split, names)
    return None


def _no_split(split: str, names: Iterable[str]) -> str:
    return f"no split '{split}'; its splits are {', '.join(names)}"


def not_loaded(place: DataPlace, loaded: Loaded) -> tuple[tuple[str, str], ...]:
    """Files of a directory that hold sound or rows by their name and are in no split, with why."""
    if place.kind != "directory":
        return ()
    top = Path(place.name)
    real = Path(os.path.realpath(top))
    taken = _taken(loaded)
    found = []
    for name, is_linked_directory in walked(top):
        wanted = name.suffix.lower() in AUDIO_SUFFIXES | OTHER_AUDIO_SUFFIXES | DATA_SUFFIXES
        if is_linked_directory:
            found.append((legible(name.as_posix()), LINKED_DIRECTORY))
        elif wanted and name.name not in METADATA | SETTINGS and str(real / name) not in taken:
            found.append((legible(name.as_posix()), _why_not_loaded(name)))
    return tuple(sorted(found))


def _why_not_loaded(name: Path) -> str:
    if is_hidden(name):
        return HIDDEN
    if name.suffix.lower() in OTHER_AUDIO_SUFFIXES:
        return UNREAD_FORMAT
    if name.suffix not in (name.suffix.lower(), name.suffix.upper()):
        return MIXED_CASE
    return NOT_LOADED


def _taken(loaded: Loaded) -> set[str]:
    """Sound that is in some row, where rows name any, and all other files that were read."""
    import datasets
    from pyarrow import compute

    named: set[str] = set()
    for split in loaded.splits.values():
        for column, feature in split.features.items():
            if isinstance(feature, datasets.Audio):
                paths = compute.struct_field(split.data.column(column), "path")
                named |= {path for path in paths.unique().to_pylist() if path is not None}
    others = {file for file in loaded.files if Path(file).suffix.lower() not in AUDIO_SUFFIXES}
    return named | others


def _data_files(builder: Any) -> Iterator[str]:
    for files in (builder.config.data_files or {}).values():
        yield from map(str, files)


def _refuse_foreign(files: Iterable[str], top: Path) -> None:
    """Raise UserError when one of `files` is not inside `top`: lists come from strangers."""
    for file in files:
        if "://" in file or "::" in file or inside(top, file) is None:
            raise UserError(f"{top}: names {file!r}, which is not inside it: correct its README.md")
