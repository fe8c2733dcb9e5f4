"""Tissue on glass: what has colour. Stains are coloured; glass, air bubbles' black rims and padding are not.

A pixel is tissue when its saturation (of HSV) is above 8 % and it is not black, at about 8 micrometres a
pixel, where noise has averaged out. The rule is fixed, so that a blank slide has no tissue; the price:
unstained fat counts as glass, and coloured pen as tissue.
"""

from __future__ import annotations

import numpy as np

SATURATION = 0.08
BLACK = 30  # of 255


def tissue_mask(array: np.ndarray) -> np.ndarray:
    """Where uint8 [H, W, 3] shows tissue, bool [H, W]; row by row, so that the copies stay small."""
    mask = np.zeros(array.shape[:2], bool)
    for start in range(0, len(array), 256):
        rows = array[start : start + 256].astype(np.float32)
        high, low = rows.max(axis=2), rows.min(axis=2)
        mask[start : start + 256] = (high > BLACK) & (high - low > SATURATION * high)
    return mask


def share_of_tissue(array: np.ndarray, mpp: float, at: float) -> float:
    """Share of a tile uint8 [H, W, 3] that is tissue, judged at `at` micrometres a pixel."""
    step = max(1, min(round(at / mpp), *array.shape[:2]))
    height, width = (n // step * step for n in array.shape[:2])
    blocks = array[:height, :width].reshape(height // step, step, width // step, step, 3)
    return float(tissue_mask(blocks.mean(axis=(1, 3)).round().astype(np.uint8)).mean())
