"""Why a mask's grid is not its image's: the fault by name, where it is one of those that tools make.

All grids are compared after both files are in closest canonical orientation, so a mask that is merely stored
in another order fits. What remains is a fault of the data; nothing is repaired here, the sentence says how.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

_NEAR = 0.02  # voxels within which two grids count as the same
_ANGLE = 0.1  # degrees within which directions count as the same


def explain(
    mask_shape: Sequence[int],
    mask_affine: np.ndarray | None,
    image_shape: Sequence[int],
    image_affine: np.ndarray | None,
) -> str:
    """What is wrong between two grids, and the mend, as half a sentence.

    Args:
        mask_shape, image_shape: (D, H, W) or (H, W).
        mask_affine, image_affine: [4, 4], index (d, h, w, 1) -> RAS+ mm, or None where not known.
    """
    mask_shape, image_shape = tuple(map(int, mask_shape)), tuple(map(int, image_shape))
    known = mask_affine is not None and image_affine is not None and len(image_shape) == 3
    if mask_shape == image_shape:
        assert mask_affine is not None and image_affine is not None
        return _affines(mask_affine, image_affine, image_shape)
    if len(mask_shape) != len(image_shape):
        return (
            f"it has {len(mask_shape)} axes and the image {len(image_shape)}; is it the mask of this image?"
        )
    if known:
        assert mask_affine is not None and image_affine is not None
        if found := _regridded(mask_shape, mask_affine, image_shape, image_affine):
            return found
    if sorted(mask_shape) == sorted(image_shape):
        order = next(p for p in itertools.permutations(range(len(image_shape)))
                     if tuple(image_shape[a] for a in p) == mask_shape)  # fmt: skip
        turned = (
            "transposed" if len(order) == 2 else f"stored in the order {', '.join('DHW'[a] for a in order)}"
        )
        return (
            f"it is the image's shape {turned}: axes were exchanged, or the picture was turned (EXIF) later"
        )
    ratios = {round(a / b, 3) for a, b in zip(mask_shape, image_shape, strict=True)}
    if len(ratios) == 1:
        return f"it is {ratios.pop():g} times as large: drawn on a copy of another size; resample it"
    if len(image_shape) == 3 and mask_shape[1:] == image_shape[1:]:
        more = mask_shape[0] - image_shape[0]
        than = f"{abs(more)} slices {'more' if more > 0 else 'fewer'} than the image"
        return f"{than}; is a slice of the series missing, or is it another series' mask?"
    return "resample it on the image's grid, or is it another image's mask?"


def _regridded(
    mask_shape: tuple[int, ...], mask: np.ndarray, image_shape: tuple[int, ...], image: np.ndarray
) -> str | None:
    """The mask as a part of the image's grid, or the same space in other voxels."""
    relative = np.linalg.inv(image) @ mask
    start = relative[:3, 3]
    if np.allclose(relative[:3, :3], np.eye(3), atol=_NEAR / max(image_shape)):
        stop = start + np.asarray(mask_shape)
        if np.allclose(start, np.rint(start), atol=_NEAR):
            first = ", ".join(str(int(value)) for value in np.rint(start))
            if (start > -_NEAR).all() and (stop <= np.asarray(image_shape) + _NEAR).all():
                return (
                    f"it is a crop of the image that begins at its voxel ({first}) (d, h, w); pad it with 0"
                )
            return f"same voxels, but it begins at voxel ({first}) of the image (d, h, w); pad or crop it"
    scale = relative.diagonal()[:3]
    aligned = np.abs(relative[:3, :3] - np.diag(scale)).max() < _NEAR
    edges = np.allclose(
        start + scale * (np.asarray(mask_shape) - 0.5), np.asarray(image_shape) - 0.5, atol=1.0
    )
    if aligned and edges and np.allclose(start - scale / 2, -0.5, atol=1.0):
        return (
            f"it covers the same space with voxels of {_mm(mask)} mm instead of {_mm(image)} mm; "
            "resample it with nearest neighbour"
        )
    return None


def _affines(mask: np.ndarray, image: np.ndarray, shape: tuple[int, ...]) -> str:
    """Two grids of one shape at different places."""
    lengths, wanted = _lengths(mask), _lengths(image)
    directions, straight = mask[:3, :3] / lengths, image[:3, :3] / wanted
    turned = max(_degrees(directions[:, axis], straight[:, axis]) for axis in range(3))
    scaled = np.abs(lengths / wanted - 1).max() > 1e-3
    middle = np.append((np.asarray(shape) - 1) / 2, 1.0)
    there, here = (mask @ middle)[:3], (image @ middle)[:3]
    if np.allclose(lengths, 1) and _is_blank(mask, shape) and not _is_blank(image, shape):
        return (
            "its header was lost (voxels of 1 mm at the origin); copy the image's, if its voxels lie as there"
        )
    if turned <= _ANGLE and not scaled:
        if np.abs(here[:2]).max() > wanted.min() / 2 and np.allclose(
            there, here * (-1, -1, 1), atol=wanted.min() / 2
        ):
            return "it lies mirrored, as if LPS had been written as RAS; negate x and y in its header"
        shift = there - here
        voxels = np.linalg.inv(image[:3, :3]) @ shift
        half = np.allclose(np.abs(voxels[np.abs(voxels) > _NEAR]), 0.5, atol=_NEAR)
        why = "its origin is the corner of a voxel, not the centre" if half else "its origin is another one"
        return (
            f"it is shifted by ({_list(shift)}) mm to the right, front and head, ({_list(voxels)}) voxels "
            f"(d, h, w): {why}; copy the image's header"
        )
    if turned <= _ANGLE:
        return f"voxels of {_mm(mask)} mm, the image's are of {_mm(image)} mm; copy the image's header"
    return (
        f"its axes are turned by {turned:.3g} degrees against the image's; sform and qform may differ in one "
        "of the files: copy the image's header, or resample it"
    )


def _is_blank(affine: np.ndarray, shape: tuple[int, ...]) -> bool:
    """An identity (up to flips) whose origin is a corner of the volume."""
    if np.abs(np.abs(affine[:3, :3]).sum(0) - 1).max() > 1e-6:
        return False
    ends = np.array([(affine @ [*corner, 1.0])[:3] for corner in ((0, 0, 0), tuple(n - 1 for n in shape))])
    return bool((np.abs(ends).min(0) < 1e-6).all())


def _lengths(affine: np.ndarray) -> np.ndarray:
    return np.linalg.norm(affine[:3, :3], axis=0)


def _degrees(a: np.ndarray, b: np.ndarray) -> float:
    return math.degrees(math.acos(float(np.clip(a @ b, -1, 1))))


def _list(values: np.ndarray) -> str:
    return ", ".join(f"{value + 0.0:.3g}" for value in np.round(values, 6))


def _mm(affine: np.ndarray) -> str:
    return " x ".join(f"{value:.4g}" for value in _lengths(affine))
