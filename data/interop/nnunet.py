"""Where a preprocessed case of nnU-Net v2 or nnssl lies in the patient, from its properties (.pkl).

Both tools transpose an image (z, y, x), crop it to what is not zero and resample it on voxel edges; the
properties tell the crop and both shapes, the plans (`transpose_forward`) the order of axes. So the affine of
the preprocessed voxels is exact: it maps the first and the last edge of the crop to where they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ReadError
from ..sample import Given
from . import unpickle

_FLAT = 999.0  # times the in-plane spacing: what nnU-Net states as spacing across a picture
_REVERSE = np.eye(4)[:, [2, 1, 0, 3]]  # (z, y, x) <-> (x, y, z)


@dataclass(frozen=True, slots=True)
class Case:
    """Geometry of one case, stored axes being `transpose_forward` of (z, y, x)."""

    affine: np.ndarray | None  # [4, 4], index of the stored axes -> RAS+ mm
    spacing: tuple[float, ...] | None  # mm; (z, y, x), or (y, x) of a picture
    backward: tuple[int, ...]  # stored axes that are z, y and x
    flat: bool  # a picture, stored as a volume of one slice


def geometry_of(given: Given, shape: Sequence[int], name: str) -> Case:
    """Geometry of the stored voxels of a case.

    Args:
        given: with `properties`, and `transpose` when it is not (0, 1, 2).
        shape: of the stored spatial axes.

    Raises:
        ReadError: the properties are missing, not plain data, or not those of nnU-Net v2.
    """
    assert given.properties is not None
    try:
        data = given.properties.read_bytes()
    except OSError as error:
        raise ReadError(f"{name}: no properties beside it ({error.strerror}); copy its .pkl too") from error
    facts = unpickle.load(data, given.properties.name)
    try:
        spacing = [float(value) for value in facts["spacing"]]
        cropped = [int(n) for n in facts["shape_after_cropping_and_before_resampling"]]
        starts = [int(low) for low, _ in facts["bbox_used_for_cropping"]]
        if not len(spacing) == len(cropped) == len(starts) == len(shape) == len(given.transpose) == 3:
            raise ValueError("three axes are expected")
        original = _affine_of(facts)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ReadError(
            f"{given.properties.name}: not the properties of nnU-Net v2 or nnssl ({error!r}); "
            "preprocess again with nnU-Net v2"
        ) from error
    backward = tuple(given.transpose.index(axis) for axis in range(3))
    scale = [c / n for c, n in zip(cropped, shape, strict=True)]
    stored = [spacing[axis] * s for axis, s in zip(given.transpose, scale, strict=True)]
    if shape[0] == 1 and backward[0] == 0 and spacing[0] >= _FLAT * max(spacing[1:]) * 0.999:
        plane = (stored[1], stored[2])
        return Case(None, None if plane == (1.0, 1.0) else plane, backward, True)
    if original is None:
        return Case(None, tuple(stored[axis] for axis in backward), backward, False)
    move = np.zeros((4, 4))
    move[3, 3] = 1
    for axis, (to, factor, start) in enumerate(zip(given.transpose, scale, starts, strict=True)):
        move[to, axis] = factor
        move[to, 3] = 0.5 * factor - 0.5 + start
    return Case(original @ move, None, backward, False)


def _affine_of(facts: Any) -> np.ndarray | None:
    """Affine of the original image's (z, y, x) in RAS+ mm; None when the properties do not tell."""
    if sitk := facts.get("sitk_stuff"):
        steps = np.asarray(sitk["spacing"], float)
        if len(steps) != 3:
            return None
        xyz = np.eye(4)
        xyz[:3, :3] = np.asarray(sitk["direction"], float).reshape(3, 3) * steps
        xyz[:3, 3] = np.asarray(sitk["origin"], float)
        xyz = np.diag([-1.0, -1.0, 1.0, 1.0]) @ xyz  # ITK speaks LPS
    elif nibabel := facts.get("nibabel_stuff"):
        found = nibabel.get("reoriented_affine")
        xyz = np.asarray(nibabel["original_affine"] if found is None else found, float).reshape(4, 4)
    else:
        return None
    return xyz @ _REVERSE
