"""Where an image has something to see: not padding, not a face cut away, not air that the window turns black.

Such places hold the least value of the image exactly and lie together. A voxel counts as empty when it and
all its neighbours are black, so that a single dark pixel stays part of the picture and an object keeps a
border of one voxel. Noise in the air above black is not empty. Leaving cut-away faces out of a reconstruction
loss was worth 0.4 Dice (arXiv 2412.17041); it costs two passes an axis over the image.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from .views import Limits

TOLERANCE = 1e-4  # share of the range from black to white: resampling black is black but for rounding

ENOUGH = 1 / 3  # share of a patch that has to be tissue for a mask to prefer it


def tissue(image: Tensor, limits: Limits | None = None) -> Tensor:
    """True where an image is not empty.

    Args:
        image: [B, C, *spatial], normalised.
        limits: black and white of it; None: the least and the largest value of each channel.

    Returns:
        bool [B, 1, *spatial].
    """
    spatial = range(2, image.ndim)
    black, white = limits or (image.amin(dim=tuple(spatial)), image.amax(dim=tuple(spatial)))
    shape = (*black.shape, *[1] * len(spatial))
    least = black + TOLERANCE * (white - black)
    seen = (image > least.reshape(shape)).any(dim=1)
    for axis in spatial:
        seen = _beside(seen, axis - 1)
    return seen.unsqueeze(1)


def patches_with(where: Tensor, patch: Sequence[int]) -> Tensor:
    """bool [B, 1, *spatial] -> bool [B, N]: patches a third of which is tissue, more than a border of it."""
    flat = [1] * (3 - len(patch))
    image = where.reshape(len(where), 1, *flat, *where.shape[2:])
    return functional.avg_pool3d(image.float(), [*flat, *patch]).flatten(1) >= ENOUGH


def _beside(seen: Tensor, axis: int) -> Tensor:
    """True also one voxel before and behind along `axis`."""
    size = seen.shape[axis]
    if size == 1:
        return seen
    out = seen.clone()
    out.narrow(axis, 0, size - 1).logical_or_(seen.narrow(axis, 1, size - 1))
    out.narrow(axis, 1, size - 1).logical_or_(seen.narrow(axis, 0, size - 1))
    return out
