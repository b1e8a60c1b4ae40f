"""Utterances of a Hugging Face data set, from the Hub or a local directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from hibprune.data.utterances import (
    Content,
    DatasetRow,
    TargetFields,
    Text,
    Utterance,
    columns_wanted,
    located,
    target_from,
)
from hibprune.errors import UserError
from hibprune.records.base import Record
from hibprune.records.medium import SOUND, TEXT, Medium


class HuggingFaceDataset(Record):
    """A data set that `datasets` reads: a Hub id, a `save_to_disk` directory, or data files.

    `name`, `split` and `revision` are those of `datasets.load_dataset`; no code of the data set
    is ever run. `label_names` renames labels: class names or numbers to the model's names. For
    tasks on text, `text` is the column that goes in.
    """

    media: ClassVar[tuple[Medium, ...]] = (SOUND, TEXT)

    kind: Literal["datasets"]
    path: str
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    audio: str = "audio"
    label: str = "label"
    text: str = "text"
    slots: dict[str, str] = Field(default_factory=dict)
    label_names: dict[int | str, str] = Field(default_factory=dict)
    labelled: bool = True

    def utterances(self, fields: TargetFields, base: Path) -> list[Utterance]:
        """The rows in order; their audio stays where it is until read. Raises UserError."""
        columns = columns_wanted(fields, self.label, self.text, self.slots) if self.labelled else {}
        entering = self.text if fields.medium is TEXT else self.audio
        dataset = self._loaded(base)
        for column in (entering, *columns.values()):
            if column not in dataset.column_names:
                raise UserError(
                    f"{self._place}: no column '{column}'; "
                    f"its columns are {', '.join(dataset.column_names)}"
                )
        contents = self._texts(dataset) if fields.medium is TEXT else self._clips(dataset)
        values = {field: self._values(dataset, column) for field, column in columns.items()}
        found = []
        for index, content in enumerate(contents):
            row = {field: column[index] for field, column in values.items()}
            target = target_from(fields, row) if self.labelled else None
            found.append(Utterance(f"{self.split}:{index}", content, target))
        if not found:
            raise UserError(f"{self._place}: has no rows")
        return found

    def problems(self, base: Path, offline: bool = False) -> list[str]:
        """A line when `path` is neither a directory nor looks like a Hub id."""
        if located(self.path, base).is_dir() or _hub_id_like(self.path):
            return []
        return [f"{located(self.path, base)}: no such directory"]

    def at_hand(self, base: Path) -> bool:
        """Whether the clips are on this machine, so that listing them downloads nothing."""
        return located(self.path, base).is_dir()

    @property
    def _place(self) -> str:
        return f"{self.path} ({self.split})"

    def _loaded(self, base: Path) -> Any:
        import datasets
        from datasets.exceptions import DatasetsError

        directory = located(self.path, base)
        if not directory.is_dir() and not _hub_id_like(self.path):
            raise UserError(f"{directory}: no such directory")
        try:
            if not _saved_to_disk(directory):
                return self._built(str(directory) if directory.is_dir() else self.path)
            saved = datasets.load_from_disk(str(directory))
        except (OSError, ValueError, RuntimeError, ImportError, DatasetsError) as error:
            # "An error occurred while generating the dataset" says nothing; its cause does.
            told = error.__cause__ or error
            reason = str(told).strip().split("\n")[0] or type(told).__name__
            raise UserError(f"{self._place}: cannot be loaded: {reason}") from error
        if not isinstance(saved, datasets.DatasetDict):
            return saved
        if self.split not in saved:
            raise UserError(
                f"{self.path}: no split '{self.split}'; its splits are {', '.join(saved)}"
            )
        return saved[self.split]

    def _built(self, path: str) -> Any:
        """`datasets.load_dataset`, made to take sound files as they are."""
        import datasets

        builder = datasets.load_dataset_builder(path, self.name, revision=self.revision)
        if getattr(builder, "BASE_FEATURE", None) is datasets.Audio:
            builder.BASE_FEATURE = _undecoded_audio()
        builder.download_and_prepare()
        return builder.as_dataset(split=self.split)

    def _texts(self, dataset: Any) -> list[Content]:
        """The text column; rows without one are left for reading to judge."""
        feature = dataset.features[self.text]
        if getattr(feature, "dtype", None) not in ("string", "large_string"):
            raise UserError(f"{self._place}: column '{self.text}' is {feature}; it must hold text")
        column = dataset.select_columns([self.text])[:][self.text]
        return [Text(value or "") for value in column]

    def _clips(self, dataset: Any) -> list[Content]:
        rows = self._undecoded(dataset)
        return [DatasetRow(rows, index, self.audio) for index in range(len(rows))]

    def _undecoded(self, dataset: Any) -> Any:
        """The audio column alone, as encoded."""
        import datasets

        feature = dataset.features[self.audio]
        is_path = isinstance(feature, datasets.Value) and feature.dtype == "string"
        if not is_path and not isinstance(feature, datasets.Audio):
            raise UserError(
                f"{self._place}: column '{self.audio}' is {feature}; it must hold audio or paths"
            )
        # datasets 4 and later would decode with torchcodec, which need not be installed.
        return dataset.select_columns([self.audio]).cast_column(
            self.audio, datasets.Audio(decode=False)
        )

    def _values(self, dataset: Any, column: str) -> list[str]:
        """The column as text; class numbers become class names, then `label_names` applies."""
        import datasets

        feature = dataset.features[column]
        classes = feature.names if isinstance(feature, datasets.ClassLabel) else None
        values = []
        for index, value in enumerate(dataset.select_columns([column])[:][column]):
            # -1 is how `datasets` writes a class that was withheld.
            withheld = value is None or (classes is not None and value < 0)
            name = "" if withheld else str(value if classes is None else classes[value]).strip()
            name = self.label_names.get(value, self.label_names.get(name, name))
            if not name:
                raise UserError(f"{self._place}: row {index}: '{column}' is empty")
            values.append(name)
        return values


def _undecoded_audio() -> Any:
    """`datasets.Audio` that only notes where a file is; the original needs torchcodec for that."""
    import datasets

    class UndecodedAudio(datasets.Audio):  # type: ignore[misc]
        def encode_example(self, value: Any) -> dict[str, Any]:
            if isinstance(value, dict):
                return {"bytes": value.get("bytes"), "path": value.get("path")}
            return {"bytes": None, "path": str(value)}

    return UndecodedAudio


def _saved_to_disk(directory: Path) -> bool:
    return any((directory / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _hub_id_like(path: str) -> bool:
    """Whether `path` could be `name` or `owner/name` on the Hub, rather than a path on disk."""
    return not path.startswith((".", "/", "~")) and path.count("/") <= 1
