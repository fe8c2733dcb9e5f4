"""Masks made of rectangular blocks: I-JEPA's targets and context, iBOT's hidden pieces, in 2D and 3D.

Pure functions of (seed, position) as those of masks.py. The shapes of the results are fixed by the grid
alone: a target has as many tokens as the smallest block that may be drawn, a context a stated share of the
grid, whatever the other samples of the batch drew (the published collator cuts all to the least of the
batch, so that a mask depends on its neighbours). Blocks have the proportions of the grid, stretched: on a
flat volume of 4 × 12 × 12 tokens they are flat too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data.draws import uniform_torch
from ..data.errors import ConfigError
from .encoders.patches import Wanted
from .views.draw import between, log_between, on_device

TRIES = 8  # sets of target blocks drawn for a sample; the first that leaves enough context is taken
PIECES = 16  # blocks drawn for one iBOT mask; 2 to 5 of them are used as a rule


class Blocks(NamedTuple):
    """Tokens of a context and of its targets; int64 indices into the row-major grid, ascending."""

    context: Tensor  # [B, K]
    targets: Tensor  # [B, T, M]


class Hidden(NamedTuple):
    """Hidden tokens of a batch, also as a flat list for losses that look at these tokens only."""

    mask: Tensor  # bool [B, N], True where hidden
    index: Tensor  # int64 [M] into the B · N tokens: all hidden ones; others fill up, with weight 0
    weight: Tensor  # float32 [M]: 1 / hidden tokens of the image, so that a masked image sums to 1

    def wanted(self, most: int, rows: int = 0) -> Wanted:
        """The tokens of `index`, in its order, `most` of an image at most; none of images up to `rows`."""
        batch, n = self.mask.shape
        image = self.index // n
        first = torch.searchsorted(image, torch.arange(batch, device=image.device))
        place = torch.arange(len(image), device=image.device) - first.index_select(0, image)
        slots = image * most + place
        index = torch.zeros(max(rows, batch) * most, dtype=torch.int64, device=image.device)
        return Wanted(index.index_copy(0, slots, self.index % n).view(-1, most), slots)

    @staticmethod
    def joined(parts: Sequence[Hidden]) -> Hidden:
        """The hidden tokens of several batches, one behind the other."""
        starts = [k * part.mask.numel() for k, part in enumerate(parts)]
        return Hidden(
            torch.cat([part.mask for part in parts]),
            torch.cat([part.index + start for part, start in zip(parts, starts, strict=True)]),
            torch.cat([part.weight for part in parts]),
        )

    def to(self, device: torch.device) -> Hidden:
        """The same on `device`; the host does not wait."""
        return Hidden(*(on_device(x, device) for x in self))


def multi_block(
    seed: int,
    positions: Tensor,
    grid: Sequence[int],
    *,
    targets: int = 4,
    scale: Sequence[float] = (0.15, 0.2),
    aspect: Sequence[float] = (0.75, 1.5),
    context: float = 0.35,
    context_scale: Sequence[float] = (0.85, 1.0),
    stream: str = "blocks",
    device: torch.device | None = None,
) -> Blocks:
    """Target blocks and one context block without them (I-JEPA, arXiv 2301.08243, section 3).

    Args:
        positions: int64 [B]; drawn where they lie, sent to `device`.
        grid: tokens along each axis, slice first.
        targets: blocks to predict; they may overlap.
        scale: share of the grid in a target.
        aspect: stretch of a target along each axis against the others.
        context: share of the grid that the context has, exactly. What a sample has in excess is cut off one
            side of its context; one whose targets leave less draws again (8 % at the default on 14 × 14).
        context_scale: share of the grid in the block that the context is taken from.

    Raises:
        ConfigError: a grid too small for a context and a target apart from each other.
    """
    n = math.prod(grid)
    tokens, shapes = _shapes(tuple(grid), tuple(scale), tuple(aspect))
    visible = round(context * n)
    if not 0 < visible <= n - tokens:
        raise ConfigError(
            f"a context of {visible} and targets of {tokens} tokens do not fit a grid of "
            f"{'×'.join(map(str, grid))}: use a larger crop or smaller patches, or change objective.context"
        )
    axes, batch = len(grid), len(positions)
    u = uniform_torch(seed, stream, positions, TRIES * targets * (1 + axes) + 2 + 2 * axes)
    each = u[:, : TRIES * targets * (1 + axes)].reshape(batch, TRIES * targets, 1 + axes)
    rest = u[:, TRIES * targets * (1 + axes) :]
    table = on_device(torch.from_numpy(shapes), u.device)
    sides = table.index_select(0, (each[:, :, 0] * len(table)).long().flatten())
    inside = boxes(grid, sides.reshape(batch, -1, axes), each[:, :, 1:]).reshape(batch, TRIES, targets, n)
    size = _like(grid, rest) * between(rest[:, :1], context_scale) ** (1 / axes)
    outer = boxes(grid, size.round().long().clamp_min(1)[:, None], rest[:, None, 2 : 2 + axes])
    inside, free = _first_with(visible, inside, outer & ~inside.any(dim=2))
    # The least wanted: beyond the cut, worse outside the context's block, worst in a target.
    cost = _along(grid, rest[:, 1], rest[:, 2 + axes]) + 2.0 * (~free) + 2.0 * inside.any(dim=1)
    chosen = cost.argsort(dim=1, stable=True)[:, :visible].sort(dim=1).values
    first = (~inside).to(torch.uint8).argsort(dim=2, stable=True)[..., :tokens]
    to = device or u.device
    return Blocks(on_device(chosen, to), on_device(first, to))


def _first_with(visible: int, inside: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
    """Of the tries of each sample the first with `visible` free tokens, or else the one with most.

    Args:
        inside: bool [B, TRIES, T, N], tokens in targets.
        free: bool [B, TRIES, N], tokens that may be context.

    Returns:
        Both without their second axis.
    """
    count = free.sum(dim=2)
    order = torch.arange(TRIES, 0, -1, device=free.device)
    best = torch.where(count >= visible, free.shape[2] + order, count).argmax(dim=1)
    best = best + TRIES * torch.arange(len(free), device=free.device)
    return inside.flatten(0, 1).index_select(0, best), free.flatten(0, 1).index_select(0, best)


def ibot_mask(
    seed: int,
    positions: Tensor,
    grid: Sequence[int],
    *,
    ratio: Sequence[float] = (0.1, 0.5),
    probability: float = 0.5,
    blocks: bool = True,
    aspect: Sequence[float] = (0.3, 1 / 0.3),
    stream: str = "ibot",
) -> Hidden:
    """Hide a drawn share of the tokens of some images, in blocks or singly (iBOT, arXiv 2111.07832).

    Blocks are BEiT's (arXiv 2106.08254, algorithm 1): drawn one after another until the share is reached, the
    last one cut to hit it exactly. Where the host knows the positions, `index` holds the hidden tokens alone;
    on a GPU it is filled up to the largest share, because to count them would be to wait.

    Args:
        positions: int64 [B]; drawn where they lie.
        ratio: share of the tokens hidden, uniform.
        probability: of an image to be masked at all.
        blocks: False: single tokens.

    Raises:
        ConfigError: a ratio outside 0 <= low <= high < 1, or one that never hides a token.
    """
    n = math.prod(grid)
    if not 0 <= ratio[0] <= ratio[1] < 1 or round(ratio[1] * n) < 1:
        raise ConfigError(
            f"mask ratios {list(ratio)} on a grid of {'×'.join(map(str, grid))} tokens: "
            "write two numbers, 0 <= low <= high < 1, the higher of which hides a token at least"
        )
    u = uniform_torch(seed, stream, positions, 2 + n)
    count = (between(u[:, 1], ratio) * n).round().clamp_min(1.0)
    count = torch.where(u[:, 0] < probability, count, 0.0)
    order = u[:, 2:]
    if blocks:
        first = _pieces(seed, f"{stream}:blocks", positions, grid, count, aspect)
        row_major = torch.arange(n, device=u.device) / n
        order = first + torch.where(first < PIECES, row_major, order)
    rank = order.argsort(dim=1, stable=True).argsort(dim=1)
    mask = rank < count[:, None]
    index = _packed(mask) if mask.device.type == "cpu" else _filled(mask, math.ceil(ratio[1] * n))
    weight = (mask / mask.sum(dim=1, keepdim=True).clamp_min(1)).flatten().index_select(0, index)
    return Hidden(mask, index, weight.float())


def _pieces(
    seed: int, stream: str, positions: Tensor, grid: Sequence[int], count: Tensor, aspect: Sequence[float]
) -> Tensor:
    """int64 [B, N]: number of the first drawn block over a token, `PIECES` where there is none.

    Blocks have 4 to `count` [B] tokens, sides stretched against each other by a factor within `aspect`.
    """
    n, axes = math.prod(grid), len(grid)
    u = uniform_torch(seed, stream, positions, PIECES * (1 + 2 * axes)).reshape(-1, PIECES, 1 + 2 * axes)
    area = 4.0 + u[:, :, 0] * (count[:, None] - 4.0).clamp_min(0.0)
    stretch = log_between(u[:, :, 1 : 1 + axes], [limit ** (1 / 2) for limit in aspect])
    stretch = stretch / stretch.log().mean(dim=2, keepdim=True).exp()
    most = _like(grid, u)
    size = most * (area / n)[..., None] ** (1 / axes) * stretch
    sides = torch.minimum(size.round().clamp_min(1.0), most).long()
    inside = boxes(grid, sides, u[:, :, 1 + axes :])  # [B, PIECES, N]
    number = torch.arange(PIECES, 0, -1, device=u.device)[:, None]
    return PIECES - (inside * number).amax(dim=1)


def _packed(mask: Tensor) -> Tensor:
    """Places of the hidden tokens of a mask [B, N] on the host; one place at least."""
    places = np.flatnonzero(mask.numpy())
    return torch.from_numpy(places if len(places) else np.zeros(1, np.int64))


def _filled(mask: Tensor, most: int) -> Tensor:
    """`most` places an image, its hidden tokens first: a length that does not depend on the mask."""
    first = (~mask).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
    return (first + torch.arange(len(mask), device=mask.device)[:, None] * mask.shape[1]).flatten()


@lru_cache(maxsize=64)
def _shapes(
    grid: tuple[int, ...], scale: tuple[float, ...], aspect: tuple[float, ...]
) -> tuple[int, np.ndarray]:
    """All blocks with a share of the grid in `scale` and sides within `aspect`; the tokens of the least.

    Aspect is side / grid along one axis over the same along another. Where a coarse grid has no such block,
    the nearest in share and shape are taken.
    """
    sides = np.array(list(product(*(range(1, g + 1) for g in grid))), np.int64)
    relative = sides / np.array(grid)
    share = relative.prod(axis=1)
    stretch = np.log(relative.max(axis=1) / relative.min(axis=1))
    widest = max(abs(math.log(limit)) for limit in aspect)
    low, high = scale
    off = np.maximum(np.maximum(np.log(low / share), np.log(share / high)), 0)
    off = off + np.maximum(stretch - widest, 0)
    # In 2D height and width have different limits: 0.75 to 1.5 (height over width).
    if len(grid) == 2:
        tall = np.log(relative[:, 0] / relative[:, 1])
        off = off + np.maximum(np.maximum(math.log(aspect[0]) - tall, tall - math.log(aspect[1])), 0)
    good = sides[off <= off.min() + 1e-9]
    return int(good.prod(axis=1).min()), good


def boxes(grid: Sequence[int], sides: Tensor, place: Tensor) -> Tensor:
    """bool [B, K, N], inside of boxes: int64 `sides` [B, K, n], `place` [B, K, n] drawn in [0, 1)."""
    inside = torch.ones(*sides.shape[:2], *[1] * len(grid), dtype=torch.bool, device=sides.device)
    for axis, extent in enumerate(grid):
        side = sides[..., axis, None]
        start = (place[..., axis, None] * (extent - side + 1)).long()
        at = torch.arange(extent, device=sides.device)
        shape = [*sides.shape[:2], *[1] * len(grid)]
        shape[2 + axis] = extent
        inside = inside & ((at >= start) & (at < start + side)).reshape(shape)
    return inside.flatten(2)


def _along(grid: Sequence[int], axis: Tensor, direction: Tensor) -> Tensor:
    """float64 [B, N] in [0, 1): how far a token lies along a drawn axis, from a drawn end of it."""
    n = math.prod(grid)
    flat = torch.arange(n, device=axis.device)
    coordinates, step = [], n
    for extent in grid:
        step //= extent
        coordinates.append((flat // step % extent).double() / extent)
    table = torch.stack(coordinates)
    along = table.index_select(0, (axis * len(grid)).long())
    turned = torch.where((direction < 0.5)[:, None], along, along.amax(dim=1, keepdim=True) - along)
    return turned + flat / (n * n)  # ties in row-major order


def _like(grid: Sequence[int], like: Tensor) -> Tensor:
    return on_device(torch.from_numpy(np.array(grid, np.float64)), like.device)
