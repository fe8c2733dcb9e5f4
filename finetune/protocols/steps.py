"""The protocols that are gradient descent and a schedule: everything from the start, or the head first."""

from __future__ import annotations

from torch import nn

from .base import Outcome, Protocol, Session
from .gradient import optimise
from .phases import sawtooth, together, unfreeze


class Full(Protocol):
    """Fine-tune everything; a pretrained encoder with its own rate and layer-wise decay."""

    name = "full"

    def fit(self, network: nn.Module, session: Session) -> Outcome:
        return optimise(network, session, pretrained=session.arm == "pretrained", phases=together)


class Sawtooth(Protocol):
    """The head warms up on the frozen encoder, then everything (`phases.sawtooth`)."""

    name = "sawtooth"

    def fit(self, network: nn.Module, session: Session) -> Outcome:
        return optimise(network, session, pretrained=True, phases=sawtooth)


class Unfreeze(Protocol):
    """The head learns on the frozen encoder, which joins later (`phases.unfreeze`)."""

    name = "unfreeze"

    def fit(self, network: nn.Module, session: Session) -> Outcome:
        return optimise(network, session, pretrained=True, phases=unfreeze)
