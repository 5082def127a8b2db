"""Recipes of the methods that the paper's references would have used with the same images: the rivals of its own.

Units are ImageNet's, as in `released` and `controls`. A rule other than SGD is named, and its class is in `repro.baselines`.
"""

from repro.recipes.cycles import CYCLES
from repro.schedule import Recipe

BASELINES: tuple[Recipe, ...] = (*CYCLES,)
