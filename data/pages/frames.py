"""Pictures of one sample: frames of a volume in three planes or one of a picture, label maps, a histogram.

Frames of one plane lie in one WebP, in rows, so that a browser loads a plane at once and scrolls in it
without waiting. A volume is read in slabs and never held whole: the memory is that of the chosen planes.
Windows, sides and proportions are those of the contact sheet (inspect/thumbnails.py). Label maps are PNG with
a palette of seven colours, see-through where there is no class: a few kB a plane. A volume of 3 x 40 slices
takes about 0.2 s of one core, a picture 20 ms.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..inspect.thumbnails import OUTLINES, radiological, thumbnail, to_rgb, window_of
from ..shards.pictures import resize
from ..shards.reader import SampleRef, Shards

PLANES = ("axial", "coronal", "sagittal")
SLAB = 64  # slices read at once
BINS = 48
LARGEST = 16_000_000  # pixels of a picture whose histogram is taken from all of them
WEBP = {"quality": 72, "method": 2}  # method 4 takes 60 % more time and saves 7 %


@dataclass(frozen=True, slots=True)
class Look:
    """How large and how many."""

    slices: int = 40  # of a plane of a volume, at most
    side: int = 224  # longer side of a slice, pixels
    picture: int = 512  # longer side of a picture
    thumbnail: int = 160


@dataclass(slots=True)
class View:
    """Frames of one plane: one image file of all, in rows of `columns`."""

    plane: str  # of PLANES, or "picture"
    image: bytes  # WebP
    mask: bytes | None  # PNG, the same geometry
    size: tuple[int, int]  # (h, w) of a frame
    columns: int
    places: list[int]  # index of each frame along its axis
    of: int  # slices of the volume along this axis
    best: int = 0  # the frame to show first: of the largest section of the labels, or the middle one


def thumbnail_of(shards: Shards, ref: SampleRef, meta: Mapping[str, Any], look: Look) -> bytes:
    """A square WebP: the picture, or the axial plane that the contact sheet shows, with outlines."""
    pixels = thumbnail(shards, ref, look.thumbnail, meta)
    return _webp(pixels[: look.thumbnail])


def picture_views(shards: Shards, ref: SampleRef, meta: Mapping[str, Any], look: Look) -> list[View]:
    """The one view of a picture."""
    height, width = (int(n) for n in meta["shape"][1:])
    scale = min(1.0, look.picture / max(height, width))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    pixels = to_rgb(shards.read_resized(ref, (0, 0, height, width), size), meta)
    labels = shards.read_mask(ref)
    mask = None if labels is None else _png(_nearest(labels, size))
    return [View("picture", _webp(pixels), mask, size, 1, [0], 1)]


def volume_views(shards: Shards, ref: SampleRef, meta: Mapping[str, Any], look: Look) -> list[View]:
    """Axial, coronal and sagittal frames of the first channel, evenly spaced, the radiologist's way round.

    The first place of `places` is the lowest index; each frame keeps the volume's proportions in millimetres.
    """
    shape = [int(n) for n in meta["shape"][1:]]
    places = [_spaced(length, look.slices) for length in shape]
    image = _planes(partial(_slab, shards, ref, meta), shape, places)
    labels = None
    if meta["mask"] is not None:
        labels = _planes(partial(_mask_slab, shards, ref, meta), shape, places)
    spacing = tuple(meta["spacing"] or (1.0, 1.0, 1.0))
    views = []
    for axis, plane in enumerate(PLANES):
        extent = [n * mm for other, (n, mm) in enumerate(zip(shape, spacing, strict=True)) if other != axis]
        scale = look.side / max(extent)
        size = (max(1, round(extent[0] * scale)), max(1, round(extent[1] * scale)))
        frames = [
            to_rgb(resize(radiological(one), (0, 0, *one.shape[1:]), size), meta) for one in image[axis]
        ]
        masks = None if labels is None else [_nearest(radiological(one)[0], size) for one in labels[axis]]
        columns = math.ceil(math.sqrt(len(frames)))
        mask = None if masks is None else _png(_mosaic(masks, columns))
        views.append(
            View(
                plane, _webp(_mosaic(frames, columns)), mask, size, columns, places[axis], shape[axis],
                _best(masks, len(frames)),
            )
        )  # fmt: skip
    return views


def histogram(shards: Shards, ref: SampleRef, meta: Mapping[str, Any]) -> dict[str, Any]:
    """{edges: [low, high], window: [low, high], counts: a list a channel}; the ends hold what lies beyond.

    Of a volume the first channel, of a picture each; one of more than 16 million pixels is shrunk first.
    """
    percentiles = meta["stats"]["percentiles"]
    channels = 1 if int(meta["ndim"]) == 3 or int(meta["shape"][0]) != 3 else 3
    low, high = (np.asarray(percentiles[p], float)[:channels] for p in ("0.5", "99.5"))
    window = [float(np.min(window_of(meta)[0][:channels])), float(np.max(window_of(meta)[1][:channels]))]
    bottom, top = float(low.min()), float(high.max())
    margin = 0.05 * max(top - bottom, 1e-6 * max(1.0, abs(top)))
    least, most = float(np.min(meta["stats"]["min"])), float(np.max(meta["stats"]["max"]))
    bottom, top = max(least, bottom - margin), min(most, top + margin)
    edges = np.linspace(bottom, top if top > bottom else bottom + 1, BINS + 1)
    counts = np.zeros((channels, BINS), np.int64)
    for part in _parts(shards, ref, meta):
        for channel in range(channels):
            values = np.clip(part[channel].astype(np.float32, copy=False), edges[0], edges[-1])
            counts[channel] += np.histogram(values, edges)[0]
    return {
        "edges": [_short(edges[0]), _short(edges[-1])],
        "window": [_short(value) for value in window],
        "counts": counts.tolist(),
    }


def _parts(shards: Shards, ref: SampleRef, meta: Mapping[str, Any]) -> Iterator[np.ndarray]:
    """The image in pieces that fit memory."""
    shape = [int(n) for n in meta["shape"][1:]]
    if len(shape) == 3:
        for start in range(0, shape[0], SLAB):
            yield _slab(shards, ref, meta, start, min(start + SLAB, shape[0]))
    elif shape[0] * shape[1] <= LARGEST:
        yield shards.read(ref)
    else:
        scale = (LARGEST / (shape[0] * shape[1])) ** 0.5
        yield shards.read_resized(ref, (0, 0, *shape), [max(1, int(n * scale)) for n in shape])


def _slab(shards: Shards, ref: SampleRef, meta: Mapping[str, Any], start: int, stop: int) -> np.ndarray:
    """[1, D, H, W], the first channel of these slices."""
    height, width = meta["shape"][2:]
    return shards.read(ref, (start, 0, 0), (stop - start, height, width), channels=(0,))


def _mask_slab(shards: Shards, ref: SampleRef, meta: Mapping[str, Any], start: int, stop: int) -> np.ndarray:
    """[1, D, H, W] of the label map."""
    height, width = meta["shape"][2:]
    labels = shards.read_mask(ref, (start, 0, 0), (stop - start, height, width))
    assert labels is not None  # the caller has looked
    return labels[None]


def _planes(
    read: Callable[[int, int], np.ndarray], shape: Sequence[int], places: Sequence[Sequence[int]]
) -> list[list[np.ndarray]]:
    """For each axis the planes [1, ., .] at its places, from one pass over the slabs."""
    axial: list[np.ndarray] = []
    sides: list[list[np.ndarray]] = [[], []]
    for start in range(0, shape[0], SLAB):
        slab = read(start, min(start + SLAB, shape[0]))
        axial += [slab[:, place - start] for place in places[0] if start <= place < start + slab.shape[1]]
        sides[0].append(slab[:, :, places[1]])
        sides[1].append(slab[:, :, :, places[2]])
    coronal = np.concatenate(sides[0], axis=1)
    sagittal = np.concatenate(sides[1], axis=1)
    return [
        axial,
        [coronal[:, :, number] for number in range(coronal.shape[2])],
        [sagittal[:, :, :, number] for number in range(sagittal.shape[3])],
    ]


def _best(masks: Sequence[np.ndarray] | None, frames: int) -> int:
    """The middle one of the frames with the largest labelled area; without labels the middle frame."""
    areas = np.array([np.count_nonzero(mask) for mask in masks or ()])
    if not areas.any():
        return (frames - 1) // 2
    return int(np.flatnonzero(areas == areas.max()).mean())


def _spaced(length: int, most: int) -> list[int]:
    """At most `most` indices below `length`, evenly spaced, both ends half a step off."""
    share = min(length, most)
    return [(2 * place + 1) * length // (2 * share) for place in range(share)]


def _nearest(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A label map [h, w] at another size, as palette indices: 0, then 1 to 6 in turn."""
    rows = ((np.arange(size[0]) + 0.5) * labels.shape[0] / size[0]).astype(int)
    columns = ((np.arange(size[1]) + 0.5) * labels.shape[1] / size[1]).astype(int)
    small = labels[np.ix_(rows, columns)].astype(np.int64)
    return np.where(small == 0, 0, (small - 1) % len(OUTLINES) + 1).astype(np.uint8)


def _mosaic(frames: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Frames of one size [h, w] or [h, w, 3] in rows of `columns`."""
    height, width = frames[0].shape[:2]
    rows = -(-len(frames) // columns)
    sheet = np.zeros((rows * height, columns * width, *frames[0].shape[2:]), np.uint8)
    for number, frame in enumerate(frames):
        top, left = number // columns * height, number % columns * width
        sheet[top : top + height, left : left + width] = frame
    return sheet


def _webp(pixels: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", **WEBP)
    return buffer.getvalue()


def _png(indices: np.ndarray) -> bytes:
    from PIL import Image

    picture = Image.fromarray(indices, "P")
    picture.putpalette([0, 0, 0, *OUTLINES.reshape(-1).tolist()])
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", transparency=0, optimize=True)
    return buffer.getvalue()


def _short(value: float) -> float:
    return float(f"{value:.5g}")
