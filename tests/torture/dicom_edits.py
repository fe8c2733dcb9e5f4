"""Arrays that the DICOM forms are made of, and edits of one slice or all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset

from .form import smooth

VOLUME = smooth((6, 9, 8), 0, 3000, np.int16)
FRAMES = smooth((4, 9, 8), 0, 250, np.uint8)
GREY = smooth((9, 8), 0, 250, np.uint8)
COLOUR = np.stack([GREY, 255 - GREY, GREY // 2], axis=-1)
HU = {"RescaleSlope": 1, "RescaleIntercept": -1024}
US = {"Modality": "US", "sop_class": uid.UltrasoundMultiFrameImageStorage}
THIRD = float(np.sqrt(1 / 3))


def turned(x: float, z: float) -> tuple[float, ...]:
    """Row and column cosines of a plane tilted by x, then z degrees."""
    cx, sx, cz, sz = (f(np.deg2rad(a)) for a in (x, z) for f in (np.cos, np.sin))
    turn = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    return (*turn[:, 0], *turn[:, 1])


def changed(number: int, **fields: Any) -> Callable[[int, Dataset], Dataset]:
    """Overwrite fields of one slice."""

    def edit(index: int, dataset: Dataset) -> Dataset:
        for key, value in fields.items() if index == number else ():
            setattr(dataset, key, value)
        return dataset

    return edit


def dropped(*numbers: int) -> Callable[[int, Dataset], Dataset | None]:
    return lambda index, dataset: None if index in numbers else dataset


def each(**fields: Callable[[int], Any]) -> Callable[[int, Dataset], Dataset]:
    """Set fields of every slice by its number."""

    def edit(index: int, dataset: Dataset) -> Dataset:
        for key, value in fields.items():
            setattr(dataset, key, value(index))
        return dataset

    return edit


def without(*names: str) -> Callable[[int, Dataset], Dataset]:
    def edit(index: int, dataset: Dataset) -> Dataset:
        for name in names:
            if name in dataset:
                delattr(dataset, name)
        return dataset

    return edit
