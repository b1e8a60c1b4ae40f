"""Memory: what is free, what a computation takes, and the batches that follow from both."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from test_hib import samples_of, task_loss, tiny
from test_methods import BY_NAME, method
from torch import Tensor
from transformers import PreTrainedModel

import hibprune.attribution.fitting
import hibprune.execution.memory
from hibprune.attribution import MethodBase
from hibprune.attribution.batches import read_unmodified
from hibprune.attribution.interface import BatchedMethod
from hibprune.attribution.passes import passes_counted
from hibprune.attribution.session import Sample, Session
from hibprune.errors import UserError
from hibprune.execution.memory import free_bytes, or_none_without_memory, peak_bytes
from hibprune.models.attention import frozen, heads_of, positions_fitted
from hibprune.tasks import Batch

CPU = torch.device("cpu")
KILOBYTE = torch.Size([250])
"""Of float32."""


class TestPeak:
    def test_what_is_let_go_of_counts_no_longer(self) -> None:
        def one_after_the_other() -> None:
            state = torch.zeros(KILOBYTE)
            for _ in range(5):
                state = state + 1

        assert peak_bytes(one_after_the_other, CPU) == 2000
        kept: list[Tensor] = []
        assert peak_bytes(lambda: kept.extend(torch.zeros(KILOBYTE) for _ in range(5)), CPU) == 5000

    def test_views_and_what_was_there_before_cost_nothing(self) -> None:
        there = torch.zeros(KILOBYTE)
        assert peak_bytes(lambda: [there.view(10, 25), there.add_(1), there[3:]], CPU) == 0

    def test_what_autograd_keeps_counts(self) -> None:
        start = torch.zeros(KILOBYTE, requires_grad=True)

        def chain(grow: bool) -> None:
            with torch.set_grad_enabled(grow):
                state = start
                for _ in range(10):
                    state = state.exp()

        assert peak_bytes(lambda: chain(False), CPU) == 2000
        assert peak_bytes(lambda: chain(True), CPU) == 10_000

    def test_gradients_on_the_way_back_count(self) -> None:
        start = torch.zeros(KILOBYTE, requires_grad=True)
        forward = peak_bytes(lambda: start.exp().sum(), CPU)
        assert peak_bytes(lambda: start.exp().sum().backward(), CPU) >= forward + 1000


class TestFree:
    def test_is_what_the_machine_has_left_or_the_container_leaves(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        left = SimpleNamespace(available=300 * 1024)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: left)
        monkeypatch.setattr(hibprune.execution.memory, "CONTAINER", tmp_path)
        assert free_bytes(CPU) == 300 * 1024
        (tmp_path / "memory.max").write_text("max\n")
        (tmp_path / "memory.current").write_text("500\n")
        assert free_bytes(CPU) == 300 * 1024
        (tmp_path / "memory.max").write_text("2000\n")
        assert free_bytes(CPU) == 1500


class TestRunningOut:
    def test_is_told_from_other_errors(self) -> None:
        def fail(error: Exception) -> None:
            raise error

        assert or_none_without_memory(lambda: 7) == 7
        for error in (
            MemoryError(),
            torch.OutOfMemoryError("CUDA out of memory"),
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
        ):
            assert or_none_without_memory(lambda error=error: fail(error)) is None  # type: ignore[misc]
        with pytest.raises(RuntimeError, match="shapes"):
            or_none_without_memory(lambda: fail(RuntimeError("shapes do not match")))


# Batches ---------------------------------------------------------------------------------------

BATCHED = [name for name, chosen in BY_NAME.items() if issubclass(chosen, BatchedMethod)]
every_batched_method = pytest.mark.parametrize("name", BATCHED)


class Watched:
    """A run of a method: the largest batch or step that each clip was in, and what was measured."""

    def __init__(self) -> None:
        self.measured: list[int] = []
        self.sizes: dict[str, int] = {}
        self._scored: set[str] = set()

    def peak_bytes(self, compute: Callable[[], object], device: torch.device) -> int:
        self.measured.append(peak_bytes(compute, device))
        # What was seen so far was for measuring.
        self.sizes.clear()
        return self.measured[-1]

    def loss(self, model: Any, batch: Batch) -> Tensor:
        self._seen(batch.ids)
        return task_loss(model, batch)

    def save(self, rows: Mapping[str, Any], **_: Any) -> None:
        """For methods that look at the attention alone, and at no loss."""
        self._seen(rows.keys() - self._scored)
        self._scored.update(rows)

    def _seen(self, clips: Collection[str]) -> None:
        for clip in set(clips):
            self.sizes[clip] = max(self.sizes.get(clip, 0), len(clips))


def run(
    settings: MethodBase,
    model: PreTrainedModel,
    samples: list[Sample],
    monkeypatch: pytest.MonkeyPatch,
    free: float = 1e12,
) -> Watched:
    """With so much memory free."""
    watched = Watched()
    monkeypatch.setattr(hibprune.attribution.fitting, "peak_bytes", watched.peak_bytes)
    monkeypatch.setattr(hibprune.attribution.fitting, "free_bytes", lambda device: free)
    session = Session(save=watched.save)
    settings.attribute(model, samples, watched.loss, session)
    return watched


FITTING = 3.5
"""Samples of the longest."""
PADDED = (0.6, 0.6, 0.58, 0.55, 0.52, 0.5, *(0.2, 0.19) * 5)
CASES = {
    "wav2vec2": PADDED,
    "wavlm": PADDED,
    "bert": PADDED,
    # As many tokens for each second, which the decoder's share grows with.
    "whisper": (*(0.05,) * 4, *(0.1,) * 6),
}

SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("model_name", "name"),
    [
        # wav2vec2 and bert differ from wavlm by their attention, which two methods do for.
        pytest.param(
            model,
            name,
            marks=() if model in ("wavlm", "whisper") or name in ("hib", "taylor") else SLOW,
        )
        for model in CASES
        for name in BATCHED
    ],
)
def test_batches_are_as_large_as_memory_allows_and_no_larger(
    model_name: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted over the whole run: nothing outlives a batch but a few numbers."""
    row = tiny(model_name)
    model, samples = row.build(), samples_of(row, CASES[model_name])
    longest = max(CASES[model_name])
    # Points of the integral, which are passes, are to be more than fit.
    fields = {"steps": 12} if name == "attattr" else {}
    (measured,) = run(method(name, **fields), model, samples, monkeypatch).measured
    # Padding is measured where there will be any.
    one = measured if row.equal_lengths else measured / 2
    room = FITTING * one
    settings = method(name, memory_gib=room / 2**30, batch_size=100, **fields)
    done: list[Watched] = []
    peak = peak_bytes(lambda: done.append(run(settings, model, samples, monkeypatch)), CPU)
    # Gates go over the same samples again and again, and keep what no gate reaches.
    kept = kept_by(model, samples) if name == "gates" else 0
    # Passes over one clip share its attention, which is counted for each.
    least = 0.5 if name == "attattr" else 0.8
    assert least * room < peak - kept <= room
    sizes = [done[0].sizes[sample.id] for sample in samples]
    long = max(size for size, at in zip(sizes, CASES[model_name], strict=True) if at == longest)
    assert long == int(FITTING)
    assert max(sizes) > long


