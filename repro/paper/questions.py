"""What the small test bed is asked: each question with its two sides, declared before the runs, and the answers of runs.

A question compares two models or ensembles in top-1 on test images. `docs/digits.md` says for each what would count against
it, and which other explanations were tried. Statistics are in `statistics`.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from repro.paper import statistics
from repro.recipes import RECIPES
from repro.recipes.controls import BATCHES, LENGTHS
from repro.run import records


class Side(NamedTuple):
    """A model at the end of a recipe's stage, or an ensemble of several ("a + b") by the mean of their softmax or logits."""

    recipe: str
    members: str
    average: str = ""

    @property
    def file(self) -> str:
        """The name under which `records.save_correct` has its predictions in the run's folder."""
        return records.ensemble_name(self.members.split(" + "), self.average) if self.average else self.members


class Question(NamedTuple):
    """A claim: `better` is right for more test images than `other`. Paired: both sides come from one run of each seed.

    A control is a comparison that should show nothing, or nothing new: it tests the test bed and not the paper.
    """

    topic: str
    claim: str
    better: Side
    other: Side
    paired: bool = False
    control: bool = False


def _mean(recipe: str, members: list[str], average: str = "softmax") -> Side:
    return Side(recipe, " + ".join(members), average)


MEMBERS = ["collapse1", "collapse2", "collapse3"]
ENSEMBLE = _mean("five_members", MEMBERS)
ONE_MODEL = Side("one_model", "collapse_long")
SMALLEST, *LARGER = BATCHES

BATCH = (
    *(
        Question(
            "batch",
            f"Batch {batch} loses nothing against {SMALLEST}: with the linear rule and warm-up it is the better one",
            Side(f"batch_{batch}", "main"),
            Side(f"batch_{SMALLEST}", "main"),
        )
        for batch in LARGER
    ),
    *(
        Question(
            "batch",
            f"Batch {batch} needs warm-up",
            Side(f"batch_{batch}", "main"),
            Side(f"batch_{batch}_no_warmup", "main"),
            control=batch == SMALLEST,
        )
        for batch in BATCHES
    ),
)

COLLAPSE = tuple(
    Question("collapse", claim, Side("collapse_parts", better), Side("collapse_parts", other), paired=True)
    for claim, better, other in (
        ("The released collapse is better than the plain end of the linear decay", "zero-crop-x2", "plain"),
        ("Of the collapse, the rate's fall to zero helps", "zero-main-x1", "keep-main-x1"),
        ("Of the collapse, the view helps", "zero-crop-x1", "zero-main-x1"),
        ("Of the collapse, the doubled weight decay helps", "zero-crop-x2", "zero-crop-x1"),
        ("A quadratic end of the decay is better than the linear one", "zero-main-x1", "plain"),
        ("Of the view, batch norm's statistics alone help, without new weights", "statistics", "zero-main-x1"),
    )
)

OTHERS = {
    "one model of equal images and equal exposure to the collapse's view": ONE_MODEL,
    "one model of equal images with the released collapse": Side("one_model", "collapse"),
    "a snapshot ensemble (Huang et al.)": _mean("snapshot_ensemble", ["cyc1", "cyc2", "cyc3"]),
    "a snapshot ensemble with as many images in the collapse's view": _mean("snapshot_ensemble_crop", ["end1", "end2", "end3"]),
    "three models of a third of the images each": _mean("three_models", MEMBERS),
}
ENSEMBLES = (
    *(Question("ensemble", f"The Collapsed Ensemble beats {what}", ENSEMBLE, other) for what, other in OTHERS.items()),
    Question(
        "ensemble", "The Collapsed Ensemble beats its last member", ENSEMBLE, Side("five_members", "collapse3"), paired=True
    ),
    Question(
        "ensemble",
        "The mean of softmax beats the mean of logits",
        ENSEMBLE,
        _mean("five_members", MEMBERS, "logit"),
        paired=True,
        control=True,
    ),
)

COST = (
    Question(
        "cost",
        "The Collapsed Ensemble beats one model of equal images and about equal cost of inference",
        ENSEMBLE,
        Side("one_deep_model", "collapse_long"),
    ),
)

