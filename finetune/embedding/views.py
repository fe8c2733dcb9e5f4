"""What of an image an encoder sees, by its input contract: V views [V, C, *size], averaged.

A picture is squashed to the size of training, as in fine-tuning. A volume meets a 3D encoder in windows of
that size, near the spacing of training, and a 2D encoder in slices. Windows and slices are spread evenly, and
there are at most `most` of them: with more of the image than they cover, places between them are not seen.
That bounds the time of a volume; only the boxes that are needed are read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...data.errors import ReadError
from ...data.normalise import Intensity, intensity, luminance
from ...data.shards.reader import SampleRef, Shards
from ...pretrain.contract import crops_of
from ...pretrain.encoders.base import Encoder
from ...pretrain.release.reference import reference_sizes
from ..data import Case
from ..planner import near_training
from ..tasks.base import native_box, resized


@dataclass(frozen=True, slots=True)
class Fit:
    """How images become what one encoder takes."""

    axes: tuple[int, ...]  # numbers of spatial axes that it takes
    channels: int
    sizes: Mapping[int, tuple[int, ...]]  # of a view, by number of spatial axes
    contract: Mapping[str, Any]  # `input` of encoder.json
    most: int  # views of one image

    @classmethod
    def of(cls, encoder: Encoder, contract: Mapping[str, Any], most: int) -> Fit:
        """The sizes of the contract, cut to whole patches; without one, what the architecture stores."""
        sizes = {len(size): size for size in reference_sizes(encoder, {})}
        for crop in reversed(crops_of(contract)):
            if len(crop) in encoder.axes:
                steps = zip(encoder.patch_of(len(crop)), crop, strict=True)
                sizes[len(crop)] = tuple(max(step, int(n) // step * step) for step, n in steps)
        return cls(encoder.axes, encoder.in_channels, sizes, contract, most)

    def views(self, shards: Shards, ref: SampleRef) -> Tensor:
        """Views of a sample, float32 [V, C, *size], normalised by the rule of pretraining.

        Raises:
            ReadError: other axes or channels than the encoder takes.
        """
        case = Case(ref, shards.meta(ref))
        ndim = int(case.meta["ndim"])
        if ndim == 3 and 3 not in self.axes:
            return torch.from_numpy(np.stack(self._slices(shards, case)))
        if ndim not in self.axes:
            raise ReadError("is a 2D picture, this encoder takes volumes: give a 2D encoder")
        if ndim == 2:
            pixels = shards.read_resized(ref, (0, 0, *case.shape), self.sizes[2])
            return torch.from_numpy(self._normalised(case, pixels))[None]
        return torch.from_numpy(np.stack(self._windows(shards, case)))

    def _slices(self, shards: Shards, case: Case) -> list[np.ndarray]:
        """Slices along the first axis, as pictures."""
        depth, height, width = case.shape
        count = min(depth, self.most)
        found = []
        for number in range(count):
            place = int((number + 0.5) * depth / count)
            pixels = shards.read(case.ref, (place, 0, 0), (1, height, width))[:, 0]
            found.append(self._normalised(case, resized(pixels, self.sizes[2])))
        return found

    def _windows(self, shards: Shards, case: Case) -> list[np.ndarray]:
        """Windows over the volume; beyond its border lies its darkest value."""
        size = self.sizes[3]
        target = self._grid(case)
        rule = intensity(case.meta)
        dark = float(np.min((rule.low - rule.mean) / rule.std))
        found = []
        for low in product(*_places(target, size, self.most)):
            high = [min(a + n, side) for a, n, side in zip(low, size, target, strict=True)]
            origin, extent = native_box(case, target, low, high)
            inside = [b - a for a, b in zip(low, high, strict=True)]
            pixels = self._normalised(case, resized(shards.read(case.ref, origin, extent), inside))
            missing = [n - have for n, have in zip(size, inside, strict=True)]
            around = [(0, 0), *((gap // 2, gap - gap // 2) for gap in missing)]
            found.append(np.pad(pixels, around, constant_values=dark))
        return found

    def _grid(self, case: Case) -> list[int]:
        """Shape at a spacing that the encoder was trained near; as stored, where that is not known."""
        if case.spacing is None:
            return list(case.shape)
        near = near_training(case.spacing, self.contract, [str(case.meta["modality"])])
        facts = zip(case.shape, case.spacing, near, strict=True)
        return [max(1, round(side * have / want)) for side, have, want in facts]

    def _normalised(self, case: Case, pixels: np.ndarray) -> np.ndarray:
        """[C, *spatial] in native units -> float32 [channels, *spatial]."""
        rule: Intensity = intensity(case.meta)
        if len(pixels) == 3 and self.channels == 1 and int(case.meta["ndim"]) == 2:
            pixels, rule = luminance(pixels), rule.luminance()
        if len(pixels) not in (1, self.channels):
            raise ReadError(f"has {len(pixels)} channels, this encoder takes {self.channels}")
        scaled = rule.apply(pixels).astype(np.float32, copy=False)
        return scaled if len(scaled) == self.channels else np.repeat(scaled, self.channels, axis=0)


def _places(shape: Sequence[int], size: Sequence[int], most: int) -> list[list[int]]:
    """First voxels of the windows along each axis: as many as cover it, or at most `most`."""
    counts = [math.ceil(side / n) for side, n in zip(shape, size, strict=True)]
    while math.prod(counts) > most:
        counts[counts.index(max(counts))] -= 1
    places = []
    for side, n, count in zip(shape, size, counts, strict=True):
        last = max(0, side - n)
        step = last / (count - 1) if count > 1 else 0.0
        places.append([round(step * i) for i in range(count)] if count > 1 else [last // 2])
    return places
