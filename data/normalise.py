"""Intensity normalisation from the stored statistics: x -> (clip(x, low, high) - mean) / std, per channel.

The four numbers travel with each sample and are applied on the device, so that pixels stay in their native
integers until there. One rule for each kind of image, named `RULE` as a whole in every encoder's contract:

| kind    | which images                             | low, high   | mean, std                         |
|---------|------------------------------------------|-------------|-----------------------------------|
| hu      | CT in Hounsfield units                   | -1000, 1000 | 0, 1000: air -1, water 0, bone 1  |
| colour  | 8 bit, 3 channels that differ            | 0, 255      | ImageNet's, channel by channel    |
| volume  | other volumes: MR, PET, shifted CT ...   | p0.5, p99.5 | of the foreground, by channel     |
| picture | other pictures: X-ray, ultrasound, OCT.. | p0.5, p99.5 | middle and quarter of low .. high |
| given   | normalised by their source (nnU-Net ...) | min, max    | 0, 1: left as they are            |

The choice: statistics of the whole image, not of the crop, so that a crop keeps its brightness within the
image; and no modality-wide constants but for HU, since MR has no unit and 16-bit pictures have no fixed
range. The price: two MR of one scanner with other fields of view differ a little. Guards: where the
percentiles coincide (foreground under 0.5 %) the extremes take their place, and a deviation is at least
1/32 of high - low, so that a nearly constant foreground does not throw the background far out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RULE = "medloom-1"  # change it with any change of the numbers below: encoders state what they were fed

HU_LIMITS = (-1000.0, 1000.0)
HU_LEAST_SPAN = 50.0  # between p0.5 and p99.5; less is a "CT" that was rescaled to some other range
# Mean and deviation of ImageNet's training images in RGB, on 0..255 (the constants of torchvision and timm).
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
LEAST_STD = 1 / 32  # of high - low
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as JPEG and Pillow turn colour into grey


@dataclass(frozen=True, slots=True)
class Intensity:
    """Four float32 arrays [C], in the image's own units."""

    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray
    std: np.ndarray  # above 0

    def take(self, channels: Sequence[int]) -> Intensity:
        """The numbers of these channels, in this order."""
        picked = list(channels)
        return Intensity(self.low[picked], self.high[picked], self.mean[picked], self.std[picked])

    def luminance(self) -> Intensity:
        """The numbers [1] of the luminance of a colour picture, see `luminance`."""
        weights = np.asarray([LUMA], np.float32)
        return Intensity(weights @ self.low, weights @ self.high, weights @ self.mean, weights @ self.std)

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Normalise an image [C, ...] on the CPU: float32 [C, ...]. The device twin is `views.to_float`."""
        low, high, mean, std = (
            values.reshape(-1, *[1] * (image.ndim - 1))
            for values in (self.low, self.high, self.mean, self.std)
        )
        return (np.clip(image.astype(np.float32), low, high) - mean) / std


def _constant(*values: float) -> np.ndarray:
    array = np.asarray(values, np.float32)
    array.flags.writeable = False
    return array


# The same for every picture, and within both guards. Made once: twelve small arrays cost as much as a read.
_COLOUR = Intensity(
    _constant(0, 0, 0), _constant(255, 255, 255), _constant(*IMAGENET_MEAN), _constant(*IMAGENET_STD)
)


def kind(meta: Mapping[str, Any]) -> str:
    """Row of the table above for an image with this `key.json`: its first word."""
    if (meta.get("facts") or {}).get("normalised"):
        return "given"
    stats = meta["stats"]
    low, high = stats["percentiles"]["0.5"], stats["percentiles"]["99.5"]
    if stats["foreground"]["rule"] == "hu" and high[0] - low[0] >= HU_LEAST_SPAN:
        return "hu"
    if int(meta["ndim"]) == 3:
        return "volume"
    if meta["dtype"] == "uint8" and len(low) == 3 and not grey(meta):
        return "colour"
    return "picture"


def intensity(meta: Mapping[str, Any], channels: int | None = None) -> Intensity:
    """Numbers that normalise an image with this `key.json`.

    Args:
        channels: channels of the array to normalise: as stored, or more when one stored channel is repeated.
            None: as stored.

    Raises:
        ValueError: `channels` is neither what is stored nor a repetition of one channel.
    """
    what = kind(meta)
    if what == "colour":
        return _repeated(_COLOUR, channels, meta)
    stats = meta["stats"]
    percentiles = stats["percentiles"]
    low, high = np.asarray(percentiles["0.5"], np.float32), np.asarray(percentiles["99.5"], np.float32)
    if (sparse := high <= low).any():
        low = np.where(sparse, np.asarray(stats["min"], np.float32), low)
        high = np.where(sparse, np.asarray(stats["max"], np.float32), high)
    match what:
        case "given":
            low, high = np.asarray(stats["min"], np.float32), np.asarray(stats["max"], np.float32)
            # Not the guard below: a deviation that follows the extremes would normalise after all.
            return _repeated(Intensity(low, high, np.zeros_like(low), np.ones_like(low)), channels, meta)
        case "hu":
            low, high = np.full_like(low, HU_LIMITS[0]), np.full_like(high, HU_LIMITS[1])
            mean, std = np.zeros_like(low), high.copy()
        case "volume":
            mean, std = np.asarray(stats["mean"], np.float32), np.asarray(stats["std"], np.float32)
        case _:
            mean, std = (low + high) / 2, (high - low) / 4
    mean = np.minimum(np.maximum(mean, low), high)  # once a sample: np.clip takes three times as long
    std = np.maximum(std, (high - low) * np.float32(LEAST_STD))
    std[~(std > 0)] = 1  # a constant image becomes 0, not NaN
    return _repeated(Intensity(low, high, mean, std), channels, meta)


def _repeated(found: Intensity, channels: int | None, meta: Mapping[str, Any]) -> Intensity:
    """The numbers of `channels` channels: those found, or one channel's repeated."""
    if channels is None or channels == len(found.low):
        return found
    if len(found.low) != 1:
        raise ValueError(f"{meta['key']}: {len(found.low)} channels are stored, {channels} were asked for")
    return found.take([0] * channels)


def grey(meta: Mapping[str, Any]) -> bool:
    """Whether all channels of a picture are equal, as in an X-ray saved as a colour JPEG."""
    stats = meta["stats"]
    values = [*stats["percentiles"].values(), stats["mean"], stats["std"]]
    return int(meta["ndim"]) == 2 and all(v == channels[0] for channels in values for v in channels)


def luminance(picture: np.ndarray) -> np.ndarray:
    """Colour [3, H, W] -> grey [1, H, W], same integer dtype, rounded."""
    return np.rint(np.tensordot(np.asarray([LUMA], np.float32), picture, axes=1)).astype(picture.dtype)
