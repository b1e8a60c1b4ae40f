"""Utterances of a Hugging Face data set, from the Hub or a local directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from hibprune.data.dataset_files import (
    DataPlace,
    Loaded,
    find_dataset,
    load_splits,
    not_loaded,
    taken_split,
)
from hibprune.data.labels import LabelledSource
from hibprune.data.paths import RowFiles
from hibprune.data.source import Remote
from hibprune.data.utterances import (
    Content,
    DatasetRow,
    Listing,
    TargetFields,
    Text,
    Utterance,
    columns_wanted,
    target_from,
)
from hibprune.errors import UserError, shortened
from hibprune.records.medium import SOUND, TEXT, Medium

MAX_REASON = 300
"""Characters of what datasets says; it may begin with a long path."""
STRINGS = ("string", "large_string")
"""How `datasets` calls columns of text."""


class HuggingFaceDataset(LabelledSource):
    """A data set that `datasets` reads, from the recipe's directory or else from the Hub.

    `path` is a `save_to_disk` directory, a directory of data files, one such file (`.parquet`,
    `.csv`, `.tsv`, `.json`, `.jsonl`, `.arrow`, `.txt`), or a Hub id. `name`, `split` and
    `revision` are those of `datasets.load_dataset`; no code of the data set is ever run.
    `label_names` gives the model's name for labels: a mapping from class names or numbers, or a
    list by number. For tasks on text, `text` is the column that goes in. Rows may name sound
    files: relative to the data and inside them, or, on this machine only, by an absolute path.
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
    labelled: bool = True

    def listing(self, fields: TargetFields, base: Path) -> Listing:
        """The rows in order; their audio stays where it is until read. Raises UserError."""
        columns = columns_wanted(fields, self.label, self.text, self.slots) if self.labelled else {}
        entering = self.text if fields.medium is TEXT else self.audio
        place = self._found(base)
        loaded = self._loaded(place)
        try:
            dataset = taken_split(loaded.splits, self.split)
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from error
        for column in (entering, *columns.values()):
            if column not in dataset.column_names:
                raise UserError(
                    f"{self._place}: no column '{column}'; "
                    f"its columns are {shortened(', '.join(dataset.column_names), MAX_REASON)}"
                )
        is_text = fields.medium is TEXT
        contents = self._texts(dataset) if is_text else self._clips(dataset, place.files)
        values = {
            field: self._values(dataset, column, is_label=field != "text")
            for field, column in columns.items()
        }
        found = []
        for index, content in enumerate(contents):
            row = {field: column[index] for field, column in values.items()}
            target = target_from(fields, row) if self.labelled else None
            found.append(Utterance(f"{self.split}:{index}", content, target))
        if not found:
            raise UserError(f"{self._place}: has no rows")
        return Listing(found, not_loaded(place, loaded))

    def problems(self, base: Path, offline: bool = False) -> list[str]:
        """A line when `path` is nothing on disk and does not look like a Hub id."""
        try:
            self._found(base)
        except UserError as error:
            return [str(error)]
        return []

    def at_hand(self, base: Path) -> bool:
        """Whether the clips are on this machine, so that listing them downloads nothing."""
        return self._found(base).kind != "hub"

    @property
    def remote(self) -> Remote | None:
        return "the Hub"

    @property
    def _place(self) -> str:
        return f"{self.path} ({self.split})"

    def _found(self, base: Path) -> DataPlace:
        place = find_dataset(self.path, base)
        if place.kind != "hub" and self.revision is not None:
            raise UserError(f"{place.name}: revision: data on this machine have none: leave it out")
        if place.kind in ("saved", "file") and self.name is not None:
            raise UserError(f"{place.name}: name: there is one data set in it: leave it out")
        return place

    def _loaded(self, place: DataPlace) -> Loaded:
        try:
            return load_splits(place, self.name, self.revision)
        except UserError:
            raise
        except Exception as error:
            # Whatever datasets and its loaders raise over files that are not what they seem.
            # "An error occurred while generating the dataset" says nothing; its cause does.
            told = error.__cause__ or error
            reason = shortened(str(told).strip().split("\n")[0], MAX_REASON) or type(told).__name__
            raise UserError(f"{self._place}: cannot be loaded: {reason}") from error

    def _texts(self, dataset: Any) -> list[Content]:
        """The text column; rows without one are left for reading to judge."""
        feature = dataset.features[self.text]
        if getattr(feature, "dtype", None) not in STRINGS:
            raise UserError(f"{self._place}: column '{self.text}' is {feature}; it must hold text")
        column = dataset.select_columns([self.text])[:][self.text]
        return [Text(value or "") for value in column]

    def _clips(self, dataset: Any, files: RowFiles) -> list[Content]:
        rows = self._undecoded(dataset)
        return [DatasetRow(rows, index, self.audio, files) for index in range(len(rows))]

    def _undecoded(self, dataset: Any) -> Any:
        """The audio column alone, as encoded."""
        import datasets

        feature = dataset.features[self.audio]
        is_path = getattr(feature, "dtype", None) in STRINGS
        if not is_path and not isinstance(feature, datasets.Audio):
            raise UserError(
                f"{self._place}: column '{self.audio}' is {feature}; it must hold audio or paths"
            )
        rows = dataset.select_columns([self.audio])
        if is_path:
            rows = rows.cast_column(self.audio, datasets.Value("string"))
        # datasets 4 and later would decode with torchcodec, which need not be installed.
        return rows.cast_column(self.audio, datasets.Audio(decode=False))

    def _values(self, dataset: Any, column: str, is_label: bool) -> list[str]:
        """The column as text; class numbers become class names, labels the model's names."""
        import datasets

        feature = dataset.features[column]
        classes = feature.names if isinstance(feature, datasets.ClassLabel) else None
        values = []
        for index, value in enumerate(dataset.select_columns([column])[:][column]):
            # -1 is how `datasets` writes a class that was withheld.
            withheld = value is None or (classes is not None and value < 0)
            if classes is not None and not withheld and value >= len(classes):
                raise UserError(
                    f"{self._place}: row {index}: '{column}' is {value}, "
                    f"but there are {len(classes)} classes"
                )
            name = "" if withheld else str(value if classes is None else classes[value]).strip()
            if is_label and self.label_names:
                number = None if classes is None else value
                name = self.model_label(name, number)
            if not name:
                raise UserError(f"{self._place}: row {index}: '{column}' is empty")
            values.append(name)
        return values
