"""Maps of an image larger than the network's patch: windows, laid half over one another, joined by weight.

Windows start at multiples of the coarsest stride, so that the cells of all windows fall on one grid and the
maps, not the boxes, are averaged: an object that a window cuts is seen whole by another, whose cells weigh
more there. Merging boxes afterwards would keep both. Memory is that of the maps: at stride 4, a sixty-fourth
of a volume's voxels times some forty channels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

Maps = dict[str, list[Tensor]]


def window_starts(side: int, patch: int, step: int) -> list[int]:
    """First pixels of windows that cover a side, at most half a patch apart, multiples of `step`."""
    if side <= patch:
        return [0]
    hop = max(step, patch // 2 // step * step)
    last = math.ceil((side - patch) / step) * step
    return [*range(0, last, hop), last]


def padded_shape(spatial: Sequence[int], patch: Sequence[int], stride: Sequence[int]) -> list[int]:
    """Shape that the windows of an image cover, its own at least."""
    return [
        window_starts(side, size, step)[-1] + size
        for side, size, step in zip(spatial, patch, stride, strict=True)
    ]


def whole_maps(
    predict: Callable[[Tensor], Maps],
    image: np.ndarray,
    patch: Sequence[int],
    strides: Sequence[Sequence[int]],
    *,
    batch: int,
    device: torch.device,
    fill: float,
) -> tuple[Maps, list[int]]:
    """Joined maps [1, C, *cells] of one image [C, *spatial] on the CPU, and the shape that they cover.

    Args:
        predict: images [b, C, *patch] -> maps of each stride, by name.
        strides: of the maps, fine to coarse.
        fill: what lies beyond the image.
    """
    spatial = image.shape[1:]
    shape = padded_shape(spatial, patch, strides[-1])
    gaps = [(0, full - side) for full, side in zip(shape, spatial, strict=True)]
    padded = torch.from_numpy(np.pad(image, [(0, 0), *gaps], constant_values=fill))
    axes = [window_starts(*one) for one in zip(spatial, patch, strides[-1], strict=True)]
    starts = list(itertools.product(*axes))
    if len(starts) == 1:
        return {
            name: [m.cpu() for m in maps] for name, maps in predict(padded[None].to(device)).items()
        }, shape
    sums: Maps = {}
    cells = [[full // step for full, step in zip(shape, stride, strict=True)] for stride in strides]
    weights = [_weight([p // s for p, s in zip(patch, stride, strict=True)]) for stride in strides]
    totals = [torch.zeros(one) for one in cells]
    for begin in range(0, len(starts), batch):
        part = starts[begin : begin + batch]
        views = [
            padded[(slice(None), *(slice(a, a + s) for a, s in zip(start, patch, strict=True)))]
            for start in part
        ]
        found = {
            name: [m.cpu() for m in maps] for name, maps in predict(torch.stack(views).to(device)).items()
        }
        for level, stride in enumerate(strides):
            for index, start in enumerate(part):
                place = tuple(
                    slice(a // s, (a + p) // s) for a, s, p in zip(start, stride, patch, strict=True)
                )
                totals[level][place] += weights[level]
                for name, maps in found.items():
                    joined = sums.setdefault(
                        name, [torch.zeros(1, m.shape[1], *one) for m, one in zip(maps, cells, strict=True)]
                    )
                    joined[level][(0, slice(None), *place)] += maps[level][index] * weights[level]
    return {
        name: [one / total for one, total in zip(maps, totals, strict=True)] for name, maps in sums.items()
    }, shape


def _weight(cells: Sequence[int]) -> Tensor:
    """Gaussian [*cells], sigma an eighth of the side, as MONAI's sliding window; never zero."""
    result = torch.ones(())
    for side in cells:
        at = (torch.arange(side) - (side - 1) / 2) / max(side / 8, 1e-6)
        result = result[..., None] * torch.exp(-(at**2) / 2)
    return result.clamp_min(1e-3)
