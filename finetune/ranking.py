"""Ranks of several encoders over tasks, as the Medical Segmentation Decathlon ranks algorithms.

For each task, structure and metric, every pair of methods is compared by a one-sided Wilcoxon signed-rank
test over patients, Holm-corrected within that cell; a method's significance score is the number of methods
it beats. Scores become ranks, which are averaged over the cells of a task and then over tasks (Antonelli et
al. 2022, doi:10.1038/s41467-022-30695-9). A method without a result ranks last in that cell instead of
leaving it.

Price: with few patients nothing is significant and all methods share a rank, which is the honest answer.
How firm the ranks are is told by drawing patients again, the same draws for all cells of a task.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from .statistics import holm, patient_means, wilcoxon


@dataclass(frozen=True, slots=True)
class Cell:
    """Per-case values of all methods for one task, structure and metric."""

    task: str
    structure: str
    metric: str
    higher_is_better: bool
    values: Mapping[str, np.ndarray | None]  # method -> [N], nan where excluded; None: no result
    clusters: Sequence[str]  # patient of each case, [N]


@dataclass(frozen=True, slots=True)
class Rank:
    """Mean rank of a method (1 is best) and the range that holds 95 % of the bootstrap draws."""

    method: str
    rank: float
    low: float
    high: float


def rank_methods(
    cells: Sequence[Cell], *, alpha: float = 0.05, draws: int = 200, seed: int = 0
) -> list[Rank]:
    """Rank the methods of all cells, best first.

    Raises:
        ValueError: there is no cell, or the cells do not name the same methods.
    """
    methods = sorted(cells[0].values) if cells else []
    if not methods or any(sorted(cell.values) != methods for cell in cells):
        raise ValueError("every cell must name the same methods (None for a missing result)")
    exact = np.array([_cell_ranks(cell, methods, alpha) for cell in cells])[:, None, :]
    drawn = np.stack([_drawn_ranks(cell, methods, alpha, draws, seed) for cell in cells])
    mean, spread = _aggregate(cells, exact)[0], _aggregate(cells, drawn)
    low, high = np.quantile(spread, [0.025, 0.975], axis=0)
    ranks = [Rank(m, float(mean[i]), float(low[i]), float(high[i])) for i, m in enumerate(methods)]
    return sorted(ranks, key=lambda rank: (rank.rank, rank.method))


def significance_scores(cell: Cell, *, alpha: float = 0.05) -> dict[str, int]:
    """How many other methods each method with a result beats in `cell` at `alpha`, Holm-corrected."""
    present = sorted(method for method, values in cell.values.items() if values is not None)
    pairs = [(a, b) for a in present for b in present if a != b]
    p = holm([wilcoxon(_gaps(cell, a, b), alternative="greater") for a, b in pairs])
    return {m: sum(bool(p[i] < alpha) for i, (a, _) in enumerate(pairs) if a == m) for m in present}


def _gaps(cell: Cell, a: str, b: str) -> np.ndarray:
    """Advantage of a over b by patient, [P]; positive where a is better."""
    first, second = (np.asarray(cell.values[method], float) for method in (a, b))
    gaps = first - second if cell.higher_is_better else second - first
    kept = ~np.isnan(gaps)
    return patient_means(gaps[kept], np.asarray(cell.clusters)[kept]) if kept.any() else np.zeros(0)


def _cell_ranks(cell: Cell, methods: list[str], alpha: float) -> np.ndarray:
    scores = significance_scores(cell, alpha=alpha)
    return stats.rankdata([-scores.get(method, -1) for method in methods])


def _drawn_ranks(cell: Cell, methods: list[str], alpha: float, draws: int, seed: int) -> np.ndarray:
    """Ranks [draws, methods] on resampled patients, with the normal approximation of the test."""
    present = [method for method in methods if cell.values[method] is not None]
    pairs = [(a, b) for a in present for b in present if a != b]
    p_values = np.ones((len(pairs), draws))
    for row, (a, b) in enumerate(pairs):
        gaps = np.round(_gaps(cell, a, b), 12)
        if len(gaps) > 1:
            # The same generator for each pair: all methods meet the same patients in a draw.
            chosen = np.random.default_rng(seed).integers(len(gaps), size=(draws, len(gaps)))
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")  # draws in which all differences are zero: nan, handled below
                tested: Any = stats.wilcoxon(gaps[chosen], axis=1, alternative="greater", method="asymptotic")
            p_values[row] = np.nan_to_num(np.asarray(tested.pvalue), nan=1.0)
    adjusted = np.apply_along_axis(holm, 0, p_values) if pairs else p_values
    scores = np.full((draws, len(methods)), -1.0)
    for method in present:
        beaten = [adjusted[i] < alpha for i, (a, _) in enumerate(pairs) if a == method]
        scores[:, methods.index(method)] = np.sum(beaten, axis=0) if beaten else 0.0
    return stats.rankdata(-scores, axis=1)


def _aggregate(cells: Sequence[Cell], ranks: np.ndarray) -> np.ndarray:
    """Average ranks [cells, draws, methods] within each task, then over tasks: [draws, methods]."""
    tasks = sorted({cell.task for cell in cells})
    of_task = [ranks[[cell.task == task for cell in cells]].mean(axis=0) for task in tasks]
    return np.mean(of_task, axis=0)
