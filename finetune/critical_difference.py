"""Which methods cannot be told apart over several tasks: mean ranks, critical difference, cliques.

Demsar 2006 (JMLR 7, sections 3.2 and 4): methods are ranked within each task, ranks are averaged over tasks,
Friedman's test says whether there is any difference, and a clique joins methods that are not told apart. Two
ways to find cliques: Nemenyi, for which any two mean ranks closer than one critical distance are alike, and
Wilcoxon signed-rank tests of all pairs over tasks with Holm's correction (Benavoli et al. 2016, JMLR 17), in
which a third method does not decide over two.

Tasks are what is sampled here, not patients: with five tasks no pair can ever be significant by Wilcoxon
(smallest p 0.06), and the diagram then says so with one line under all. `ranking.py` tests within tasks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

from .ranking import Cell
from .statistics import holm, wilcoxon

Test = Literal["nemenyi", "wilcoxon"]


@dataclass(frozen=True, slots=True)
class CriticalDifference:
    """What a diagram shows; methods are sorted, best first."""

    methods: tuple[str, ...]
    ranks: tuple[float, ...]
    cliques: tuple[tuple[int, int], ...]  # first and last method of each maximal group that is not told apart
    test: Test
    distance: float  # Nemenyi's critical distance in ranks; nan for wilcoxon
    tasks: int
    friedman_p: float  # of no difference between any of the methods; nan with two methods or fewer


def task_scores(cells: Sequence[Cell]) -> tuple[list[str], np.ndarray]:
    """Methods, and their scores [tasks, methods], higher is better, from per-case values.

    Metrics have units, so methods are ranked by their mean in each cell of a task, and the score is minus the
    mean of these ranks; a missing result ranks last.

    Raises:
        ValueError: there is no cell, or the cells do not name the same methods.
    """
    methods = sorted(cells[0].values) if cells else []
    if not methods or any(sorted(cell.values) != methods for cell in cells):
        raise ValueError("every cell must name the same methods (None for a missing result)")
    found: dict[str, list[np.ndarray]] = {}
    for cell in cells:
        means = [_mean(cell, method) for method in methods]
        found.setdefault(cell.task, []).append(stats.rankdata(-np.round(means, 12)))
    return methods, -np.stack([np.mean(ranks, axis=0) for ranks in found.values()])


def critical_difference(
    methods: Sequence[str], scores: np.ndarray, *, test: Test = "nemenyi", alpha: float = 0.05
) -> CriticalDifference:
    """Mean ranks and cliques.

    Args:
        methods: [K] names.
        scores: [tasks, K], higher is better; a tie shares its rank.

    Raises:
        ValueError: fewer than two methods, no task, a score that is not finite, or an unknown test.
    """
    scores = np.atleast_2d(np.asarray(scores, float))
    if scores.shape[1] != len(methods) or len(methods) < 2 or not len(scores):
        raise ValueError(f"scores {scores.shape} for {len(methods)} methods: expected [tasks, 2 or more]")
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite: give a missing result the lowest score of its task")
    if test not in ("nemenyi", "wilcoxon"):
        raise ValueError(f"test {test!r}: expected nemenyi or wilcoxon")
    ranks = stats.rankdata(-np.round(scores, 12), axis=1).mean(axis=0)
    order = sorted(range(len(methods)), key=lambda k: (ranks[k], methods[k]))
    distance = nemenyi_distance(len(methods), len(scores), alpha)
    if test == "nemenyi":
        alike = np.abs(ranks[:, None] - ranks[None, :]) < distance
    else:
        alike, distance = _alike_by_wilcoxon(scores, alpha), math.nan
    return CriticalDifference(
        methods=tuple(methods[k] for k in order),
        ranks=tuple(float(ranks[k]) for k in order),
        cliques=_cliques(alike[np.ix_(order, order)]),
        test=test,
        distance=float(distance),
        tasks=len(scores),
        friedman_p=_friedman(scores),
    )


def nemenyi_distance(methods: int, tasks: int, alpha: float = 0.05) -> float:
    """Critical distance of mean ranks, q sqrt(K (K + 1) / (6 N)) (Demsar 2006, equation 7)."""
    quantile: Any = stats.studentized_range.ppf(1 - alpha, methods, np.inf)
    return float(quantile) / math.sqrt(2) * math.sqrt(methods * (methods + 1) / (6 * tasks))


def _mean(cell: Cell, method: str) -> float:
    values = cell.values[method]
    kept = np.zeros(0) if values is None else np.asarray(values, float)
    kept = kept[~np.isnan(kept)]
    if not len(kept):
        return -math.inf
    return float(kept.mean()) if cell.higher_is_better else -float(kept.mean())


def _friedman(scores: np.ndarray) -> float:
    if scores.shape[1] < 3 or len(scores) < 2:
        return math.nan
    if all(len(set(row)) == 1 for row in np.round(scores, 12).tolist()):
        return 1.0
    tested: Any = stats.friedmanchisquare(*np.round(scores, 12).T)
    return float(tested.pvalue)


def _alike_by_wilcoxon(scores: np.ndarray, alpha: float) -> np.ndarray:
    """Bool [K, K]: the pairs that Holm-corrected tests over tasks do not tell apart."""
    pairs = list(itertools.combinations(range(scores.shape[1]), 2))
    p = holm([wilcoxon(scores[:, a] - scores[:, b]) for a, b in pairs])
    alike = np.ones((scores.shape[1],) * 2, bool)
    for (a, b), value in zip(pairs, p, strict=True):
        alike[a, b] = alike[b, a] = value >= alpha
    return alike


def _cliques(alike: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Maximal runs of at least two neighbours in rank of which every pair is alike."""
    found: list[tuple[int, int]] = []
    for start in range(len(alike)):
        stop = start
        while stop + 1 < len(alike) and alike[start : stop + 2, start : stop + 2].all():
            stop += 1
        if stop > start and (not found or stop > found[-1][1]):
            found.append((start, stop))
    return tuple(found)
