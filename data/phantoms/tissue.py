"""Histopathology phantom: haematoxylin and eosin tiles of gland-forming tissue, normal or tumour.

Stain densities are drawn, light is computed (Beer and Lambert), so that overlaps darken as on a slide. The
stain of a slide varies between slides, not between its tiles.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

from .fields import smooth, to_bytes

CLASSES = ("normal", "tumour")

# Optical density of haematoxylin and eosin in red, green, blue. Source: Ruifrok and Johnston 2001.
_STAINS = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105]])


@dataclass(frozen=True, slots=True)
class Slide:
    """How one slide was stained and lit."""

    stains: np.ndarray  # [2, 3] optical density
    strength: tuple[float, float]
    light: np.ndarray  # [3]


def slide(rng: np.random.Generator) -> Slide:
    """Draw the stain of a slide."""
    stains = np.clip(_STAINS * rng.uniform(0.88, 1.12, (2, 3)) + rng.uniform(0, 0.05, (2, 3)), 0, None)
    return Slide(
        stains / np.linalg.norm(stains, axis=1, keepdims=True),
        (rng.uniform(0.85, 1.25), rng.uniform(0.55, 0.9)),
        rng.uniform(0.93, 0.98) * np.array([1.0, 0.99, 1.0]),
    )


def tile(rng: np.random.Generator, size: int, label: str, stain: Slide) -> np.ndarray:
    """Draw one tile of a slide, about 0.5 micrometre a pixel.

    Args:
        rng: generator of everything but the stain.
        size: pixels.
        label: one of CLASSES.
        stain: the slide's.

    Returns:
        uint8 RGB [size, size, 3].
    """
    haematoxylin = np.full((size, size), 0.04)
    eosin = np.clip(0.52 + 0.17 * _fibres(rng, size) + 0.10 * smooth(rng, (size, size), size / 30), 0.2, 1.1)
    gaps = smooth(rng, (size, size), size / 22) > 1.45
    eosin[gaps] = 0.02
    taken = np.zeros((size, size), bool)
    if label == "normal":
        for _ in range(int(rng.integers(5, 8))):
            _gland(rng, haematoxylin, eosin, taken, regular=True)
        _scatter(rng, haematoxylin, taken, count=size * size // 700, radius=(2.0, 3.0), spindle=True)
    else:
        if rng.random() < 0.6:  # remnants of glands remain in most tumours
            _gland(rng, haematoxylin, eosin, taken, regular=False)
        sheet = smooth(rng, (size, size), 3.5) > -0.75
        eosin = np.where(sheet & ~taken, 0.42 + 0.10 * smooth(rng, (size, size), size / 6), eosin)
        _scatter(
            rng, haematoxylin, taken | ~sheet, count=size * size // 105, radius=(2.8, 5.6), spindle=False
        )
        _scatter(rng, haematoxylin, taken | sheet, count=size * size // 500, radius=(2.0, 3.0), spindle=True)
    density = np.stack([haematoxylin, np.clip(eosin, 0, None) * np.exp(-0.7 * haematoxylin)], axis=-1)
    density = gaussian_filter(density, (0.6, 0.6, 0)) * stain.strength
    picture = stain.light * np.exp(-density @ stain.stains * 1.35)
    return to_bytes(picture + 0.012 * rng.standard_normal(picture.shape))


def _fibres(rng: np.random.Generator, size: int) -> np.ndarray:
    """Wavy bundles of collagen in one direction, standard deviation about 1."""
    large = int(1.5 * size)
    field = smooth(rng, (large, large), (large / 5, large / 30))
    y, x = np.meshgrid(np.arange(size) - size / 2, np.arange(size) - size / 2, indexing="ij")
    turn = rng.uniform(0, np.pi)
    v = y * np.cos(turn) - x * np.sin(turn) + 5 * smooth(rng, (size, size), 3)
    u = x * np.cos(turn) + y * np.sin(turn)
    return map_coordinates(field, [v + large / 2, u + large / 2], order=1, mode="nearest")


def _gland(
    rng: np.random.Generator, haematoxylin: np.ndarray, eosin: np.ndarray, taken: np.ndarray, *, regular: bool
) -> None:
    """A lumen, a ring of columnar cells, and their nuclei at the base in one row (or in disorder)."""
    size = len(taken)
    centre = rng.uniform(0.05, 0.95, 2) * size
    radius = rng.uniform(0.12, 0.19) * size
    y, x = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    angle = np.arctan2(y - centre[0], x - centre[1])
    edge = np.ones((size, size))
    terms = [(order, rng.uniform(0.03, 0.10), rng.uniform(0, 2 * np.pi)) for order in (2, 3, 4)]
    for order, amount, phase in terms:
        edge += amount * (1.0 if regular else 2.0) * np.cos(order * angle + phase)
    level = np.hypot(y - centre[0], x - centre[1]) / (radius * edge)
    if taken[level < 1.1].any():
        return
    taken[level < 1.12] = True
    cells = level < 1
    eosin[cells] = (0.34 + 0.06 * smooth(rng, (size, size), size / 5))[cells]
    lumen = level < rng.uniform(0.34, 0.48)
    eosin[lumen] = 0.02
    haematoxylin[lumen] = 0.0
    count = int(2 * np.pi * radius / (6.0 if regular else 5.0))
    for index in range(count):
        turn = 2 * np.pi * (index + rng.normal(0, 0.12)) / count
        stretch = 1 + sum(amount * (1 if regular else 2) * np.cos(o * turn + p) for o, amount, p in terms)
        away = radius * stretch * (rng.uniform(0.80, 0.86) if regular else rng.uniform(0.55, 0.92))
        at = centre + away * np.array([np.sin(turn), np.cos(turn)])
        length = rng.uniform(3.4, 4.2) if regular else rng.uniform(3.0, 5.2)
        _nucleus(rng, haematoxylin, at, (length, length * rng.uniform(0.55, 0.7)), turn, 0.95)


def _scatter(
    rng: np.random.Generator,
    haematoxylin: np.ndarray,
    blocked: np.ndarray,
    *,
    count: int,
    radius: tuple[float, float],
    spindle: bool,
) -> None:
    """Nuclei at random places: spindle cells of the stroma, or pleomorphic tumour cells."""
    size = len(blocked)
    for _ in range(count):
        at = rng.uniform(0, size, 2)
        if blocked[int(at[0]), int(at[1])]:
            continue
        length = rng.uniform(*radius)
        if spindle:
            shape, turn = (1.9 * length, 0.62 * length), rng.normal(0, 0.5)
        else:
            shape, turn = (length, length * rng.uniform(0.6, 1.0)), rng.uniform(0, np.pi)
        _nucleus(rng, haematoxylin, at, shape, turn, rng.uniform(0.7, 1.3))


def _nucleus(
    rng: np.random.Generator,
    haematoxylin: np.ndarray,
    at: np.ndarray,
    radii: tuple[float, float],
    turn: float,
    density: float,
) -> None:
    """An ellipse with a dark membrane, clumped chromatin and now and then a nucleolus."""
    size = len(haematoxylin)
    reach = int(max(radii)) + 2
    top, left = (max(0, int(value) - reach) for value in at)
    bottom, right = (min(size, int(value) + reach + 1) for value in at)
    if top >= bottom or left >= right:
        return
    y = np.arange(top, bottom)[:, None] - at[0]
    x = np.arange(left, right)[None, :] - at[1]
    u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    level = np.hypot(u / radii[0], v / radii[1])
    inside = np.clip((1.15 - level) / 0.3, 0, 1)
    chromatin = 0.72 + 0.28 * (level > 0.7) + 0.14 * rng.standard_normal(level.shape)
    if radii[0] > 4 and rng.random() < 0.5:
        chromatin = chromatin + 0.7 * (np.hypot(u, v) < 1.1)
    patch = haematoxylin[top:bottom, left:right]
    np.maximum(patch, inside * chromatin * density, out=patch)
