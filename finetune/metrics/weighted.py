"""What metrics of a whole set share: weights of cases, one row a bootstrap draw, and undefined quotients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Metric = Callable[..., "float | np.ndarray"]  # metric(truth, score, weights[R, N] | None) -> [R], or a float


def weight_matrix(weights: np.ndarray | None, cases: int) -> np.ndarray:
    """Weights as float64 [R, N]; None is one row of ones. Raises ValueError when they do not fit."""
    matrix = np.ones((1, cases)) if weights is None else np.atleast_2d(np.asarray(weights, float))
    if matrix.shape[1] != cases:
        raise ValueError(f"weights {matrix.shape} do not fit {cases} cases")
    return matrix


def answer(values: np.ndarray, weights: np.ndarray | None) -> float | np.ndarray:
    """[R] values, or the one number when no weights were given."""
    return float(values[0]) if weights is None else values


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Quotient, nan where the denominator is not positive."""
    return np.divide(above, below, out=np.full(below.shape, np.nan), where=below > 0)
