"""Memory: what is free, what a computation takes, and the batches that follow from both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_hib import method, samples_of, task_loss, tiny
from torch import Tensor

import hibprune.attribution.batches
import hibprune.memory
from hibprune.attribution import Session
from hibprune.attribution.batches import SHARE_OF_FREE_MEMORY
from hibprune.errors import UserError
from hibprune.memory import free_bytes, peak_bytes
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
    def test_is_what_linux_says_or_the_container_leaves(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        meminfo = tmp_path / "meminfo"
        meminfo.write_text("MemTotal: 900 kB\nMemAvailable:    300 kB\nHugePages_Total:   0\n")
        monkeypatch.setattr(hibprune.memory, "MEMINFO", meminfo)
        monkeypatch.setattr(hibprune.memory, "CONTAINER", tmp_path)
        assert free_bytes(CPU) == 300 * 1024
        (tmp_path / "memory.max").write_text("max\n")
        (tmp_path / "memory.current").write_text("500\n")
        assert free_bytes(CPU) == 300 * 1024
        (tmp_path / "memory.max").write_text("2000\n")
        assert free_bytes(CPU) == 1500

    def test_elsewhere_it_is_all_there_is(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(hibprune.memory, "MEMINFO", tmp_path / "none")
        assert free_bytes(CPU) > 2**28


LENGTHS = (0.08,) * 6


def largest_batch(free: float, monkeypatch: pytest.MonkeyPatch, **fields: Any) -> int:
    """Of six samples of one length, with so much memory free."""
    monkeypatch.setattr(hibprune.attribution.batches, "free_bytes", lambda device: free)
    row, sizes = tiny("wav2vec2"), []

    def watched(model: Any, batch: Batch) -> Tensor:
        sizes.append(len(batch.ids))
        return task_loss(model, batch)

    samples = samples_of(row, LENGTHS)
    method(steps=1, **fields).attribute(row.build(), samples, watched, Session())
    assert sizes[0] == 1, "the step that measures"
    return max(sizes)


def test_batches_grow_with_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []

    def watched(compute: Any, device: torch.device) -> int:
        measured.append(peak_bytes(compute, device))
        return measured[-1]

    monkeypatch.setattr(hibprune.attribution.batches, "peak_bytes", watched)
    assert largest_batch(1e9, monkeypatch) == 6
    sample = measured[0] / SHARE_OF_FREE_MEMORY
    assert largest_batch(3.1 * sample, monkeypatch) == 3
    assert largest_batch(0.1 * sample, monkeypatch) == 1
    assert largest_batch(1e9, monkeypatch, batch_size=4) == 4
    assert largest_batch(1e9, monkeypatch, memory_gib=2.1 * measured[0] / 2**30) == 2
    # A_r, its gradient and two moments of 8 heads alone.
    frames = 3
    assert measured[0] > 4 * 8 * frames**2 * 4


def test_a_sample_that_does_not_fit_is_told_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    row = tiny("wav2vec2")

    def short(model: Any, batch: Batch) -> Tensor:
        if batch.inputs["input_values"].shape[1] > 1500:
            raise torch.OutOfMemoryError("out of memory")
        return task_loss(model, batch)

    # Twice what the short sample takes, so that √2 times its length is sure to fit.
    monkeypatch.setattr(hibprune.attribution.batches, "peak_bytes", lambda run, device: run() or 50)
    monkeypatch.setattr(hibprune.attribution.batches, "free_bytes", lambda device: 100)
    with pytest.raises(UserError) as error:
        method().attribute(row.build(), samples_of(row, (0.08, 0.2)), short, Session())
    assert str(error.value) == (
        "clip1: attribution of this sample alone does not fit into memory: use ones at most 0.57 "
        "times as long (of sound: max_seconds) or a machine with more"
    )
