"""Images -> features of an encoder -> a table and a picture of it (`medloom embed`)."""

from __future__ import annotations

from .map import draw_map
from .run import Embedded, embed

__all__ = ["Embedded", "draw_map", "embed"]
