"""One sample as a small RGB picture: windowed, at its physical proportions, with outlines of its mask.

Pictures are fitted into a square; volumes show three planes, axial above, coronal and sagittal below, through
the largest section of the mask, or the middle of the foreground. The radiologist's view: the patient's right
on the left, front or head on top. Only the planes are read: an axial one costs a thin box, the other two cost
one pass over the volume's blocks.

CT in Hounsfield units gets a window by organ; everything else is stretched between its own p0.5 and p99.5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..normalise import intensity, kind
from ..sample import Organ
from ..shards.pictures import resize
from ..shards.reader import SampleRef, Shards

Pixels = np.ndarray  # [H, W, 3] uint8

# Low and high ends of the window in HU: about the customary ones of a reading room, with air black.
WINDOWS_HU = {
    Organ.LUNG: (-1000.0, 400.0),
    Organ.CHEST: (-1000.0, 400.0),
    Organ.BRAIN: (0.0, 80.0),
    Organ.HEAD_NECK: (-30.0, 130.0),
    Organ.BONE: (-450.0, 1050.0),
    Organ.JOINT: (-450.0, 1050.0),
    Organ.SPINE: (-450.0, 1050.0),
}
SOFT_TISSUE_HU = (-160.0, 240.0)

# Bright on grey and told apart by the colour-blind; the class value chooses.
OUTLINES = np.array(
    [(255, 209, 64), (64, 196, 255), (255, 105, 140), (120, 230, 140), (200, 150, 255), (255, 150, 80)],
    np.uint8,
)
_FINE = 2  # outlines are drawn at twice the size and averaged down


def window_of(meta: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Values shown as black and as white, float32 [C] each, for an image with this `key.json`."""
    numbers = intensity(meta)
    if kind(meta) != "hu":
        return numbers.low, numbers.high
    organ = str(meta["organ"])
    low, high = WINDOWS_HU.get(Organ(organ), SOFT_TISSUE_HU) if organ in set(Organ) else SOFT_TISSUE_HU
    return np.full_like(numbers.low, low), np.full_like(numbers.high, high)


