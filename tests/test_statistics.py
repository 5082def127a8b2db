"""Statistics of comparisons against scipy's tests, simulation, hand-worked examples and plain loops."""

import itertools
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from repro import ReproError
from repro.paper.statistics import by_ranks, holm, judge, needed, over_originals, paired, sd_limit, unpaired


def series(*values):
    return pd.Series(values, index=range(len(values)), dtype=float)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


BETTER, OTHER = series(93, 94, 95, 93.5), series(92, 93.5, 94, 93)


# --- One comparison ---------------------------------------------------------------------------------------------------
def test_paired_by_hand():
    row = paired(BETTER, OTHER)
    sd = (4 * 0.25**2 / 3) ** 0.5  # differences 1, 0.5, 1, 0.5
    half = stats.t.ppf(0.975, 3) * sd / 2
    assert (row["n"], row["n_other"], row["top1"], row["against"]) == (4, 4, 93.875, 93.125)
    assert (row["difference"], row["sd"], row["low"], row["high"]) == pytest.approx((0.75, sd, 0.75 - half, 0.75 + half))
    assert row["r"] == pytest.approx(np.corrcoef(BETTER, OTHER)[0, 1])
    assert row["p"] == pytest.approx(stats.ttest_rel(BETTER, OTHER).pvalue)


def test_unpaired_is_welch():
    other = series(92, 93.5, 91, 93, 90.5, 92.5)
    row, test = unpaired(BETTER, other), stats.ttest_ind(BETTER, other, equal_var=False)
    assert (row["n"], row["n_other"]) == (4, 6)
    assert (row["p"], row["low"], row["high"]) == pytest.approx((test.pvalue, *test.confidence_interval(0.95)))
    assert row["sd"] == pytest.approx(((BETTER.var() + other.var()) / 2) ** 0.5) and np.isnan(row["r"])


def test_pairing_is_by_seed_and_of_the_seeds_that_both_have():
    row = paired(series(90, 80, 70), pd.Series({2: 69.0, 1: 78.5, 7: 1.0, 0: 89.0, 8: np.nan}))
    assert row["n"] == 3 and row["difference"] == pytest.approx(3.5 / 3)


@pytest.mark.parametrize("difference", [0.1, -0.1, 0.4])
def test_equivalence_is_the_larger_p_of_two_one_sided_tests(difference):
    other = series(*80 + noise(9))
    better = other + difference + 0.2 * noise(9, seed=1)
    sides = {"greater": -0.3, "less": 0.3}
    expected = max(stats.ttest_1samp(better - other, at, alternative=side).pvalue for side, at in sides.items())
    assert paired(better, other)["p_equivalent"] == pytest.approx(expected)
    moved = {"greater": other - 0.3, "less": other + 0.3}
    tests = [stats.ttest_ind(better, at, equal_var=False, alternative=side) for side, at in moved.items()]
    assert unpaired(better, other)["p_equivalent"] == pytest.approx(max(test.pvalue for test in tests))


@pytest.mark.parametrize("compare", [paired, unpaired])
def test_coverage_and_size_of_equivalence(compare):
    """With a true difference of the margin, 95% of the intervals cover it and 5% of the tests say equivalent."""
    # Enough runs that the test of equivalence has its full size; unequal sides and spreads where these are allowed.
    n, spread = (6, 0.5) if compare is paired else (9, 2)
    sides = 80.3 + 0.1 * noise(1000, 6), 80 + 0.1 * spread * noise(1000, n, seed=1)
    rows = pd.DataFrame([compare(series(*better), series(*other)) for better, other in zip(*sides)])
    assert ((rows.low < 0.3) & (rows.high > 0.3)).mean() == pytest.approx(0.95, abs=0.02)
    assert (rows.p_equivalent < 0.05).mean() == pytest.approx(0.05, abs=0.02)