LENGTH = (
    *(
        Question(
            "length",
            f"At batch {batch}, {longer} epochs are better than {shorter}",
            Side(f"epochs_{longer}_batch_{batch}", "collapse"),
            Side(f"epochs_{shorter}_batch_{batch}", "collapse"),
        )
        for batch in (4096, 14336)
        for shorter, longer in zip(LENGTHS, LENGTHS[1:])
    ),
    *(
        Question(
            "length",
            f"Over {epochs} epochs, batch 14336 loses nothing against 4096: it is the better one",
            Side(f"epochs_{epochs}_batch_14336", "collapse"),
            Side(f"epochs_{epochs}_batch_4096", "collapse"),
        )
        for epochs in LENGTHS
    ),
)

QUESTIONS = (*BATCH, *COLLAPSE, *ENSEMBLES, *COST, *LENGTH)
TOPICS = tuple(dict.fromkeys(question.topic for question in QUESTIONS))


def read() -> set[tuple[str, str]]:
    """What the answers read of each run's stored predictions: (recipe, name of the file)."""
    return {(side.recipe, side.file) for question in QUESTIONS for side in (question.better, question.other)}


def averages() -> dict[str, list[tuple[list[str], str]]]:
    """The ensembles to evaluate, by recipe: (stages, softmax or logit). Of five_members also the first two, four and five."""
    wanted: dict[str, list[tuple[list[str], str]]] = {}
    sides = [side for question in QUESTIONS for side in (question.better, question.other) if side.average]
    sides += [_mean("five_members", [f"collapse{member}" for member in range(1, last + 1)]) for last in (2, 4, 5)]
    for side in sides:
        entry = side.members.split(" + "), side.average
        if entry not in wanted.setdefault(side.recipe, []):
            wanted[side.recipe].append(entry)
    return wanted


def tasks(data: str, shrink: str, seeds: list[int], topics: list[str] | None = None, **parameters) -> list[dict]:
    """The runs that the questions of these topics (default: all) need, as parameters of `train.train`, seed by seed."""
    asked = [question for question in QUESTIONS if topics is None or question.topic in topics]
    names = dict.fromkeys(side.recipe for question in asked for side in (question.better, question.other))
    # The longest first: at the end no rank has to wait long for another. The deeper network takes three times as long.
    ordered = sorted(names, key=lambda name: -RECIPES[name].epochs() * (3 if RECIPES[name].model == "resnet152" else 1))
    return [dict(recipe=name, data=data, shrink=shrink, seed=seed, **parameters) for seed in seeds for name in ordered]


def answers(models: pd.DataFrame, out: Path | str) -> pd.DataFrame:
    """The answers of the runs in `out`: one row per question for each data set and shrink.

    `models` are `tables.models` of them; runs of a variant, or of a model that is not the recipe's, are left out. The
    columns are those of `statistics.judge`, and low_originals and high_originals, an interval that holds for new originals
    too (`statistics.over_originals`); difference_zoom and difference_scale_aspect, in other views of the first test images;
    and `views`, which says whether the sign is the same in all views. Questions are one family of tests, controls another.
    """
    models = models[(models.variant == "") & models.default_model]
    rows = []
    for (data, shrink), group in models.groupby(["data", "shrink"], sort=False):
        rows += [{"data": data, "shrink": shrink} | _answer(question, group, Path(out)) for question in QUESTIONS]
    table = pd.DataFrame(rows)
    families = [statistics.judge(family) for _, family in table.groupby(["data", "shrink", "control"], sort=False)]
    return pd.concat(families).sort_index()


def _answer(question: Question, models: pd.DataFrame, out: Path) -> dict:
    better, other = (rows_of(models, side) for side in (question.better, question.other))
    compare = statistics.paired if question.paired else statistics.unpaired
    row: dict = {"topic": question.topic, "claim": question.claim, "control": question.control, "paired": question.paired}
    row |= compare(better.top1, other.top1)
    for view in records.OTHER_VIEWS:
        row[f"difference_{view}"] = better[f"top1_{view}"].mean() - other[f"top1_{view}"].mean()
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
    return models[chosen].set_index("seed")


def _over_originals(question: Question, better: pd.DataFrame, other: pd.DataFrame, out: Path) -> tuple[float, float]:
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
