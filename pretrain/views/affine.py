"""Affine maps of whole batches, in millimetres: matrices and resampling; for label maps see `labels`.

Coordinates are voxels counted from the centre of an image, on both sides. The grid is built by broadcast
additions, one pass an axis: a matrix product would be rounded to bfloat16 under autocast (half a voxel at
the edge of 128) and was slower than the sampling itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .draw import Choice, between, draw, log_between, on_device, per_sample, sometimes
from .separable import product

PADDINGS = ("border", "reflection", "zeros")


class AffineDraws(NamedTuple):
    """Parameters of `affine_matrix` for a batch, neutral where `choice` spares the sample."""

    choice: Choice
    angles: Tensor  # [B, 1] or [B, 3] radians
    zoom: Tensor  # [B]
    shift: Tensor  # [B, n] voxels of the output


def affine_matrix(angles: Tensor, scale: Tensor, shift: Tensor, spacing: Tensor | None = None) -> Tensor:
    """Matrices for `affine`: from an output voxel to the input voxel it shows, both counted from the centre.

    Rotation happens in millimetres, so that thick slices do not shear the anatomy.

    Args:
        angles: radians; [B, 1] in 2D, [B, 3] in 3D about the axes d, h, w, applied in the order w, h, d.
        scale: [B] zoom; 2 makes things twice as large.
        shift: [B, n] voxels by which the content moves.
        spacing: [B, n] millimetres, or None for isotropic.

    Returns:
        [B, n, n + 1]; exactly the identity for angles 0, scale 1 and shift 0.
    """
    n = shift.shape[1]
    rotation = _plane_rotation(angles[:, 0], n, (n - 2, n - 1))
    if n == 3:
        rotation = product(rotation, _plane_rotation(angles[:, 1], n, (0, 2)))
        rotation = product(rotation, _plane_rotation(angles[:, 2], n, (0, 1)))
    matrix = rotation / scale[:, None, None]
    if spacing is not None:
        matrix = matrix * (spacing[:, None, :] / spacing[:, :, None])
    return torch.cat([matrix, -product(matrix, shift[:, :, None])], dim=2)


def affine(
    x: Tensor,
    matrix: Tensor,
    *,
    size: Sequence[int] | None = None,
    mode: str = "linear",
    padding: str = "border",
) -> Tensor:
    """Resample: out(o) = x(matrix @ [o, 1]), coordinates in voxels counted from the centres.

    The convention is that of `scipy.ndimage.affine_transform`, but for the origin. Label maps: see
    `affine_labels`.

    Args:
        x: [B, C, *spatial] float32.
        matrix: [B, n, n + 1], see `affine_matrix`.
        size: spatial shape of the result; None: that of x.
        mode: "linear" or "nearest".
        padding: beyond the image: "border", "reflection" or "zeros" (0 is about the mean of the image).

    Returns:
        [B, C, *size]; samples whose matrix is the identity come back bit for bit.
    """
    out = resample(x, matrix, size or x.shape[2:], mode=mode, padding=padding)
    if out.shape == x.shape:
        n = x.ndim - 2
        same = (matrix == torch.eye(n, n + 1, device=x.device)).flatten(1).all(dim=1)
        out = torch.where(per_sample(same, x), x, out)
    return out


def resample(
    x: Tensor, matrix: Tensor, size: Sequence[int], *, mode: str = "linear", padding: str = "border"
) -> Tensor:
    """`affine` without the exact identity, for callers that know which samples move."""
    spatial = x.shape[2:]
    grid = torch.empty(len(x), *size, len(spatial), device=x.device)
    for axis, extent in enumerate(spatial):
        # grid_sample wants (x, y, z), each from -1 to 1 between the outer edges.
        coordinates(matrix, axis, size, 2 / extent, out=grid[..., len(spatial) - 1 - axis])
    kind = "bilinear" if mode == "linear" else "nearest"
    return F.grid_sample(x, grid, mode=kind, padding_mode=padding, align_corners=False)


def coordinates(
    matrix: Tensor, axis: int, size: Sequence[int], unit: float, out: Tensor | None = None
) -> Tensor:
    """Source coordinate along `axis` of every output voxel: [B, *size], times `unit`."""
    matrix = matrix[:, axis].to(torch.float32) * unit
    n = len(size)
    terms = []
    for k, extent in enumerate(size):
        steps = torch.arange(extent, device=matrix.device, dtype=torch.float32) - (extent - 1) / 2
        shape = [-1, *[1] * n]
        shape[k + 1] = extent
        terms.append((matrix[:, k : k + 1] * steps).view(shape))
    terms[0] = terms[0] + per_sample(matrix[:, n], terms[0])
    most = terms[0] + terms[1] if n == 3 else terms[0]
    return torch.add(most, terms[-1], out=out)


def affine_draws(
    x: Tensor,
    seed: int,
    positions: Tensor,
    *,
    degrees: float,
    scale: Sequence[float],
    shift: float,
    probability: float,
    size: Sequence[int],
    stream: str,
) -> AffineDraws:
    """Angles (+- degrees), zoom (log-uniform) and shift (+- share of the side of the output)."""
    n = x.ndim - 2
    turns = 1 if n == 2 else 3
    draws = draw(x, seed, stream, positions, 2 + turns + n)
    choice = draws.below(probability)
    on, u = choice.on[:, None], draws.u
    zoom = torch.where(choice.on, log_between(u[:, 1], scale), 1.0)
    angles = torch.where(on, between(u[:, 2 : 2 + turns], (-1, 1)) * math.radians(degrees), 0.0)
    moves = [between(u[:, 2 + turns + axis], (-1, 1)) * (shift * size[axis]) for axis in range(n)]
    return AffineDraws(choice, angles, zoom, torch.where(on, torch.stack(moves, dim=1), 0.0))


def random_affine(
    x: Tensor,
    seed: int,
    positions: Tensor,
    *,
    degrees: float = 15.0,
    scale: Sequence[float] = (0.9, 1.1),
    shift: float = 0.05,
    spacing: Tensor | None = None,
    probability: float = 1.0,
    padding: str = "border",
    stream: str = "affine",
) -> Tensor:
    """`affine` with drawn angles (+- degrees), zoom (log-uniform) and shift (+- share of the side)."""
    drawn = affine_draws(
        x, seed, positions, degrees=degrees, scale=scale, shift=shift, probability=probability,
        size=x.shape[2:], stream=stream,
    )  # fmt: skip
    if spacing is not None:
        spacing = on_device(spacing, x.device).to(torch.float32)
    matrix = affine_matrix(drawn.angles, drawn.zoom, drawn.shift, spacing)
    return sometimes(
        x, drawn.choice, lambda part, m: resample(part, m, part.shape[2:], padding=padding), matrix
    )


def _plane_rotation(angle: Tensor, n: int, plane: tuple[int, int]) -> Tensor:
    """[B, n, n] rotation by `angle` [B] in the plane of two axes, identity elsewhere."""
    a, b = plane
    matrix = torch.eye(n, device=angle.device, dtype=angle.dtype).repeat(len(angle), 1, 1)
    matrix[:, a, a] = matrix[:, b, b] = torch.cos(angle)
    matrix[:, a, b] = torch.sin(angle)
    matrix[:, b, a] = -torch.sin(angle)
    return matrix
