"""Ordered grades of an image, such as those of a retinopathy.

The network answers K - 1 questions in turn, "given that the grade is at least k, is it higher?" (CORN: Shi,
Cao and Raschka, arXiv 2111.08851, section 3.4): their products are the probabilities of exceeding each grade,
which never contradict each other, and of each grade. So one prediction serves kappa and grade error (median
grade) as well as the AUC and accuracy of a benchmark that takes grades as classes. Nothing is weighted: rare
high grades count as often as they occur.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..data import Case
from ..metrics import CLASSIFICATION, ORDINAL, CaseRow
from ..metrics.classification import Metric
from ..metrics.ordinal import median_grade, ranked_scores
from .images import ImageTask, logistic_weights


class Ordinal(ImageTask):
    """See the module docstring. Predictions are probabilities of the K grades, the lowest first."""

    kind = "ordinal"
    criterion = "qwk"
    worst = "rps"

    @property
    def outputs(self) -> int:
        return self.record.outputs - 1

    @property
    def set_metrics(self) -> Mapping[str, Metric]:
        return CLASSIFICATION | ORDINAL

    def target(self, case: Case) -> np.ndarray:
        """Index of the grade, int64."""
        return np.asarray(case.target[0], dtype=np.int64)

    def criterion_of(self, logits: Tensor, target: Tensor) -> Tensor:
        """Equation 7 of CORN: cross-entropy of the questions that the true grades pose, over their number."""
        thresholds = torch.arange(logits.shape[1], device=logits.device)
        asked = (target[:, None] >= thresholds).float()
        higher = (target[:, None] > thresholds).float()
        total = functional.binary_cross_entropy_with_logits(logits.float(), higher, asked, reduction="sum")
        return total / asked.sum()

    def activate(self, logits: Tensor) -> Tensor:
        exceeds = torch.cumprod(torch.sigmoid(logits.double()), dim=1)  # P(grade > k)
        ones, zeros = torch.ones_like(exceeds[:, :1]), torch.zeros_like(exceeds[:, :1])
        return torch.cat([ones, exceeds], dim=1) - torch.cat([exceeds, zeros], dim=1)

    def scores(self, predicted: np.ndarray, target: np.ndarray) -> dict[str, float]:
        """Weighted kappa, grade error, AUC, log loss."""
        kappa = float(np.asarray(ORDINAL["qwk"](target, predicted)))
        auc = float(np.asarray(CLASSIFICATION["auc"](target, predicted)))
        picked = predicted[np.arange(len(target)), target]
        return {
            "qwk": kappa if np.isfinite(kappa) else 0.0,  # one grade only in validation: no information
            "grade_error": float(np.asarray(ORDINAL["grade_error"](target, predicted))),
            "auc": auc if np.isfinite(auc) else 0.5,
            "log_loss": float(-np.log(np.clip(picked, 1e-12, 1)).mean()),
        }

    def fitted(self, x: np.ndarray, target: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
        """A logistic regression for each question, on the images that pose it."""
        columns = []
        for k in range(self.outputs):
            asked = target >= k
            columns.append(logistic_weights(x[asked], (target[asked] > k).astype(np.int64), strength))
        return np.stack([weight for weight, _ in columns]), np.array([bias for _, bias in columns])

    def certain(self, target: np.ndarray) -> np.ndarray:
        return np.eye(self.record.outputs)[target]

    def rows(self, case: Case, prediction: np.ndarray) -> list[CaseRow]:
        """Distance of the median grade from the true one, its probability, and the ranked score."""
        truth = int(self.target(case))
        graded = int(median_grade(prediction[None])[0])
        score = float(ranked_scores(np.array([truth]), prediction[None])[0])
        return [
            CaseRow("", "absolute_error", float(abs(graded - truth)), "ok"),
            CaseRow("", "probability", float(prediction[truth]), "ok"),
            CaseRow("", "rps", score, "ok"),
        ]

    def written(self, case: Case, prediction: np.ndarray) -> dict[str, Any]:
        """True and median grade, and the probability of each."""
        return {"truth": self.record.classes[int(self.target(case))], **self.answers(case, prediction)[0]}

    def answers(self, case: Case, prediction: np.ndarray) -> list[dict[str, Any]]:
        """The median grade and the probability of each."""
        names = self.record.classes
        named = {f"p_{name}": round(float(value), 6) for name, value in zip(names, prediction, strict=True)}
        return [{"prediction": names[int(median_grade(prediction[None])[0])], **named}]

    def caption(self, case: Case, prediction: np.ndarray) -> dict[str, Any]:
        names = self.record.classes
        graded = int(median_grade(prediction[None])[0])
        return {"truth": names[int(self.target(case))], "prediction": names[graded]}
