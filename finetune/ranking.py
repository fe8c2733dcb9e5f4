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


@dataclass(frozen=True, slots=True)
class Stability:
    """How firm a ranking is when patients are drawn again."""

    shares: dict[str, list[float]]  # method, best first -> share of the draws in which it held rank 1 .. K
    tau: float  # mean Kendall's tau between the ranking and those of the draws; 1: always the same order


def rank_stability(
    cells: Sequence[Cell], *, alpha: float = 0.05, draws: int = 200, seed: int = 0
) -> Stability:
    """Shares of ranks over bootstrap draws (Wiesenfarth et al. 2021, doi:10.1038/s41598-021-82017-6).

    Methods that share a place share its ranks: two that tie for the first count half for rank 1 and 2 each.

    Raises:
        ValueError: as `rank_methods`.
    """
    order = [rank.method for rank in rank_methods(cells, alpha=alpha, draws=1, seed=seed)]
    drawn = np.stack([_drawn_ranks(cell, order, alpha, draws, seed) for cell in cells])
    spread = np.round(_aggregate(cells, drawn), 12)  # [draws, methods]
    places = np.zeros((len(order), len(order)))
    for row in spread:
        low, high = stats.rankdata(row, "min").astype(int), stats.rankdata(row, "max").astype(int)
        for method, (a, b) in enumerate(zip(low, high, strict=True)):
            places[method, a - 1 : b] += 1 / (b - a + 1)
    exact = _aggregate(cells, np.array([_cell_ranks(cell, order, alpha) for cell in cells])[:, None, :])[0]
    taus = [_tau(exact, row) for row in spread]
    return Stability(
        {method: (places[i] / len(spread)).tolist() for i, method in enumerate(order)}, float(np.mean(taus))
    )


def _tau(a: np.ndarray, b: np.ndarray) -> float:
    """Kendall's tau-b; 1 for two rankings that are all ties, 0 where only one is."""
    flat = len(set(np.round(a, 12))) == 1, len(set(np.round(b, 12))) == 1
    if any(flat):
        return float(all(flat))
    tested: Any = stats.kendalltau(a, b)
    return float(tested.statistic)


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
