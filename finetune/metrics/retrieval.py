"""Metrics of one ranked list: does the gallery give back images of the query's own class, and first?

All are of one query, so means, intervals and tests come from the long table. A query without a relevant
image in the gallery has no value. `relevant` is the list in its order, bool [at least k or the whole
gallery]; `total` is how many relevant images the gallery holds.
"""

from __future__ import annotations

import numpy as np

CUTOFFS = (1, 5, 10, 20, 100)


def average_precision(relevant: np.ndarray, total: int, k: int) -> float:
    """AP@k: precision at the rank of each relevant image among the first k, summed, over min(k, total).

    With k the size of the gallery it is the average precision of the whole list.
    """
    hits = np.asarray(relevant[:k], dtype=float)
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float((precision * hits).sum() / min(k, total))


def recall(relevant: np.ndarray, total: int, k: int) -> float:
    """R@k of metric learning (Oh Song et al., CVPR 2016): 1 where any of the first k is relevant, else 0."""
    return float(np.any(relevant[:k]))


def precision(relevant: np.ndarray, total: int, k: int) -> float:
    """Share of relevant images among the first k (or the whole gallery, when that is smaller)."""
    return float(np.mean(relevant[:k]))


_RANKED = {"map": average_precision, "recall": recall, "precision": precision}
RETRIEVAL = tuple(f"{name}@{k}" for name in _RANKED for k in CUTOFFS)


def retrieval_value(metric: str, relevant: np.ndarray, total: int) -> float:
    """Value of `map@10`, `recall@5` ... of one query; nan when nothing in the gallery is relevant."""
    name, _, k = metric.partition("@")
    return _RANKED[name](relevant, total, int(k)) if total else float("nan")
