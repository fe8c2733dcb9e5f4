"""Several findings an image, each present, absent or not known.

Each finding is a question of its own: binary cross-entropy, not weighted, so that probabilities are what they
say and 0.5 is the threshold, as the MedMNIST evaluator has it. A finding that nobody stated of an image is
neither learnt nor scored there. Rare findings pull the macro AUC as hard as common ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..data import Case
from ..metrics import CLASSIFICATION, CaseRow
from ..metrics.classification import Metric
from .images import ImageTask, logistic_weights

NOTHING = "no finding"


class Multilabel(ImageTask):
    """See the module docstring."""

    kind = "multilabel"
    criterion = "auc"
    worst = "probability"

    @property
    def set_metrics(self) -> Mapping[str, Metric]:
        return {name: metric for name, metric in CLASSIFICATION.items() if name != "ece"}

    def parts(self, metric: str) -> Mapping[str, Metric]:
        """The metric of each finding alone."""
        return {
            name: partial(_of_column, self.set_metrics[metric], k)
            for k, name in enumerate(self.record.classes)
        }

    def target(self, case: Case) -> np.ndarray:
        """1, 0 or -1 (not known) of each finding, int64 [K]."""
        return np.asarray(case.target, dtype=np.int64)

    def criterion_of(self, logits: Tensor, target: Tensor) -> Tensor:
        """Binary cross-entropy over what is known."""
        known = (target >= 0).float()
        each = functional.binary_cross_entropy_with_logits(
            logits.float(), target.clamp(min=0).float(), weight=known, reduction="sum"
        )
        return each / known.sum().clamp(min=1)

    def activate(self, logits: Tensor) -> Tensor:
        return torch.sigmoid(logits)

    def scores(self, predicted: np.ndarray, target: np.ndarray) -> dict[str, float]:
        """Macro AUC, average precision, log loss over what is known."""
        found = {
            name: float(CLASSIFICATION[name](target, predicted)) for name in ("auc", "average_precision")
        }
        picked = np.where(target == 1, predicted, 1 - predicted)[target >= 0]
        return {
            "auc": found["auc"] if np.isfinite(found["auc"]) else 0.5,
            "average_precision": found["average_precision"]
            if np.isfinite(found["average_precision"])
            else 0.0,
            "log_loss": float(-np.log(np.clip(picked, 1e-12, 1)).mean()),
        }

    def fitted(self, x: np.ndarray, target: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
        """A logistic regression for each finding, on the images where it is known."""
        columns = []
        for k in range(target.shape[1]):
            known = target[:, k] >= 0
            columns.append(logistic_weights(x[known], target[known, k], strength))
        return np.stack([weight for weight, _ in columns]), np.array([bias for _, bias in columns])

    def certain(self, target: np.ndarray) -> np.ndarray:
        """1 or 0; what is not known votes with the finding's frequency."""
        known = target >= 0
        share = (target * known).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
        return np.where(known, target, share[None]).astype(np.float64)

    def rows(self, case: Case, prediction: np.ndarray) -> list[CaseRow]:
        """Share of right answers, and mean probability of the true ones, over the known findings."""
        truth = self.target(case)
        known = truth >= 0
        right = ((prediction > 0.5) == truth)[known].mean()
        of_truth = np.where(truth == 1, prediction, 1 - prediction)[known].mean()
        return [
            CaseRow("", "correct", float(right), "ok"),
            CaseRow("", "probability", float(of_truth), "ok"),
        ]

    def written(self, case: Case, prediction: np.ndarray) -> dict[str, Any]:
        """Of each finding what is true (empty: not known) and its probability."""
        row: dict[str, Any] = {}
        for name, truth, value in zip(self.record.classes, self.target(case), prediction, strict=True):
            row |= {f"truth_{name}": int(truth) if truth >= 0 else "", f"p_{name}": round(float(value), 6)}
        return row

    def answers(self, case: Case, prediction: np.ndarray) -> list[dict[str, Any]]:
        """The findings that are likelier there than not, and the probability of each."""
        named = zip(self.record.classes, prediction, strict=True)
        chances = {f"p_{name}": round(float(value), 6) for name, value in named}
        return [{"prediction": self._said(prediction > 0.5), **chances}]

    def caption(self, case: Case, prediction: np.ndarray) -> dict[str, Any]:
        return {"truth": self._said(self.target(case) == 1), "prediction": self._said(prediction > 0.5)}

    def _said(self, present: np.ndarray) -> str:
        named = [name for name, there in zip(self.record.classes, present, strict=True) if there]
        return ", ".join(named) or NOTHING


def _of_column(
    metric: Metric, column: int, truth: np.ndarray, score: np.ndarray, weights: np.ndarray | None = None
) -> float | np.ndarray:
    one = slice(column, column + 1)
    return metric(truth[:, one], score[:, one], weights)
