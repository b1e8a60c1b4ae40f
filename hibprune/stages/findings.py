"""What the steps of a run found of each variant."""

from __future__ import annotations

from dataclasses import dataclass, field

from hibprune.execution.steps import Done
from hibprune.records.measurements import Parity
from hibprune.records.variants import Converted, Measured, VariantPlan


@dataclass(frozen=True)
class Made:
    """A variant that was made, or could not be; `key` tells it from others of the name."""

    plan: VariantPlan
    key: str
    parity: Done[Parity] | None = None
    converted: Done[Converted] | None = None

    @property
    def fault(self) -> str | None:
        """Why it could not be made."""
        return None if self.converted is None else self.converted.result.fault


@dataclass(frozen=True)
class Findings:
    """Variants by name, those that could be made measured; `failed` are those that then fail."""

    made: dict[str, Made]
    measured: dict[str, Done[Measured]]
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def faults(self) -> dict[str, str]:
        """Why each variant that is not among the measured is not."""
        reasons = {name: one.fault or self.failed.get(name) for name, one in self.made.items()}
        return {name: reason for name, reason in reasons.items() if reason is not None}

    def parent(self, made: Made) -> tuple[VariantPlan, str] | None:
        """What a variant in lower precision agrees with or not; None for one in fp32."""
        if made.plan.precision == "fp32" or made.plan.parent is None:
            return None
        return self.made[made.plan.parent].plan, self.measured[made.plan.parent].key

    @property
    def timed(self) -> dict[str, tuple[VariantPlan, str]]:
        """Those that can be timed, with the key of what each is."""
        return {name: (self.made[name].plan, done.key) for name, done in self.measured.items()}
