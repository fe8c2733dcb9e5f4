"""Label maps under an affine map: no label comes out that did not go in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .affine import coordinates


def affine_labels(
    labels: Tensor,
    matrix: Tensor,
    *,
    size: Sequence[int] | None = None,
    mode: str = "vote",
    padding: str = "border",
) -> Tensor:
    """`affine` for label maps: only labels of the map come out (and 0 with padding "zeros").

    mode "vote": the label with the largest share among the 2^n voxels around the point wins, weighted as in
    linear interpolation. That is the largest channel of a resampled one-hot map, with smoother borders than
    "nearest", at a cost that does not grow with the number of labels; on a tie any of the tied wins.

    Args:
        labels: [B, *spatial], any integer dtype.
    """
    spatial = labels.shape[1:]
    size = tuple(size or spatial)
    corners: list[Tensor] = [torch.zeros((), dtype=torch.int64, device=labels.device)]
    weights: list[Tensor] = [torch.ones((), device=labels.device)]
    for axis, extent in enumerate(spatial):
        at = coordinates(matrix, axis, size, 1.0) + (extent - 1) / 2
        inside = (at > -0.5) & (at < extent - 0.5) if padding == "zeros" else None
        at = _reflected(at, extent) if padding == "reflection" else at.clamp(0, extent - 1)
        low = at.round() if mode == "nearest" else at.floor()
        steps = [(low, 1 - (at - low)), ((low + 1).clamp_max(extent - 1), at - low)]
        if mode == "nearest":
            steps = [(low, torch.ones_like(at))]
        corners = [c * extent + place.long() for c in corners for place, _ in steps]
        weights = [w * share if inside is None else w * share * inside for w in weights for _, share in steps]
    flat = labels.flatten(1)
    values = [flat.gather(1, c.flatten(1)).view(-1, *size) for c in corners]
    winner, most = torch.zeros_like(values[0]), torch.zeros_like(weights[0])
    if padding == "zeros":
        most = 1 - torch.stack(weights).sum(dim=0) + 1e-6  # what lies outside votes for 0
    totals = list(weights)
    for i in range(len(values)):
        for j in range(i):
            same = values[i] == values[j]
            totals[i] = totals[i] + weights[j] * same
            totals[j] = totals[j] + weights[i] * same
    for value, total in zip(values, totals, strict=True):
        better = total > most
        winner, most = torch.where(better, value, winner), torch.where(better, total, most)
    return winner


def _reflected(at: Tensor, extent: int) -> Tensor:
    """Coordinates mirrored at the outer edges of the first and the last voxel."""
    folded = (at + 0.5).remainder(2 * extent)
    return (torch.minimum(folded, 2 * extent - folded) - 0.5).clamp(0, extent - 1)
