"""Logistic regression on frozen features, the probe that needs no rate and no steps.

Features are standardised by the training cases; classes are weighted inversely to their frequency.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from ..heads import LinearClassifier
from ..tasks.classification import Classification, scores
from .base import Outcome, Protocol, Session, better

_SWEEP = tuple(10.0**power for power in range(-5, 3))  # C


class Logistic(Protocol):
    """C from 1e-5 to 1e2 by the validation criterion, then by log loss."""

    name = "logistic"
    head = "logistic"
    frozen = True

    def fit(self, network: nn.Module, session: Session) -> Outcome:
        assert isinstance(session.task, Classification)
        assert isinstance(network, LinearClassifier)
        return fit_logistic(session.task, network, session)


def fit_logistic(task: Classification, network: LinearClassifier, session: Session) -> Outcome:
    """Fill the network's standardisation and layer."""
    from sklearn.linear_model import LogisticRegression

    network.to(session.device)
    found = {}
    for number, part in enumerate(("train", "val")):
        session.report(number, 3, f"{task.record.name} features")
        found[part] = task.features(network, task.cases[part], session.device)
    labels = {part: np.array([case.label for case in task.cases[part]]) for part in found}
    mean, std = found["train"].mean(axis=0), found["train"].std(axis=0)
    std = np.where(std < 1e-6, 1.0, std)
    x = {part: (values - mean) / std for part, values in found.items()}
    best: tuple[tuple[float, ...], float, Any, dict[str, float]] | None = None
    for strength in _SWEEP:
        model = LogisticRegression(C=strength, max_iter=2000, class_weight="balanced")
        model.fit(x["train"], labels["train"])
        result = scores(model.predict_proba(x["val"]), labels["val"])
        order = better(result, task)
        if best is None or order > best[0]:
            best = (order, strength, model, result)
    assert best is not None
    weight, bias = best[2].coef_, best[2].intercept_
    if len(weight) == 1:  # two classes: scikit-learn keeps one row, whose negative is the other
        weight, bias = np.concatenate([-weight / 2, weight / 2]), np.concatenate([-bias / 2, bias / 2])
    with torch.no_grad():
        network.mean.copy_(torch.from_numpy(mean))
        network.std.copy_(torch.from_numpy(std))
        network.head.weight.copy_(torch.from_numpy(weight))
        network.head.bias.copy_(torch.from_numpy(bias))
    session.report(3, 3, f"{task.record.name} features")
    return Outcome(validation=best[3], facts={"criterion": task.criterion, "C": best[1]})
