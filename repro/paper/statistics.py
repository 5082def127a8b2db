"""From the accuracies of runs to verdicts: intervals, equivalence, power, and one correction for each family of questions.

Accuracies are top-1 in per cent, differences are in points. Tests are two-sided at 5%, intervals are at 95%. There are two
kinds of claims:

better       one side is better than the other: a difference of zero is tested
not worse    one side is not worse than the other by more than a margin m (non-inferiority): a difference of -m is tested

So, before the correction, either is supported if its interval is above the tested difference, and contradicted if below.
"""

import bisect
import math
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from scipy import optimize, stats

from repro import ReproError

MARGIN = 0.3  # points; the declared margin: a smaller difference does not count as an effect
FEWEST = 3  # runs per side; with fewer there is no interval
LEVEL = 0.05
POWER = 0.8
FAILED = 0.5  # a run has failed if its accuracy is less than this share of the best run's on either side
NONE = float("nan")


def paired(better: pd.Series, other: pd.Series, not_worse_by: float = 0.0) -> dict[str, Any]:
    """Compares two models of each run by Student's t on the differences of the seeds that both sides have.

    `better` is the side that the claim is for: that it is better, or, with `not_worse_by` above zero, that it is not worse by
    more than so many points. Both are top-1 in per cent indexed by seed; missing values are left out. Raises ReproError if a
    seed occurs twice. Returns a row for `judge`:

    compared: how: paired t, Welch's t or exact ranks. n, n_other: runs per side; failed, failed_other: how many of them failed,
    having less than half of the best accuracy on either side. top1, against: their means.
    difference, low, high: better - other, with its interval. sd: the standard deviation of the differences over the seeds.
    r: correlation of the two sides. not_worse_by, and p: of a difference of -not_worse_by. margin, p_equivalent: of a
    difference of `MARGIN` or more, the larger p of the two one-sided tests (TOST; Schuirmann 1987).
    detectable: the smallest true distance from the tested difference that so many runs find with a power of 80%.

    There are no intervals and no p with fewer than three runs, or without any spread: runs that agree to the last image are
    more likely to share a fault than to be free of noise.
    """
    better, other = _runs(better), _runs(other)
    seeds = better.index.intersection(other.index)
    better, other = better.loc[seeds], other.loc[seeds]
    n, sd = len(seeds), _sd(better - other)
    r = better.corr(other) if n >= FEWEST and _sd(better) > 0 and _sd(other) > 0 else NONE
    row = _described("paired t", better, other, better.mean() - other.mean(), not_worse_by) | {"sd": sd, "r": r}
    return row | _by_t(row, sd / math.sqrt(n) if n else NONE, n - 1)


def unpaired(better: pd.Series, other: pd.Series, not_worse_by: float = 0.0) -> dict[str, Any]:
    """Compares independent runs by Welch's t: like `paired`, but seeds need not match and variances may differ.

    sd is the root mean square of both sides' standard deviations, as `needed` expects it; r is missing. The power behind
    `detectable` takes Welch's statistic for a noncentral t, which is exact for equal variances and equal n.
    """
    better, other = _runs(better), _runs(other)
    n, variances = np.array([len(better), len(other)]), np.array([_sd(better), _sd(other)]) ** 2
    row = _described("Welch's t", better, other, better.mean() - other.mean(), not_worse_by)
    if n.min() < FEWEST:
        return row
    squares = variances / n
    se = math.sqrt(squares.sum())
    df = squares.sum() ** 2 / (squares**2 / (n - 1)).sum() if se > 0 else NONE  # Welch-Satterthwaite
    return row | {"sd": math.sqrt(variances.mean())} | _by_t(row, se, df)


def by_ranks(better: pd.Series, other: pd.Series, not_worse_by: float = 0.0) -> dict[str, Any]:
    """Compares independent runs by the exact rank test of Mann and Whitney: for runs some of which may fail.

    The mean of runs that fail and runs that do not describes neither, and an interval from their variance is as wide as the
    gap between them. A rank test asks only which of two runs is the better one. A row as of `unpaired`, except that top1 and
    against are medians; difference is the median of all differences between a run of one side and a run of the other, low and
    high its exact interval, missing if the runs are too few for one (Hodges and Lehmann 1963); detectable is missing. The
    tests are exact if no two runs have equal accuracies.
    """
    better, other = _runs(better), _runs(other)
    gaps = np.sort(np.subtract.outer(better.to_numpy(), other.to_numpy()), axis=None)
    row = _described("exact ranks", better, other, float(np.median(gaps)) if len(gaps) else NONE, not_worse_by)
    row |= {"top1": better.median(), "against": other.median()}
    if min(len(better), len(other)) < FEWEST:
        return row
    row["sd"] = math.sqrt((_sd(better) ** 2 + _sd(other) ** 2) / 2)
    if row["sd"] == 0:
        return row

    def p(at: float, alternative: str) -> float:
        return float(stats.mannwhitneyu(better - at, other, alternative=alternative, method="exact").pvalue)

    row |= {"p": p(-not_worse_by, "two-sided"), "p_equivalent": max(p(-MARGIN, "greater"), p(MARGIN, "less"))}
    outside = _outside(len(better), len(other))
    return row | ({"low": gaps[outside - 1], "high": gaps[-outside]} if outside else {})


