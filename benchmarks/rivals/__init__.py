"""Other libraries' pretraining methods, for benchmarks/steps.py and benchmarks/learning.py.

Each is built from that library's own parts (transforms, heads, losses, schedules) with the numbers of its own
example or benchmark script for the method; see the docstring of each class. `timm` is what a user writes
without a library: timm's network and the paper's formulas, in one file.
"""

from __future__ import annotations

from importlib import import_module

from .base import Rival, Size

RIVALS = {
    "lightly/simclr": "lightly_methods:SimCLR",
    "lightly/simclr-adamw": "lightly_methods:SimCLRAdamW",
    "lightly/mae": "lightly_methods:MAE",
    "lightly/dino": "lightly_methods:DINO",
    "lightly/dinov2": "lightly_methods:DINOv2",
    "stable-pretraining/simclr": "stable_methods:SimCLR",
    "stable-pretraining/mae": "stable_methods:MAE",
    "stable-pretraining/dino": "stable_methods:DINO",
    "stable-pretraining/lejepa": "stable_methods:LeJEPA",
    "timm/simclr": "reference:SimCLR",
    "timm/mae": "reference:MAE",
    "timm/dino": "reference:DINO",
}


def rival(name: str) -> type[Rival]:
    """The class of a rival; imports its library. Raises KeyError, ImportError."""
    module, _, attribute = RIVALS[name].partition(":")
    return getattr(import_module(f"{__name__}.{module}"), attribute)


__all__ = ["RIVALS", "Rival", "Size", "rival"]
