"""Shows what heads do: maps, attributions, functions, and which kind of attention matters."""

from hibprune.explaining.chain import explain_recipe
from hibprune.explaining.request import Request

__all__ = ["Request", "explain_recipe"]
