"""Where a view lies in its image: box, flips and affine map, drawn once and applied to image and labels.

One resampling at most. A sample whose affine map is not drawn is cut exactly (whole voxels), or resized with
an antialiased triangle filter (boxes of another size), flips folded in both times; one whose map is drawn is
sampled once through the product of all. There, zooming out by `s` is preceded by a blur of sigma (s - 1) / 2
(scikit-image's rule), where s can exceed 1.5 at all; below, linear interpolation is smooth enough.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .affine import affine_draws, affine_matrix, resample
from .blur import blur
from .boxes import jittered_boxes, whole
from .config import ViewConfig
from .draw import Choice, either, on_device
from .flips import flip_draws
from .labels import affine_labels
from .separable import pick, resize

_ALIASES = 1.5  # a zoom-out from here is preceded by a blur


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A view of each image of a batch."""

    size: tuple[int, ...]
    box: Tensor  # float32 [B, n, 2] edges in voxels of the image
    flips: Tensor  # bool [B, n]
    turned: Choice  # which samples have an affine map
    matrix: Tensor  # float32 [B, n, n + 1]: view -> image, both counted from their centres; flips included
    zoom: Tensor  # float32 [B], of the affine map
    exact: bool  # boxes of exactly `size` at whole voxels
    shrink: float  # the largest factor by which a box can become smaller
    least_zoom: float  # the smallest that an affine map can have
    padding: str

    def image(self, x: Tensor) -> Tensor:
        """Views [B, C, *size] of images x [B, C, *spatial], float32."""

        def straight(part: Tensor, matrix: Tensor, box: Tensor, flips: Tensor, zoom: Tensor) -> Tensor:
            if self.exact:
                return pick(part, box, self.size, flips)
            if self.shrink <= 1 and part.ndim == 4:  # nothing to smooth, and a tenth of the time on a CPU
                return resample(part, matrix, self.size)
            return resize(part, box, self.size, flips)

        def turned(part: Tensor, matrix: Tensor, box: Tensor, flips: Tensor, zoom: Tensor) -> Tensor:
            most = self.shrink / self.least_zoom
            if most > _ALIASES:
                sides = [(box[:, a, 1] - box[:, a, 0]) / s for a, s in enumerate(self.size)]
                sigma = ((torch.stack(sides, dim=1) / zoom[:, None] - 1) / 2).clamp_min(0)
                part = blur(part, sigma, math.ceil(1.5 * (most - 1)))
            return resample(part, matrix, self.size, padding=self.padding)

        return either(x, self.turned, turned, straight, self.matrix, self.box, self.flips, self.zoom)

    def labels(self, labels: Tensor, mode: str = "vote") -> Tensor:
        """The same views [B, *size] of label maps [B, *spatial]: no new labels; see `affine_labels`."""

        def straight(part: Tensor, matrix: Tensor, box: Tensor, flips: Tensor) -> Tensor:
            return pick(part.unsqueeze(1), box, self.size, flips).squeeze(1)

        def turned(part: Tensor, matrix: Tensor, box: Tensor, flips: Tensor) -> Tensor:
            return affine_labels(part, matrix, size=self.size, mode=mode, padding=self.padding)

        return either(labels, self.turned, turned, straight, self.matrix, self.box, self.flips)

    def spacing(self, spacing: Tensor) -> Tensor:
        """Millimetres [B, n] a voxel of the view, from those of the image."""
        sides = [(self.box[:, a, 1] - self.box[:, a, 0]) / s for a, s in enumerate(self.size)]
        return spacing * torch.stack(sides, dim=1)


def random_placement(
    x: Tensor,
    config: ViewConfig,
    seed: int,
    positions: Tensor,
    *,
    spacing: Tensor | None = None,
    stream: str = "view",
    box: Tensor | None = None,
    size: Sequence[int] | None = None,
) -> Placement:
    """Draw flips, affine map and, without `box`, the place of a smaller view.

    Args:
        x: [B, C, *spatial], the images; only shape and device are used.
        spacing: [B, n] millimetres; None: isotropic.
        box: float32 [B, n, 2], see `random_boxes`; None: whole voxels, `config.jitter`.
        size: of the view; None: `config.size`, or the shape of the images.
    """
    n = x.ndim - 2
    size = tuple(size or config.size or x.shape[2:])
    exact, shrink = box is None, 1.0
    if box is None and size == tuple(x.shape[2:]):
        box = whole(x)
    elif box is None:
        box = jittered_boxes(x, seed, positions, size=size, jitter=config.jitter, stream=f"{stream}:place")
    else:
        shrink = max(extent / side for extent, side in zip(x.shape[2:], size, strict=True))
    flips = flip_draws(x, seed, positions, config.flip, config.flip_axes, f"{stream}:flip")
    drawn = affine_draws(
        x, seed, positions, degrees=config.degrees, scale=config.scale, shift=config.shift,
        probability=config.affine, size=size, stream=f"{stream}:affine",
    )  # fmt: skip
    if spacing is not None:
        spacing = on_device(spacing, x.device).to(torch.float32)
    turn = affine_matrix(drawn.angles, drawn.zoom, torch.zeros_like(drawn.shift), spacing)[:, :, :n]
    return Placement(
        size=size, box=box, flips=flips, turned=drawn.choice, zoom=drawn.zoom, exact=exact,
        matrix=_compose(x.shape[2:], size, box, flips, turn, drawn.shift),
        shrink=shrink, least_zoom=min(config.scale[0], 1.0), padding=config.padding,
    )  # fmt: skip


def _compose(
    spatial: Sequence[int], size: Sequence[int], box: Tensor, flips: Tensor, turn: Tensor, shift: Tensor
) -> Tensor:
    """Shift and turn in the view, then mirror, then step into the box: [B, n, n + 1]."""
    factor = torch.stack([(box[:, a, 1] - box[:, a, 0]) / s for a, s in enumerate(size)], dim=1)
    turn = turn * factor[:, None, :]
    offset = -(turn * shift[:, None, :]).sum(dim=2)
    sign = 1.0 - 2.0 * flips
    middle = [(box[:, a].sum(dim=1) - s) / 2 for a, s in enumerate(spatial)]
    offset = sign * offset + torch.stack(middle, dim=1)
    return torch.cat([sign[:, :, None] * turn, offset[:, :, None]], dim=2)
