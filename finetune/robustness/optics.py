"""Blur and brightness: focus, movement during the exposure, exposure itself, haze, tone curve, shadow."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage, signal

from .scene import Scene

_GAMMA = 2.2  # of displays and cameras: exposure acts on light, files hold its 1/2.2th power


def blur(x: np.ndarray, scene: Scene, sd: float, rng: np.random.Generator) -> np.ndarray:
    """Out of focus, or a smooth kernel: a Gaussian of `sd` length units in every direction."""
    return ndimage.gaussian_filter(x, [0.0, *scene.pixels(sd)], mode="nearest")


def motion_blur(x: np.ndarray, scene: Scene, length: float, rng: np.random.Generator) -> np.ndarray:
    """Steady movement over `length` units during the exposure; in volumes along one axis of the slice."""
    angle = rng.uniform(0, math.pi)
    axis = scene.plane[int(rng.integers(2))]
    if scene.ndim == 3:
        return ndimage.correlate1d(x, _line(length * scene.unit[axis - 1]), axis=axis, mode="nearest")
    kernel = _streak(length * scene.unit[0], angle)
    reach = [side // 2 for side in kernel.shape]
    edge = [(0, 0), *((n, n) for n in reach)]
    padded = np.pad(x, edge, mode="edge")
    return signal.oaconvolve(padded, kernel[None], mode="valid", axes=(1, 2)).astype(np.float32)


def exposure(x: np.ndarray, scene: Scene, stops: float, rng: np.random.Generator) -> np.ndarray:
    """Too much or too little light or gain, by `stops`; what rises above white is lost."""
    direction = 1.0 if rng.uniform() < 0.5 else -1.0
    return np.clip(x, 0, 1) if stops == 0 else np.clip(x * 2 ** (direction * stops / _GAMMA), 0, 1)


def haze(x: np.ndarray, scene: Scene, left: float, rng: np.random.Generator) -> np.ndarray:
    """Contrast falls to the share `left` around the mean, as behind a veil of stray light."""
    axes = tuple(range(1, x.ndim))
    mean = x.mean(axis=axes, keepdims=True)
    return mean + np.float32(left) * (x - mean)


def tone(x: np.ndarray, scene: Scene, amount: float, rng: np.random.Generator) -> np.ndarray:
    """Another tone curve, or another weighting of the tissues: x to the power exp(+-amount)."""
    direction = 1.0 if rng.uniform() < 0.5 else -1.0
    return np.maximum(x, 0) ** np.float32(math.exp(direction * amount))


def shadow(x: np.ndarray, scene: Scene, darkness: float, rng: np.random.Generator) -> np.ndarray:
    """An acoustic shadow below a reflector: a wedge of depth-parallel echo loss; rows are depth."""
    rows, columns = scene.shape[-2:]
    centre, half, start = rng.uniform(0.3, 0.7), rng.uniform(0.08, 0.16), rng.uniform(0.1, 0.3)
    depth = np.linspace(0, 1, rows, dtype=np.float32)[:, None]
    across = np.linspace(0, 1, columns, dtype=np.float32)[None]
    width = half * (0.7 + 0.6 * depth)  # beams of a curved probe spread
    edge = np.clip((width - np.abs(across - centre)) / (0.4 * half), 0, 1)
    return x * (1 - np.float32(darkness) * edge * np.clip((depth - start) / 0.05, 0, 1))


def _line(length: float) -> np.ndarray:
    """Weights of a box of `length` voxels about a voxel, odd in number, fractions at both ends."""
    reach = math.ceil(max(length - 1, 0) / 2)
    weights = np.clip((max(length, 1) + 1) / 2 - np.abs(np.arange(-reach, reach + 1)), 0, 1)
    return weights / weights.sum()


def _streak(length: float, angle: float) -> np.ndarray:
    """Kernel [k, k] of a straight line of `length` pixels, drawn with linear weights."""
    reach = math.ceil(length / 2) + 1
    kernel = np.zeros((2 * reach + 1,) * 2)
    for t in np.linspace(-length / 2, length / 2, max(3, 4 * math.ceil(length))):
        y, x = reach + t * math.sin(angle), reach + t * math.cos(angle)
        top, left = math.floor(y), math.floor(x)
        for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
            kernel[top + dy, left + dx] += (1 - abs(y - top - dy)) * (1 - abs(x - left - dx))
    return kernel / kernel.sum()
