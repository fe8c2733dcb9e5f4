"""Overlap of two label maps, value by value, from one count of their pairs of values."""

from __future__ import annotations

import numpy as np


def dice_by_value(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """Dice of each value above 0 that occurs in either map; 2 |A and B| / (|A| + |B|), six digits.

    Args:
        a, b: label maps of one shape.
    """
    sizes_a, sizes_b = voxels_by_value(a), voxels_by_value(b)
    both = voxels_by_value(np.where(a == b, a, 0))
    names = sorted({*sizes_a, *sizes_b}, key=int)
    return {
        name: round(2 * both.get(name, 0) / (sizes_a.get(name, 0) + sizes_b.get(name, 0)), 6)
        for name in names
    }


def voxels_by_value(mask: np.ndarray) -> dict[str, int]:
    """Voxels of each value above 0."""
    values, counts = np.unique(mask, return_counts=True)
    return {str(int(v)): int(n) for v, n in zip(values, counts, strict=True) if v}
