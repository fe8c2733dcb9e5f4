"""Classification of whole images: one class of several for each image.

The loss weights classes inversely to their frequency, because the metrics (macro AUC, balanced accuracy)
count classes alike; the same holds for the logistic regression.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..data import Case
from ..metrics import CLASSIFICATION, CaseRow
from ..metrics.classification import Metric
from .images import ImageTask


class Classification(ImageTask):
    """See the module docstring."""

    kind = "classification"
    criterion = "auc"
    worst = "probability"

    @property
    def set_metrics(self) -> Mapping[str, Metric]:
        return CLASSIFICATION

    def target(self, case: Case) -> np.ndarray:
        """Index of the class, int64."""
        return np.asarray(case.target[0], dtype=np.int64)

    def criterion_of(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy, classes weighted by inverse frequency, labels smoothed."""
        weight = torch.from_numpy(self.class_weights()).to(logits.device)
        smoothing = self.config.optim.label_smoothing
        return functional.cross_entropy(logits, target, weight=weight, label_smoothing=smoothing)

    def class_weights(self) -> np.ndarray:
        """float32 [classes], mean 1 over the training cases (scikit-learn's "balanced")."""
        labels = self.truth(self.cases["train"])
        counts = np.bincount(labels, minlength=self.record.outputs)
        return (len(labels) / (len(counts) * np.maximum(counts, 1))).astype(np.float32)

    def activate(self, logits: Tensor) -> Tensor:
        return torch.softmax(logits, dim=1)

    def scores(self, predicted: np.ndarray, target: np.ndarray) -> dict[str, float]:
        return scores(predicted, target)

    def fitted(self, x: np.ndarray, target: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
        """Multinomial logistic regression, classes weighted inversely to their frequency."""
        from sklearn.linear_model import LogisticRegression

        model = LogisticRegression(C=strength, max_iter=2000, class_weight="balanced").fit(x, target)
        weight, bias = model.coef_, model.intercept_
        if len(weight) == 1:  # two classes: scikit-learn keeps one row, whose negative is the other
            weight, bias = np.concatenate([-weight / 2, weight / 2]), np.concatenate([-bias / 2, bias / 2])
        return weight, bias

    def certain(self, target: np.ndarray) -> np.ndarray:
        return np.eye(self.record.outputs)[target]

    def rows(self, case: Case, prediction: np.ndarray) -> list[CaseRow]:
        """Whether it is right, and the probability of its true class."""
        truth = int(self.target(case))
        return [
            CaseRow("", "correct", float(int(prediction.argmax()) == truth), "ok"),
            CaseRow("", "probability", float(prediction[truth]), "ok"),
        ]

    def written(self, case: Case, prediction: np.ndarray) -> dict[str, Any]:
        """The true class and the probability of each."""
        return {"truth": self.record.classes[case.label], **self._named(prediction)}

    def answers(self, case: Case, prediction: np.ndarray) -> list[dict[str, Any]]:
        """The likeliest class and the probability of each."""
        return [{"prediction": self.record.classes[int(prediction.argmax())], **self._named(prediction)}]

    def _named(self, prediction: np.ndarray) -> dict[str, float]:
        names = self.record.classes
        return {f"p_{name}": round(float(value), 6) for name, value in zip(names, prediction, strict=True)}

    def caption(self, case: Case, prediction: np.ndarray) -> dict[str, Any]:
        names = self.record.classes
        return {"truth": names[int(self.target(case))], "prediction": names[int(prediction.argmax())]}


def scores(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Macro AUC, balanced accuracy, log loss (of probabilities [N, classes] and labels [N])."""
    picked = probabilities[np.arange(len(labels)), labels]
    auc = float(np.asarray(CLASSIFICATION["auc"](labels, probabilities)))
    return {
        "auc": auc if np.isfinite(auc) else 0.5,  # one class only in validation: no information
        "balanced_accuracy": float(np.asarray(CLASSIFICATION["balanced_accuracy"](labels, probabilities))),
        "log_loss": float(-np.log(np.clip(picked, 1e-12, 1)).mean()),
    }
