"""What goes wrong while an MR image is acquired line by line: motion, ghosts, an uneven coil.

The centre of k-space keeps its place and the ghosts come in pairs, so anatomy stays where its label map is.
Slices are treated as acquired one by one, with the same course of motion in all of them.
"""

from __future__ import annotations

import math
from itertools import product

import numpy as np

from .scene import Scene

_WAVES = 4  # cycles of drift during the acquisition, at most
_QUIET = 0.08  # share of the lines around the centre of k-space that no sudden movement falls into


def motion(x: np.ndarray, scene: Scene, amount: float, rng: np.random.Generator) -> np.ndarray:
    """The patient drifts and moves once while the lines of k-space are read.

    Each line gets the phase of its own translation (shift theorem; Zaitsev et al., JMRI 2015), in both axes
    of the slice; the magnitude of the inverse transform is the image.

    Args:
        amount: largest displacement, length units.
    """
    axis = int(rng.integers(2))  # of the slice: the direction in which lines are stepped
    rows, columns = scene.shape[-2:]
    lines = (rows, columns)[axis]
    along = np.stack([_course(lines, rng), _course(lines, rng)]) * amount
    moved = [d * scene.unit[scene.ndim - 2 + i] for i, d in enumerate(along)]
    shape = (lines, 1) if axis == 0 else (1, lines)
    turn = np.fft.fftfreq(rows)[:, None] * np.fft.ifftshift(moved[0]).reshape(shape) + np.fft.fftfreq(
        columns
    )[None] * np.fft.ifftshift(moved[1]).reshape(shape)
    phase = np.exp(-2j * np.pi * turn).astype(np.complex64)
    out = np.empty_like(x)
    for index in np.ndindex(*x.shape[:-2]):  # slice by slice: k-space of a volume is four times its size
        out[index] = np.abs(np.fft.ifft2(np.fft.fft2(x[index]) * phase))
    return out


def ghosting(x: np.ndarray, scene: Scene, share: float, rng: np.random.Generator) -> np.ndarray:
    """Two faint copies along the phase axis, 1/2 to 1/4 of the field of view away.

    They are what a periodic modulation of the lines of k-space gives, 1 + share * cos(2 pi k / n + phase).
    """
    axis = scene.plane[int(rng.integers(2))]
    away = round(x.shape[axis] / int(rng.integers(2, 5)))
    phase = rng.uniform(-math.pi / 3, math.pi / 3)
    ahead, behind = np.roll(x, away, axis), np.roll(x, -away, axis)
    real = x + np.float32(share / 2 * math.cos(phase)) * (ahead + behind)
    return np.hypot(real, np.float32(share / 2 * math.sin(phase)) * (ahead - behind))


def bias_field(x: np.ndarray, scene: Scene, amount: float, rng: np.random.Generator) -> np.ndarray:
    """Brightness that varies smoothly, by exp(+-amount) at 1.5 standard deviations and at most 1.5 of that.

    The logarithm is a polynomial of third order with drawn coefficients, as in Van Leemput et al., TMI 1999.
    """
    axes = [np.linspace(-1, 1, n, dtype=np.float32) for n in scene.shape]
    field = np.zeros(scene.shape, np.float32)
    for powers in product(range(4), repeat=scene.ndim):
        weight = np.float32(rng.standard_normal())
        if 0 < sum(powers) <= 3:
            term = np.ones((), np.float32)
            for number, (axis, power) in enumerate(zip(axes, powers, strict=True)):
                term = term * (axis**power).reshape([-1 if i == number else 1 for i in range(scene.ndim)])
            field += weight / sum(powers) * term
    # Normalised where the patient is: a polynomial is largest in the corners, which are air.
    middle = field[tuple(slice(n // 6, n - n // 6) for n in scene.shape)]
    field = (field - middle.mean()) / max(1.5 * float(middle.std()), 1e-6)
    return x * np.exp(np.float32(amount) * np.clip(field, -1.5, 1.5))


def _course(lines: int, rng: np.random.Generator) -> np.ndarray:
    """Displacement at each line, lowest frequency in the middle where it is 0; the largest is +-1."""
    time = np.arange(lines) / lines - (lines // 2) / lines
    course = np.zeros(lines)
    for cycles in range(1, _WAVES + 1):
        course += rng.standard_normal() / cycles * np.sin(2 * np.pi * (cycles * time + rng.uniform()))
    at = (_QUIET + rng.uniform() * (0.45 - _QUIET)) * rng.choice([-1.0, 1.0])
    course += rng.choice([-1.5, 1.5]) * (time > at if at > 0 else time < at)
    course -= course[lines // 2]
    return course / max(float(np.abs(course).max()), 1e-6)
