"""Metrics of ordered grades: how far off a grade is counts, not only that it is wrong.

The decision is the median of the predicted distribution, the grade of least expected absolute error; the most
probable grade, which accuracy takes, can lie at an end of a flat distribution. AUC and accuracy of
metrics/classification.py take the same probabilities, so a benchmark that treats grades as classes is
measured beside.

Shapes: `truth` int [N], 0 the lowest grade; `score` [N, K], the probability of each grade; `weights` [R, N].
"""

from __future__ import annotations

import numpy as np

from .classification import checked
from .weighted import Metric, answer, ratio


def median_grade(score: np.ndarray) -> np.ndarray:
    """Lowest grade whose cumulative probability reaches one half, int [N]."""
    reached = np.cumsum(np.asarray(score, float), axis=1) >= 0.5 - 1e-9
    reached[:, -1] = True
    return reached.argmax(axis=1)


def qwk(truth: np.ndarray, score: np.ndarray, weights: np.ndarray | None = None) -> float | np.ndarray:
    """Cohen's kappa with quadratic weights (Cohen 1968); nan where truth and decision are one same grade.

    With squared distances, the agreement expected by chance needs the first two moments alone:
    kappa = 1 - E(t - d)^2 / (E t^2 + E d^2 - 2 E t E d).
    """
    truth, score, matrix = checked(truth, score, weights)
    t, d = truth.astype(float), median_grade(score).astype(float)
    total = matrix.sum(axis=1)
    moments = matrix @ np.stack([t, d, t * t, d * d, np.square(t - d)], axis=1) / total[:, None]
    chance = moments[:, 2] + moments[:, 3] - 2 * moments[:, 0] * moments[:, 1]
    return answer(1 - ratio(moments[:, 4], np.where(chance > 1e-12, chance, 0.0)), weights)


def grade_error(
    truth: np.ndarray, score: np.ndarray, weights: np.ndarray | None = None
) -> float | np.ndarray:
    """Mean absolute distance between the true grade and the median one, in grades."""
    truth, score, matrix = checked(truth, score, weights)
    return answer(matrix @ np.abs(truth - median_grade(score)) / matrix.sum(axis=1), weights)


def rps(truth: np.ndarray, score: np.ndarray, weights: np.ndarray | None = None) -> float | np.ndarray:
    """Ranked probability score (Epstein 1969), the Brier score of ordered classes: 0 best, 1 worst."""
    truth, score, matrix = checked(truth, score, weights)
    return answer(matrix @ ranked_scores(truth, score) / matrix.sum(axis=1), weights)


def ranked_scores(truth: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Of each case [N]: mean over thresholds of the squared error of the cumulative probability."""
    grades = score.shape[1]
    below = np.cumsum(np.asarray(score, float), axis=1)[:, :-1]
    reached = np.asarray(truth)[:, None] <= np.arange(grades - 1)
    return np.square(below - reached).mean(axis=1)


ORDINAL: dict[str, Metric] = {"qwk": qwk, "grade_error": grade_error, "rps": rps}
