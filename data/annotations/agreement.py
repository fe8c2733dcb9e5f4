"""Agreement of annotators on a label beyond chance: Cohen's, weighted, Fleiss' kappa, Krippendorff's alpha.

Ratings are a table [cases, annotators] of numbers (categories by code), NaN where an annotator did not read.
Kappas compare a pair, or need the same number of readings a case; alpha takes every case that two have read,
so it is the figure for a whole dataset. All are 1 for perfect agreement, 0 for that of chance, and not
defined (NaN) where everybody says the same of every case: there is nothing to tell apart.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Literal

import numpy as np

Weights = Literal["none", "linear", "quadratic"]
Level = Literal["nominal", "ordinal", "interval"]

DRAWS = 1000  # of the bootstrap


def cohen_kappa(a: np.ndarray, b: np.ndarray, weights: Weights = "none") -> float:
    """Kappa of two annotators over the cases that both have read.

    Cohen 1960, Educ. Psychol. Meas. 20:37; weighted: Cohen 1968, Psychol. Bull. 70:213. Weights are by the
    codes' differences, so categories must be coded in their order.
    """
    both = ~(np.isnan(a) | np.isnan(b))
    values, coded = np.unique(np.concatenate([a[both], b[both]]), return_inverse=True)
    if not both.any():
        return math.nan
    first, second = coded[: both.sum()], coded[both.sum() :]
    observed = np.zeros((len(values), len(values)))
    np.add.at(observed, (first, second), 1)
    expected = np.outer(observed.sum(1), observed.sum(0)) / observed.sum()
    apart = np.abs(values[:, None] - values[None])
    cost = (apart > 0).astype(float) if weights == "none" else apart if weights == "linear" else apart**2
    return _beyond_chance((cost * observed).sum(), (cost * expected).sum())


def fleiss_kappa(ratings: np.ndarray) -> tuple[float, int]:
    """Kappa of several annotators, who need not be the same for each case, and the number of cases used.

    Fleiss 1971, Psychol. Bull. 76:378, which needs equally many readings a case: cases of the most frequent
    number are used.
    """
    reads = (~np.isnan(ratings)).sum(1)
    usual = Counter(int(n) for n in reads if n > 1).most_common(1)
    if not usual:
        return math.nan, 0
    number = usual[0][0]
    counts = _counts(ratings[reads == number])
    same = (counts * (counts - 1)).sum(1) / (number * (number - 1))
    chance = ((counts.sum(0) / counts.sum()) ** 2).sum()
    return _beyond_chance(1 - float(same.mean()), 1 - float(chance)), len(counts)


def krippendorff_alpha(ratings: np.ndarray, level: Level = "nominal") -> float:
    """Alpha of any number of annotators, with gaps.

    Krippendorff 2011, Computing Krippendorff's Alpha-Reliability, sections C to E.
    """
    used = ratings[(~np.isnan(ratings)).sum(1) > 1]
    if not len(used):
        return math.nan
    number = (~np.isnan(used)).sum(1)
    if level == "interval":
        spread = np.nansum((used - np.nanmean(used, axis=1, keepdims=True)) ** 2, axis=1)
        known = used[~np.isnan(used)]
        inside = 2 * (number * spread / (number - 1)).sum() / len(known)
        overall = 2 * ((known - known.mean()) ** 2).sum() / (len(known) - 1)
        return _beyond_chance(float(inside), float(overall))
    counts = _counts(used)
    weighted = counts / (number - 1)[:, None]
    pairs = weighted.T @ counts - np.diag(weighted.sum(0))
    totals = pairs.sum(0)
    if level == "nominal":
        apart = 1.0 - np.eye(len(totals))
    else:
        upto = np.cumsum(totals)
        middle = upto - totals / 2  # between i and j lie half of each and all that is between
        apart = (middle[:, None] - middle[None]) ** 2
    total = totals.sum()
    chance = (np.outer(totals, totals) * apart).sum() / (total * (total - 1))
    return _beyond_chance((pairs * apart).sum() / total, chance)


def interval_of(
    coefficient: Callable[[np.ndarray], float], ratings: np.ndarray, generator: np.random.Generator
) -> tuple[float, float]:
    """95 % interval by drawing cases with replacement (percentile bootstrap); NaN with fewer than 5 cases."""
    if len(ratings) < 5:
        return math.nan, math.nan
    drawn = [coefficient(ratings[generator.integers(0, len(ratings), len(ratings))]) for _ in range(DRAWS)]
    known = np.asarray(drawn)[np.isfinite(drawn)]
    if not len(known):
        return math.nan, math.nan
    low, high = np.percentile(known, (2.5, 97.5))
    return float(low), float(high)


def _counts(ratings: np.ndarray) -> np.ndarray:
    """How often each category was given to each case, [cases, categories]."""
    values = np.unique(ratings[~np.isnan(ratings)])
    return (ratings[:, :, None] == values).sum(1).astype(float)


def _beyond_chance(observed: float, expected: float) -> float:
    """1 - observed / expected disagreement."""
    return float(1 - observed / expected) if expected > 0 else math.nan
