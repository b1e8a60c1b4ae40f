"""Holds methods against each other: the metric over the share of heads that each would remove."""

from hibprune.comparing.chain import compare_recipe
from hibprune.comparing.wishes import Wishes

__all__ = ["Wishes", "compare_recipe"]
