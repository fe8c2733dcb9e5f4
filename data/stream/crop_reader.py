"""One sample -> one crop in native integers, a pure function of (configuration, sample, position, draws).

Bytes and time follow the size of the crop, not of the image. Normalisation and repeating grey channels are
left to the device, which makes a batch up to twelve times smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..draws import uniform
from ..ingest.preprocess import unpack_bricks
from ..normalise import grey, intensity, kind, luminance
from ..sample import MODALITIES, Modality
from ..shards.format import partition
from ..shards.reader import SampleRef, Shards
from .config import StreamConfig
from .crops import (
    PICTURE_DRAWS,
    VOLUME_DRAWS,
    Zoomed,
    channel_choice,
    pad_to,
    picture_box,
    volume_box,
    zoom_of,
    zoomed,
)
from .targets import UNKNOWN, Targets

Place = Callable[[tuple[int, ...], np.dtype], "np.ndarray | None"]  # shape and dtype -> memory, or None

CROP_DRAWS = max(PICTURE_DRAWS, VOLUME_DRAWS)
_NOTHING = np.full(1, UNKNOWN)
_MODALITY_CODES = {modality: code for code, modality in enumerate(MODALITIES)}


PictureBox = tuple[float, float, float, float]  # y0, x0, y1, x1 in pixels


class VolumeBox(NamedTuple):
    """Where the crop of a volume lies, in voxels."""

    origin: list[int]
    extent: list[int]
    zoomed: Zoomed | None  # None: it keeps its voxels


class CropReader:
    """Reads the crops of one shape class.

    Args:
        targets: classes and label maps to read with the images; None: neither.
    """

    def __init__(self, config: StreamConfig, shards: Shards, targets: Targets | None = None) -> None:
        self.config, self.shards, self.targets = config, shards, targets

    def read(
        self,
        ref: SampleRef,
        meta: dict[str, Any],
        position: int,
        draws: list[float],
        place: Place | None = None,
    ) -> dict[str, Any]:
        """One crop of a sample whose `key.json` is `meta`: what `Stream.__getitems__` gives, but `replaced`.

        Args:
            position: keys the draws of the channels and of the zoom.
            draws: `CROP_DRAWS` uniform numbers: where the crop lies.
            place: gives the memory that an image may be decoded into.

        Raises:
            ShardError: what is stored is damaged.
        """
        numbers, channels = intensity(meta), self._choice(meta, position)
        if channels is not None:
            numbers = numbers.take(channels)
        if self.config.ndim == 2:
            image, spacing, box = self._picture(ref, meta, draws)
            image = image if channels is None else image[channels]
        else:
            box = self._box(meta, position, draws)
            image, spacing = self._volume(ref, meta, box, numbers.low, channels, place)
        if channels is None and len(image) != 1 and self.config.in_channels == 1:
            image, numbers = luminance(image), numbers.luminance()
        sample = {
            "image": image,
            "low": numbers.low,
            "high": numbers.high,
            "mean": numbers.mean,
            "std": numbers.std,
            "spacing": np.array(spacing, np.float32),
            "modality": _MODALITY_CODES[Modality(meta["modality"])],
            "key": meta["key"],
            "position": position,
        }
        if isinstance(box, VolumeBox) and box.zoomed is not None:
            sample["zoomed"] = box.zoomed
        if self.targets is not None:
            self._add_targets(sample, self.targets, ref, meta, box)
        return sample

    def _picture(
        self, ref: SampleRef, meta: dict[str, Any], draws: list[float]
    ) -> tuple[np.ndarray, Sequence[float], PictureBox]:
        size = self.config.crop
        box = picture_box(
            meta["shape"][1:], size, draws, area=self.config.crop_scale, aspect=self.config.aspect
        )
        image = self.shards.read_resized(ref, box, size)
        down, across = meta["spacing"] or (1.0, 1.0)
        return image, (down * (box[2] - box[0]) / size[0], across * (box[3] - box[1]) / size[1]), box

    def _box(self, meta: dict[str, Any], position: int, draws: list[float]) -> VolumeBox:
        shape, crop = meta["shape"], self.config.crop
        blocks = partition(shape, meta["spacing"], ndim=3)[1][-3:]
        factor, size = 1.0, crop
        if self.config.zoom:
            factor = zoom_of(uniform(self.config.seed, "zoom", [position], 1)[0, 0], self.config.zoom)
            size = [max(1, round(n * factor)) for n in crop]
        origin, extent = volume_box(
            shape[1:],
            size,
            draws,
            occupied=unpack_bricks(meta["stats"]),
            brick=meta["stats"]["bricks"]["size"],
            foreground=self.config.foreground,
            snap=[min(self.config.snap, block) for block in blocks],
        )
        return VolumeBox(origin, extent, zoomed(extent, size, factor, crop) if self.config.zoom else None)

    def _volume(
        self,
        ref: SampleRef,
        meta: dict[str, Any],
        box: VolumeBox,
        low: np.ndarray,
        channels: list[int] | None,
        place: Place | None,
    ) -> tuple[np.ndarray, Sequence[float]]:
        spacing, crop = meta["spacing"] or (1.0, 1.0, 1.0), self.config.crop
        if box.zoomed is not None:
            image = self.shards.read(ref, box.origin, box.extent, channels=channels)
            sides = zip(spacing, box.extent, box.zoomed.inner, strict=True)
            return image, [s * extent / inner for s, extent, inner in sides]
        count, out = meta["shape"][0] if channels is None else len(channels), None
        # What is padded, or turned from colour to grey, is copied anyway.
        if place and box.extent == list(crop) and (count == 1 or self.config.in_channels != 1):
            out = place((count, *box.extent), np.dtype(meta["dtype"]))
        image = self.shards.read(ref, box.origin, box.extent, channels=channels, out=out)
        return pad_to(image, crop, low), spacing

    def _add_targets(
        self,
        sample: dict[str, Any],
        targets: Targets,
        ref: SampleRef,
        meta: dict[str, Any],
        box: PictureBox | VolumeBox,
    ) -> None:
        if targets.classes:
            sample["label"] = targets.label(meta)
        if targets.structures:
            table, crop = targets.table(meta), self.config.crop
            stored = None if table is None else self._mask(ref, box)
            if table is None or stored is None:
                sample["mask"] = np.full(crop, UNKNOWN, np.int16)
            else:
                sample["mask"] = pad_to(table.take(stored, mode="clip")[None], crop, _NOTHING)[0]

    def _mask(self, ref: SampleRef, box: PictureBox | VolumeBox) -> np.ndarray | None:
        """The stored label map on the pixels of the crop, but for what will be padded around it."""
        if not isinstance(box, VolumeBox):
            return self.shards.read_mask_resized(ref, box, self.config.crop)
        stop = [o + n for o, n in zip(box.origin, box.extent, strict=True)]
        inner = box.extent if box.zoomed is None else box.zoomed.inner
        return self.shards.read_mask_resized(ref, (*box.origin, *stop), inner)

    def _choice(self, meta: dict[str, Any], position: int) -> list[int] | None:
        """The channels to read, so that there are 1 or `in_channels`; None: all. Grey is repeated later."""
        stored, wanted = int(meta["shape"][0]), self.config.in_channels
        if stored == 1:
            return None
        if grey(meta):
            return [0]
        if stored == wanted or (wanted == 1 and kind(meta) == "colour"):
            return None
        draws = uniform(self.config.seed, "channels", [position], stored)[0]
        return channel_choice(stored, wanted, draws.tolist())
