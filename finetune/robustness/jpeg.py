"""The loss of JPEG without its files: blocks of 8 x 8, cosine transform, standard tables, coarse colour.

Pure NumPy and SciPy, so that a severity gives the same pixels under every version of every codec; what
entropy coding would do afterwards loses nothing. Within rounding it is what libjpeg gives (tests compare).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import fft

from .scene import Scene

# ITU-T T.81, annex K.1: luminance and chrominance.
LUMINANCE = np.array([
    [16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55], [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62], [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99],
], np.float32)  # fmt: skip
CHROMINANCE = np.full((8, 8), 99, np.float32)
CHROMINANCE[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
# ITU-R BT.601 as JFIF uses it: red, green, blue -> luma, blue difference, red difference.
_TO_YCC = np.array(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32
)


def jpeg(x: np.ndarray, scene: Scene, quality: float, rng: np.random.Generator) -> np.ndarray:
    """A picture [C, H, W] after JPEG at `quality` (libjpeg's scale, 1 to 100), colours at half the size."""
    levels = np.clip(x, 0, 1) * 255
    if not scene.colour:
        return np.stack([_plane(channel, LUMINANCE, quality) for channel in levels]) / 255
    luma, *differences = np.tensordot(_TO_YCC, levels, axes=1)
    rows, columns = scene.shape
    found = [_plane(luma, LUMINANCE, quality)]
    for plane in differences:
        even = np.pad(plane, ((0, rows % 2), (0, columns % 2)), mode="edge")
        half = even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2).mean(axis=(1, 3))
        coded = _plane(half + 128, CHROMINANCE, quality) - 128
        found.append(np.repeat(np.repeat(coded, 2, axis=0), 2, axis=1)[:rows, :columns])
    back = np.tensordot(np.linalg.inv(_TO_YCC).astype(np.float32), np.stack(found), axes=1)
    return np.clip(back, 0, 255).astype(np.float32) / 255


def _plane(plane: np.ndarray, table: np.ndarray, quality: float) -> np.ndarray:
    """One plane [H, W] in 0 .. 255, quantised and back, rounded as a decoder does."""
    rows, columns = plane.shape
    padded = np.pad(plane, ((0, -rows % 8), (0, -columns % 8)), mode="edge") - 128
    blocks = padded.reshape(padded.shape[0] // 8, 8, padded.shape[1] // 8, 8).transpose(0, 2, 1, 3)
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality  # libjpeg's jpeg_quality_scaling
    steps = np.clip(np.floor((table * scale + 50) / 100), 1, 255)
    codes: Any = np.rint(fft.dctn(blocks, axes=(2, 3), norm="ortho") / steps)
    found: Any = fft.idctn(codes * steps, axes=(2, 3), norm="ortho")
    found = found.transpose(0, 2, 1, 3).reshape(padded.shape)[:rows, :columns]
    return np.clip(np.rint(found + 128), 0, 255).astype(np.float32)
