"""Decode and resample pictures: JPEG at a reduced scale, antialiased boxes in the native dtype."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import imagecodecs
import numpy as np
from PIL import Image as Pillow

from ..errors import ShardError


def decode_jpeg(data: bytes) -> np.ndarray:
    """JPEG bytes -> [1, H, W] or [3, H, W] uint8."""
    with Pillow.open(io.BytesIO(data)) as picture:
        return planes_of(_pixels(picture, data))


def resize(image: np.ndarray, box: Sequence[float], size: Sequence[int]) -> np.ndarray:
    """Resample a box (y0, x0, y1, x1; fractions allowed) of [C, H, W] to [C, h, w], antialiased, same dtype.

    The triangle filter widened by the shrink factor (Pillow's BILINEAR): no overshoot, so integers stay in
    range.
    """
    pillow_box = (box[1], box[0], box[3], box[2])
    target = (int(size[1]), int(size[0]))
    if image.dtype == np.uint8 and image.shape[0] == 3:
        picture = Pillow.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
        return planes_of(np.asarray(picture.resize(target, Pillow.Resampling.BILINEAR, pillow_box)))
    planes = []
    for plane in image:
        wide = plane if plane.dtype == np.uint8 else plane.astype(np.float32)
        resized = np.asarray(Pillow.fromarray(wide).resize(target, Pillow.Resampling.BILINEAR, pillow_box))
        planes.append(resized)
    stacked = np.stack(planes)
    if stacked.dtype == image.dtype:
        return stacked
    if np.issubdtype(image.dtype, np.integer):
        limits = np.iinfo(image.dtype)
        stacked = np.clip(np.rint(stacked.astype(np.float64)), limits.min, limits.max)
    return stacked.astype(image.dtype)


def nearest_voxels(start: float, stop: float, count: int) -> np.ndarray:
    """Voxels under the centres of `count` equal parts of [start, stop); voxel i reaches from i to i + 1."""
    return np.floor(start + (np.arange(count) + 0.5) * ((stop - start) / count)).astype(np.int64)


def resize_jpeg(data: bytes, box: Sequence[float], size: Sequence[int]) -> np.ndarray:
    """As `resize`, from JPEG bytes, decoded at the scale nearest above the output. Raises ShardError."""
    with Pillow.open(io.BytesIO(data)) as picture:
        width, height = picture.size
        check_box(box, (height, width))
        # libjpeg decodes at 1/2, 1/4 or 1/8 for a fraction of the cost; never below the size asked for.
        wanted = (size[1] * width / (box[3] - box[1]), size[0] * height / (box[2] - box[0]))
        picture.draft(picture.mode, (math.ceil(wanted[0]), math.ceil(wanted[1])))
        if picture.size == (width, height):
            picture = Pillow.fromarray(_pixels(picture, data))
        fy, fx = picture.size[1] / height, picture.size[0] / width
        box = (box[0] * fy, box[1] * fx, box[2] * fy, box[3] * fx)
        if picture.mode in ("L", "RGB"):  # what `resize` would do, without two transpositions: a third faster
            target = (int(size[1]), int(size[0]))
            pillow_box = (box[1], box[0], box[3], box[2])
            return _planes(np.asarray(picture.resize(target, Pillow.Resampling.BILINEAR, pillow_box)))
        image = planes_of(np.asarray(picture))
    return resize(image, box, size)


def _pixels(picture: Pillow.Image, data: bytes) -> np.ndarray:
    """All pixels of an opened JPEG, by one call of libjpeg-turbo: Pillow's values in 2/3 of its time."""
    return imagecodecs.jpeg8_decode(data) if picture.mode in ("L", "RGB") else np.asarray(picture)


def _planes(pixels: np.ndarray) -> np.ndarray:
    """[H, W] or [H, W, C] -> [C, H, W], a view: whoever collects the pictures of a batch copies anyway."""
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def planes_of(pixels: np.ndarray) -> np.ndarray:
    """[H, W] or [H, W, C] -> contiguous [C, H, W]."""
    return np.ascontiguousarray(_planes(pixels))


def check_box(box: Sequence[float], full: Sequence[int]) -> None:
    """Refuse a box (y0, x0, y1, x1) that is empty or not inside a picture of `full` (H, W) pixels."""
    if len(box) != 4 or not (0 <= box[0] < box[2] <= full[0] and 0 <= box[1] < box[3] <= full[1]):
        raise ShardError(
            f"box {tuple(box)} (y0, x0, y1, x1) is empty or not inside the picture {tuple(full)}"
        )