@pytest.mark.parametrize("n", [3, 8, 30])
def test_the_detectable_difference_is_found_in_80_per_cent_of_experiments(n):
    one, two = noise(20000, n), noise(20000, n, seed=1)
    # The row of a sample with standard deviation 1 on either side, so that the effect is in such units.
    unit = series(*stats.zscore(np.arange(n), ddof=1))
    effect = paired(unit, 0 * unit)["detectable"]
    assert (stats.ttest_1samp(one + effect, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.01)
    effect = unpaired(unit, unit)["detectable"]
    assert (stats.ttest_ind(one + effect, two, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.01)


def test_the_detectable_difference_is_as_in_the_textbooks():
    """Cohen's tables: for d of 0.5 and 0.8 it takes 64 and 26 a side, or 34 and 15 pairs, of standard deviation 1."""

    def detectable(n, compare):
        unit = series(*stats.zscore(np.arange(n), ddof=1))
        return compare(unit, 0 * unit if compare is paired else unit)["detectable"]

    for compare, runs in ((unpaired, (64, 26)), (paired, (34, 15))):
        for d, n in zip((0.5, 0.8), runs):
            assert detectable(n, compare) <= d < detectable(n - 1, compare)


@pytest.mark.parametrize("compare", [paired, unpaired, by_ranks])
def test_few_runs_and_no_spread_give_no_warnings_and_no_certainty(compare):
    def nothing(row):
        return np.isnan([row[name] for name in ("low", "high", "p", "p_equivalent", "detectable")]).all()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for n in range(3):
            row = compare(BETTER[:n], OTHER[:n])
            assert row["n"] == n and nothing(row)
            assert judge([row]).verdict[0] == ("not resolved" if n else "not run")
        same = series(*[70.1] * 6)  # their mean is rounded
        for difference in (0, 0.25, -1):
            row = compare(same + difference, same)
            assert row["difference"] == pytest.approx(difference) and row["sd"] == 0
            assert nothing(row) and judge([row]).verdict[0] == "not resolved"


def test_pairs_whose_differences_are_equal_but_for_rounding_have_no_spread():
    other = series(70.105, 71.335, 68.72, 14.9)
    assert (other + 0.45 - other).nunique() > 1
    assert np.isnan(paired(other + 0.45, other)["p"])


# --- Claims that allow a margin ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("compare", [paired, unpaired, by_ranks])
def test_not_worse_is_the_test_of_a_difference_of_minus_the_margin(compare):
    other = series(*80 + noise(9))
    better = other - 0.1 + 0.2 * noise(9, seed=1)
    moved, row, plain = compare(better + 0.5, other), compare(better, other, 0.5), compare(better, other)
    assert row["p"] == pytest.approx(moved["p"]) and row["p"] != pytest.approx(plain["p"])
    for column in ("difference", "low", "high", "p_equivalent"):
        assert row[column] == plain[column]


@pytest.mark.parametrize("compare", [paired, unpaired])
def test_at_the_margin_not_worse_is_wrong_in_25_of_1000_experiments_on_either_side(compare):
    rows = [compare(series(*a - 0.5), series(*b), 0.5) for a, b in zip(noise(2000, 8), noise(2000, 8, seed=1))]
    shown = pd.DataFrame(rows).query("p < 0.05").difference
    for wrong in (shown > -0.5, shown < -0.5):
        assert wrong.sum() / len(rows) == pytest.approx(0.025, abs=0.012)


@pytest.mark.parametrize("compare", [paired, unpaired])
def test_a_verdict_of_one_claim_can_be_read_off_its_interval(compare):
    for number in range(60):
        a, b = noise(2, 7, seed=number)
        for claim in (0, 0.5):
            row = compare(series(*a), series(*b), claim)
            verdict = judge([row]).verdict[0]
            assert (verdict == "supported") == (row["low"] > -claim), row
            assert (verdict == "contradicted") == (row["high"] < -claim), row


# --- Ranks ------------------------------------------------------------------------------------------------------------
def arrangements(n, n_other):
    """How often each number of pairs that one side wins occurs among all orders of n and n_other different values."""
    counts = np.zeros(n * n_other + 1, int)
    for chosen in itertools.combinations(range(n + n_other), n):
        counts[sum(place - number for number, place in enumerate(chosen))] += 1
    return counts


@pytest.mark.parametrize("n, n_other", [(3, 3), (4, 4), (6, 6), (4, 7)])
def test_ranks_are_all_orders_of_the_runs(n, n_other):
    better, other = series(*noise(n, seed=3)), series(*noise(n_other, seed=4) - 1)
    gaps = sorted(one - two for one in better for two in other)
    counts = arrangements(n, n_other)
    wins = sum(gap > 0 for gap in gaps)
    tails = counts[: wins + 1].sum(), counts[wins:].sum()
    row = by_ranks(better, other)
    assert row["p"] == pytest.approx(min(1, 2 * min(tails) / counts.sum()))
    assert row["difference"] == pytest.approx(np.median(gaps))
    assert (row["top1"], row["against"]) == (better.median(), other.median())
    left = [k for k in range(1, n * n_other) if counts[:k].sum() / counts.sum() <= 0.025]
    if not left:
        assert np.isnan(row["low"])
    else:
        assert (row["low"], row["high"]) == (gaps[left[-1] - 1], gaps[-left[-1]])
        if row["p"] < 0.05:
            assert row["low"] > 0 or row["high"] < 0


def test_the_interval_of_ranks_is_that_of_the_tables():
    """For 6 and 6 runs the critical value at 5% is 5 (Mann and Whitney's tables), so 5 of 36 gaps are left out on each side."""
    row = by_ranks(series(1, 8, 27, 64, 125, 216), series(0, 3, 5, 7, 11, 13))
    gaps = sorted(one - two for one in (1, 8, 27, 64, 125, 216) for two in (0, 3, 5, 7, 11, 13))
    assert (row["low"], row["high"]) == (gaps[5], gaps[-6])


def test_runs_of_which_some_fail_are_resolved_by_ranks_and_not_by_welch():
    warm, cold = series(77.5, 78.6, 78.9, 79.0, 79.1, 78.0), series(10.0, 10.1, 63.2, 64.0, 73.9, 75.4)
    assert judge([unpaired(warm, cold)]).verdict[0] == "not resolved"
    row = by_ranks(warm, cold)
    assert row["p"] == pytest.approx(2 / 924) and judge([row] * 8).verdict[0] == "supported"
    assert (row["failed"], row["failed_other"]) == (0, 2)


@pytest.mark.parametrize("compare", [paired, unpaired, by_ranks])
def test_a_seed_that_occurs_twice_is_an_error(compare):
    with pytest.raises(ReproError, match="seed 2 occurs twice"):
        compare(pd.concat([BETTER, BETTER[2:3]]), OTHER)


# --- A family of comparisons ------------------------------------------------------------------------------------------
def test_holm_by_hand():
    # Sorted: 0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1, which must not fall below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    # The same with a fifth test, of which only the p is missing.
    assert holm([0.01, 0.04, np.nan, 0.03, 0.005]) == pytest.approx([0.04, 0.09, np.nan, 0.09, 0.025], nan_ok=True)
    assert holm([0.9, 0.6]) == pytest.approx([1, 1]) and len(holm([])) == 0


def row(difference, sd, n=10):
    """A paired row of runs with exactly this mean difference and spread."""
    other = series(*80 + noise(n))
    return paired(other + difference + sd * stats.zscore(noise(n, seed=1), ddof=1), other)


def family(seed, count):
    random = np.random.default_rng(seed)
    return [row(random.normal(0, 0.4), random.choice([0.05, 0.3, 1])) for _ in range(count)]


def test_verdicts():
    judged = judge([row(1, 0.5), row(-1, 0.5), row(0.02, 0.1), row(0.1, 0.05), row(0.2, 1), paired(BETTER[:0], OTHER)])
    expected = ["supported", "contradicted", "equivalent", "equivalent", "not resolved", "not run"]
    assert list(judged.verdict) == expected
    assert judged.p_holm[3] < 0.05  # a difference, but one that does not count


def test_correction_is_over_all_rows_also_those_without_runs():
    alone = row(0.5, 0.6)
    assert judge([alone]).p_holm[0] == alone["p"] < 0.05
    for other in (paired(BETTER[:0], OTHER), paired(BETTER[:2], OTHER), row(0.2, 1)):
        judged = judge([alone] + [other] * 3)
        assert judged.p_holm[0] == pytest.approx(4 * alone["p"]) and judged.verdict[0] == "not resolved"


def test_judge_keeps_other_columns_and_the_index():
    rows = pd.DataFrame([{"claim": "it helps", **row(1, 0.5)}], index=[7])
    judged = judge(rows)
    pd.testing.assert_frame_equal(judged[rows.columns], rows)
    assert list(judged.columns[-3:]) == ["p_holm", "p_equivalent_holm", "verdict"]


def test_the_other_sign_is_the_other_verdict():
    for seed in range(5):
        rows = family(seed, 8)
        flipped = [one | {"difference": -one["difference"], "low": -one["high"], "high": -one["low"]} for one in rows]
        swapped = judge(rows).verdict.replace({"supported": "contradicted", "contradicted": "supported"})
        assert list(judge(flipped).verdict) == list(swapped)
    assert judge([row(1, 0.5)]).verdict[0] == "supported" and judge([row(-1, 0.5)]).verdict[0] == "contradicted"


def test_more_rows_turn_a_verdict_into_not_resolved_and_never_into_another():
    outcomes = set()
    for seed in range(20):
        rows, more = family(seed, 4), family(100 + seed, 12)
        outcomes |= set(zip(judge(rows).verdict, judge(rows + more).verdict[:4]))
    assert all(after in (before, "not resolved") for before, after in outcomes)
    assert len(outcomes) >= 5  # among them some that change


def test_a_row_that_the_correction_takes_out_of_equivalent_does_not_become_an_effect():
    small, wide = row(0.24, 0.09), row(0, 2)
    assert small["p"] < 1e-4 and 0.025 < small["p_equivalent"] < 0.05
    assert judge([small]).verdict[0] == "equivalent" and judge([small, wide]).verdict[0] == "not resolved"


# --- How many runs ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sd", [0, 1e-9, 0.1, 0.3, 1.08])
def test_needed_for_the_interval_is_the_first_n_that_is_narrow_enough(sd):
    def half(n, pairing):
        df, se = (n - 1, sd / n**0.5) if pairing else (2 * n - 2, sd * (2 / n) ** 0.5)
        return stats.t.ppf(0.975, df) * se

    for pairing in (True, False):
        first = next(n for n in range(3, 1000) if half(n, pairing) <= 0.3)
        assert needed(sd, paired=pairing) == first


def test_what_no_number_of_runs_can_meet_is_an_error():
    with pytest.raises(ReproError, match="no number of runs"):
        needed(np.nan)


@pytest.mark.parametrize("pairing", [True, False])
def test_the_limit_of_a_pilots_sd_is_above_the_true_one_in_95_per_cent(pairing):
    variances = noise(2, 20000, 4).var(axis=2, ddof=1)
    sds = variances[0] ** 0.5 if pairing else variances.mean(0) ** 0.5
    assert (sd_limit(sds, 4, pairing) > 1).mean() == pytest.approx(0.95, abs=0.01)
    assert sd_limit(2, 10) == pytest.approx(2 * (9 / 3.325) ** 0.5, rel=1e-4)  # of the table of chi-squared


# --- Seeds and originals ----------------------------------------------------------------------------------------------
def crossed(seeds, originals, of_seeds, of_originals, rest, difference=0.0, seed=0):
    """Correct of 10 drawings per original on two sides, with these standard deviations of the difference in points."""
    a, b, e = noise(seeds, 1, seed=[seed, 0]), noise(originals, seed=[seed, 1]), noise(seeds, originals, seed=[seed, 2])
    other = np.full((seeds, originals), 7.0)
    return other + (difference + of_seeds * a + of_originals * b + rest * e) / 10, other, np.full(originals, 10)


def width(interval):
    return interval[1] - interval[0]


@pytest.mark.parametrize("pairing", [True, False])
def test_the_bootstrap_is_a_loop_over_draws_seeds_and_originals(pairing):
    random = np.random.default_rng(0)
    drawings = random.integers(1, 9, 15)
    better, other = (random.binomial(drawings, share, (12, 15)) for share in (0.8, 0.7))
    differences = []
    for _ in range(4000):
        originals, mine = random.integers(15, size=14), random.integers(12, size=11)
        against = mine if pairing else random.integers(12, size=11)
        images = sum(drawings[original] for original in originals)
        right = sum(better[run, original] for run in mine for original in originals) / 11
        right -= sum(other[run, original] for run in against for original in originals) / 11
        differences.append(100 * right / images)
    tail = stats.norm.cdf(-stats.t.ppf(0.975, 11))
    expected = np.quantile(differences, [tail, 1 - tail])
    found = over_originals(better, other, drawings, draws=20000, paired=pairing)
    assert found == pytest.approx(expected, abs=0.15 * np.std(differences))


def test_an_original_counts_by_its_drawings():
    random = np.random.default_rng(0)
    drawings = np.array([100] * 20 + [1] * 20)
    better, other = random.binomial(drawings, 0.9, (5, 40)), random.binomial(drawings, 0.7, (5, 40))
    better[:, 20:] = 0  # of half of the originals, but of 20 of 2,020 images
    low, high = over_originals(better, other, drawings)
    assert 0 < low < 100 * (better.sum() - other.sum()) / (5 * drawings.sum()) < high
    twice = over_originals(2 * better, 2 * other, 2 * drawings)
    assert twice == pytest.approx((low, high))


def test_with_many_originals_it_is_the_interval_of_the_seeds():
    ratios = []
    for seed in range(10):
        better, other, drawings = crossed(7, 2000, 0.5, 2, 2, seed=seed)
        of_seeds = paired(*(series(*100 * side.sum(1) / drawings.sum()) for side in (better, other)))
        ratios.append(width(over_originals(better, other, drawings)) / (of_seeds["high"] - of_seeds["low"]))
    assert np.mean(ratios) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("parts", [(0.5, 4, 3), (0, 0, 20)])
def test_few_originals_widen_it_by_their_share_and_single_predictions_count_three_times(parts):
    seeds, originals = 40, 60
    widths = [width(over_originals(*crossed(seeds, originals, *parts, seed=seed))) for seed in range(20)]
    variance = parts[0] ** 2 / seeds + parts[1] ** 2 / originals + 3 * parts[2] ** 2 / seeds / originals
    assert np.mean(widths) == pytest.approx(2 * stats.t.ppf(0.975, seeds - 1) * variance**0.5, rel=0.05)


@pytest.mark.parametrize("parts", [(1, 0, 1), (0, 3, 1), (1, 3, 3)])
def test_coverage_over_new_seeds_and_originals(parts):
    found = [over_originals(*crossed(8, 40, *parts, difference=0.5, seed=seed), draws=500) for seed in range(400)]
    covered = np.mean([low < 0.5 < high for low, high in found])
    assert covered > 0.92


def test_unpaired_seeds_widen_it():
    better, other, drawings = crossed(10, 500, 0.1, 0.1, 0.1)
    shared = noise(10, 1, seed=5)  # the same in both runs of a pair
    sides = better + shared, other + shared
    assert width(over_originals(*sides, drawings, paired=False)) > 5 * width(over_originals(*sides, drawings))


def test_swapped_sides_mirror_it_and_a_seed_repeats_it():
    better, other, drawings = crossed(6, 50, 1, 1, 1)
    low, high = over_originals(better, other, drawings)
    assert over_originals(other, better, drawings) == pytest.approx((-high, -low))
    assert over_originals(better, other, drawings) == (low, high) != over_originals(better, other, drawings, seed=1)


def test_shapes_that_do_not_match_are_an_error_and_few_seeds_have_no_interval():
    better, other, drawings = crossed(6, 50, 1, 1, 1)
    for wrong in [(better[:5], other, drawings), (better, other[:, :9], drawings), (better, other, drawings[:9])]:
        with pytest.raises(ReproError, match="shapes differ"):
            over_originals(*wrong)
    assert np.isnan(over_originals(better[:2], other, drawings, paired=False)).all()
