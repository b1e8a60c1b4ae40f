"""Ranks in a budget of time: what projections take, and what is chosen for a speed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from hibprune.compression.projection_times import projection_time
from hibprune.compression.quantize.int8 import write_int8
from hibprune.compression.rank_mixture import Mixes, ProjectionCost, Ranks
from hibprune.compression.rank_spectra import Spectra, Spectrum
from hibprune.compression.solver import Cost
from hibprune.compression.unit_mixture import Mixture
from hibprune.deployment.export import export_layer
from hibprune.execution.runtime import onnx_session
from hibprune.models.low_rank import LowRankLinear
from hibprune.records.latency_table import LatencyTable, ProjectionTimes, RankTimes
from hibprune.records.manifest import Machine
from hibprune.records.medium import Length
from hibprune.records.units import Scores, Unit

SLOW = (1.0, 2.0, 1.5)
"""How busy the machine was in each round."""


def milliseconds(rows: int, columns: int, rank: int | None = None) -> float:
    """What a product takes on a machine that is known."""

    def product(rows: int, columns: int) -> float:
        return 0.05 + 2e-5 * rows * columns + 1e-4 * columns + 3e-4 * rows

    if rank is None:
        return product(rows, columns)
    return product(rank, columns) + product(rows, rank)


def table(overhead: float) -> LatencyTable:
    """Times of projections with what it takes to run anything at all."""
    shapes = [(64, 64), (32, 64), (64, 32), (256, 64), (64, 256)]
    whole = tuple(slow * 40.0 for slow in SLOW)
    return LatencyTable(
        variant="pruned",
        at=Length(value=5, unit="seconds"),
        threads=1,
        machine=Machine(processor="p", cores=1, memory_gib=1.0, gpu=None, system="s"),
        original=(40.0,) * 3,
        # Timed at another time than the projections.
        whole=(20.0,) * 3,
        levels=(),
        ranks=RankTimes(
            whole=whole,
            projections=tuple(
                ProjectionTimes(
                    rows=rows,
                    columns=columns,
                    rank=rank,
                    times=tuple(s * (overhead + milliseconds(rows, columns, rank)) for s in SLOW),
                )
                for rows, columns in shapes
                for rank in (None, 4, 12, 24)
            ),
        ),
    )


def test_times_of_other_shapes_and_ranks_follow_the_formula() -> None:
    time = projection_time(table(overhead=0.02))
    assert time.error < 1e-6
    for rows, columns, rank in [(48, 64, None), (128, 64, None), (128, 64, 16), (64, 48, 2)]:
        # The whole model took 40 ms beside them, and takes 20.
        assert time(rows, columns, rank) == pytest.approx(milliseconds(rows, columns, rank) / 2)


def test_a_table_without_ranks_has_no_times_of_projections() -> None:
    old = table(0.0).model_copy(update={"ranks": None})
    with pytest.raises(ValueError, match="knows no ranks"):
        projection_time(old)


HEADS, SIZE, WIDTH, REST = 4, 5, 20, 100.0
FALLING = [2.0**-n for n in range(WIDTH)]
ERRORS = (0.02, 0.1, 0.5, 2.0)


def chosen_from(cost: ProjectionCost, lowest: float, with_ranks: bool = True) -> Mixes:
    """A layer of 4 heads of 5 rows each in a matrix 20 wide, whose time is that of the matrix."""
    scores = Scores(
        method="m",
        heads=tuple(Unit(0, head) for head in range(HEADS)),
        samples=(),
        per_sample=(ERRORS,),
    )

    def spectra(mixes: Sequence[Sequence[Unit]]) -> list[Spectra]:
        left = [SIZE * (HEADS - len(mix)) for mix in mixes]
        return [
            {(0, "p"): Spectrum(rows, WIDTH, tuple(FALLING[:rows]))} if rows else {}
            for rows in left
        ]

    units = Mixture.of([scores], {"head": 1.0}, 0, lambda gone: float(HEADS - len(gone)))
    steps = (0.0, *(cost(SIZE * left, WIDTH) for left in range(1, HEADS + 1)))
    ranks = Ranks(spectra, cost, 1.0) if with_ranks else None
    return Mixes(units, Cost(REST, (0.0,), {}, {0: steps}), ranks, lowest, 2.0)


def cheap(rows: int, columns: int, rank: int | None = None) -> float:
    return float(rows * columns if rank is None else rank * (rows + columns))


def dear(rows: int, columns: int, rank: int | None = None) -> float:
    return cheap(rows, columns, rank) + (0.0 if rank is None else 400.0)


def brute(cost: ProjectionCost, limit: float) -> tuple[float, int, int | None]:
    """The least error within a limit of all numbers of heads that go, and all ranks."""
    found = []
    for gone, rank in itertools.product(range(HEADS + 1), (None, *range(1, WIDTH))):
        rows = SIZE * (HEADS - gone)
        if rank is not None and rank * (rows + WIDTH) >= rows * WIDTH:
            continue
        time = REST + (cost(rows, WIDTH, rank) if rows else 0.0)
        lost = 0.0 if rank is None else sum(FALLING[rank:rows])
        if time <= limit:
            found.append((sum(ERRORS[:gone]) + lost, gone, rank))
    return min(found, key=lambda one: one[0])


@pytest.mark.parametrize("limit", [480, 420, 360, 300, 240, 180, 130])
@pytest.mark.parametrize("cost", [cheap, dear])
def test_ranks_are_taken_where_they_add_least_error_for_a_speed(
    cost: ProjectionCost, limit: float
) -> None:
    error, gone, rank = brute(cost, limit)
    mix = chosen_from(cost, limit).cheapest(limit)
    assert mix.error == pytest.approx(error)
    assert (len(mix.units), mix.ranks) == (gone, {} if rank is None else {(0, "p"): rank})
    assert mix.cost <= limit
    if cost is dear:
        alone = chosen_from(cost, limit, with_ranks=False).cheapest(limit)
        assert mix == alone


def test_projections_that_seem_to_take_longer_than_the_model_cost_no_less_than_nothing() -> None:
    def slow(rows: int, columns: int, rank: int | None = None) -> float:
        return 10 * cheap(rows, columns, rank)

    mixes = chosen_from(slow, 0.0)
    seen = Mixes(mixes.units, Cost(REST, (25.0,)), mixes.ranks, 0.0, 2.0)
    assert 0 < seen.least <= REST


def low_rank(columns: int, rows: int, rank: int) -> LowRankLinear:
    made = LowRankLinear(columns, rows, rank)
    nn.init.normal_(made.weight)
    return made


@pytest.mark.parametrize("layer", [nn.Linear(12, 20), low_rank(12, 20, 3)], ids=["one", "two"])
def test_a_graph_of_one_projection_gives_out_what_it_does_in_either_precision(
    layer: nn.Module, tmp_path: Path
) -> None:
    path, small = tmp_path / "layer.onnx", tmp_path / "small.onnx"
    export_layer(layer, path, torch.zeros(1, 7, 12), 17)
    write_int8(path, small, False, ())
    inputs = torch.randn((1, 9, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = layer(inputs).numpy()
    products = {
        path: [node.op_type for node in onnx.load(path).graph.node] for path in (path, small)
    }
    matrices = 1 if isinstance(layer, nn.Linear) else 2
    assert products[path].count("MatMul") == products[small].count("MatMulInteger") == matrices
    for graph, tolerance in ((path, 1e-5), (small, 0.05)):
        (found,) = onnx_session(graph, "cpu", 1).run(None, {"inputs": inputs.numpy()})
        assert abs(found - wanted).max() <= tolerance * abs(wanted).max()
