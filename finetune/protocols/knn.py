"""Nearest neighbours among the training images: a probe with nothing to learn and only k to choose."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from ..probes import Neighbours
from ..tasks.images import ImageTask
from .base import Outcome, Protocol, Session, better


class NearestNeighbours(Protocol):
    """k of `probe.neighbours` by the validation criterion, then by log loss."""

    name = "knn"
    head = "knn"
    frozen = True

    def fit(self, network: nn.Module, session: Session) -> Outcome:
        task = session.task
        assert isinstance(task, ImageTask)
        assert isinstance(network, Neighbours)
        network.to(session.device)
        rows = {}
        for number, part in enumerate(("train", "val")):
            session.report(number, 2, f"{task.record.name} {session.arm} features")
            found = task.features(network, task.cases[part], session.device)
            rows[part] = torch.from_numpy(found).to(session.device)
        ballots = torch.from_numpy(np.asarray(task.certain(task.truth(task.cases["train"]))))
        network.fill(rows["train"], ballots, task.config.probe.temperature)
        target = task.truth(task.cases["val"])
        best: tuple[tuple[float, ...], int, dict[str, float]] | None = None
        for k in task.config.probe.neighbours:
            network.k.fill_(k)
            parts = [network.answer(part) for part in rows["val"].split(256)]
            result = task.scores(torch.cat(parts).double().cpu().numpy(), target)
            order = better(result, task)
            if best is None or order > best[0]:
                best = (order, k, result)
        assert best is not None
        network.k.fill_(best[1])
        session.report(2, 2, f"{task.record.name} {session.arm} features")
        return Outcome(validation=best[2], facts={"criterion": task.criterion, "k": best[1]})
