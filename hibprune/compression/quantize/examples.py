"""Example inputs for every graph of an exported model, decoders fed by the graphs before them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from hibprune.compression.quantize.value_ranges import Feed
from hibprune.errors import UserError
from hibprune.execution.runtime import onnx_session

STATES, PAST, CHOICE = "encoder_hidden_states", "past_key_values", "use_cache_branch"
MASKED = {"attention_mask": ("input_ids", "input_values"), "encoder_attention_mask": (STATES,)}
"""What each mask is as long as."""


def graph_feeds(
    directory: Path,
    graphs: Sequence[str],
    examples: Iterable[Mapping[str, ArrayLike]],
    tokens: Sequence[int] = (),
) -> dict[str, list[Feed]]:
    """What each graph in `directory`, an encoder first, is given when the model runs on `examples`.

    An example holds the model's inputs by name, each with the batch first; masks and token types
    that are missing are filled in. A merged decoder is told `tokens`, two or more: the last in a
    step of its own, with what it remembers of the others.

    Raises:
        UserError: a graph cannot be loaded, or takes what the others do not give.
    """
    sessions = [_Graph(directory, graph) for graph in graphs]
    feeds: dict[str, list[Feed]] = {graph: [] for graph in graphs}
    for example in examples:
        known = {name: np.asarray(value) for name, value in example.items()}
        batch = len(next(iter(known.values())))
        said = np.tile(np.array(tokens, np.int64), (batch, 1))
        for one in sessions:
            if not one.decodes:
                feeds[one.name].append(one.feed(known))
                known[STATES] = one.run(feeds[one.name][-1])[0]
                continue
            start = {**known, **one.no_memory(batch), "input_ids": said[:, :-1]}
            first = one.feed({**start, CHOICE: np.array([False])})
            then = {**known, **one.memory(first), "input_ids": said[:, -1:]}
            feeds[one.name] += [first, one.feed({**then, CHOICE: np.array([True])})]
    return feeds


class _Graph:
    """A graph with the session that runs it, asked about its part in the model."""

    def __init__(self, directory: Path, name: str) -> None:
        self.name = name
        self._path = directory / name
        self._session = onnx_session(self._path, "cpu")
        self._inputs = {one.name: one for one in self._session.get_inputs()}
        self.decodes = CHOICE in self._inputs

    def no_memory(self, batch: int) -> Feed:
        """What stands for a memory where there is none yet, as Optimum makes it."""
        shapes = {name: one.shape for name, one in self._inputs.items() if name.startswith(PAST)}
        return {
            name: np.zeros(
                (batch, *(n if isinstance(n, int) else 1 for n in shape[1:])), np.float32
            )
            for name, shape in shapes.items()
        }

    def feed(self, known: Mapping[str, np.ndarray]) -> Feed:
        return {name: self._value(name, known) for name in self._inputs}

    def _value(self, name: str, known: Mapping[str, np.ndarray]) -> np.ndarray:
        if name in known:
            return known[name]
        masked = next((known[one] for one in MASKED.get(name, ()) if one in known), None)
        if masked is not None:
            return np.ones(masked.shape[:2], np.int64)
        if name == "token_type_ids":
            return np.zeros_like(known["input_ids"])
        raise UserError(f"{self._path}: takes '{name}', which nothing gives it: export it again")

    def run(self, feed: Feed) -> list[np.ndarray]:
        return list(self._session.run(None, dict(feed)))

    def memory(self, feed: Feed) -> dict[str, np.ndarray]:
        """What it gives out for the next step, by the names of inputs."""
        names = [one.name for one in self._session.get_outputs()]
        return {
            name.replace("present", PAST, 1): value
            for name, value in zip(names, self.run(feed), strict=True)
            if name.startswith("present")
        }
