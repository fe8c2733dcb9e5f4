"""How sure a mean, a metric or a difference is: bootstrap over patients, Wilcoxon signed-rank, Holm.

Scans of one patient resemble each other, so patients are what is drawn: a draw takes as many patients as
there are, with replacement, and every scan of a drawn patient comes along (cluster bootstrap). Drawing
scans instead makes intervals too narrow: on 40 patients with four scans each, 95 % intervals held the truth
in 69 % of 1,000 trials, against 93 % by patient. Two things are bootstrapped: means of per-case values, and
metrics of a whole set (AUC). Either way a draw is a row of integer weights, so 10,000 draws are a few matrix
products (0.02 s for a mean over 200 patients, 0.07 s for an AUC).

Price: the intervals are plain percentiles, a little narrow below about 15 patients; with one patient there
is no interval, and nan says so. P-values of differences use one value a patient, the mean over the
patient's scans.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

DRAWS = 10_000
LEVEL = 0.95
_CHUNK = 4_000_000  # weights held at a time: 32 MB

Metric = Callable[..., "float | np.ndarray"]
Clusters = Sequence[str] | Sequence[int] | np.ndarray


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its confidence interval; `low` and `high` are nan where there is none."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Summary(Interval):
    """A mean over cases with what it was computed from. `n` counts the cases used, replaced ones included."""

    n: int
    patients: int
    excluded: int
    replaced: int


@dataclass(frozen=True, slots=True)
class Difference:
    """Paired comparison a - b: the difference, its interval, and the p-value of no difference."""

    difference: float
    low: float
    high: float
    p: float
    n: int
    patients: int


def bootstrap_mean(
    values: np.ndarray, clusters: Clusters, n: int = DRAWS, seed: int = 0, *, level: float = LEVEL
) -> Interval:
    """Mean over cases with its interval over patients.

    Args:
        values: [N], or [N, S] for S structures whose means are averaged; nan marks an excluded value.
        clusters: patient of each case, [N].
        n: bootstrap draws.

    Raises:
        ValueError: lengths differ, a value is infinite, or there is no case.
    """
    table, inverse, patients = _table(values, clusters)
    used = ~np.isnan(table)
    sums = _per_patient(np.where(used, table, 0.0), inverse, patients)
    counts = _per_patient(used.astype(float), inverse, patients)
    mean = _structure_mean(sums.sum(axis=0, keepdims=True), counts.sum(axis=0, keepdims=True))[0]
    present = counts.sum(axis=1) > 0
    draws = [
        _structure_mean(w @ sums[present], w @ counts[present]) for w in _draws(int(present.sum()), n, seed)
    ]
    return Interval(float(mean), *_percentiles(draws, level))


def summarise(
    values: np.ndarray,
    statuses: Sequence[str],
    clusters: Clusters,
    n: int = DRAWS,
    seed: int = 0,
    *,
    level: float = LEVEL,
) -> Summary:
    """`bootstrap_mean` of one structure's metric with its counts of used, excluded and replaced cases.

    Args:
        values: [N]; nan where excluded.
        statuses: "ok", "excluded" or "replaced" of each case.
    """
    values, states = np.asarray(values, float), np.asarray(statuses)
    if not np.array_equal(np.isnan(values), states == "excluded"):
        raise ValueError("a value must be nan exactly where its status is 'excluded'")
    interval = bootstrap_mean(values, clusters, n, seed, level=level)
    kept = states != "excluded"
    return Summary(
        mean=interval.mean,
        low=interval.low,
        high=interval.high,
        n=int(kept.sum()),
        patients=len(np.unique(np.asarray(clusters)[kept])),
        excluded=int((~kept).sum()),
        replaced=int((states == "replaced").sum()),
    )


def bootstrap_metric(
    metric: Metric,
    truth: np.ndarray,
    score: np.ndarray,
    clusters: Clusters,
    n: int = DRAWS,
    seed: int = 0,
    *,
    level: float = LEVEL,
) -> Interval:
    """A metric of the whole set, such as AUC, with its interval over patients.

    Args:
        metric: `metric(truth, score, weights[R, N]) -> [R]`, as in `metrics.CLASSIFICATION`.
        truth, score: [N] or [N, K] as that metric takes them.

    Draws in which the metric is undefined (a class is missing) are left out; no interval if most are.
    """
    _, inverse, patients = _table(np.zeros(len(truth)), clusters)
    draws = [np.asarray(metric(truth, score, w[:, inverse])) for w in _draws(patients, n, seed, len(inverse))]
    return Interval(float(metric(truth, score)), *_percentiles(draws, level))


def interval_of(value: float, draws: np.ndarray, *, level: float = LEVEL) -> Interval:
    """The interval that bootstrap draws [R] of a value span; none when most of them are undefined."""
    return Interval(float(value), *_percentiles([np.asarray(draws, float)], level))


def structure_mean(values: np.ndarray) -> float:
    """Mean over structures of the mean over cases of values [N, S]; nan where nothing is known."""
    used = ~np.isnan(values)
    sums = np.where(used, values, 0.0).sum(axis=0, keepdims=True)
    return float(_structure_mean(sums, used.sum(axis=0, keepdims=True))[0])


def mean_draws(values: np.ndarray, clusters: Clusters, n: int = DRAWS, seed: int = 0) -> np.ndarray:
    """The draws [n] of a mean that `bootstrap_mean` takes its interval from; all nan with one patient.

    Two methods on the same cases meet the same patients in a draw, so that the difference of their draws is a
    paired one. Patients without a value stay in the draw.
    """
    table, inverse, patients = _table(values, clusters)
    used = ~np.isnan(table)
    sums = _per_patient(np.where(used, table, 0.0), inverse, patients)
    counts = _per_patient(used.astype(float), inverse, patients)
    rows = [_structure_mean(w @ sums, w @ counts) for w in _draws(patients, n, seed)]
    return np.concatenate(rows) if rows else np.full(n, np.nan)


def metric_draws(
    metric: Metric, truth: np.ndarray, score: np.ndarray, clusters: Clusters, n: int = DRAWS, seed: int = 0
) -> np.ndarray:
    """As `mean_draws`, of a metric of the whole set."""
    _, inverse, patients = _table(np.zeros(len(truth)), clusters)
    rows = [np.asarray(metric(truth, score, w[:, inverse])) for w in _draws(patients, n, seed, len(inverse))]
    return np.concatenate(rows) if rows else np.full(n, np.nan)


def paired_difference(
    a: np.ndarray,
    b: np.ndarray,
    clusters: Clusters,
    n: int = DRAWS,
    seed: int = 0,
    *,
    level: float = LEVEL,
) -> Difference:
    """Mean of a - b over the same cases, interval over patients, Wilcoxon signed-rank p over patients.

    Args:
        a, b: [N] per-case values of two arms in the same order, or [N, S] for the average over S structures;
            what is nan in either is left out.

    Raises:
        ValueError: shapes differ or there is no case.
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    if a.shape != b.shape or a.ndim not in (1, 2):
        raise ValueError(f"paired values differ in shape: {a.shape} and {b.shape}")
    gaps = (a - b).reshape(len(a), -1)
    interval = bootstrap_mean(gaps, clusters, n, seed, level=level)
    kept = ~np.isnan(gaps).all(axis=1)
    each = np.zeros(0)
    if kept.any():
        each = patient_means(np.nanmean(gaps[kept], axis=1), np.asarray(clusters)[kept])
    return Difference(
        interval.mean, interval.low, interval.high, wilcoxon(each), n=int(kept.sum()), patients=len(each)
    )


