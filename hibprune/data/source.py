"""What every data source answers."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import ClassVar, Literal

from hibprune.data.utterances import Listing, TargetFields, Utterance
from hibprune.records.base import Settings
from hibprune.records.medium import Medium

Remote = Literal["the Hub", "its publisher"]


class Source(Settings):
    """A place that utterances come from, as a recipe describes it."""

    media: ClassVar[tuple[Medium, ...]]

    @abstractmethod
    def listing(self, fields: TargetFields, base: Path) -> Listing:
        """The utterances, unread, and what was passed over; `base` is where paths start.

        Raises UserError when the source is not there or not in the form it should have.
        """

    @abstractmethod
    def problems(self, base: Path, offline: bool = False) -> list[str]:
        """A line for each place that is not there, as far as the disk tells.

        What could be had from elsewhere is no problem `offline`.
        """

    @abstractmethod
    def at_hand(self, base: Path) -> bool:
        """Whether the data are on this machine, so that listing them downloads nothing."""

    @property
    def remote(self) -> Remote | None:
        """Where the data are fetched from when they are not at hand; None: they are not."""
        return None

    def utterances(self, fields: TargetFields, base: Path) -> list[Utterance]:
        """The utterances of `listing`. Raises UserError."""
        return self.listing(fields, base).utterances
