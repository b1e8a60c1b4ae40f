"""How much each unit matters: the attribution methods, one file each.

A new one is its settings in `methods`, its name in the union there, and a file of that name.
"""

from hibprune.attribution.hib_settings import HeadInformationBottleneck
from hibprune.attribution.interface import MethodBase
from hibprune.attribution.methods import METHODS, Method

__all__ = ["METHODS", "HeadInformationBottleneck", "Method", "MethodBase"]
