"""Classification metrics that take case weights, so that thousands of bootstrap draws are one matrix product.

A bootstrap draw of cases is nothing but integer weights. Every function takes `weights` [R, N] and answers
[R] values, or one float without weights; 10,000 draws of an AUC over 200 cases take 0.07 s instead of
minutes. Definitions follow scikit-learn; AUC and accuracy are those of the MedMNIST evaluator
(one-versus-rest AUC averaged over classes, threshold 0.5 for two classes and multi-label).

Shapes: `truth` int [N] with `score` [N] (probability of class 1) or [N, K] (probability of each class),
or multi-label `truth` 0/1 [N, K] with `score` [N, K]; -1 is a finding that nobody stated, and is not counted.
A class without positives or without negatives in a draw has no AUC: it is left out of that draw's mean.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .weighted import Metric, answer, ratio, weight_matrix

ECE_BINS = 15


def auc(truth: np.ndarray, score: np.ndarray, weights: np.ndarray | None = None) -> float | np.ndarray:
    """Area under the ROC curve, one versus rest, averaged over classes (or labels); nan when undefined."""
    return _over_columns(_auc_column, truth, score, weights)


def average_precision(
    truth: np.ndarray, score: np.ndarray, weights: np.ndarray | None = None
) -> float | np.ndarray:
    """Average precision, sum of (recall step x precision), averaged over classes (or labels)."""
    return _over_columns(_precision_column, truth, score, weights)


def accuracy(truth: np.ndarray, score: np.ndarray, weights: np.ndarray | None = None) -> float | np.ndarray:
    """Share of right decisions: the most probable class, or 0.5 per label averaged over labels."""
    truth, score, matrix = checked(truth, score, weights)
    right = _decide(truth, score) == truth
    if truth.ndim == 2:
        return answer(_mean_over_known(right, truth, matrix), weights)
    return answer(matrix @ right / matrix.sum(axis=1), weights)


def balanced_accuracy(
    truth: np.ndarray, score: np.ndarray, weights: np.ndarray | None = None
) -> float | np.ndarray:
    """Mean recall over the classes present in the truth; for multi-label, mean of each label's."""
    truth, score, matrix = checked(truth, score, weights)
    decided = _decide(truth, score)
    if truth.ndim == 2:
        columns = [
            _mean_recall(truth[:, k].clip(0), decided[:, k], 2, matrix * (truth[:, k] >= 0))
            for k in range(truth.shape[1])
        ]
        return answer(_mean_of_defined(np.stack(columns)), weights)
    return answer(_mean_recall(truth, decided, max(score.shape[1], 2), matrix), weights)


def brier(truth: np.ndarray, score: np.ndarray, weights: np.ndarray | None = None) -> float | np.ndarray:
    """Brier score: squared error of the probabilities; summed over classes, halved for two (0 best, 1 or 2
    worst)."""
    truth, score, matrix = checked(truth, score, weights)
    if truth.ndim == 2:
        return answer(_mean_over_known(np.square(score - truth), truth, matrix), weights)
    error = np.square(score - np.eye(score.shape[1])[truth])
    case = error.mean(axis=1) if score.shape[1] == 2 else error.sum(axis=1)
    return answer(matrix @ case / matrix.sum(axis=1), weights)


