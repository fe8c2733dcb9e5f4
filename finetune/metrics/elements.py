"""Measure of the surface inside each 2x2(x2) neighbourhood of a mask: contour length or surface area.

A mask's surface is taken at the corners between pixels. The 4 or 8 pixels that meet at a corner form a
code, one bit each; for every code the surface that marching squares or cubes draws between the set and the
unset pixels (vertices at the middle of the crossed edges) has a length or an area that depends on the
spacing alone. This is the element definition of Nikolov et al. 2018 (arXiv:1809.04430), used by the
DeepMind implementation.

Choice: the areas are derived, not tabulated. A surface does not care which side is inside, so the smaller
side (at most 4 of 8 pixels) is cut into pieces joined by cube edges, and a piece has one of six shapes,
whose area is a sum of norms of projected areas. Price: 256 codes cost about 10 ms for a new spacing; the
last ones are cached.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

Corner = tuple[int, ...]


def neighbour_codes(mask: np.ndarray) -> np.ndarray:
    """Code of every pixel corner of `mask`: bool [H, W] or [D, H, W] -> uint8, one larger along each axis.

    Bits follow C order with the lowest offset in the highest bit, so the empty neighbourhood is 0 and the
    full one is 15 or 255. Outside the mask counts as background.
    """
    codes = np.zeros([size + 2 for size in mask.shape], np.uint8)
    codes[(slice(1, -1),) * mask.ndim] = mask
    # Neighbours along the last axis make two bits, two of these along the axis before make four, and so on.
    for step, axis in enumerate(reversed(range(mask.ndim))):
        first = (slice(None),) * axis
        codes = codes[(*first, slice(None, -1))] << np.uint8(1 << step) | codes[(*first, slice(1, None))]
    return codes


def element_measures(spacing: Sequence[float]) -> np.ndarray:
    """Length (mm, 2D) or area (mm², 3D) for every neighbour code; float64 [16] or [256].

    Args:
        spacing: millimetres in array order, two or three positive numbers.

    Raises:
        ValueError: `spacing` has neither two nor three positive entries.
    """
    steps = tuple(float(step) for step in spacing)
    if len(steps) not in (2, 3) or not all(step > 0 and np.isfinite(step) for step in steps):
        raise ValueError(f"spacing {tuple(spacing)}: expected two or three positive millimetres")
    return _measures(steps)


@lru_cache(maxsize=64)
def _measures(spacing: tuple[float, ...]) -> np.ndarray:
    corners = _corners(len(spacing))
    measure = _length if len(spacing) == 2 else _area
    top = 1 << len(corners)
    table = np.zeros(top)
    for code in range(1, top - 1):
        inside = [corner for bit, corner in enumerate(reversed(corners)) if code >> bit & 1]
        outside = [corner for corner in corners if corner not in inside]
        smaller = inside if len(inside) <= len(outside) else outside
        table[code] = sum(measure(piece, np.array(spacing)) for piece in _pieces(smaller))
    table.setflags(write=False)
    return table


def _length(piece: list[Corner], spacing: np.ndarray) -> float:
    """Contour length around one or two pixels of a 2x2 neighbourhood."""
    if len(piece) == 1:  # cuts its corner off: from edge middle to edge middle
        return 0.5 * float(np.hypot(*spacing))
    return float(spacing[_axis(piece[0], piece[1])])  # straight, along the shared edge


def _area(piece: list[Corner], spacing: np.ndarray) -> float:
    """Area of the surface around a connected piece of one to four pixels of a 2x2x2 neighbourhood.

    A flat polygon has the projected areas (a0, a1, a2) on the three coordinate planes, in units of a voxel
    face; its area is the norm of (a0 s1 s2, a1 s0 s2, a2 s0 s1).
    """
    faces = np.prod(spacing) / spacing

    def polygon(projected: float, *axes: int) -> float:
        return projected * float(np.linalg.norm(faces[list(axes)]))

    edges = [pair for pair in itertools.combinations(piece, 2) if _adjacent(*pair)]
    degree = {corner: sum(corner in edge for edge in edges) for corner in piece}
    across = {0, 1, 2} - {_axis(*edge) for edge in edges}
    if len(piece) == 1:  # a triangle cuts the corner off
        return polygon(0.125, 0, 1, 2)
    if len(piece) == 2:  # a slanted rectangle along the shared edge
        return polygon(0.5, *across)
    if len(piece) == 3:  # an L: half the face between the layers, and a trapezoid
        return polygon(0.5, *across) + polygon(0.375, 0, 1, 2)
    if len(edges) == 4:  # a full layer: a flat face
        return polygon(1.0, *across)
    if max(degree.values()) == 3:  # a corner and its three neighbours: a flat hexagon
        return polygon(0.75, 0, 1, 2)
    # A bent path of three edges: two parallel triangles and one triangle along each outer edge.
    outer = [_axis(a, b) for a, b in edges if min(degree[a], degree[b]) == 1]
    return polygon(0.5, 0, 1, 2) + sum(polygon(0.25, *({0, 1, 2} - {axis})) for axis in outer)


def _pieces(corners: list[Corner]) -> list[list[Corner]]:
    """Split corners into pieces connected by edges of the neighbourhood."""
    rest, pieces = set(corners), []
    while rest:
        piece = [rest.pop()]
        for corner in piece:  # grows while it is walked
            found = [other for other in rest if _adjacent(corner, other)]
            piece.extend(found)
            rest.difference_update(found)
        pieces.append(sorted(piece))
    return pieces


def _corners(ndim: int) -> list[Corner]:
    return list(itertools.product((0, 1), repeat=ndim))


def _adjacent(a: Corner, b: Corner) -> bool:
    return sum(x != y for x, y in zip(a, b, strict=True)) == 1


def _axis(a: Corner, b: Corner) -> int:
    return next(axis for axis, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)
