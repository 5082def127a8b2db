"""From the accuracies of runs to verdicts: intervals, equivalence, power, and one correction for all declared questions.

Accuracies are top-1 in per cent, differences are in points. Tests are two-sided at 5%, intervals are at 95%.
"""

import bisect
import math
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from scipy import optimize, stats

from repro import ReproError

MARGIN = 0.3  # points; the declared margin: a smaller difference does not count as an effect
FEWEST = 3  # runs per side; with fewer there is no interval
LEVEL = 0.05
POWER = 0.8
NONE = float("nan")


def paired(better: pd.Series, other: pd.Series, margin: float = MARGIN) -> dict[str, float]:
    """Compares runs that share a trunk by Student's t on the differences of the seeds that both sides have.

    `better` is the side that the claim says is better. Both are top-1 in per cent indexed by seed; missing values are left
    out. Raises ReproError if a seed occurs twice. Returns a row for `judge`:

    n, n_other: runs per side. top1, against: their means. difference, low, high: better - other, with its interval.
    sd: the standard deviation of the differences over the seeds. r: correlation of the two sides.
    p: of no difference. margin, p_equivalent: of a difference of the margin or more, the larger p of the two one-sided tests
    (TOST; Schuirmann 1987). detectable: the smallest true difference that so many runs find with a power of 80%.

    With fewer than three runs there are no intervals and no p. Without any spread the interval is a point.
    """
    better, other = _runs(better), _runs(other)
    seeds = better.index.intersection(other.index)
    better, other = better.loc[seeds], other.loc[seeds]
    n, sd = len(seeds), _sd(better - other)
    r = better.corr(other) if n >= FEWEST and _sd(better) > 0 and _sd(other) > 0 else NONE
    return _row(better, other, sd, sd / math.sqrt(n) if n else NONE, n - 1, margin) | {"r": r}


def unpaired(better: pd.Series, other: pd.Series, margin: float = MARGIN) -> dict[str, float]:
    """Compares independent runs by Welch's t: like `paired`, but seeds need not match and variances may differ.

    sd is the root mean square of both sides' standard deviations, as `needed` expects it; r is missing. The power behind
    `detectable` takes Welch's statistic for a noncentral t, which is exact for equal variances and equal n.
    """
    better, other = _runs(better), _runs(other)
    n, variances = np.array([len(better), len(other)]), np.array([_sd(better), _sd(other)]) ** 2
    if n.min() < FEWEST:
        return _row(better, other, NONE, NONE, NONE, margin)
    squares = variances / n
    se = math.sqrt(squares.sum())
    df = squares.sum() ** 2 / (squares**2 / (n - 1)).sum() if se > 0 else NONE  # Welch-Satterthwaite
    return _row(better, other, math.sqrt(variances.mean()), se, df, margin)


def _runs(top1: pd.Series) -> pd.Series:
    top1 = top1.dropna()
    if top1.index.has_duplicates:
        seed = top1.index[top1.index.duplicated()][0]
        raise ReproError(f"seed {seed} occurs twice on one side of a comparison: choose one run per seed")
    return top1


def _sd(values: pd.Series) -> float:
    # Equal numbers can have a mean that is rounded, and so a spread of 1e-14.
    return 0.0 if len(values) > 1 and values.nunique() == 1 else values.std()


def _row(better: pd.Series, other: pd.Series, sd: float, se: float, df: float, margin: float) -> dict[str, float]:
    difference = better.mean() - other.mean()
    low = high = p = p_equivalent = detectable = NONE
    if min(len(better), len(other)) >= FEWEST:
        if se > 0:
            low, high = stats.t.interval(1 - LEVEL, df, difference, se)
            p = 2 * stats.t.sf(abs(difference) / se, df)
            p_equivalent = stats.t.sf((margin - abs(difference)) / se, df)
            detectable = se * _found(df)
        else:
            low = high = difference
            p, p_equivalent, detectable = float(difference == 0), float(abs(difference) >= margin), 0.0
    return {
        "n": len(better),
        "n_other": len(other),
        "top1": better.mean(),
        "against": other.mean(),
        "difference": difference,
        "low": low,
        "high": high,
        "sd": sd,
        "r": NONE,
        "p": p,
        "margin": margin,
        "p_equivalent": p_equivalent,
        "detectable": detectable,
    }


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
    """The rows of `paired` and `unpaired` with adjusted p and a verdict; other columns are kept.

    The rows are all comparisons that were declared, and so one family. Holm's correction is applied to the tests of a
    difference (p_holm) and, apart from them, to those of equivalence (p_equivalent_holm). The verdict is

    - equivalent: the difference is shown to be smaller than the margin (p_equivalent_holm < 0.05);
    - supported, contradicted: a difference is shown (p_holm < 0.05), by its sign;
    - not resolved: neither, or fewer than three runs on a side;
    - not run: no runs on a side.

    Equivalence comes first: a difference that is shown to be below the declared margin does not count as an effect, even if
    it is shown not to be zero. For the same reason a row that is equivalent before the correction and different after it is not
    resolved. Thus more rows in the family can turn a verdict into "not resolved", but never into another one.
    """
    table = pd.DataFrame(rows)
    table = table.assign(p_holm=holm(table.p), p_equivalent_holm=holm(table.p_equivalent))
    different = (table.p_holm < LEVEL) & ~(table.p_equivalent < LEVEL)
    verdicts = {
        "not run": (table.n == 0) | (table.n_other == 0),
        "equivalent": table.p_equivalent_holm < LEVEL,
        "supported": different & (table.difference > 0),
        "contradicted": different & (table.difference < 0),
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