def paired_metric_difference(
    metric: Metric,
    truth: np.ndarray,
    score_a: np.ndarray,
    score_b: np.ndarray,
    clusters: Clusters,
    n: int = DRAWS,
    seed: int = 0,
    *,
    level: float = LEVEL,
) -> Difference:
    """Difference of a whole-set metric between two arms on the same draws of patients.

    p is twice the smaller share of draws on either side of zero, never below 2 / (n + 1).
    """
    _, inverse, patients = _table(np.zeros(len(truth)), clusters)
    draws = []
    for w in _draws(patients, n, seed, len(inverse)):
        weights = w[:, inverse]
        draws.append(
            np.asarray(metric(truth, score_a, weights)) - np.asarray(metric(truth, score_b, weights))
        )
    low, high = _percentiles(draws, level)
    gaps = np.concatenate(draws) if draws else np.zeros(0)
    gaps = np.round(gaps[~np.isnan(gaps)], 12)
    p = float("nan")
    if not np.isnan(low):
        p = min(1.0, 2 * (min((gaps <= 0).sum(), (gaps >= 0).sum()) + 1) / (len(gaps) + 1))
    observed = float(metric(truth, score_a)) - float(metric(truth, score_b))
    return Difference(observed, low, high, float(p), n=len(inverse), patients=patients)


