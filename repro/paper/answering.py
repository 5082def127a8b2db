"""What a question is, and how runs answer it. The declared ones are in `questions`; `ask` asks one's own.

A question compares two models or ensembles in top-1 on test images. Statistics are in `statistics`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from repro.paper import statistics
from repro.run import records

# Points that a claim of the kind "not worse" allows. The abstract's ensemble gains as much (77.5% against 77%), and two models
# on ImageNet differ by about as much through their 50,000 test images alone.
HALF_A_POINT = 0.5
UNTRAINED = dict.fromkeys(("equivalent", "supported", "contradicted"), "not resolved")  # the verdicts of tiny runs


class Side(NamedTuple):
    """A model at the end of a recipe's stage, or several ("a + b") by the mean of their softmax, logits or weights.

    A recipe of one's own is a `Recipe`, or mine.py:my_recipe. Without `members` the side is the recipe's result
    (`Recipe.result`). `model`, `update` and `precision` name another network, rule or precision, as for `task.prepare`.
    """

    recipe: Any
    members: str = ""
    average: str = ""
    model: str = ""
    update: str = ""
    precision: str = "auto"

    @property
    def training(self) -> tuple:
        """What is trained, with any seed: recipe, model, update, precision."""
        return self.recipe, self.model, self.update, self.precision

    @property
    def variant(self) -> str:
        """The `variant` of its runs."""
        return "" if self.precision == "auto" else f"precision={self.precision}"

    @property
    def file(self) -> str:
        """The name under which `records.save_correct` has its predictions in the run's folder."""
        return records.ensemble_name(self.members.split(" + "), self.average) if self.average else self.members


class Question(NamedTuple):
    """A claim: `better` is right for more test images than `other`, or, with `not_worse_by`, for hardly fewer.

    not_worse_by: with a number of points m above zero, the claim is that `better` is not worse than `other` by more than m
    (non-inferiority). "Loses nothing" and "is as good as" are such claims: nobody can show that a difference is exactly zero.
    by_ranks: the sides are compared by an exact rank test, because some of their runs may fail.
    same_weights: the sides are different recipes, but a seed's runs have the same weights: only batch norm's statistics differ.
    control: the comparison should show nothing, or nothing new. It tests the test bed and not the paper.
    topic: questions of one topic are one family of tests, so that a question of another topic changes no verdict of theirs.
    """

    claim: str
    better: Side
    other: Side
    topic: str = "own"
    not_worse_by: float = 0.0
    by_ranks: bool = False
    same_weights: bool = False
    control: bool = False

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.better, self.other

    @property
    def paired(self) -> bool:
        """Whether both sides come from one run of each seed, or from the same weights, and so share most of their noise."""
        return self.same_weights or self.better.training == self.other.training


def answers(asked: Sequence[Question], models: pd.DataFrame, out: Path | str) -> pd.DataFrame:
    """The answers of the runs in `out`: one row per question for each data set and shrink with a run of a recipe asked about.

    `models` are `tables.models` of them; variants that no side names and other models are left out. The
    columns are those of `statistics.judge`, and low_originals and high_originals, an interval that holds for new originals
    too (`statistics.over_originals`; none of rank tests); difference_VIEW, low_VIEW and high_VIEW, the same in other views
    (zoom, scale_aspect) of the first test images, not corrected; `views`, which says whether the sign is the same in
    all; and hangs_on, the number of seeds without any one of which the verdict would be another, missing where no seed can be
    spared. The questions of a topic are one family of tests, its controls another. Tiny runs (smoke) have learnt nothing, so
    they resolve nothing.
    """
    recipes = {side.recipe for question in asked for side in (question.better, question.other)}
    variants = {side.variant for question in asked for side in question.sides}
    models = models[models.variant.isin(variants) & models.default_model]
    groups = [(keys, group) for keys, group in models.groupby(["data", "shrink"], sort=False) if {*group.recipe} & recipes]
    empty = _judged(asked, models.iloc[:0], Path(out), "", "").iloc[:0]  # which has all columns
    found = [_judged(asked, group, Path(out), data, shrink) for (data, shrink), group in groups]
    return pd.concat(found or [empty], ignore_index=True)


