"""One sample -> one crop in native integers, a pure function of (configuration, sample, position, draws).

Bytes and time follow the size of the crop, not of the image. Normalisation and repeating grey channels are
left to the device, which makes a batch up to twelve times smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..draws import uniform
from ..ingest.preprocess import unpack_bricks
from ..normalise import grey, intensity, kind, luminance
from ..sample import MODALITIES, Modality
from ..shards.format import partition
from ..shards.reader import SampleRef, Shards
from .config import StreamConfig
from .crops import PICTURE_DRAWS, VOLUME_DRAWS, channel_choice, pad_to, picture_box, volume_box

Place = Callable[[tuple[int, ...], np.dtype], "np.ndarray | None"]  # shape and dtype -> memory, or None

CROP_DRAWS = max(PICTURE_DRAWS, VOLUME_DRAWS)
_MODALITY_CODES = {modality: code for code, modality in enumerate(MODALITIES)}


class CropReader:
    """Reads the crops of one shape class."""

    def __init__(self, config: StreamConfig, shards: Shards) -> None:
        self.config, self.shards = config, shards

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
            position: keys the draw of the channels.
            draws: `CROP_DRAWS` uniform numbers: where the crop lies.
            place: gives the memory that an image may be decoded into.

        Raises:
            ShardError: what is stored is damaged.
        """
        numbers, channels = intensity(meta), self._choice(meta, position)
        if channels is not None:
            numbers = numbers.take(channels)
        if self.config.ndim == 2:
            image, spacing = self._picture(ref, meta, draws)
            image = image if channels is None else image[channels]
        else:
            image, spacing = self._volume(ref, meta, draws, numbers.low, channels, place)
        if channels is None and len(image) != 1 and self.config.in_channels == 1:
            image, numbers = luminance(image), numbers.luminance()
        return {
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

    def _picture(
        self, ref: SampleRef, meta: dict[str, Any], draws: list[float]
    ) -> tuple[np.ndarray, Sequence[float]]:
        size = self.config.crop
        box = picture_box(
            meta["shape"][1:], size, draws, area=self.config.crop_scale, aspect=self.config.aspect
        )
        image = self.shards.read_resized(ref, box, size)
        down, across = meta["spacing"] or (1.0, 1.0)
        return image, (down * (box[2] - box[0]) / size[0], across * (box[3] - box[1]) / size[1])

    def _volume(
        self,
        ref: SampleRef,
        meta: dict[str, Any],
        draws: list[float],
        low: np.ndarray,
        channels: list[int] | None,
        place: Place | None,
    ) -> tuple[np.ndarray, Sequence[float]]:
        shape, spacing = meta["shape"], meta["spacing"]
        blocks = partition(shape, spacing, ndim=3)[1][-3:]
        origin, extent = volume_box(
            shape[1:],
            self.config.crop,
            draws,
            occupied=unpack_bricks(meta["stats"]),
            brick=meta["stats"]["bricks"]["size"],
            foreground=self.config.foreground,
            snap=[min(self.config.snap, block) for block in blocks],
        )
        count, out = shape[0] if channels is None else len(channels), None
        # What is padded, or turned from colour to grey, is copied anyway.
        if place and extent == list(self.config.crop) and (count == 1 or self.config.in_channels != 1):
            out = place((count, *extent), np.dtype(meta["dtype"]))
        image = self.shards.read(ref, origin, extent, channels=channels, out=out)
        return pad_to(image, self.config.crop, low), spacing or (1.0, 1.0, 1.0)

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
