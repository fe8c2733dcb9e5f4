"""Objectives by name. A new one is one file here and one line in `OBJECTIVES`."""

from __future__ import annotations

from .base import Batch, Facts, Objective, Output
from .mae import MAE

__all__ = ["OBJECTIVES", "Batch", "Facts", "Objective", "Output"]

OBJECTIVES: dict[str, type[Objective]] = {"mae": MAE}
