"""Statistics against hand-made numbers; published files complete with sources."""

import pandas as pd
import pytest
from scipy import stats

from repro import ReproError, recipes
from repro.paper import tables


def series(*values):
    return pd.Series(values, index=range(len(values)), dtype=float)


def test_paired_difference_and_interval_by_hand():
    better, other = series(93, 94, 95, 93.5), series(92, 93.5, 94, 93)
    row = tables.compare(better, other)
    difference = [1, 0.5, 1, 0.5]
    mean, sd = 0.75, (4 * 0.25**2 / 3) ** 0.5
    half = stats.t.ppf(0.975, 3) * sd / 2
    assert row["n"] == 4 and row["difference"] == pytest.approx(mean) == pytest.approx(sum(difference) / 4)
    assert (row["low"], row["high"]) == pytest.approx((mean - half, mean + half))
    assert row["verdict"] == "supported"


def test_pairing_is_by_seed_not_by_order():
    better, other = series(90, 80, 70), pd.Series({2: 69.0, 1: 79.0, 0: 89.0})
    assert tables.compare(better, other)["difference"] == pytest.approx(1)


def test_a_difference_within_the_noise_is_not_resolved():
    assert tables.compare(series(93, 92, 94), series(92, 93, 93.5))["verdict"] == "not resolved"


def test_a_difference_the_wrong_way_is_contradicted():
    assert tables.compare(series(90, 91, 92), series(92.1, 93, 93.9))["verdict"] == "contradicted"


def test_two_seeds_resolve_nothing():
    assert tables.compare(series(99, 99.1), series(1, 1.1))["verdict"] == "not resolved"


def test_no_seeds_is_not_run():
    assert tables.compare(series(), series())["verdict"] == "not run"


@pytest.mark.parametrize("name", ["claims", "released_runs", "peers", "epochs_by_batch"])
def test_every_published_number_has_its_source(name):
    table = tables.published(name)
    assert len(table) and table.source.notna().all()


def test_rates_show_both_sides_of_each_joint():
    recipe = recipes.find("resnet50_448nodes")
    rates = tables.rates([recipe], points=10)
    assert {445, 446, 7637, 7638, recipe.iterations - 1} <= set(rates.step)


def test_without_runs_the_error_names_the_command(tmp_path):
    with pytest.raises(ReproError, match="make reproduce"):
        tables.runs_or_reference(str(tmp_path))
