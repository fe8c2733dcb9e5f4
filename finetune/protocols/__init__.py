"""Protocols by name. A new one is a file here, a line in `PROTOCOLS`, and its name in `config.PROTOCOLS`."""

from __future__ import annotations

from .attentive import AttentiveProbe
from .base import Outcome, Protocol, Session
from .frozen import Frozen
from .knn import NearestNeighbours
from .linear import Linear
from .logistic import Logistic
from .lora import Lora
from .steps import Full, Sawtooth, Unfreeze

_ALL: tuple[Protocol, ...] = (
    Full(), Sawtooth(), Unfreeze(), Lora(), Linear(), AttentiveProbe(), Logistic(), NearestNeighbours(),
    Frozen(),
)  # fmt: skip
PROTOCOLS: dict[str, Protocol] = {one.name: one for one in _ALL}

__all__ = ["PROTOCOLS", "Outcome", "Protocol", "Session"]
