"""The rule that chooses the free number of each tuned method (`recipes.baselines.TUNED`); `bench.tuning` trains.

It was fixed before the runs, and sees nothing of a method but its accuracies, on validation images and with seeds that no
reported run has:

- try the first value, its double and its half;
- while the best is the largest or the smallest so far, try its double or its half;
- else halve the wider of the two gaps beside the best, on a scale of powers; of equal ones that to its better neighbour;
- after TRIES values, choose the one of the highest mean accuracy; of equal ones the first.
"""

import math
from collections.abc import Iterable, Mapping

import pandas as pd

from repro.recipes.baselines import TUNED, Tuned

SEEDS = 1001, 1002
TRIES = 5


def following(tried: Mapping[float, float], first: float) -> list[float]:
    """The values to try next; none after TRIES. `tried` has the mean accuracy of each, in the order they were tried in."""
    if len(tried) >= TRIES:
        return []
    begin = [value for value in map(_rounded, (first, 2 * first, first / 2)) if value not in tried]
    return begin or [_rounded(_beside(tried))]


def chosen(tried: Mapping[float, float]) -> float:
    """The value of the highest mean accuracy."""
    return max(tried, key=lambda value: tried[value])


def _beside(tried: Mapping[float, float]) -> float:
    best, values = chosen(tried), sorted(tried)
    if best == values[0]:
        return best / 2
    if best == values[-1]:
        return best * 2
    place = values.index(best)
    neighbours = values[place - 1], values[place + 1]
    gap = {value: round(abs(math.log2(value / best)), 2) for value in neighbours}
    return math.sqrt(best * max(neighbours, key=lambda value: (gap[value], tried[value])))


def _rounded(value: float) -> float:
    """To four digits, so that a recipe can state it."""
    return float(f"{value:.4g}")


def means(rows: pd.DataFrame, method: str) -> dict[float, float]:
    """The mean accuracy of each value that was tried for a method, in that order, from the rows of tuning.csv."""
    return dict(rows[rows.recipe == method].groupby("value", sort=False).validation_top1.mean())


def differences(rows: pd.DataFrame, methods: Iterable[Tuned] = TUNED) -> list[str]:
    """In what the recipes are not what the rule chooses from tuning.csv: a line for each, of those that it has."""
    found = []
    for method in methods:
        name = method.recipe.name
        if tried := means(rows, name):
            if others := {*rows[rows.recipe == name].number} - {method.number}:
                found.append(f"{name}: what was tuned is the {', '.join(others)}, and not the {method.number}: tune it again")
            if len(tried) != TRIES:
                found.append(f"{name}: {len(tried)} values were tried, not {TRIES}")
            elif chosen(tried) != method.value:
                found.append(f"{name}: the recipe has {method.value:g}, and the rule chooses {chosen(tried):g}")
    return found
