"""Samples -> batches: images widened to what holds all of them, and everything else stacked or listed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

CHANNEL_FIELDS = ("low", "high", "mean", "std")  # float32 [C] a sample
ARRAY_FIELDS = {"spacing": np.float32, "position": np.int64, "modality": np.int64, "label": np.int64}
ALIGNMENT = 64  # bytes, of a label map behind the images


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Samples of `Stream` as one batch of tensors; see `loader` for its keys and shapes."""
    return tensors(stack(samples))


def tensors(batch: dict[str, Any]) -> dict[str, Any]:
    """The same batch with tensors for arrays, which share their memory."""
    return {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in batch.items()
    }


Allocate = Callable[..., np.ndarray]  # (shape, dtype), or (shape, dtype, bytes of the batch in front)


def new_array(shape: tuple[int, ...], dtype: np.dtype, behind: int = 0) -> np.ndarray:
    """Memory of its own, wherever other parts of the batch lie."""
    return np.empty(shape, dtype)


class Canvas:
    """The images of a batch, decoded where they will be read: one copy less.

    The first image decides shape and dtype; one that does not fit is read elsewhere, and `stack` then puts
    them all together as if there were no canvas.
    """

    def __init__(self, rows: int, allocate: Allocate) -> None:
        self._rows, self._allocate = rows, allocate
        self.images: np.ndarray | None = None  # [B, C, ...]
        self._views: dict[int, np.ndarray] = {}

    def place(self, row: int) -> Callable[[tuple[int, ...], np.dtype], np.ndarray | None]:
        """What gives the memory of this row for a shape [C, ...] and dtype; None when that does not fit."""

        def memory(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray | None:
            if self.images is None:
                self.images = self._allocate((self._rows, *shape), dtype)
            if self.images.shape[1:] != shape or self.images.dtype != dtype:
                return None
            return self._views.setdefault(row, self.images[row])

        return memory

    def holds(self, images: Sequence[np.ndarray]) -> bool:
        """Whether all of these, the batch row by row, are in their places."""
        return all(image is self._views.get(row) for row, image in enumerate(images))


def stack(
    samples: Sequence[dict[str, Any]], allocate: Allocate = new_array, canvas: Canvas | None = None
) -> dict[str, Any]:
    """Samples as one batch of arrays, by the same names; fields that are not known here become lists.

    Args:
        allocate: gives the memory of the images [B, C, ...], C the largest of the samples, and then that of
            the label maps; of crops that are to be zoomed it is one row [n], and `shape` says what is in it.
        canvas: where images may lie already, in the same memory.
    """
    images = [sample["image"] for sample in samples]
    channels = max(len(image) for image in images)
    dtype = smallest_dtype({image.dtype for image in images})
    batch: dict[str, Any] = {}
    if "zoomed" in samples[0]:
        batch["image"] = _in_a_row(images, dtype, allocate)
        batch["shape"] = [image.shape for image in images]
    elif canvas is not None and canvas.images is not None and canvas.holds(images):
        batch["image"] = canvas.images
    else:
        if canvas is not None and canvas.images is not None:  # would be overwritten before they are copied
            images = [i.copy() if np.may_share_memory(i, canvas.images) else i for i in images]
        batch["image"] = allocate((len(images), channels, *images[0].shape[1:]), dtype)
        for place, image in zip(batch["image"], images, strict=True):
            place[:] = image  # one channel is repeated by broadcasting
    for name in samples[0].keys() - {"image"}:
        values = [sample[name] for sample in samples]
        if name in CHANNEL_FIELDS:
            if any(len(value) != channels for value in values):
                values = [np.broadcast_to(value, channels) for value in values]
            batch[name] = np.array(values, np.float32)
        elif name in ARRAY_FIELDS:
            batch[name] = np.asarray(values, ARRAY_FIELDS[name])
        elif name == "mask":
            shape, behind = (len(values), *values[0].shape), aligned(batch["image"].nbytes)
            batch[name] = np.stack(values, out=allocate(shape, values[0].dtype, behind))
        else:
            batch[name] = values
    return batch


def aligned(size: int) -> int:
    """The first multiple of `ALIGNMENT` from `size` on."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def _in_a_row(images: Sequence[np.ndarray], dtype: np.dtype, allocate: Allocate) -> np.ndarray:
    """Images of any sizes behind one another, without padding."""
    row, start = allocate((sum(image.size for image in images),), dtype), 0
    for image in images:
        row[start : start + image.size] = image.ravel()
        start += image.size
    return row


def smallest_dtype(dtypes: set[np.dtype]) -> np.dtype:
    """Smallest dtype that holds all of these; float32 where only float64 or int64 would."""
    common = np.result_type(*dtypes)
    return np.dtype(np.float32) if common.itemsize > 4 else common