def thumbnail(shards: Shards, ref: SampleRef, size: int, meta: Mapping[str, Any] | None = None) -> Pixels:
    """A picture as [size, size, 3], a volume as [3 size / 2, size, 3], uint8 on black.

    Args:
        size: pixels, even.
        meta: the sample's `key.json`, when the caller has it already.

    Raises:
        ShardError: what is stored is damaged.
    """
    meta = shards.meta(ref) if meta is None else meta
    if int(meta["ndim"]) == 2:
        return _fit(
            _read_picture(shards, ref, meta, size), shards.read_mask(ref), (1.0, 1.0), size, size, meta
        )
    mask = shards.read_mask(ref)
    spacing = tuple(meta["spacing"] or (1.0, 1.0, 1.0))
    place = _section(mask, meta)
    planes = []
    for axis, height, width in ((0, size, size), (1, size // 2, size // 2), (2, size // 2, size // 2)):
        image = np.take(_read_plane(shards, ref, meta, axis, place[axis]), 0, axis=axis + 1)
        outline = None if mask is None else radiological(np.take(mask, place[axis], axis=axis))
        inner = tuple(mm for other, mm in enumerate(spacing) if other != axis)
        planes.append(_fit(radiological(image), outline, inner, height, width, meta))
    axial, coronal, sagittal = planes
    return np.concatenate([axial, np.concatenate([coronal, sagittal], axis=1)])


def draw_outlines(pixels: Pixels, labels: np.ndarray) -> Pixels:
    """Draw the borders of `labels` [h, w] (0 is background) over `pixels` [H, W, 3], in a colour per value.

    The label map may have any size; it is resampled to the picture by nearest neighbour.
    """
    height, width = pixels.shape[:2]
    rows = ((np.arange(height * _FINE) + 0.5) * labels.shape[0] / (height * _FINE)).astype(int)
    columns = ((np.arange(width * _FINE) + 0.5) * labels.shape[1] / (width * _FINE)).astype(int)
    fine = labels[np.ix_(rows, columns)]
    padded = np.pad(fine, 1, mode="edge")
    border = np.zeros(fine.shape, bool)
    for dy, dx in ((0, 1), (2, 1), (1, 0), (1, 2)):
        border |= padded[dy : dy + fine.shape[0], dx : dx + fine.shape[1]] != fine
    # On both sides of a border lies a class or the background: colour the side that has a class.
    border &= fine != 0
    colour = OUTLINES[(fine.astype(np.int64) - 1) % len(OUTLINES)] * border[..., None]
    cells = (height, _FINE, width, _FINE)
    cover = border.reshape(cells).mean((1, 3))[..., None]
    mean = colour.reshape(*cells, 3).sum((1, 3)) / np.maximum(border.reshape(cells).sum((1, 3)), 1)[..., None]
    strength = np.minimum(cover * 2, 1)  # a border one fine pixel wide covers half of a pixel
    return np.rint(pixels * (1 - strength) + mean * strength).astype(np.uint8)


def _read_picture(shards: Shards, ref: SampleRef, meta: Mapping[str, Any], size: int) -> np.ndarray:
    """The picture [C, h, w], no larger than needed."""
    height, width = (int(n) for n in meta["shape"][1:])
    scale = min(1.0, size / max(height, width))
    target = (max(1, round(height * scale)), max(1, round(width * scale)))
    return shards.read_resized(ref, (0, 0, height, width), target)


def _read_plane(shards: Shards, ref: SampleRef, meta: Mapping[str, Any], axis: int, index: int) -> np.ndarray:
    """One plane of a volume, [C, ...] with a length of 1 along `axis`."""
    shape = [int(n) for n in meta["shape"][1:]]
    origin = [0, 0, 0]
    origin[axis], shape[axis] = index, 1
    return shards.read(ref, origin, shape)


def _section(mask: np.ndarray | None, meta: Mapping[str, Any]) -> list[int]:
    """Index (d, h, w) of the planes to show."""
    if mask is not None and mask.any():
        inside = mask != 0
        areas = [inside.sum(axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
        # The middle of all equally large sections, so that a box-like mask is cut at its centre.
        return [int(np.flatnonzero(area == area.max()).mean()) for area in areas]
    box = meta["stats"]["foreground"]["box"]
    if box is None:
        return [int(n) // 2 for n in meta["shape"][1:]]
    last = [int(n) - 1 for n in meta["shape"][1:]]
    return [min((int(a) + int(b)) // 2, end) for a, b, end in zip(box[0], box[1], last, strict=True)]


def radiological(plane: np.ndarray) -> np.ndarray:
    """Turn the last two axes from (to the head or front, to the right or front) to what is printed."""
    return plane[..., ::-1, ::-1]


def _fit(
    image: np.ndarray,
    labels: np.ndarray | None,
    spacing: Sequence[float],
    height: int,
    width: int,
    meta: Mapping[str, Any],
) -> Pixels:
    """Scale [C, h, w] with this spacing into the middle of a black [height, width, 3], with outlines."""
    extent = [n * mm for n, mm in zip(image.shape[1:], spacing, strict=True)]
    scale = min(height / extent[0], width / extent[1])
    target = [max(1, min(round(mm * scale), most)) for mm, most in zip(extent, (height, width), strict=True)]
    image = np.ascontiguousarray(image)
    pixels = to_rgb(resize(image, (0, 0, *image.shape[1:]), target), meta)
    if labels is not None:
        pixels = draw_outlines(pixels, labels)
    canvas = np.zeros((height, width, 3), np.uint8)
    top, left = (height - target[0]) // 2, (width - target[1]) // 2
    canvas[top : top + target[0], left : left + target[1]] = pixels
    return canvas


def to_rgb(image: np.ndarray, meta: Mapping[str, Any]) -> Pixels:
    """Window [C, h, w] to [h, w, 3]; colour when it has three channels of one picture, else its first."""
    low, high = window_of(meta)
    shown = slice(0, 3) if image.shape[0] == 3 and int(meta["ndim"]) == 2 else slice(0, 1)
    low, high = low[shown, None, None], high[shown, None, None]
    grey = (image[shown].astype(np.float32) - low) / np.maximum(high - low, np.float32(1e-12))
    planes = np.rint(np.clip(grey, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    return np.ascontiguousarray(np.broadcast_to(planes, (*planes.shape[:2], 3)))