@cache
def _outside(n: int, n_other: int) -> int:
    """The k for which the interval is from the k-th smallest difference to the k-th largest; 0 if there is none.

    It is how many values of the statistic, which counts the pairs that one side wins, are in the lower tail of 2.5%.
    """
    runs = np.arange(n)
    for k in range(n * n_other + 1):
        wins = (k - n_other * runs).clip(0, n_other)  # of each run of one side: k in all
        tail = stats.mannwhitneyu(wins - 0.5, np.arange(n_other), alternative="less", method="exact").pvalue
        if tail > LEVEL / 2:
            return k
    return 0


def _runs(top1: pd.Series) -> pd.Series:
    top1 = top1.dropna()
    if top1.index.has_duplicates:
        seed = top1.index[top1.index.duplicated()][0]
        raise ReproError(f"seed {seed} occurs twice on one side of a comparison: choose one run per seed")
    return top1


def _sd(values: pd.Series) -> float:
    # Equal numbers can have a mean that is rounded, and so a spread of 1e-14.
    return 0.0 if len(values) > 1 and values.round(9).nunique() == 1 else values.std()


def _described(compared: str, better: pd.Series, other: pd.Series, difference: float, not_worse_by: float) -> dict[str, Any]:
    """A row with what can be said without a test."""
    least = FAILED * max(better.max(), other.max()) if len(better) and len(other) else NONE
    return {
        "compared": compared,
        "n": len(better),
        "n_other": len(other),
        "failed": int((better < least).sum()),
        "failed_other": int((other < least).sum()),
        "top1": better.mean(),
        "against": other.mean(),
        "difference": difference,
        "low": NONE,
        "high": NONE,
        "sd": NONE,
        "r": NONE,
        "not_worse_by": not_worse_by,
        "p": NONE,
        "margin": MARGIN,
        "p_equivalent": NONE,
        "detectable": NONE,
    }


def _by_t(row: dict[str, Any], se: float, df: float) -> dict[str, float]:
    """The columns of a row that follow from a standard error of its difference; none without runs or spread."""
    if min(row["n"], row["n_other"]) < FEWEST or not se > 0:
        return {}
    difference = row["difference"]
    low, high = stats.t.interval(1 - LEVEL, df, difference, se)
    p = 2 * stats.t.sf(abs(difference + row["not_worse_by"]) / se, df)
    p_equivalent = stats.t.sf((MARGIN - abs(difference)) / se, df)
    return {"low": low, "high": high, "p": p, "p_equivalent": p_equivalent, "detectable": se * _found(df)}


@cache
def _found(df: float) -> float:
    """The true difference, in standard errors, that a two-sided t-test finds with a power of `POWER`."""
    critical = stats.t.ppf(1 - LEVEL / 2, df)
    # The square of a noncentral t is a noncentral F, whose one tail is both of t's; scipy's noncentral t is NaN far out.
    return optimize.brentq(lambda effect: stats.ncf.sf(critical**2, 1, df, effect**2) - POWER, 1e-6, 10 * critical)


def holm(ps: Iterable[float]) -> np.ndarray:
    """Adjusted p of one family of tests (Holm 1979), in the order given.

    Missing p stay missing but count as tests: what was declared is corrected for, whichever part of it was run.
    """
    ps = np.array(list(ps), dtype=float)
    order = np.argsort(ps)[: np.isfinite(ps).sum()]  # missing ones are sorted last
    ps[order] = np.maximum.accumulate(ps[order] * (len(ps) - np.arange(len(order)))).clip(max=1)
    return ps