def _judged(asked: Sequence[Question], models: pd.DataFrame, out: Path, data: str, shrink: str) -> pd.DataFrame:
    sides = [(rows_of(models, question.better), rows_of(models, question.other)) for question in asked]
    rows = (
        {"data": data, "shrink": shrink} | _answer(question, *both, out) for question, both in zip(asked, sides, strict=True)
    )
    table = verdicts(pd.DataFrame(rows))
    if shrink == "smoke":
        table = table.assign(verdict=table.verdict.replace(UNTRAINED))
        return table.assign(hangs_on=statistics.NONE)
    return table.assign(hangs_on=_hangs_on(asked, sides, table))


def _hangs_on(asked: Sequence[Question], sides: Sequence[tuple[pd.DataFrame, pd.DataFrame]], table: pd.DataFrame) -> pd.Series:
    """Of each row of `table`, how many seeds there are without which its verdict would be another.

    A seed is left out on every side of every question, since a topic's questions are corrected together.
    """
    spare = table[["n", "n_other"]].min(axis=1) > statistics.FEWEST
    changed = pd.Series(0, index=table.index)
    for _, family in table.groupby(["topic", "control"], sort=False):
        if not spare[family.index].any():
            continue
        top1 = {place: [rows.top1 for rows in sides[place]] for place in family.index}
        for seed in sorted({seed for both in top1.values() for side in both for seed in side.index}):
            rows = [compare(asked[place], *(side.drop(seed, errors="ignore") for side in both)) for place, both in top1.items()]
            changed[family.index] += statistics.judge(rows).verdict.to_numpy() != family.verdict
    return changed.where(spare)


def verdicts(rows: pd.DataFrame) -> pd.DataFrame:
    """`statistics.judge` of each family: the rows of a topic that are no controls, and those that are."""
    return pd.concat(statistics.judge(family) for _, family in rows.groupby(["topic", "control"], sort=False)).sort_index()


def compare(question: Question, better: pd.Series, other: pd.Series) -> dict:
    """A row for `verdicts`: the top-1 of the question's two sides, by their seeds, compared by `statistics` as it asks."""
    by = statistics.by_ranks if question.by_ranks else statistics.paired if question.paired else statistics.unpaired
    asked = {"topic": question.topic, "claim": question.claim, "control": question.control}
    return asked | by(better, other, question.not_worse_by)


def _answer(question: Question, better: pd.DataFrame, other: pd.DataFrame, out: Path) -> dict:
    row = compare(question, better.top1, other.top1)
    for view in records.OTHER_VIEWS:
        seen = compare(question, better[f"top1_{view}"], other[f"top1_{view}"])
        row |= {f"{name}_{view}": seen[name] for name in ("difference", "low", "high")}
    signs = {np.sign(row[name]) for name in ("difference", *(f"difference_{view}" for view in records.OTHER_VIEWS))}
    row["views"] = (
        ""
        if 0 in (row["n"], row["n_other"])
        else "same sign in all views"
        if len(signs) == 1
        else "the sign depends on the view"
    )
    row["low_originals"], row["high_originals"] = _over_originals(question, better, other, out)
    return row


def rows_of(models: pd.DataFrame, side: Side) -> pd.DataFrame:
    """The rows of `tables.models` that are this side's, by their seed."""
    chosen = (models.recipe == side.recipe) & (models.members == side.members) & (models.average == side.average)
    chosen &= models.variant == side.variant
    return models[chosen].set_index("seed")


def _over_originals(question: Question, better: pd.DataFrame, other: pd.DataFrame, out: Path) -> tuple[float, float]:
    if question.by_ranks:
        return statistics.NONE, statistics.NONE
    if question.paired:
        both = better.index.intersection(other.index)
        better, other = better.loc[both], other.loc[both]
    if min(len(better), len(other)) < statistics.FEWEST:
        return statistics.NONE, statistics.NONE
    drawings = np.zeros(0, dtype=int)
    counts = []
    for side, rows in ((question.better, better), (question.other, other)):
        found = []
        for row in rows.itertuples():
            correct = records.load_correct(out / str(row.folder), side.file)["test"]
            originals = np.arange(len(correct)) % row.originals
            drawings = np.bincount(originals)
            found.append(np.bincount(originals, weights=correct))
        counts.append(np.stack(found))
    return statistics.over_originals(counts[0], counts[1], drawings, paired=question.paired)