def patient_means(values: np.ndarray, clusters: Clusters) -> np.ndarray:
    """Mean of [N] values by patient, patients in sorted order: [P]."""
    table, inverse, patients = _table(values, clusters)
    return (_per_patient(table, inverse, patients)[:, 0]) / np.bincount(inverse, minlength=patients)


def wilcoxon(differences: np.ndarray, alternative: str = "two-sided") -> float:
    """Signed-rank p-value of paired differences [P]; zeros are dropped, and 1 when all are zero.

    Differences are rounded to 12 digits first: a tie must not be broken by rounding errors.
    """
    gaps = np.round(np.asarray(differences, float), 12)
    if not gaps.any():
        return 1.0
    tested: Any = stats.wilcoxon(gaps, alternative=alternative)
    return float(tested.pvalue)


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's step-down adjusted p-values in the given order (Holm 1979); nan entries stay nan, uncounted."""
    p = np.asarray(p_values, float)
    adjusted = np.full(p.shape, np.nan)
    order = [i for i in np.argsort(p, kind="stable") if not np.isnan(p[i])]
    running = 0.0
    for position, index in enumerate(order):
        running = max(running, min(1.0, (len(order) - position) * p[index]))
        adjusted[index] = running
    return adjusted


def _table(values: np.ndarray, clusters: Clusters) -> tuple[np.ndarray, np.ndarray, int]:
    """Values as [N, S], the patient number of each case [N], and how many patients there are."""
    table = np.asarray(values, float)
    table = table[:, None] if table.ndim == 1 else table
    names, inverse = np.unique(np.asarray(clusters), return_inverse=True)
    if table.ndim != 2 or len(table) != len(inverse):
        raise ValueError(
            f"{len(table)} cases but {len(inverse)} patient names: expected one name for each case"
        )
    if np.isinf(table).any():
        raise ValueError("an infinite value has no mean: replace it first (EmptyPolicy does)")
    if not len(table):
        raise ValueError("no cases")
    return table, inverse, len(names)


def _per_patient(table: np.ndarray, inverse: np.ndarray, patients: int) -> np.ndarray:
    """Column sums by patient: [N, S] -> [P, S]."""
    columns = [np.bincount(inverse, weights=column, minlength=patients) for column in table.T]
    return np.stack(columns, axis=1)


def _structure_mean(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean over the structures that have cases of their means over cases: [R, S], [R, S] -> [R]."""
    present = counts > 0
    means = np.divide(sums, counts, out=np.zeros_like(sums), where=present)
    structures = present.sum(axis=1)
    return np.divide(means.sum(axis=1), structures, out=np.full(len(sums), np.nan), where=structures > 0)


def _draws(patients: int, n: int, seed: int, cases: int = 0) -> Iterator[np.ndarray]:
    """Yield patient weights [R, P] in chunks, n rows in all; nothing when one patient cannot be resampled.

    The rows depend on (patients, n, seed) alone, so two arms meet the same draws.
    """
    if patients < 2:
        return
    rng = np.random.default_rng(seed)
    chunk = max(1, _CHUNK // max(patients, cases))
    for start in range(0, n, chunk):
        rows = min(chunk, n - start)
        drawn = rng.integers(patients, size=(rows, patients)) + np.arange(rows)[:, None] * patients
        yield np.bincount(drawn.ravel(), minlength=rows * patients).reshape(rows, patients).astype(float)


def _percentiles(draws: list[np.ndarray], level: float) -> tuple[float, float]:
    values = np.concatenate(draws) if draws else np.zeros(0)
    defined = values[~np.isnan(values)]
    if len(defined) * 2 <= len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
