"""Two data sets side by side."""

import numpy as np
import pandas as pd
import pytest

from repro.paper import beds, figures, statistics
from repro.paper.profiles import PHOTOGRAPHS
from repro.paper.questions import QUESTIONS
from repro.recipes.baselines import TUNED

VERDICTS = {  # of two data sets, and what is said of them
    ("supported", "supported"): "agree",
    ("equivalent", "equivalent"): "agree",
    ("supported", "contradicted"): "opposite",
    ("supported", "equivalent"): "differ",
    ("supported", "not resolved"): "not resolved",
    ("not resolved", "not resolved"): "not resolved",
}


def answers(**of_data):
    """A table of answers: a row for each verdict of each data set."""
    rows = []
    for data, verdicts in of_data.items():
        for number, verdict in enumerate(verdicts):
            row = dict(
                topic="collapse",
                claim=f"claim {number}",
                control=False,
                data=data,
                shrink="laptop",
                n=3,
                n_other=3,
                top1=80.0,
                sd=0.3,
                compared="Welch's t",
                hangs_on=0.0,
                views="same sign in all views",
                not_worse_by=0.0,
            )
            rows.append(row | dict(difference=1.0 + number, low=0.5, high=2.0, margin=0.3, verdict=verdict))
    return pd.DataFrame(rows)


def test_the_claims_are_counted_by_whether_they_agree():
    words = pd.Series([beds.AGREE, beds.AGREE, beds.OPPOSITE, beds.OPEN, beds.OPEN, beds.OPEN])
    said = "6 claims, the data sets have the same verdict on 2, opposite ones on 1, and different ones on 0; 3 are not resolved"
    assert beds.counts(words) == f"{said} on at least one"


def test_answers_agree_only_if_both_are_resolved_and_the_same():
    first, second = zip(*VERDICTS)
    table = beds.table(answers(digits=first, fashion_mnist=second))
    assert dict(zip(table.claim, table.agreement)) == {f"claim {n}": said for n, said in enumerate(VERDICTS.values())}
    assert list(table.data) == ["digits"] * len(first) + ["fashion_mnist"] * len(first)


def test_a_claim_that_one_data_set_alone_has_answered_is_left_out():
    table = answers(digits=["supported", "supported"], fashion_mnist=["supported", "supported"])
    table.loc[3, "n_other"] = 0
    assert set(beds.table(table).claim) == {"claim 0"}
    assert beds.table(answers(digits=["supported"])).empty


def test_of_two_sizes_of_a_data_set_the_one_with_most_runs_counts():
    tiny = answers(digits=["contradicted"], fashion_mnist=["contradicted"]).assign(shrink="smoke", n=1, n_other=1)
    table = beds.table(pd.concat([tiny, answers(digits=["supported"], fashion_mnist=["supported"])]))
    assert list(table.verdict) == ["supported"] * 2


@pytest.mark.parametrize("sides", [((6, 0.3), (6, 0.6)), ((12, 0.4), (6, 1.2)), ((6, 0.3), (12, 0.3))])
def test_how_far_two_data_sets_are_apart_is_the_interval_of_the_difference_of_differences(sides):
    """Beside a simulation: in so many of a thousand pairs of data sets with equal effects the interval contains zero."""
    random = np.random.default_rng(0)
    covered, half = 0, []
    for _ in range(1000):
        rows = []
        for factor in (1, 1.5):  # seeds of one data set differ by more
            better, other = (pd.Series(random.normal(80, factor * sd, n)) for n, sd in sides)
            rows.append(statistics.unpaired(better, other))
        between, low, high = beds.apart(pd.DataFrame(rows))
        assert between == pytest.approx(rows[0]["difference"] - rows[1]["difference"]) == pytest.approx((low + high) / 2)
        covered += low < 0 < high
        half.append((high - low) / 2)
    assert 935 <= covered <= 995
    error = np.sqrt(sum((factor * sd) ** 2 / n for factor in (1, 1.5) for n, sd in sides))
    assert 1.9 * error < np.mean(half) < 3.3 * error
    paired = pd.DataFrame([statistics.paired(better[:6], other[:6]) for _ in range(2)])
    assert beds.apart(paired)[0] == 0
    assert np.isnan(beds.apart(paired.assign(compared="exact ranks"))).all() and np.isnan(beds.apart(paired[:1])).all()
    assert np.isnan(beds.apart(paired.assign(low=np.nan, high=np.nan))).all()


def test_topics_whose_numbers_were_tuned_on_digits_are_marked():
    both = answers(digits=["supported"] * 2, fashion_mnist=["supported"] * 2)
    both.loc[both.claim == "claim 1", "topic"] = "lars"
    assert list(beds.table(both).numbers) == ["", "tuned on digits"] * 2
    recipes = {method.recipe.name for method in TUNED}
    topics = {question.topic for question in QUESTIONS if recipes & {side.recipe for side in question.sides}}
    assert topics & PHOTOGRAPHS.keys() == {*beds.TUNED}


def test_the_figure_shows_every_interval_in_its_data_sets_look():
    both = answers(digits=["supported", "equivalent"], fashion_mnist=["supported", "contradicted"])
    both.loc[both.claim == "claim 1", "topic"] = "lars"
    table = beds.table(both)
    figure = figures.beds(table)
    (axes,) = figure.axes
    drawn = [line for line in axes.lines if line.get_marker() in ("o", "s") and len(line.get_xdata())]
    assert [line.get_marker() for line in drawn] == ["o", "s", "o", "s"]
    assert [float(line.get_xdata()[0]) for line in drawn] == [1.0, 1.0, 2.0, 2.0]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["digits", "fashion_mnist"]
    assert {"claim 0: agree", "claim 1 (tuned on digits): differ"} <= {
        text.get_text().replace("\n", " ") for text in axes.texts
    }


def test_intervals_of_tenths_of_a_point_and_of_tens_are_whole_and_can_be_told_apart():
    both = answers(digits=["supported"] * 4, fashion_mnist=["supported"] * 4)
    wide = (both.claim == "claim 1") & (both.data == "fashion_mnist")
    both.loc[wide, ["low", "high"]] = -40.0, 60.0
    figure = figures.beds(beds.table(both))
    (axes,) = figure.axes
    left, right = axes.get_xlim()
    drawn = [
        line.get_xdata() for line in axes.lines if len(line.get_xdata()) == 2 and line.get_xdata()[0] != line.get_xdata()[1]
    ]
    assert any(tuple(ends) == (-40, 60) for ends in drawn) and left <= -40 and right >= 60
    at = axes.transAxes.inverted().transform(axes.transData.transform([(0, 0), (0.3, 0), (1, 0)]))[:, 0]
    assert at[1] - at[0] > 0.02 and at[2] - at[0] > 0.08, "small differences are not lost beside large ones"
    labels = [text.get_text() for text in axes.get_xticklabels()]
    assert {"0", "1", "\u22121", "10", "\u221210"} <= set(labels)