def kept_by(model: PreTrainedModel, samples: list[Sample]) -> int:
    number = 0
    for sample in samples:
        with frozen(model), positions_fitted(model, sample.inputs):
            prefix = read_unmodified(model, [sample], attention=False).prefix
        number += sum(part.nbytes for parts in prefix.values() for part in parts)
    return number


# Each of the ways in which methods come to their batches.
@pytest.mark.parametrize("name", ["hib", "gates", "attattr", "taylor"])
def test_half_of_what_is_free_is_for_batches(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    row = tiny("wav2vec2")
    model, samples = row.build(), samples_of(row, (0.08,) * 6)

    def largest(free: float, **fields: Any) -> int:
        watched = run(method(name, **fields), model, samples, monkeypatch, free)
        return max(watched.sizes.values())

    (one,) = run(method(name), model, samples, monkeypatch).measured
    assert largest(2 * 3.1 * one) == 3
    assert largest(2 * 0.1 * one) == 1
    assert largest(1e12, batch_size=2) == 2
    assert largest(1, memory_gib=3.1 * one / 2**30) == 3


def test_the_moments_of_the_first_step_are_there_in_the_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row = tiny("wav2vec2")
    model, samples = row.build(), samples_of(row, (0.5,))
    measured = {
        steps: run(method("hib", steps=steps), model, samples, monkeypatch).measured[0]
        for steps in (1, 2, 40)
    }
    frames = read_unmodified(model, samples).batch.frames[0]
    matrices = 4 * len(heads_of(model)) * frames**2
    assert measured[2] == measured[40] >= measured[1] + matrices
    # A_r, its gradient and two moments alone.
    assert measured[1] > 4 * matrices


@every_batched_method
def test_measuring_takes_little_and_changes_no_scores(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = tiny("wav2vec2")
    model, samples = row.build(), samples_of(row, (0.08,) * 6)
    settings = method(name, **MEASURED.get(name, {}))
    found = []
    for peak in (peak_bytes, lambda *_: 1):
        monkeypatch.setattr(hibprune.attribution.fitting, "peak_bytes", peak)
        with passes_counted(model) as passes:
            scores = settings.attribute(model, samples, task_loss, Session())
        found.append((scores, np.array([passes.forwards, passes.backwards])))
    (measured, more), (unmeasured, passes) = found
    assert measured == unmeasured
    assert more[0] > passes[0]
    assert (more - passes <= passes / len(samples)).all()


MEASURED: dict[str, dict[str, Any]] = {"gates": {"steps": 40}}
"""A single pass over a sample would be more than a sample's share of fewer."""


def test_a_sample_that_does_not_fit_is_told_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    row = tiny("wav2vec2")

    def short(model: Any, batch: Batch) -> Tensor:
        if batch.inputs["input_values"].shape[1] > 1500:
            raise torch.OutOfMemoryError("out of memory")
        return task_loss(model, batch)

    # Twice what the short sample takes, so that √2 times its length is sure to fit.
    fitting = hibprune.attribution.fitting
    monkeypatch.setattr(fitting, "peak_bytes", lambda run, device: run() or 50)
    monkeypatch.setattr(fitting, "free_bytes", lambda device: 100)
    for name in ("hib", "taylor"):
        with pytest.raises(UserError) as error:
            method(name).attribute(row.build(), samples_of(row, (0.08, 0.2)), short, Session())
        assert str(error.value) == (
            "clip1: attribution of this sample alone does not fit into memory: use ones at most "
            "0.57 times as long (of sound: max_seconds) or a machine with more"
        )


def test_where_two_do_not_fit_one_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    row = tiny("wav2vec2")
    sizes: list[int] = []

    def one_by_one(model: Any, batch: Batch) -> Tensor:
        sizes.append(len(batch.ids))
        if sizes[-1] > 1:
            raise torch.OutOfMemoryError("out of memory")
        return task_loss(model, batch)

    monkeypatch.setattr(hibprune.attribution.fitting, "free_bytes", lambda device: 1)
    notices: list[str] = []
    session = Session(notice=notices.append)
    method("taylor").attribute(row.build(), samples_of(row), one_by_one, session)
    assert sizes == [2, 1, 1, 1, 1]
    assert notices == []
