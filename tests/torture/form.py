"""A row of the zoo: a form in which a file may come, how to make it, and what is expected of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from medloom.data.sample import Image

# Asserts that what was read of these files is what an independent reader sees.
Check = Callable[[list[Path], list[Image]], None]


@dataclass(frozen=True)
class Form:
    """One row: `check` when the form is to be read, `refused` (a pattern of the reason) when it is not."""

    name: str
    make: Callable[[Path], list[Path]]  # writes the files of one image into a folder
    check: Check | None = None
    refused: str = ""
    read: dict[str, Any] = field(default_factory=dict)  # options of `read`
    damage: bool = True  # also truncated and flipped

    def __post_init__(self) -> None:
        assert (self.check is None) == bool(self.refused), f"{self.name}: expect an image or a refusal"


def generator(name: str) -> np.random.Generator:
    """Draws that depend on the form alone."""
    return np.random.default_rng(list(name.encode()))


def smooth(shape: tuple[int, ...], low: float, high: float, dtype: Any) -> np.ndarray:
    """Values that differ everywhere and compress as images do."""
    grids = np.meshgrid(*[np.linspace(0, 2 + n, size) for n, size in enumerate(shape)], indexing="ij")
    values = sum(np.sin(grid * (1 + 0.3 * n)) for n, grid in enumerate(grids))
    values = (values - values.min()) / max(float(np.ptp(values)), 1e-9)
    return (low + values * (high - low)).astype(dtype)
