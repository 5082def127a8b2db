"""Two data sets side by side: which answers hold on both. What one alone answers may be a property of it.

table    the answers of every data set that was asked, with a word for each claim on whether they agree, and how far the two
         differences are apart
"""

import math

import pandas as pd

from repro.paper import statistics

AGREE = "agree"  # all have the same verdict, and it is one
OPPOSITE = "opposite"  # supported here, contradicted there
DIFFER = "differ"  # all are resolved, and not the same: supported here, too small to count there
OPEN = "not resolved"  # at least one is not resolved
SHOWN = ["topic", "claim", "control", "data", "n", "n_other", "top1", "difference", "low", "high", "margin", "not_worse_by"]
SHOWN += ["verdict", "hangs_on", "views"]
TUNED = "tuned", "lars", "averages", "cooldown", "restarts"  # topics with numbers that were tuned on digits


def table(answers: pd.DataFrame) -> pd.DataFrame:
    """One row for each claim and data set, of claims that two or more data sets have answered.

    It has the columns `SHOWN`; agreement: whether the verdicts agree; numbers: whether a side's were tuned on
    digits, so may not suit another data set; apart, apart_low, apart_high (`apart`): two verdicts may differ although the
    differences hardly do.

    `answers` are those of `answering.answers`. Of a data set's several sizes, the one with the most runs counts.
    """
    asked = answers[(answers.n > 0) & (answers.n_other > 0)]
    runs = asked.groupby(["data", "shrink"]).n.transform("sum")
    most = runs.groupby(asked.data).transform("max")
    asked = asked[runs == most].drop_duplicates(["claim", "data"])
    several = asked[asked.groupby("claim").data.transform("nunique") > 1]
    found = several[SHOWN].assign(
        agreement=several.groupby("claim").verdict.transform(lambda verdicts: agreement(set(verdicts))),
        numbers=several.topic.isin(TUNED).map({True: "tuned on digits", False: ""}),
    )
    between = {claim: apart(rows) for claim, rows in several.groupby("claim")}
    columns = ("apart", "apart_low", "apart_high")
    return found.assign(**{name: [between[claim][place] for claim in found.claim] for place, name in enumerate(columns)})


def agreement(verdicts: set[str]) -> str:
    """Whether the verdicts of several data sets agree."""
    if "not resolved" in verdicts:
        return OPEN
    if len(verdicts) == 1:
        return AGREE
    return OPPOSITE if {"supported", "contradicted"} <= verdicts else DIFFER


def counts(agreements: pd.Series) -> str:
    """On how many claims several data sets agree, in words; `agreements` has one row for each claim."""
    on = {word: int((agreements == word).sum()) for word in (AGREE, OPPOSITE, DIFFER, OPEN)}
    resolved = f"the data sets have the same verdict on {on[AGREE]}, opposite ones on {on[OPPOSITE]}, and different ones on"
    return f"{len(agreements)} claims, {resolved} {on[DIFFER]}; {on[OPEN]} are not resolved on at least one"


def apart(rows: pd.DataFrame) -> tuple[float, float, float]:
    """A claim's difference on the first of two data sets minus that on the other, with its 95% interval.

    Runs on two data sets are independent, so half the interval's width is the root of the sum of the squares of the halves of
    both differences' intervals. Missing for more data sets than two, for rank tests, and where a difference has no interval.
    """
    if len(rows) != 2 or (rows.compared == "exact ranks").any() or rows.low.isna().any():
        return statistics.NONE, statistics.NONE, statistics.NONE
    between = float(rows.difference.iloc[0] - rows.difference.iloc[1])
    half = math.hypot(*(rows.high - rows.low) / 2)
    return between, between - half, between + half
