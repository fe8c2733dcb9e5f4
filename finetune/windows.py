"""Sliding windows over a volume as a stream of finished rows: memory does not grow with the number of slices.

The result is that of MONAI's `sliding_window_inference` with Gaussian weights (a test holds it to that); the
choice is the order. Windows go along the first axis, and what no later window will touch is handed out at
once, so that only the rows of one window are held: outputs × patch rows × a slice × 4 bytes, and the same
again while they move on. A whole-body CT of 1,500 slices of 512×512 with 14 outputs would take 22 GiB as a
whole, and takes 1 GiB with windows of 64 rows. Rows of the image are read when a window comes to them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor

Read = Callable[[int, int], np.ndarray]  # rows start .. stop of the image, float32 [C, stop - start, *rest]
OVERLAP, SIGMA = 0.5, 0.125  # of neighbouring windows; deviation of their weight, share of a side
Predictor = Callable[[Tensor], Tensor]  # [B, C, *patch] -> [B, K, *patch], on the device


def sliding_rows(
    read: Read,
    shape: Sequence[int],
    patch: Sequence[int],
    predict: Predictor,
    *,
    batch: int,
    device: torch.device,
    overlap: float = OVERLAP,
) -> Iterator[np.ndarray]:
    """Yield the weighted mean of the windows, float32 [K, n, *rest], from the first row to the last.

    Args:
        read: gives rows of the image; asked in ascending order, each row once.
        shape: spatial shape of the image, no side smaller than the patch's.
        predict: windows -> what is to be averaged, probabilities as a rule.
        batch: windows at once.
        overlap: share of a window that the next one sees too.
    """
    weight = _importance(patch)
    starts = [_starts(side, size, overlap) for side, size in zip(shape, patch, strict=True)]
    places = list(product(*starts[1:]))
    seen = read(0, patch[0])
    total: np.ndarray | None = None
    weights = np.zeros((patch[0], *shape[1:]), dtype=np.float32)
    for start, after in zip(starts[0], [*starts[0][1:], None], strict=True):
        for first in range(0, len(places), batch):
            boxes = [
                tuple(slice(a, a + size) for a, size in zip(place, patch[1:], strict=True))
                for place in places[first : first + batch]
            ]
            windows = np.stack([seen[(slice(None), slice(None), *box)] for box in boxes])
            found = predict(torch.from_numpy(windows).to(device)).float().cpu().numpy()
            if total is None:
                total = np.zeros((found.shape[1], patch[0], *shape[1:]), dtype=np.float32)
            for box, values in zip(boxes, found, strict=True):
                total[(slice(None), slice(None), *box)] += values * weight
                weights[(slice(None), *box)] += weight
        assert total is not None
        done = patch[0] if after is None else after - start
        yield total[:, :done] / weights[:done]
        if after is not None:
            for rows in (*total, weights):  # one output at a time: no second copy of all
                _move_on(rows, done)
            seen = np.concatenate([seen[:, done:], read(start + patch[0], after + patch[0])], axis=1)


def resized_rows(blocks: Iterator[np.ndarray], have: int, want: int) -> Iterator[np.ndarray]:
    """Linear interpolation of a stream [K, n, ...] of `have` rows to `want` rows, as torch's on the whole.

    The half-pixel convention of `align_corners=False`; two rows are kept from block to block.
    """
    centres = np.clip((np.arange(want) + 0.5) * have / want - 0.5, 0, have - 1)
    low = np.floor(centres).astype(int)
    kept: np.ndarray | None = None
    begin = given = 0  # the first row of `kept`, and the next one to hand out
    for block in blocks:
        kept = block if kept is None else np.concatenate([kept, block], axis=1)
        end = begin + kept.shape[1]
        stop = int(np.searchsorted(np.minimum(low + 1, have - 1), end))
        if stop > given:
            yield _between(kept, centres[given:stop] - begin)
            given = stop
        drop = min(max(0, end - 2 - begin), kept.shape[1])
        if given < want:
            drop = min(drop, max(0, int(low[given]) - begin))
        kept, begin = kept[:, drop:], begin + drop


def rows_between(count: int, total: int, start: int, stop: int) -> tuple[int, int]:
    """First and last + 1 of `count` rows that rows start .. stop of `total` interpolated ones are made of."""
    first = (start + 0.5) * count / total - 0.5
    last = (stop - 0.5) * count / total - 0.5
    return max(0, math.floor(first)), min(count, math.floor(last) + 2)


def interpolate_rows(
    rows: np.ndarray, offset: int, count: int, total: int, start: int, stop: int
) -> np.ndarray:
    """Rows start .. stop of `total` from [C, n, ...], which begins at row `offset` of `count`."""
    centres = np.clip((np.arange(start, stop) + 0.5) * count / total - 0.5, 0, count - 1)
    return _between(rows, centres - offset)


def _between(rows: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Values at fractional rows of [K, n, ...]."""
    low = np.floor(centres).astype(int)
    high = np.minimum(low + 1, rows.shape[1] - 1)
    share = (centres - low).astype(np.float32).reshape(-1, *[1] * (rows.ndim - 2))
    if not share.any():
        return rows[:, low]
    return rows[:, low] * (1 - share) + rows[:, high] * share


def _move_on(rows: np.ndarray, done: int) -> None:
    rows[:-done] = rows[done:].copy()
    rows[-done:] = 0


def _starts(side: int, size: int, overlap: float) -> list[int]:
    """First voxels of the windows along an axis, the last one flush with the end (MONAI's places)."""
    step = max(1, int(size * (1 - overlap)))
    count = 1 if side <= size else math.ceil((side - size) / step) + 1
    return sorted({min(index * step, side - size) for index in range(count)})


def _importance(patch: Sequence[int]) -> np.ndarray:
    """Gaussian weight of a window, deviation an eighth of its side, never zero."""
    from monai.data.utils import compute_importance_map

    found = compute_importance_map(tuple(patch), mode="gaussian", sigma_scale=SIGMA, dtype=torch.float32)
    return found.clamp(min=1e-3).numpy()
