"""Intraclass correlation: how much of the spread of a measured value lies between cases, not annotators.

The six forms of Shrout and Fleiss 1979 (Psychol. Bull. 86:420), named also as McGraw and Wong 1996 (Psychol.
Methods 1:30) do, with their 95 % intervals. Which one is meant must be said: ICC(1) where each case had
other annotators, ICC(2) where the same annotators stand for any others and a constant difference between
them counts, ICC(3) where only these annotators matter and a constant difference does not; (.,1) for one
reading, (.,k) for the mean of k. As a rule ICC(2,1) is the one to report (Koo and Li 2016, J. Chiropr. Med.
15:155).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import ConfigError

NAMES = {
    "ICC(1,1)": "one-way random, single reading",
    "ICC(2,1)": "two-way random, absolute agreement, single reading",
    "ICC(3,1)": "two-way mixed, consistency, single reading",
    "ICC(1,k)": "one-way random, mean of k readings",
    "ICC(2,k)": "two-way random, absolute agreement, mean of k readings",
    "ICC(3,k)": "two-way mixed, consistency, mean of k readings",
}
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Icc:
    """One form with its interval."""

    form: str  # a key of NAMES
    value: float
    low: float
    high: float


def icc(table: np.ndarray) -> list[Icc]:
    """All six forms.

    Args:
        table: [n cases, k annotators] without gaps, n and k at least 2.

    Raises:
        ConfigError: fewer than two of either, or a gap.
    """
    cases, annotators = table.shape
    if cases < 2 or annotators < 2 or not np.isfinite(table).all():
        raise ConfigError(f"ICC of {cases} cases and {annotators} annotators: needs 2 of each, without gaps")
    n, k = cases, annotators
    mean = table.mean()
    between = k * ((table.mean(1) - mean) ** 2).sum() / (n - 1)
    columns = n * ((table.mean(0) - mean) ** 2).sum() / (k - 1)
    within = ((table - table.mean(1, keepdims=True)) ** 2).sum() / (n * (k - 1))
    error = max(0.0, (within * n * (k - 1) - columns * (k - 1)) / ((n - 1) * (k - 1)))
    with np.errstate(divide="ignore", invalid="ignore"):
        one = _by_ratio(between, within, k, (n - 1, n * (k - 1)))
        three = _by_ratio(between, error, k, (n - 1, (n - 1) * (k - 1)))
        two = _absolute(between, columns, error, n, k)
        single = dict(zip(("1", "2", "3"), (one, two, three), strict=True))
        found = [Icc(f"ICC({form},1)", *values) for form, values in single.items()]
        return found + [
            Icc(f"ICC({form},k)", *(float(k * value / (1 + (k - 1) * value)) for value in values))
            for form, values in single.items()
        ]


def _by_ratio(
    between: np.float64, rest: np.float64 | float, k: int, degrees: tuple[int, int]
) -> tuple[float, float, float]:
    """ICC(1,1) and ICC(3,1) with their exact intervals: Shrout and Fleiss, equations 1, 3, 4 and 9."""
    from scipy.stats import f

    ratio = np.float64(between) / np.float64(rest)
    tail = 1 - (1 - LEVEL) / 2
    low, high = ratio / f.ppf(tail, *degrees), ratio * f.ppf(tail, *degrees[::-1])
    if np.isinf(ratio):
        return 1.0, 1.0, 1.0
    value, low, high = ((r - 1) / (r + k - 1) for r in (ratio, low, high))
    return float(value), float(low), float(high)


def _absolute(
    between: np.float64, columns: np.float64, error: float, n: int, k: int
) -> tuple[float, float, float]:
    """ICC(2,1): Shrout and Fleiss, equation 2; interval by McGraw and Wong, table 7, case 2A."""
    from scipy.stats import f

    value = (between - error) / (between + (k - 1) * error + k * (columns - error) / n)
    if value >= 1 or not np.isfinite(value):
        return float(value), float(value), float(value)
    a = k * value / (n * (1 - value))
    b = 1 + k * value * (n - 1) / (n * (1 - value))
    degrees = (a * columns + b * error) ** 2
    degrees /= (a * columns) ** 2 / (k - 1) + (b * error) ** 2 / ((n - 1) * (k - 1))
    tail = 1 - (1 - LEVEL) / 2
    f_low, f_high = f.ppf(tail, n - 1, degrees), f.ppf(tail, degrees, n - 1)
    rest = k * columns + (k * n - k - n) * error
    low = n * (between - f_low * error) / (f_low * rest + n * between)
    high = n * (f_high * between - error) / (rest + n * f_high * between)
    return float(value), float(low), float(high)
