"""Orientation: any axis-aligned reading of an affine -> closest canonical, slice first.

Stored volumes run w to the patient's right, h to anterior, d to superior (nibabel's closest canonical order,
transposed). Only axes are swapped and flipped: no voxel is interpolated, an oblique volume stays oblique.
"""

from __future__ import annotations

import numpy as np
from nibabel.orientations import aff2axcodes, apply_orientation, inv_ornt_aff, io_orientation

from ..errors import ReadError

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

# Swaps the first and the third index: (d, h, w) <-> (x, y, z) = (w, h, d).
_REVERSE = np.eye(4)[:, [2, 1, 0, 3]]


def reverse_axes(affine: np.ndarray) -> np.ndarray:
    """Affine of (d, h, w) from the affine of (x, y, z) = (w, h, d), or back."""
    return affine @ _REVERSE


def spacing_of(affine: np.ndarray) -> tuple[float, float, float]:
    """Voxel size in mm along (d, h, w): the lengths of the affine's columns."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    return tuple(round(float(length), 6) for length in lengths)  # type: ignore[return-value]


def check_affine(affine: np.ndarray, name: str) -> None:
    """Raise ReadError when the affine is not finite or collapses the volume.

    The determinant is taken of the unit columns, so that the verdict does not depend on the voxel size.
    """
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise ReadError(f"{name}: the affine holds NaN or infinity; repair the header's sform or qform")
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if (lengths < 1e-9).any() or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-4:
        raise ReadError(f"{name}: the affine is singular (voxel size {lengths.tolist()}); repair the header")


def axis_codes(affine: np.ndarray) -> str:
    """Direction in which the axes (d, h, w) of `affine` run, such as 'SPL'."""
    return "".join(str(code) for code in reversed(aff2axcodes(reverse_axes(affine))))


def canonical(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reorient a volume to closest canonical.

    Args:
        array: [..., D, H, W].
        affine: [4, 4], index (d, h, w, 1) -> RAS+ mm, not singular.

    Returns:
        The array with w to R, h to A, d to S (contiguous); its affine; and `order` [3]: order[i] is the
        output axis in which the input axis i (of d, h, w) ended.
    """
    xyz = reverse_axes(affine)
    orientation = io_orientation(xyz)
    lead = array.ndim - 3
    backward = array.transpose(*range(lead), lead + 2, lead + 1, lead)
    # apply_orientation works on the leading axes: bring x, y, z there and back.
    moved = np.moveaxis(backward, range(lead), range(3, 3 + lead)) if lead else backward
    turned = apply_orientation(moved, orientation)
    shape = moved.shape[:3]
    xyz = xyz @ inv_ornt_aff(orientation, shape)
    if lead:
        turned = np.moveaxis(turned, range(3, 3 + lead), range(lead))
    result = turned.transpose(*range(lead), lead + 2, lead + 1, lead)
    order = 2 - orientation[::-1, 0].astype(int)
    return np.ascontiguousarray(result), reverse_axes(xyz), order


def corner_distance(a: np.ndarray, b: np.ndarray, shape: tuple[int, ...]) -> float:
    """Largest distance in mm between the same corner of the [D, H, W] grid under two affines."""
    corners = np.array(np.meshgrid(*[(0, size - 1) for size in shape], indexing="ij")).reshape(3, -1)
    corners = np.vstack([corners, np.ones(corners.shape[1])])
    return float(np.linalg.norm(((a - b) @ corners)[:3], axis=0).max())
