"""A regularised linear model on frozen features, the probe that needs no rate and no steps.

Logistic regression for classes, findings and grades, ridge regression for a number (`ImageTask.fitted`).
Features are standardised by the training cases.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from ..heads import LinearClassifier
from ..tasks.images import ImageTask
from .base import Outcome, Protocol, Session, better

_SWEEP = tuple(10.0**power for power in range(-5, 3))  # C


class Logistic(Protocol):
    """C from 1e-5 to 1e2 by the validation criterion, then by log loss."""

    name = "logistic"
    head = "logistic"
    frozen = True

    def fit(self, network: nn.Module, session: Session) -> Outcome:
        assert isinstance(session.task, ImageTask)
        assert isinstance(network, LinearClassifier)
        return fit_logistic(session.task, network, session)


def fit_logistic(task: ImageTask, network: LinearClassifier, session: Session) -> Outcome:
    """Fill the network's standardisation and layer."""
    network.to(session.device)
    found = {}
    for number, part in enumerate(("train", "val")):
        session.report(number, 3, f"{task.record.name} features")
        found[part] = task.features(network, task.cases[part], session.device)
    targets = {part: task.truth(task.cases[part]) for part in found}
    mean, std = found["train"].mean(axis=0), found["train"].std(axis=0)
    std = np.where(std < 1e-6, 1.0, std)
    x = {part: (values - mean) / std for part, values in found.items()}
    best: tuple[tuple[float, ...], float, np.ndarray, np.ndarray, dict[str, float]] | None = None
    for strength in _SWEEP:
        weight, bias = task.fitted(x["train"], targets["train"], strength)
        outputs = torch.from_numpy(x["val"] @ weight.T + bias)
        result = task.scores(task.activate(outputs).double().numpy(), targets["val"])
        order = better(result, task)
        if best is None or order > best[0]:
            best = (order, strength, weight, bias, result)
    assert best is not None
    with torch.no_grad():
        network.mean.copy_(torch.from_numpy(mean))
        network.std.copy_(torch.from_numpy(std))
        network.head.weight.copy_(torch.from_numpy(best[2]))
        network.head.bias.copy_(torch.from_numpy(best[3]))
    session.report(3, 3, f"{task.record.name} features")
    return Outcome(validation=best[4], facts={"criterion": task.criterion, "C": best[1]})
