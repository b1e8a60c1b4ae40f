"""A graph that takes the waveform itself."""

from __future__ import annotations

from hibprune.records.base import Record


class WaveformGraph(Record):
    """Its `path` in the directory, and that of the graph whose input it makes by itself.

    `relative_diff` is how far it is from feature extractor and graph, as a share of the largest
    value that the graph gives out, at worst over lengths and batches of the export.
    """

    path: str
    made_from: str
    relative_diff: float