def judge(rows: pd.DataFrame | Iterable[Mapping]) -> pd.DataFrame:
    """The rows of `paired`, `unpaired` and `by_ranks` with adjusted p and a verdict; other columns are kept.

    The rows are one family: all comparisons that were declared of a topic. Holm's correction is applied to p (p_holm) and,
    apart from it, to the tests of equivalence (p_equivalent_holm). The verdict is

    - equivalent: of a claim that one side is better, the difference is shown to be smaller than `MARGIN`
      (p_equivalent_holm < 0.05);
    - supported, contradicted: the tested difference is ruled out (p_holm < 0.05), and ours is above or below it;
    - not resolved: neither, or fewer than three runs on a side, or runs without any spread;
    - not run: no runs on a side.

    Equivalence comes first: a difference that is shown to be below the declared margin does not count as an effect, even if
    it is shown not to be zero. For the same reason a row that is equivalent before the correction and different after it is not
    resolved. Thus more rows in the family can turn a verdict into "not resolved", but never into another one.
    """
    table = pd.DataFrame(rows)
    table = table.assign(p_holm=holm(table.p), p_equivalent_holm=holm(table.p_equivalent))
    better = table.not_worse_by == 0
    shown = (table.p_holm < LEVEL) & ~(better & (table.p_equivalent < LEVEL))
    verdicts = {
        "not run": (table.n == 0) | (table.n_other == 0),
        "equivalent": better & (table.p_equivalent_holm < LEVEL),
        "supported": shown & (table.difference > -table.not_worse_by),
        "contradicted": shown & (table.difference < -table.not_worse_by),
    }
    return table.assign(verdict=np.select(list(verdicts.values()), list(verdicts), "not resolved"))


def needed(sd: float, paired: bool = True) -> int:
    """The number of runs per side for which the interval's half-width is at most `MARGIN`.

    sd: of the paired differences, or of the runs of either side if unpaired (assumed equal), in points. The sd of a pilot is
    too small more often than too large: pass `sd_limit` of it. Raises ReproError unless `sd` is a number, at least 0.
    """
    if not 0 <= sd < math.inf:
        raise ReproError(f"no number of runs is enough for a standard deviation of {sd}: pass a number, at least 0")

    def enough(n: int) -> bool:
        df, se = (n - 1, sd / math.sqrt(n)) if paired else (2 * n - 2, sd * math.sqrt(2 / n))
        return se * stats.t.ppf(1 - LEVEL / 2, df) <= MARGIN

    most = FEWEST
    while not enough(most):
        most *= 2
    return bisect.bisect_left(range(most), True, lo=FEWEST, key=enough)


def sd_limit(sd: float, seeds: int, paired: bool = True) -> float:
    """The one-sided upper 95% confidence limit of the standard deviation behind the `sd` of a pilot, for normal noise.

    seeds: per side of the pilot, at least two. Sample sizes computed from it are large enough in 95% of pilots (Browne 1995).
    """
    df = seeds - 1 if paired else 2 * (seeds - 1)
    return sd * math.sqrt(df / stats.chi2.ppf(LEVEL, df))


def over_originals(
    better: np.ndarray, other: np.ndarray, drawings: np.ndarray, draws: int = 2000, seed: int = 0, paired: bool = True
) -> tuple[float, float]:
    """An interval of better - other in points that also holds for new originals: bootstrap over seeds and originals.

    better, other: (seeds, originals), the number of correct predictions among each original's test images; drawings:
    (originals,), the number of those images. Both sides have the same originals; paired, also the same seeds row by row.
    (nan, nan) with fewer than three seeds on a side or three originals. Raises ReproError if the shapes do not match.

    Seeds and originals are resampled independently of each other, for they are crossed: every model sees every original
    (Owen 2007, "The pigeonhole bootstrap"). Of n are drawn n - 1, so that the variance of a mean is unbiased (Rao and Wu
    1988). The interval is the difference and Student's quantile of the seeds times the bootstrap's standard error: percentiles
    would be too short with few seeds (Hesterberg 2015), and their tails would need millions of draws.

    It is conservative. The part of the variance that is neither of seeds nor of originals alone, that of single predictions,
    counts three times (Owen), so where it is all there is the interval is 1.7 times too wide; no bootstrap of crossed data
    is exact (McCullagh 2000).
    """
    if better.shape[1:] != drawings.shape or other.shape[1:] != drawings.shape or (paired and len(better) != len(other)):
        raise ReproError(
            f"no bootstrap of {better.shape} and {other.shape} correct of {drawings.shape} drawings: shapes differ"
        )
    fewest = min(len(better), len(other))
    if min(fewest, len(drawings)) < FEWEST:
        return NONE, NONE
    random = np.random.default_rng(seed)

    def weights(n: int) -> np.ndarray:
        return random.multinomial(n - 1, np.full(n, 1 / n), size=draws) / (n - 1)

    of_originals, of_better = weights(len(drawings)), weights(len(better))
    of_other = of_better if paired else weights(len(other))
    correct = ((of_better @ better - of_other @ other) * of_originals).sum(1)
    differences = 100 * correct / (of_originals @ drawings)
    difference = 100 * (better.mean(0).sum() - other.mean(0).sum()) / drawings.sum()
    half = stats.t.ppf(1 - LEVEL / 2, fewest - 1) * differences.std(ddof=1)
    return float(difference - half), float(difference + half)
