"""Scores and a budget make a plan: which heads go."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import get_args

from pydantic import Field, model_validator

from hibprune.compression.ranking import heads_counted, lowest_within, no_head_by
from hibprune.errors import UserError
from hibprune.records.base import Settings
from hibprune.records.units import (
    ENCODER,
    POOLS,
    Currency,
    Head,
    HeadShare,
    MixKind,
    OneNumber,
    Plan,
    Pool,
    Scope,
    Scores,
    Unit,
    min_kept,
    pool_words,
)

AMOUNTS = ("fraction", "heads", *get_args(OneNumber))
"""Of which a recipe gives one, or none where shares of other units alone are to go."""


class Budget(Settings):
    """How much to remove: by a number for each kind of unit, or by one for all kinds together.

    `fraction` is the share of the encoder's heads that goes, `heads` their number; shares of other
    units go beside them or alone: `neurons` of the encoder's feed-forwards, `decoder_neurons` of a
    decoder's, `channels` of the convolutions in front of the encoder, `decoder_heads` of a
    decoder's self-attention and `cross_heads` of its cross-attention. Where no head of the encoder
    is to go, heads are scored by `reconstruction` whatever `attribution` says, for the report
    alone, in a single round. `scope: global` removes the lowest
    scores over the whole model, `layerwise` the same number from every layer (`heads` then counts
    per layer), of heads and neurons; channels always go from every layer alike. No layer is left
    with fewer heads than `min_heads_per_layer`, and one of a decoder with at least one of each
    kind, since it tells by their keys how many tokens were said. `ranks` is the share of the
    weights that goes of each projection of the encoder (query, key, value and output of attention,
    both matrices of the feed-forwards), as it is once all else is gone: it becomes two thinner
    matrices, whose rank r is the largest with r · (rows + columns) ≤ (1 − ranks) · rows · columns;
    where even rank 1 would not be cheaper, it stays one.

    One number for all kinds of units together: `parameters` is the share of the whole
    model's parameters that STAYS, `multiply_adds` that of its multiply-adds on an input of the
    first length of `benchmark`; `size_mb` is what the ONNX files of `gates.variant` may take up, in
    fp32 or int8; `metric_drop` how far the metric may fall (0.01 is a point), or errors rise, on
    the last quarter of the calibration clips, which are then kept out of scoring and repair, before
    any gradient steps; `speedup` how many times as fast `gates.variant` is to be as the original,
    in fp32 or int8, at the middle one of `benchmark`'s lengths, timed in the run. What goes from
    where is decided by the error that each unit adds for what it saves, all in one round. Errors
    are those of the method `reconstruction`, whatever the sections on attribution say, unless a
    single kind may go. Projections become two matrices where that adds less for it (`rank`), each
    of a rank of its own, unless what comes of it is not fitted (`removal.repair: least-squares`);
    a speed is also looked for by units alone, taken unless ranks add clearly less. `kinds` limits
    what may go; left out, it is all that the family has, and heads alone under `attribution.paper`.
    """

    fraction: float | None = Field(default=None, ge=0, lt=1)
    heads: int | None = Field(default=None, ge=0)
    neurons: float = Field(default=0.0, ge=0, lt=1)
    channels: float = Field(default=0.0, ge=0, lt=1)
    decoder_neurons: float = Field(default=0.0, ge=0, lt=1)
    decoder_heads: float = Field(default=0.0, ge=0, lt=1)
    cross_heads: float = Field(default=0.0, ge=0, lt=1)
    ranks: float = Field(default=0.0, ge=0, lt=1)
    parameters: float | None = Field(default=None, gt=0, lt=1)
    multiply_adds: float | None = Field(default=None, gt=0, lt=1)
    size_mb: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    metric_drop: float | None = Field(default=None, ge=0, lt=1)
    speedup: float | None = Field(default=None, gt=1, allow_inf_nan=False)
    kinds: tuple[MixKind, ...] | None = Field(default=None, min_length=1)
    scope: Scope = "global"
    min_heads_per_layer: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _one_amount(self) -> Budget:
        given = [name for name in AMOUNTS if getattr(self, name) is not None]
        others = self.ranks or any(self.share_of(pool)[0] for pool in POOLS if pool != "head")
        if len(given) > 1 or not (given or others):
            one = f"give one of {_either(AMOUNTS)}"
            if given:
                raise ValueError(f"{one}: there are {' and '.join(given)}")
            shares = _either([*(f"{pool}s" for pool in POOLS if pool != "head"), "ranks"])
            raise ValueError(f"{one}, or a share of {shares}: there is none")
        if not (self.one_number or self.takes_heads or others):
            raise ValueError(
                f"{given[0]} is 0 and there is no share of other units, so that nothing would go: "
                "raise it or give one"
            )
        return self

    @model_validator(mode="after")
    def _one_number_decides_alone(self) -> Budget:
        if self.one_number is None:
            if self.kinds is not None:
                raise ValueError(
                    f"kinds limits what {_either(get_args(OneNumber))} may take: leave it out"
                )
            return self
        for pool in POOLS:
            name = f"{pool}s"
            if pool != "head" and getattr(self, name):
                raise ValueError(
                    f"{name} contradicts {self.one_number}, which decides by itself what goes: "
                    "leave it out, or limit what may go by kinds"
                )
        if self.ranks:
            raise ValueError(
                f"ranks contradicts {self.one_number}, which decides by itself what goes: "
                "leave it out, or limit what may go by kinds"
            )
        if self.scope == "layerwise":
            raise ValueError(
                f"scope: layerwise contradicts {self.one_number}, which is one number for all "
                "layers: leave it out"
            )
        if self.kinds is not None and len(set(self.kinds)) < len(self.kinds):
            raise ValueError("kinds: name each kind once")
        return self

    @property
    def one_number(self) -> OneNumber | None:
        """Which number is for all kinds together; None where each kind has its own."""
        names: tuple[OneNumber, ...] = get_args(OneNumber)
        return next((name for name in names if getattr(self, name) is not None), None)

    @property
    def takes_heads(self) -> bool:
        """Whether heads of the encoder are to go by a number of their own."""
        return bool(self.fraction or self.heads)

    @property
    def amount(self) -> float:
        """That number."""
        return float(getattr(self, self.one_number or ""))

    @property
    def currency(self) -> Currency:
        """What is counted for it."""
        return "multiply_adds" if self.multiply_adds is not None else "parameters"

    def share_of(self, pool: Pool) -> tuple[float, Scope]:
        """The share of units beside heads that goes, of all or of every layer: so of channels."""
        share: float = getattr(self, f"{pool}s")
        return share, "layerwise" if pool == "channel" else self.scope

    def share(self, total: int) -> HeadShare | None:
        """The share of `total` heads that it asks for; None where it gives no share of them."""
        if not self.fraction:
            return None
        return HeadShare(fraction=self.fraction, total=total, scope=self.scope)


def _either(names: Sequence[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]])


class Schedule(Settings):
    """In how many `rounds` the heads go: after each, those that are left are scored again.

    What is scored then is the model as it will be: without those heads, and repaired as `removal`
    says.

    A budget of fewer heads than rounds takes as many rounds as heads.
    """

    rounds: int = Field(default=1, ge=1)

    def rounds_for(self, budget: Budget, heads: tuple[Head, ...]) -> int:
        """How many rounds there will be, so that a head goes in each of them."""
        groups = Counter(head.layer if budget.scope == "layerwise" else None for head in heads)
        return max(1, min(self.rounds, max(_amount(budget, size) for size in groups.values())))


@dataclass(frozen=True)
class Round:
    """One of the rounds in which heads go, counted from 1; `gone` went in those before."""

    number: int = 1
    rounds: int = 1
    gone: tuple[Head, ...] = ()

    def due(self, total: int) -> int:
        """How many of `total` heads are gone when the round is over."""
        return round(total * self.number / self.rounds)


ONLY_ROUND = Round()


def make_plan(scores: Scores, budget: Budget, part: Round = ONLY_ROUND) -> Plan:
    """Remove the lowest scores within the budget; ties go to the lower (layer, index) first.

    None, where the budget is of other units alone.

    The budget is of all heads, also those gone in rounds before; the plan is of those that
    `scores` are of.

    Raises:
        UserError: the budget asks for more heads than may go, or for a share of less than one; a
            score is not finite; or a head is not the encoder's.
    """
    removed = lowest_heads(scores, budget, part)
    if not removed and budget.takes_heads:
        share, keep = budget.fraction or 0.0, budget.min_heads_per_layer
        raise UserError(no_head_by(share, scores.heads, budget.scope, keep))
    kept = set(scores.heads) - set(removed)
    return Plan(removed=removed, kept=tuple(sorted(kept)))


def plan_line(plan: Plan, budget: Budget, part: Round = ONLY_ROUND) -> str:
    """How many heads go, of how many, and by which budget; the last round says what rounding took.

    E.g. `18 of 36 heads to remove, global (fraction 0.5)`.
    """
    if not budget.takes_heads:
        return f"none of {plan.total} heads to remove"
    line = f"{len(plan.removed)} of {heads_counted(plan.total)} to remove, {budget.scope}"
    if part.rounds > 1:
        line += f", round {part.number} of {part.rounds}"
    share = budget.share(plan.total + len(part.gone))
    if share is None:
        return line
    last = part.number == part.rounds
    rounding = share.rounding(len(plan.removed) + len(part.gone)) if last else None
    return f"{line}: {rounding}" if rounding else f"{line} (fraction {share.fraction:g})"


def lowest_heads(scores: Scores, budget: Budget, part: Round = ONLY_ROUND) -> tuple[Head, ...]:
    """The heads that a budget removes, sorted; none where its fraction is less than one head.

    A fraction is rounded down to whole heads.

    Raises:
        UserError: the budget asks for more heads than may go; a score is not finite; or a head is
            not the encoder's.
    """
    values = scores.values
    require_encoder(scores.heads)
    for head, value in values.items():
        if not math.isfinite(value):
            raise UserError(
                f"attribution: the score of head {head.index} of layer {head.layer} is {value}: "
                "see whether the model's outputs are finite, or lower the learning rate"
            )
    ranking = sorted(values, key=lambda head: (values[head], head))
    if budget.scope == "global":
        total = _amount(budget, len(ranking) + len(part.gone))
        amount = part.due(total) - len(part.gone)
        removed = lowest_within(ranking, amount, budget.min_heads_per_layer)
    else:
        removed = [
            head
            for layer in sorted({head.layer for head in ranking})
            for head in _lowest_of_layer(ranking, layer, budget, part)
        ]
    return tuple(sorted(removed))


def require_encoder(heads: Iterable[Head]) -> None:
    """See that all heads are those of an encoder.

    Raises:
        UserError: some are not.
    """
    others = sorted({head.stack for head in heads} - {ENCODER})
    if others:
        raise UserError(
            f"attribution: heads of {' and '.join(others)} are scored, and only the encoder's can "
            "be removed by it: set attribution.stacks to [encoder]"
        )


def lowest_units(scores: Scores, budget: Budget, pool: Pool) -> tuple[Unit, ...]:
    """The units beside heads that a share removes, sorted: the lowest over the model or by layer.

    A share is rounded down to whole units, so that each convolution keeps a channel.

    Raises:
        UserError: a score is not finite, or more heads would go than may.
    """
    values, (share, scope) = scores.values, budget.share_of(pool)
    if not all(map(math.isfinite, values.values())):
        raise UserError(
            f"attribution of {pool_words(pool)}: a score is not finite: see the model's outputs"
        )
    groups: dict[int | None, list[Unit]] = {}
    for unit in sorted(values, key=lambda unit: (values[unit], unit)):
        groups.setdefault(unit.layer if scope == "layerwise" else None, []).append(unit)
    keep = min_kept(*POOLS[pool], budget.min_heads_per_layer)
    removed = [
        unit
        for ranking in groups.values()
        for unit in lowest_within(ranking, int(round(share * len(ranking), 9)), keep, pool)
    ]
    return tuple(sorted(removed))


def check_budget(budget: Budget, heads: tuple[Head, ...]) -> int:
    """How many of the `heads` the budget removes, whatever their scores turn out to be.

    Raises:
        UserError: it asks for more heads than there are or may go, or some can never go.
    """
    flat = Scores(method="none", heads=heads, samples=(), per_sample=((0.0,) * len(heads),))
    return len(make_plan(flat, budget).removed)


def check_share(budget: Budget, pool: Pool, units: tuple[Unit, ...]) -> int:
    """How many units of a pool its share is, whatever their scores turn out to be.

    Raises:
        UserError: it asks for more than may go.
    """
    flat = Scores(method="none", heads=units, samples=(), per_sample=((0.0,) * len(units),))
    return len(lowest_units(flat, budget, pool))


def _amount(budget: Budget, available: int) -> int:
    if budget.heads is not None:
        return budget.heads
    # Rounding first keeps 0.3 × 10 = 2.9999… from losing a head.
    return int(round((budget.fraction or 0.0) * available, 9))


def _lowest_of_layer(ranking: list[Head], layer: int, budget: Budget, part: Round) -> list[Head]:
    own = [head for head in ranking if head.layer == layer]
    gone = sum(head.layer == layer for head in part.gone)
    amount = part.due(_amount(budget, len(own) + gone)) - gone
    if amount > max(0, len(own) - budget.min_heads_per_layer):
        raise UserError(
            f"budget: {heads_counted(amount)} to remove from layer {layer}, which has {len(own)} "
            f"and keeps min_heads_per_layer {budget.min_heads_per_layer}: lower the budget"
        )
    return own[:amount]
