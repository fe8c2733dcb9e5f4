"""What Models Genesis does to an image that is to be restored (arXiv 1908.06912, section 3; 2004.07882).

Monotone non-linear intensity, local shuffling, in-painting and out-painting: batched on the device, keyed by
(seed, stream, position), each a deterministic function and its random twin, as in views/. Two differences
from the published code, for the sake of batches: the windows of a shuffle tile the image from a drawn corner
(there thousands are drawn one after another), and a curve is a table of 256 values between black and white.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..data.draws import uniform_torch
from .multiblock import boxes
from .views import Limits
from .views.draw import draw, on_device, sometimes
from .views.noise import normal_field
from .views.normalise import in_unit

TABLE = 256  # values of an intensity curve; a linear step between them
WINDOWS = 5  # boxes that are painted, or spared
AGAIN = 0.95  # probability of each further box


def bezier(x: Tensor, black: Tensor, white: Tensor, points: Tensor, falling: Tensor) -> Tensor:
    """Map intensities by a cubic Bezier curve from (0, 0) to (1, 1), always monotone.

    Args:
        x: [B, C, *spatial].
        black, white: [B, C], what 0 and 1 of the curve are.
        points: [B, 4] in [0, 1]: abscissae of the two inner control points, then their ordinates.
        falling: bool [B], the curve from (0, 1) to (1, 0), an inverted picture.
    """
    t = torch.arange(TABLE, device=x.device, dtype=torch.float32) / (TABLE - 1)
    one, two = 3 * t * (1 - t).square(), 3 * t.square() * (1 - t)
    across = points[:, 0:1] * one + points[:, 1:2] * two + t**3  # monotone whatever the points are
    up = points[:, 2:3] * one + points[:, 3:4] * two + t**3
    # The curve at even steps of its abscissa, linear between the points that were computed.
    right = torch.searchsorted(across.contiguous(), t.expand_as(across).contiguous()).clamp(1, TABLE - 1)
    x0, x1, y0, y1 = (v.gather(1, i) for v in (across, up) for i in (right - 1, right))
    table = y0 + (y1 - y0) * ((t - x0) / (x1 - x0).clamp_min(1e-6)).clamp(0, 1)
    table = torch.where(falling[:, None], 1 - table, table)

    def curve(unit: Tensor) -> Tensor:
        at = unit.flatten(1) * (TABLE - 1)
        low = at.floor().clamp_(0, TABLE - 2)
        index = low.long()
        first = table.gather(1, index)
        return (first + (table.gather(1, index + 1) - first) * (at - low)).view_as(unit)

    return in_unit(x, black, white, curve)


def random_bezier(
    x: Tensor, seed: int, positions: Tensor, *, limits: Limits, probability: float, stream: str = "bezier"
) -> Tensor:
    """`bezier` with drawn points; every second curve falls."""
    draws = draw(x, seed, stream, positions, 6)
    return sometimes(
        x, draws.below(probability), bezier, *limits, draws.u[:, 1:5], draws.u[:, 5] < 0.5
    )  # fmt: skip


def shuffle(x: Tensor, side: Tensor, offset: Tensor, order: Tensor) -> Tensor:
    """Permute the pixels inside each window of a tiling, all channels alike.

    Args:
        x: [B, C, *spatial].
        side: int64 [B, n], pixels of a window.
        offset: int64 [B, n], the first window begins this many pixels before the image.
        order: [B, pixels] in [0, 1), whose order is the permutation.
    """
    window = torch.zeros(len(x), *[1] * (x.ndim - 2), device=x.device, dtype=torch.int64)
    for axis, extent in enumerate(x.shape[2:]):
        at = torch.arange(extent, device=x.device) + offset[:, axis, None]
        shape = [len(x), *[1] * (x.ndim - 2)]
        shape[axis + 1] = extent
        window = window * (extent + 1) + (at // side[:, axis, None]).view(shape)
    window = window.flatten(1)
    to = window.argsort(dim=1, stable=True)
    source = (window + order).argsort(dim=1)
    flat = x.flatten(2)
    moved = flat.gather(2, source[:, None].expand_as(flat))
    return torch.empty_like(flat).scatter_(2, to[:, None].expand_as(flat), moved).view_as(x)


def random_shuffle(
    x: Tensor, seed: int, positions: Tensor, *, probability: float, most: float = 0.1, stream: str = "shuffle"
) -> Tensor:
    """`shuffle` with windows of 2 pixels to `most` of the side."""
    n = x.ndim - 2
    draws = draw(x, seed, stream, positions, 1 + 2 * n)
    sides, offsets = [], []
    for axis, extent in enumerate(x.shape[2:]):
        largest = max(2, int(extent * most))
        sides.append((2 + draws.u[:, 1 + axis] * (largest - 1)).long())
        offsets.append((draws.u[:, 1 + n + axis] * sides[-1]).long())

    def change(part: Tensor, side: Tensor, offset: Tensor, at: Tensor) -> Tensor:
        count = math.prod(part.shape[2:])
        return shuffle(part, side, offset, uniform_torch(seed, f"{stream}:order", at, count, part.device))

    return sometimes(
        x, draws.below(probability), change, torch.stack(sides, 1), torch.stack(offsets, 1),
        on_device(positions, x.device),
    )  # fmt: skip


def paint(x: Tensor, hole: Tensor, black: Tensor, white: Tensor, field: Tensor) -> Tensor:
    """Noise between black and white [B, C] where `hole`; `field` [B, 1, *spatial] uniform in [0, 1]."""
    shape = (*black.shape, *[1] * (x.ndim - 2))
    low, span = black.view(shape), (white - black).view(shape)
    return torch.where(hole, low + span * field, x)


def random_paint(
    x: Tensor,
    seed: int,
    positions: Tensor,
    *,
    limits: Limits,
    probability: float,
    inner: float = 0.2,
    stream: str = "paint",
) -> Tensor:
    """`paint` inside up to five boxes of 1/6 to 1/3 of the side, or outside of up to five of 3/7 to 4/7.

    Args:
        inner: probability of in-painting; otherwise out-painting.
    """
    n = x.ndim - 2
    draws = draw(x, seed, stream, positions, 2 + WINDOWS * (1 + 2 * n))
    each = draws.u[:, 2:].unflatten(1, (WINDOWS, 1 + 2 * n))
    inside = draws.u[:, 1] < inner

    def change(part: Tensor, u: Tensor, inner: Tensor, at: Tensor, black: Tensor, white: Tensor) -> Tensor:
        low, high = (torch.where(inner, a, b)[:, None, None] for a, b in ((1 / 6, 3 / 7), (1 / 3, 4 / 7)))
        spatial = part.shape[2:]
        share = low + (high - low) * u[:, :, 1 : 1 + n]
        sides = [(share[:, :, axis] * extent).round().clamp_min(1) for axis, extent in enumerate(spatial)]
        found = boxes(spatial, torch.stack(sides, 2).long(), u[:, :, 1 + n :])
        again = (u[:, :, 0] < AGAIN).long().cumprod(dim=1) > 0
        first = torch.arange(WINDOWS, device=part.device) == 0
        covered = (found & (again | first)[:, :, None]).any(dim=1).view(len(part), 1, *spatial)
        hole = covered == inner.view(-1, *[1] * (n + 1))
        field = torch.erf(normal_field(part, seed, f"{stream}:field", at) / math.sqrt(2)).add(1).div(2)
        return paint(part, hole, black, white, field)

    return sometimes(
        x, draws.below(probability), change, each, inside, on_device(positions, x.device), *limits
    )  # fmt: skip


def limits_of(x: Tensor, given: Limits | None) -> Limits:
    """`given`, or the least and largest value of each image and channel [B, C]."""
    if given is not None:
        return Limits(*(end.to(torch.float32).expand(-1, x.shape[1]) for end in given))
    axes: Sequence[int] = tuple(range(2, x.ndim))
    return Limits(x.amin(dim=axes), x.amax(dim=axes))
