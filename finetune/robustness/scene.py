"""What a corruption is told of an image: its geometry, its units, and how native values become 0 .. 1.

Corruptions work on float32 between black (0) and white (1), so that one severity means the same in Hounsfield
units, 8-bit colours and unitless MR; values beyond the ends are kept. Lengths are in units that follow the
picture and not its file: half a millimetre (or half a voxel) in volumes, in pictures 1/256 of the longer
side, so that one severity harms a photograph of 4000 and of 300 pixels alike once a network has resized it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from ...data.normalise import HU_LIMITS, grey, kind

UNIT_MM = 0.5  # a length unit of a volume, at least
UNIT_VOXEL = 0.5  # the same in voxels of its finest axis: coarse volumes would not show half a millimetre
SIDE = 256  # length units along the longer side of a picture
LEAST_UNIT = 0.25  # pixels: thumbnails of 28 pixels would hardly be touched by less
WINDOW_HU = 1000.0  # what a CT that was stored as a grey picture is taken to show from black to white


@dataclass(frozen=True, slots=True)
class Scene:
    """An image without its pixels."""

    shape: tuple[int, ...]  # spatial
    low: np.ndarray  # float32 [C, 1, ...]: native value of black
    high: np.ndarray  # float32 [C, 1, ...]: native value of white
    unit: tuple[float, ...]  # voxels in a length unit, for each spatial axis
    colour: bool = False  # red, green, blue that differ
    span_hu: float = WINDOW_HU  # Hounsfield units from black to white

    @property
    def ndim(self) -> int:
        """Spatial dimensions."""
        return len(self.shape)

    @property
    def plane(self) -> tuple[int, int]:
        """Array axes [C, ...] of a slice: rows and columns."""
        return self.ndim - 1, self.ndim

    def pixels(self, length: float) -> list[float]:
        """A length in voxels along each spatial axis."""
        return [length * unit for unit in self.unit]

    def to_unit(self, image: np.ndarray) -> np.ndarray:
        """Native [C, *spatial] -> float32, black 0 and white 1."""
        return (image.astype(np.float32) - self.low) / (self.high - self.low)

    def to_native(self, x: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """float32 -> native values, rounded and clipped to what integers can hold."""
        native = x * (self.high - self.low) + self.low
        if dtype.kind not in "iu":
            return native.astype(dtype)
        limits = np.iinfo(dtype)
        return np.clip(np.rint(native), limits.min, limits.max).astype(dtype)

    def grain(self, rng: np.random.Generator, channels: int, size: float = 1.0) -> np.ndarray:
        """A Gaussian field of unit variance, float32 [channels, *spatial], white up to `size` length units.

        Larger pictures get the grain that they would show when they are looked at as a whole: white noise
        would vanish as soon as a network's input is made smaller than the file.
        """
        field = rng.standard_normal((channels, *self.shape), dtype=np.float32)
        widths = [0.0] + [0.5 * n if n > 1 else 0.0 for n in self.pixels(size)]
        if max(widths) > 0:
            field = ndimage.gaussian_filter(field, widths, mode="wrap")
            field /= max(float(field.std()), 1e-6)
        return field


def scene_of(meta: Mapping[str, Any], shape: Sequence[int]) -> Scene:
    """The scene of an image with this `key.json`; `shape` [C, *spatial] is that of the array."""
    low, high = _ends(meta)
    what = kind(meta)
    column = (-1, *[1] * (len(shape) - 1))
    return Scene(
        shape=tuple(int(n) for n in shape[1:]),
        low=low.astype(np.float32).reshape(column),
        high=np.where(high > low, high, low + 1).astype(np.float32).reshape(column),
        unit=_unit(meta.get("spacing"), shape[1:]),
        colour=what == "colour",
        span_hu=HU_LIMITS[1] - HU_LIMITS[0] if what == "hu" else WINDOW_HU,
    )


def is_colour(meta: Mapping[str, Any]) -> bool:
    """Whether the image is a colour picture whose channels differ."""
    return kind(meta) == "colour"


def is_grey(meta: Mapping[str, Any]) -> bool:
    """Whether a picture holds the same values in all of several channels."""
    return int(meta["shape"][0]) > 1 and grey(meta)


def _ends(meta: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Black and white, [C]: the range of the unit, of the file, or of the image."""
    stats = meta["stats"]
    channels = len(stats["min"])
    if kind(meta) == "hu":
        return np.full(channels, HU_LIMITS[0]), np.full(channels, HU_LIMITS[1])
    if meta["dtype"] == "uint8":
        return np.zeros(channels), np.full(channels, 255.0)
    low, high = np.asarray(stats["min"], float), np.asarray(stats["percentiles"]["99.5"], float)
    return low, np.where(high > low, high, np.asarray(stats["max"], float))


def _unit(spacing: Sequence[float] | None, shape: Sequence[int]) -> tuple[float, ...]:
    if len(shape) == 3 and spacing:
        unit = max(UNIT_MM, UNIT_VOXEL * min(float(mm) for mm in spacing))
        return tuple(unit / float(mm) for mm in spacing)
    return (max(max(shape) / SIDE, LEAST_UNIT),) * len(shape)
