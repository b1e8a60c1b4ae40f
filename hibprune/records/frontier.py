"""A frontier: one recipe at several budgets, each measured beside the others."""

from __future__ import annotations

from typing import Literal

from hibprune.records.base import Record
from hibprune.records.manifest import BudgetSummary, Machine, MetricSummary, ModelSummary
from hibprune.records.units import Pool
from hibprune.records.variants import MissingVariant, Variant


class FrontierPoint(Record):
    """One budget: what it came to, and the variants that were made of it.

    `directory` holds the whole run, within that of the frontier; `removed` counts units by kind,
    `factored` the projections that became two matrices.
    Latencies of variants are those of the frontier, all models timed in turn.
    """

    label: str
    directory: str
    budget: BudgetSummary
    removed: dict[Pool, int]
    factored: int = 0
    variants: tuple[Variant, ...]
    missing: tuple[MissingVariant, ...] = ()


class Frontier(Record):
    """Everything a frontier found; `rivals` are the unpruned model, and that in lower precision."""

    schema_version: Literal[1] = 1
    recipe: str
    command: str
    model: ModelSummary
    task: str
    metric: MetricSummary
    rivals: tuple[Variant, ...]
    points: tuple[FrontierPoint, ...]
    machine: Machine
    versions: dict[str, str]
