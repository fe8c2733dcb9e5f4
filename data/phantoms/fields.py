"""Building blocks of the phantoms: smooth random fields and level sets of ellipsoids, in any dimension.

A field is a cubic B-spline with random coefficients, four weighted sums an axis: about 10 ms for 96^3 points,
far faster than filtering white noise to the same smoothness. No matrix product is used: BLAS may sum in
another order on another machine, and the phantoms' bytes would differ.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def smooth(rng: np.random.Generator, shape: Sequence[int], cells: Sequence[float] | float) -> np.ndarray:
    """Draw a smooth random field of mean about 0 and standard deviation 1.

    Args:
        rng: generator of the coefficients.
        shape: points along each axis.
        cells: knots across each axis (or all axes): the larger, the finer the texture.

    Returns:
        float32 of `shape`.
    """
    counts = [cells] * len(shape) if isinstance(cells, int | float) else list(cells)
    field = rng.standard_normal([int(np.ceil(count)) + 3 for count in counts]).astype(np.float32)
    for axis, (size, count) in enumerate(zip(shape, counts, strict=True)):
        first, weights = _basis(size, count)
        broadcast = [-1 if i == axis else 1 for i in range(field.ndim)]
        taps = [np.take(field, first + tap, axis=axis) * weights[tap].reshape(broadcast) for tap in range(4)]
        field = taps[0] + taps[1] + taps[2] + taps[3]
    return field


def _basis(size: int, cells: float) -> tuple[np.ndarray, np.ndarray]:
    """First coefficient [size] of each point, and the weights [4, size] of it and the next three.

    Uniform cubic B-spline; the weights of a point have unit energy, so that the field has unit variance.
    """
    at = np.linspace(0, cells, size, endpoint=False)
    first = np.floor(at).astype(int)
    t = at - first
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3])
    return first, (weights / np.sqrt((weights**2).sum(axis=0))).astype(np.float32)


class Space:
    """A grid of points in mm, gently warped so that analytic shapes look grown.

    Axes are (z, y, x), z to superior, y to anterior, x to the right; the origin is the middle of the grid.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        shape: Sequence[int],
        spacing: Sequence[float],
        warp: float,
        cells: float,
    ) -> None:
        """Make the grid.

        Args:
            rng: generator of the warp.
            shape: points (D, H, W).
            spacing: mm (D, H, W).
            warp: standard deviation of the displacement in mm.
            cells: knots of the warp across each axis.
        """
        self.shape = tuple(shape)
        self.margin = 3.0 * warp
        self.axes = [
            (np.arange(size, dtype=np.float32) - (size - 1) / 2) * np.float32(step)
            for size, step in zip(shape, spacing, strict=True)
        ]
        self.z, self.y, self.x = (
            axis.reshape([-1 if i == dimension else 1 for i in range(3)]) + warp * smooth(rng, shape, cells)
            for dimension, axis in enumerate(self.axes)
        )

    def box(self, centre: Sequence[float], reach: Sequence[float]) -> tuple[slice, slice, slice]:
        """Slices that hold every point within `reach` (z, y, x) mm of `centre`, warp included."""
        slices = []
        for axis, middle, radius in zip(self.axes, centre, reach, strict=True):
            low, high = middle - radius - self.margin, middle + radius + self.margin
            slices.append(slice(int(np.searchsorted(axis, low)), int(np.searchsorted(axis, high))))
        return tuple(slices)  # type: ignore[return-value]

    def ellipsoid(
        self,
        centre: Sequence[float],
        radii: Sequence[float],
        turn: float = 0.0,
        rough: np.ndarray | None = None,
    ) -> tuple[tuple[slice, slice, slice], np.ndarray]:
        """Level of an ellipsoid (1 on its surface, less inside) around its bounding box.

        Args:
            centre: (z, y, x) mm.
            radii: (z, y, x) mm before the turn.
            turn: rotation about the z axis, radians.
            rough: field of the grid's shape that is added to the level.

        Returns:
            The box, and the level in it.
        """
        reach = (radii[0], max(radii[1:]), max(radii[1:])) if turn else radii
        grow = 1.3 if rough is not None else 1.0
        box = self.box(centre, [grow * radius for radius in reach])
        z, y, x = (axis[box] - middle for axis, middle in zip((self.z, self.y, self.x), centre, strict=True))
        if turn:
            y, x = y * np.cos(turn) - x * np.sin(turn), y * np.sin(turn) + x * np.cos(turn)
        level = np.sqrt((z / radii[0]) ** 2 + (y / radii[1]) ** 2 + (x / radii[2]) ** 2)
        return box, level if rough is None else level + rough[box]


def halve(volume: np.ndarray) -> np.ndarray:
    """Mean over 2 x 2 x 2 points: partial volume, as a scanner with voxels of twice the size would see it."""
    depth, height, width = (size // 2 for size in volume.shape)
    return volume.reshape(depth, 2, height, 2, width, 2).mean(axis=(1, 3, 5), dtype=np.float32)


def to_bytes(values: np.ndarray) -> np.ndarray:
    """Clip values of 0..1 to uint8."""
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
