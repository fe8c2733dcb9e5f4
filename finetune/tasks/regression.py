"""One number an image: an age, an ejection fraction, a volume.

The network puts out standard units of the training cases, learnt with Huber's loss (delta one deviation), so
that rates mean the same whatever the label's unit and a mistyped label does not rule the run; what is scored
and written is in the label's unit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..config import FinetuneConfig
from ..data import Case, TaskData
from ..metrics import REGRESSION, CaseRow
from ..metrics.classification import Metric
from ..planner import Plan
from .images import ImageTask


class Regression(ImageTask):
    """See the module docstring. Predictions are [1] in the label's unit."""

    kind = "regression"
    criterion = "r2"
    worst = "absolute_error"

    def __init__(self, config: FinetuneConfig, data: TaskData, plan: Plan, split: Mapping[str, str]) -> None:
        super().__init__(config, data, plan, split)
        values = [case.target[0] for case in self.cases["train"]]
        self.mean = float(np.mean(values)) if values else 0.0
        self.deviation = float(np.std(values)) if len(set(values)) > 1 else 1.0

    @property
    def set_metrics(self) -> Mapping[str, Metric]:
        return REGRESSION

    def learnt(self) -> dict[str, Any]:
        return {"mean": self.mean, "deviation": self.deviation}

    def recall(self, learnt: Mapping[str, Any]) -> None:
        self.mean, self.deviation = float(learnt["mean"]), float(learnt["deviation"])

    def target(self, case: Case) -> np.ndarray:
        """The number, float32."""
        return np.asarray(case.target[0], dtype=np.float32)

    def criterion_of(self, logits: Tensor, target: Tensor) -> Tensor:
        """Huber's loss in standard units."""
        return functional.huber_loss(logits[:, 0].float(), (target - self.mean) / self.deviation)

    def activate(self, logits: Tensor) -> Tensor:
        return torch.as_tensor(logits).double() * self.deviation + self.mean

    def scores(self, predicted: np.ndarray, target: np.ndarray) -> dict[str, float]:
        """R², mean absolute error; validation cases that are all alike have no R²: minus the error then."""
        error = float(np.asarray(REGRESSION["mae"](target, predicted)))
        explained = float(np.asarray(REGRESSION["r2"](target, predicted)))
        return {"r2": explained if np.isfinite(explained) else -error, "mae": error}

    def fitted(self, x: np.ndarray, target: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
        """Ridge regression with a penalty of 1 / C, in standard units."""
        from sklearn.linear_model import Ridge

        model = Ridge(alpha=1 / strength).fit(x, (target - self.mean) / self.deviation)
        return np.asarray(model.coef_)[None], np.array([model.intercept_])

    def certain(self, target: np.ndarray) -> np.ndarray:
        return target.astype(np.float64)[:, None]

    def rows(self, case: Case, prediction: np.ndarray) -> list[CaseRow]:
        """Distance from the truth, in the label's unit."""
        return [CaseRow("", "absolute_error", abs(float(prediction[0]) - case.target[0]), "ok")]

    def written(self, case: Case, prediction: np.ndarray) -> dict[str, Any]:
        return {"truth": case.target[0], **self.answers(case, prediction)[0]}

    def answers(self, case: Case, prediction: np.ndarray) -> list[dict[str, Any]]:
        """The number, in the label's unit."""
        return [{"prediction": round(float(prediction[0]), 6)}]

    def caption(self, case: Case, prediction: np.ndarray) -> dict[str, Any]:
        unit = f" {self.record.unit}" if self.record.unit else ""
        return {"truth": f"{case.target[0]:.4g}{unit}", "prediction": f"{float(prediction[0]):.4g}{unit}"}
