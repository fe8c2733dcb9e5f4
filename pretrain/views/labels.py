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
    size = tuple(size or labels.shape[1:])
    zero = torch.zeros((), dtype=torch.int64, device=labels.device)
    corners, weights = [zero], [zero.to(torch.float32) + 1]
    for axis, extent in enumerate(labels.shape[1:]):
        steps = _steps(coordinates(matrix, axis, size, 1.0) + (extent - 1) / 2, extent, mode, padding)
        corners = [c * extent + place.long() for c in corners for place, _ in steps]
        weights = [w * share for w in weights for _, share in steps]
    flat = labels.flatten(1)
    values = [flat.gather(1, corner.flatten(1)).view(-1, *size) for corner in corners]
    if padding == "zeros":  # what lies outside votes for 0
        values.append(torch.zeros_like(values[0]))
        weights.append(1 - torch.stack(weights).sum(dim=0))
    return _winner(values, weights)


def _steps(at: Tensor, extent: int, mode: str, padding: str) -> list[tuple[Tensor, Tensor]]:
    """Voxels along one axis around the coordinates `at`, inside the map, and their weights."""
    if padding == "reflection":
        at = _reflected(at, extent)
    elif padding == "border":
        at = at.clamp(0, extent - 1)
    if mode == "nearest":
        near = at.round()
        steps = [(near, torch.ones_like(at))]
    else:
        low = at.floor()
        steps = [(low, 1 - (at - low)), (low + 1, at - low)]
    if padding == "zeros":
        steps = [(place, share * ((place >= 0) & (place < extent))) for place, share in steps]
    return [(place.clamp(0, extent - 1), share) for place, share in steps]


def _winner(values: list[Tensor], weights: list[Tensor]) -> Tensor:
    """The label with the largest sum of weights, voxel by voxel."""
    totals = list(weights)
    for i in range(len(values)):
        for j in range(i):
            same = values[i] == values[j]
            totals[i] = totals[i] + weights[j] * same
            totals[j] = totals[j] + weights[i] * same
    winner, most = values[0], totals[0]
    for value, total in zip(values[1:], totals[1:], strict=True):
        better = total > most
        winner, most = torch.where(better, value, winner), torch.where(better, total, most)
    return winner


def _reflected(at: Tensor, extent: int) -> Tensor:
    """Coordinates mirrored at the outer edges of the first and the last voxel."""
    folded = (at + 0.5).remainder(2 * extent)
    return (torch.minimum(folded, 2 * extent - folded) - 0.5).clamp(0, extent - 1)
