"""Descriptors as the encoder gives them: nothing is fitted, for tasks that compare images (retrieval)."""

from __future__ import annotations

from torch import nn

from .base import Outcome, Protocol, Session


class Frozen(Protocol):
    """The encoder as it is."""

    name = "frozen"
    head = "frozen"
    frozen = True

    def fit(self, network: nn.Module, session: Session) -> Outcome:
        task = session.task
        session.report(0, 1, f"{task.record.name} descriptors")
        found = task.validate(network.to(session.device), session.device)
        session.report(1, 1, f"{task.record.name} descriptors")
        return Outcome(validation=found, facts={"criterion": task.criterion})
