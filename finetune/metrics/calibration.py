"""Whether probabilities mean what they say: reliability bins, expected calibration error, calibration slope.

A decision is what is held against its probability: the most probable class of an image (Guo et al. 2017,
arXiv:1706.04599), or, where several findings may apply, the presence of each finding that is known. Diagram
and expected error share their bins, so they cannot disagree.

The slope is that of logistic recalibration: the b in softmax(a_k + b log p_k), fitted to the truth by maximum
likelihood (Cox 1958 for two classes; van Hoorde et al. 2014, doi:10.1016/j.jclinepi.2013.10.020, with one
slope for all classes). 1 is right, below 1 the probabilities are too extreme, above 1 too timid. Because each
class has its own a_k, a loss that weights classes does not move it, whereas it does move the expected error.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .classification import ECE_BINS

_ITERATIONS = 60
_SEPARATED = 1e-4  # mean negative log-likelihood below which nothing is left to fit: the slope has no end
_CHUNK = 4_000_000  # numbers held at a time
_FLOOR = 1e-12  # of a probability, before its logarithm


@dataclass(frozen=True, slots=True)
class Decisions:
    """Probabilities that were given to something that is either so or not, [M], and whose case each is."""

    probability: np.ndarray
    right: np.ndarray  # bool
    case: np.ndarray  # int, index into the N cases
    cases: int

    @property
    def bins(self) -> np.ndarray:
        """Bin of each decision: 0 .. ECE_BINS - 1, bounds belong to the lower bin."""
        return np.clip(np.ceil(self.probability * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)


def decisions(truth: np.ndarray, score: np.ndarray) -> Decisions:
    """Decisions of truth int [N] and score [N] or [N, K], or of truth 0/1/-1 (not known) [N, K].

    Raises:
        ValueError: the shapes do not belong together.
    """
    truth, score = np.asarray(truth), _columns(score)
    if len(truth) != len(score) or truth.ndim > 2 or (truth.ndim == 2 and truth.shape != score.shape):
        raise ValueError(f"truth {truth.shape} and score {score.shape} do not belong together")
    if truth.ndim == 2:
        case, column = np.nonzero(truth >= 0)
        return Decisions(score[case, column], truth[case, column] == 1, case, len(truth))
    return Decisions(score.max(axis=1), score.argmax(axis=1) == truth, np.arange(len(truth)), len(truth))


def expected_error(
    truth: np.ndarray, score: np.ndarray, weights: np.ndarray | None = None
) -> float | np.ndarray:
    """Expected calibration error (Guo et al. 2017, equation 3) over ECE_BINS equal bins.

    One class an image: equal to `classification.ece`. Findings: over all that are known together.
    """
    found = decisions(truth, score)
    matrix = np.ones((1, len(truth))) if weights is None else np.atleast_2d(weights)
    expanded = matrix[:, found.case]
    gap = np.eye(ECE_BINS)[found.bins] * (found.right - found.probability)[:, None]
    values = np.abs(expanded @ gap).sum(axis=1) / expanded.sum(axis=1)
    return float(values[0]) if weights is None else values


def slope(truth: np.ndarray, score: np.ndarray, weights: np.ndarray | None = None) -> float | np.ndarray:
    """Calibration slope; of findings the mean over them. nan where classes are separated without an error.

    Args:
        truth, score: as for `decisions`.
        weights: [R, N] of bootstrap draws; the answer is [R] then.
    """
    truth, score = np.asarray(truth), _columns(score)
    matrix = np.ones((1, len(truth))) if weights is None else np.atleast_2d(np.asarray(weights, float))
    if truth.ndim == 1:
        values = _slopes(truth, score, matrix)
    else:
        columns = []
        for column in range(truth.shape[1]):
            known = truth[:, column] >= 0
            pair = _columns(score[known, column])
            columns.append(_slopes(truth[known, column], pair, matrix[:, known]))
        stacked = np.stack(columns)
        defined = ~np.isnan(stacked)
        total = np.where(defined, stacked, 0.0).sum(axis=0)
        values = np.where(defined.any(axis=0), total / np.maximum(defined.sum(axis=0), 1), np.nan)
    return float(values[0]) if weights is None else values


def _columns(score: np.ndarray) -> np.ndarray:
    score = np.asarray(score, float)
    return np.stack([1 - score, score], axis=1) if score.ndim == 1 else score


def _slopes(truth: np.ndarray, score: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Slope of each row of weights [R, N], in chunks of rows."""
    if not len(truth):
        return np.full(len(matrix), np.nan)
    log_p = np.log(np.clip(score, _FLOOR, 1.0))
    rows = max(1, _CHUNK // score.size)
    parts = [_newton(truth, log_p, matrix[start : start + rows]) for start in range(0, len(matrix), rows)]
    return np.concatenate(parts)


def _newton(truth: np.ndarray, log_p: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Maximum likelihood by Newton's method for all rows at once; parameters are b and a_1 .. a_(K-1)."""
    rows, classes = len(weights), log_p.shape[1]
    weights = weights / np.maximum(weights.sum(axis=1, keepdims=True), _FLOOR)
    wanted = np.eye(classes)[truth]
    present = (weights @ wanted > 0).sum(axis=1)
    theta = np.concatenate([np.ones((rows, 1)), np.zeros((rows, classes - 1))], axis=1)
    ridge = 1e-10 * np.eye(classes)
    loss = np.full(rows, np.inf)
    for _ in range(_ITERATIONS):
        shift = np.concatenate([np.zeros((rows, 1)), theta[:, 1:]], axis=1)
        logits = theta[:, :1, None] * log_p + shift[:, None, :]  # [R, N, K]
        logits -= logits.max(axis=2, keepdims=True)
        p = np.exp(logits)
        total = p.sum(axis=2, keepdims=True)
        loss = -(weights * ((logits * wanted).sum(axis=2) - np.log(total[:, :, 0]))).sum(axis=1)
        p /= total
        mean = (p * log_p).sum(axis=2)  # [R, N]
        gradient = np.empty((rows, classes))
        gradient[:, 0] = (weights * ((wanted * log_p).sum(axis=1) - mean)).sum(axis=1)
        gradient[:, 1:] = np.einsum("rn,rnk->rk", weights, (wanted - p)[:, :, 1:])
        weighted = weights[:, :, None] * p
        hessian = np.empty((rows, classes, classes))
        hessian[:, 0, 0] = (weighted * np.square(log_p)).sum(axis=(1, 2)) - (weights * mean**2).sum(axis=1)
        cross = np.einsum("rnk,nk->rk", weighted, log_p) - np.einsum("rn,rnk->rk", weights * mean, p)
        hessian[:, 0, 1:] = hessian[:, 1:, 0] = cross[:, 1:]
        hessian[:, 1:, 1:] = -np.einsum("rnk,rnl->rkl", weighted[:, :, 1:], p[:, :, 1:])
        diagonal = np.arange(1, classes)
        hessian[:, diagonal, diagonal] += weighted.sum(axis=1)[:, 1:]
        step = np.linalg.solve(hessian + ridge, gradient[:, :, None])[:, :, 0]
        theta += np.clip(step, -1.0, 1.0)
        if np.abs(step[:, 0]).max() < 1e-9:
            break
    return np.where((loss < _SEPARATED) | (present < 2), np.nan, theta[:, 0])
