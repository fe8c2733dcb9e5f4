"""Protocols by name. A new one is a file here, a line in `PROTOCOLS`, and its name in `config.PROTOCOLS`."""

from __future__ import annotations

from .base import Outcome, Protocol, Session
from .logistic import Logistic
from .steps import Full, Linear

PROTOCOLS: dict[str, Protocol] = {one.name: one for one in (Full(), Linear(), Logistic())}

__all__ = ["PROTOCOLS", "Outcome", "Protocol", "Session"]
