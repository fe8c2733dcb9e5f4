"""A linear layer on frozen features."""

from __future__ import annotations

from torch import nn

from .base import Outcome, Protocol, Session
from .gradient import optimise
from .phases import head_alone


class Linear(Protocol):
    """One linear layer on frozen features, trained by gradient."""

    name = "linear"
    head = "linear"
    frozen = True

    def fit(self, network: nn.Module, session: Session) -> Outcome:
        return optimise(network, session, pretrained=True, phases=head_alone)
