"""What a recipe may say about removal: how many units go, in how many rounds, and what stays."""

from __future__ import annotations

from typing import Literal

RepairKind = Literal["mean", "scale", "least-squares"]
