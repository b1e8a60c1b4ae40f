"""Holds methods against each other: the metric over the share of heads that each would remove."""

from hibprune.comparing.chain import compare_recipe
from hibprune.comparing.request import Request

__all__ = ["Request", "compare_recipe"]
