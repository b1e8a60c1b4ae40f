"""Lower precisions, repair and neurons: directories and settings that were tampered with."""

from __future__ import annotations

from battery import Case

CASES: list[Case] = []
