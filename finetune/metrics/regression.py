"""Metrics of one number an image: its error, the share of variance explained, and calibration.

The calibration slope is that of the truth on the prediction: 1 is right, below 1 the predictions are too far
apart (what over-fitting gives), above 1 too close to their mean. It has a best value and no better direction,
so it is reported and not compared between arms.

Shapes: `truth` [N], `score` [N] or [N, 1] in the label's own unit, `weights` [R, N].
"""

from __future__ import annotations

import numpy as np

from .weighted import Metric, answer, ratio, weight_matrix


def mae(truth: np.ndarray, score: np.ndarray, weights: np.ndarray | None = None) -> float | np.ndarray:
    """Mean absolute error."""
    t, p, matrix = _checked(truth, score, weights)
    return answer(matrix @ np.abs(t - p) / matrix.sum(axis=1), weights)


def rmse(truth: np.ndarray, score: np.ndarray, weights: np.ndarray | None = None) -> float | np.ndarray:
    """Root of the mean squared error."""
    t, p, matrix = _checked(truth, score, weights)
    return answer(np.sqrt(matrix @ np.square(t - p) / matrix.sum(axis=1)), weights)


def bias(truth: np.ndarray, score: np.ndarray, weights: np.ndarray | None = None) -> float | np.ndarray:
    """Mean of prediction minus truth: calibration in the large."""
    t, p, matrix = _checked(truth, score, weights)
    return answer(matrix @ (p - t) / matrix.sum(axis=1), weights)


def r2(truth: np.ndarray, score: np.ndarray, weights: np.ndarray | None = None) -> float | np.ndarray:
    """Coefficient of determination: 1 - squared error / variance of the truth in the draw; nan without any.

    Below zero where the mean of the scored cases would have done better.
    """
    t, p, matrix = _checked(truth, score, weights)
    _, _, spread, _ = _moments(t, t, matrix)
    error = matrix @ np.square(t - p) / matrix.sum(axis=1)
    return answer(1 - ratio(error, spread), weights)


def pearson(truth: np.ndarray, score: np.ndarray, weights: np.ndarray | None = None) -> float | np.ndarray:
    """Pearson's correlation; nan where either side is constant."""
    t, p, matrix = _checked(truth, score, weights)
    _, _, of_truth, shared = _moments(t, p, matrix)
    _, _, of_score, _ = _moments(p, p, matrix)
    return answer(ratio(shared, np.sqrt(of_truth * of_score)), weights)


def calibration_slope(
    truth: np.ndarray, score: np.ndarray, weights: np.ndarray | None = None
) -> float | np.ndarray:
    """Least-squares slope of the truth on the prediction; nan for a constant prediction."""
    t, p, matrix = _checked(truth, score, weights)
    _, _, spread, shared = _moments(p, t, matrix)
    return answer(ratio(shared, spread), weights)


REGRESSION: dict[str, Metric] = {
    "mae": mae,
    "rmse": rmse,
    "r2": r2,
    "pearson": pearson,
    "bias": bias,
    "calibration_slope": calibration_slope,
}


def _moments(
    a: np.ndarray, b: np.ndarray, matrix: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Means of a and b, variance of a, covariance of both: [R] each. Centred first, for large offsets."""
    total = matrix.sum(axis=1)
    x, y = a - a.mean(), b - b.mean()
    mean_x, mean_y = matrix @ x / total, matrix @ y / total
    spread = matrix @ (x * x) / total - mean_x**2
    scale = float(np.mean(x * x))
    spread = np.where(spread > 1e-12 * scale, spread, 0.0)  # rounding must not divide
    return mean_x, mean_y, spread, matrix @ (x * y) / total - mean_x * mean_y


def _checked(
    truth: np.ndarray, score: np.ndarray, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    t, p = np.asarray(truth, float), np.asarray(score, float)
    t, p = (side[:, 0] if side.ndim == 2 and side.shape[1] == 1 else side for side in (t, p))
    if t.ndim != 1 or t.shape != p.shape or not len(t):
        raise ValueError(f"truth {np.shape(truth)} and score {np.shape(score)} do not belong together")
    if not (np.isfinite(t).all() and np.isfinite(p).all()):
        raise ValueError(f"{int((~np.isfinite(t + p)).sum())} cases have a value that is not finite")
    return t, p, weight_matrix(weights, len(t))
