"""Boxes inside an image, and how much of them is shared.

A box is [n, 2]: first and last edge along each spatial axis, in voxels; index i reaches from i to i + 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .draw import between, draw, log_between

TRIES = 10  # as many as torchvision makes


def random_boxes(
    x: Tensor,
    seed: int,
    positions: Tensor,
    *,
    size: Sequence[int],
    scale: Sequence[float] = (0.32, 1.0),
    aspect: Sequence[float] = (0.75, 4 / 3),
    depth: Sequence[float] = (),
    stream: str = "box",
) -> Tensor:
    """Boxes of random size and place, as `torchvision`'s RandomResizedCrop: the first of ten that fits.

    Where none fits, the first is shrunk as a whole until it does. Boxes are not rounded to whole pixels.

    Args:
        x: [B, C, *spatial], the images to cut from.
        size: of the crops; a box has its proportions, but for `aspect`.
        scale: share of the area (or volume) of the image, uniform.
        aspect: stretch of width against height after resizing, log-uniform.
        depth: in 3D, share of the slices, uniform; `scale` is then the share of the plane.

    Returns:
        float32 [B, n, 2].
    """
    spatial = list(x.shape[2:])
    n = len(spatial)
    u = draw(x, seed, stream, positions, 2 * TRIES + n + 1).u
    free = range(1, n) if depth else range(n)
    mean = math.prod(size[a] for a in free) ** (1 / len(free))
    area = between(u[:, :TRIES], scale) * math.prod(spatial[a] for a in free)
    stretch = log_between(u[:, TRIES : 2 * TRIES], aspect).sqrt()
    side = area ** (1 / len(free))
    sides = [side * (size[a] / mean) for a in free]  # [B, TRIES] each
    sides[-2], sides[-1] = sides[-2] / stretch, sides[-1] * stretch
    room = [extent / s for extent, s in zip([spatial[a] for a in free], sides, strict=True)]
    spare = torch.stack(room).amin(dim=0)  # below 1: sticks out
    order = torch.arange(TRIES, 0, -1, device=x.device)
    chosen = ((spare >= 1) * order).argmax(dim=1, keepdim=True)
    shrink = spare.gather(1, chosen).clamp_max(1)
    extents = [(s.gather(1, chosen) * shrink)[:, 0] for s in sides]
    if depth:
        extents = [between(u[:, 2 * TRIES + n], depth) * spatial[0], *extents]
    extent = torch.stack([e.clamp_max(s) for e, s in zip(extents, spatial, strict=True)], dim=1)
    slack = torch.stack([s - extent[:, a] for a, s in enumerate(spatial)], dim=1)
    start = u[:, 2 * TRIES : 2 * TRIES + n] * slack
    return torch.stack([start, start + extent], dim=2)


def jittered_boxes(
    x: Tensor, seed: int, positions: Tensor, *, size: Sequence[int], jitter: float = 1.0, stream: str
) -> Tensor:
    """Boxes of exactly `size` at whole voxels, anywhere (jitter 1) to in the middle (0): float32 [B, n, 2].

    A loader reads crops on a grid of blocks and with a margin; the jitter gives the other origins back.

    Raises:
        ValueError: the image is smaller than the view.
    """
    spatial = list(x.shape[2:])
    if any(s < v for s, v in zip(spatial, size, strict=True)):
        raise ValueError(f"the view is {list(size)} and the image {spatial}: load larger crops (data.crop)")
    u = draw(x, seed, stream, positions, len(size)).u
    starts = []
    for axis, (extent, view) in enumerate(zip(spatial, size, strict=True)):
        room = extent - view
        # Every origin is as likely as any other, also the first and the last.
        wanted = room / 2 + jitter * ((room + 1) * u[:, axis] - 0.5 - room / 2)
        starts.append((wanted + 0.5).floor().clamp(0, room))
    start = torch.stack(starts, dim=1)
    sides = torch.stack([torch.full_like(start[:, 0], view) for view in size], dim=1)
    return torch.stack([start, start + sides], dim=2)


def whole(x: Tensor) -> Tensor:
    """The boxes [B, n, 2] of whole images."""
    ends = [torch.full((len(x),), float(extent), device=x.device) for extent in x.shape[2:]]
    end = torch.stack(ends, dim=1)
    return torch.stack([torch.zeros_like(end), end], dim=2)


def overlap(first: Tensor, second: Tensor) -> Tensor:
    """Share of `first` that lies in `second`: [..., n, 2] boxes, broadcast -> [...] from 0 to 1."""
    low = torch.maximum(first[..., 0], second[..., 0])
    high = torch.minimum(first[..., 1], second[..., 1])
    return (high - low).clamp_min(0).prod(dim=-1) / (first[..., 1] - first[..., 0]).prod(dim=-1)
