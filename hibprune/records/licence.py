"""The licence of a model, as the Hugging Face Hub names licences."""

from __future__ import annotations

from hibprune.records.base import Record


class Licence(Record):
    """A licence by the Hub's `id`; one that has none there is `other`, with a `name` and a `link`.

    `taken_from` says where that stands.
    """

    id: str
    name: str | None = None
    link: str | None = None
    taken_from: str
