"""The two protocols that are gradient descent and nothing else: everything trained, or the head alone."""

from __future__ import annotations

from torch import nn

from .base import Outcome, Protocol, Session
from .gradient import optimise


class Full(Protocol):
    """Fine-tune everything; a pretrained encoder with its own rate and layer-wise decay."""

    name = "full"

    def fit(self, network: nn.Module, session: Session) -> Outcome:
        return optimise(network, session, pretrained=session.arm == "pretrained", frozen=False)


class Linear(Protocol):
    """One linear layer on frozen features, trained by gradient."""

    name = "linear"
    head = "linear"
    frozen = True

    def fit(self, network: nn.Module, session: Session) -> Outcome:
        return optimise(network, session, pretrained=session.arm == "pretrained", frozen=True)
