"""What projections cost in time, as one matrix or as two, read off a latency table.

A product of the frames of an input with a matrix of some rows and columns takes a time of its own,
and more with each multiply-add, with each column that is read and with each row that is given out:
a thin matrix is read and written around few multiply-adds. By how much follows from projections of
several shapes and ranks that were timed alone, by least squares of relative errors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from hibprune.records.latency_table import LatencyTable


@dataclass(frozen=True)
class ProjectionTime:
    """Milliseconds of a projection by its shape and rank.

    `error` is by how much measured times were missed, as a share of each, in the median.
    """

    per_matrix: float
    per_product: float
    per_column: float
    per_row: float
    error: float

    def __call__(self, rows: int, columns: int, rank: int | None = None) -> float:
        own = (self.per_matrix, self.per_product, self.per_column, self.per_row)
        return float(np.dot(_work(rows, columns, rank), own))


def projection_time(table: LatencyTable) -> ProjectionTime:
    """Fit times of projections to those that a table knows.

    What it takes to start and to end a run is in every time alike, and in no projection of a model.

    Raises:
        ValueError: the table knows no ranks.
    """
    if table.ranks is None:
        raise ValueError("the table knows no ranks")
    measured = table.ranks.projections
    work = np.array([(1.0, *_work(one.rows, one.columns, one.rank)) for one in measured])
    times = np.array([table.of_projection(one) for one in measured])
    scale = work.max(axis=0)
    parts, _ = nnls(work / scale / times[:, None], np.ones(len(times)))
    parts = parts / scale
    error = float(np.median(np.abs(work @ parts / times - 1)))
    _, matrix, product, column, row = map(float, parts)
    return ProjectionTime(matrix, product, column, row, error)


def _work(rows: int, columns: int, rank: int | None) -> tuple[float, float, float, float]:
    """Matrices, their weights, and the columns and rows that they have together."""
    if rank is None:
        return 1.0, rows * columns, columns, rows
    return 2.0, rank * (rows + columns), columns + rank, rank + rows
