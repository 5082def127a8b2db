"""Two data sets side by side: which answers hold on both. What holds on one alone is a property of it, and no finding.

table    the answers of every data set that was asked, with a word for each claim on whether they agree
"""

import pandas as pd

AGREE = "agree"  # all have the same verdict, and it is one
OPPOSITE = "opposite"  # supported here, contradicted there
DIFFER = "differ"  # all are resolved, and not the same: supported here, too small to count there
OPEN = "not resolved"  # at least one is not resolved
SHOWN = ["topic", "claim", "control", "data", "n", "n_other", "difference", "low", "high", "margin", "not_worse_by", "verdict"]


def table(answers: pd.DataFrame) -> pd.DataFrame:
    """One row for each claim and data set, of claims that two or more data sets have answered: `SHOWN` and agreement.

    `answers` are those of `answering.answers`. Of a data set's several sizes, the one with the most runs counts.
    """
    asked = answers[(answers.n > 0) & (answers.n_other > 0)]
    runs = asked.groupby(["data", "shrink"]).n.transform("sum")
    most = runs.groupby(asked.data).transform("max")
    asked = asked[runs == most].drop_duplicates(["claim", "data"])
    several = asked[asked.groupby("claim").data.transform("nunique") > 1]
    return several[SHOWN].assign(agreement=several.groupby("claim").verdict.transform(lambda found: agreement(set(found))))


def agreement(verdicts: set[str]) -> str:
    """Whether the verdicts of several data sets agree."""
    if "not resolved" in verdicts:
        return OPEN
    if len(verdicts) == 1:
        return AGREE
    return OPPOSITE if {"supported", "contradicted"} <= verdicts else DIFFER