def ece(truth: np.ndarray, score: np.ndarray, weights: np.ndarray | None = None) -> float | np.ndarray:
    """Expected calibration error of the decision, 15 equal bins of its probability (Guo et al. 2017, eq. 3).

    Raises:
        ValueError: multi-label truth, for which the decision has no single probability.
    """
    truth, score, matrix = checked(truth, score, weights)
    if truth.ndim == 2:
        raise ValueError("ece needs one class per case; the truth is multi-label")
    confidence = score.max(axis=1)
    gap = (score.argmax(axis=1) == truth) - confidence
    bins = np.clip(np.ceil(confidence * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)
    per_bin = matrix @ (np.eye(ECE_BINS)[bins] * gap[:, None])
    return answer(np.abs(per_bin).sum(axis=1) / matrix.sum(axis=1), weights)


CLASSIFICATION: dict[str, Metric] = {
    "auc": auc,
    "average_precision": average_precision,
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "brier": brier,
    "ece": ece,
}


def checked(
    truth: np.ndarray, score: np.ndarray, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Check and bring to truth int [N] or [N, K], score float64 [N, K], weights float64 [R, N]."""
    truth, score = np.asarray(truth), np.asarray(score, float)
    if not np.issubdtype(truth.dtype, np.integer) and truth.dtype != bool:
        raise ValueError(f"truth must be integer classes, not {truth.dtype}")
    truth = truth.astype(np.int64)
    if score.ndim == 1:
        score = np.stack([1 - score, score], axis=1)
    if score.ndim != 2 or len(score) != len(truth) or len(truth) == 0:
        raise ValueError(f"truth {truth.shape} and score {score.shape} do not belong together")
    if truth.ndim == 2 and truth.shape != score.shape:
        raise ValueError(f"multi-label truth {truth.shape} and score {score.shape} differ in shape")
    low, top = (-1, 2) if truth.ndim == 2 else (0, score.shape[1])
    if truth.min() < low or truth.max() >= top:
        raise ValueError(f"truth holds {truth.min()}..{truth.max()}, expected {low}..{top - 1}")
    if not np.isfinite(score).all():
        raise ValueError(
            f"{int((~np.isfinite(score)).any(axis=1).sum())} cases have a score that is not finite"
        )
    return truth, score, weight_matrix(weights, len(truth))


def _decide(truth: np.ndarray, score: np.ndarray) -> np.ndarray:
    return (score > 0.5).astype(np.int64) if truth.ndim == 2 else score.argmax(axis=1)


def _over_columns(
    column: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
    truth: np.ndarray,
    score: np.ndarray,
    weights: np.ndarray | None,
) -> float | np.ndarray:
    """Mean of a two-class metric over classes or labels, leaving undefined ones out."""
    truth, score, matrix = checked(truth, score, weights)
    if truth.ndim == 1 and score.shape[1] == 2:
        values = [column(truth == 1, score[:, 1], matrix)]
    else:
        positives = truth == 1 if truth.ndim == 2 else truth[:, None] == np.arange(score.shape[1])
        known = np.ones(positives.shape, dtype=bool) if truth.ndim == 1 else truth >= 0
        values = [
            column(positives[:, k], score[:, k], matrix if known[:, k].all() else matrix * known[:, k])
            for k in range(score.shape[1])
        ]
    return answer(_mean_of_defined(np.stack(values)), weights)


def _mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Mean over columns [K, R] -> [R], undefined ones left out; nan where all are."""
    defined = ~np.isnan(values)
    total = np.where(defined, values, 0.0).sum(axis=0)
    return ratio(total, defined.sum(axis=0))


def _mean_over_known(values: np.ndarray, truth: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Mean of [N, K] over the stated cases of each label, then over labels: [R]."""
    known = (truth >= 0).astype(float)
    columns = ratio((matrix @ (values * known)).T, (matrix @ known).T)
    return _mean_of_defined(columns)


def _tied_sums(positive: np.ndarray, score: np.ndarray, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight of positives and of negatives at each distinct score, ascending: [R, G] each."""
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) > 0])
    ordered = matrix[:, order]
    hits = np.add.reduceat(ordered * positive[order], starts, axis=1)
    return hits, np.add.reduceat(ordered, starts, axis=1) - hits


def _auc_column(positive: np.ndarray, score: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    hits, misses = _tied_sums(positive, score, matrix)
    below = np.cumsum(misses, axis=1) - misses
    won = (hits * (below + misses / 2)).sum(axis=1)
    return ratio(won, hits.sum(axis=1) * misses.sum(axis=1))


def _precision_column(positive: np.ndarray, score: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    hits, misses = (side[:, ::-1] for side in _tied_sums(positive, score, matrix))
    found = np.cumsum(hits, axis=1)
    called = found + np.cumsum(misses, axis=1)
    precision = np.divide(found, called, out=np.zeros_like(found), where=called > 0)
    return ratio((hits * precision).sum(axis=1), hits.sum(axis=1))


def _mean_recall(truth: np.ndarray, decided: np.ndarray, classes: int, matrix: np.ndarray) -> np.ndarray:
    members = np.eye(classes)[truth]  # [N, K]
    size = matrix @ members
    recall = ratio(matrix @ (members * (decided == truth)[:, None]), size)
    return ratio(np.nansum(recall, axis=1), (size > 0).sum(axis=1))
