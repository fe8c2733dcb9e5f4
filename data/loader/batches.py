"""Samples -> batches: images widened to what holds all of them, and everything else stacked or listed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

CHANNEL_FIELDS = ("low", "high", "mean", "std")  # float32 [C] a sample
ARRAY_FIELDS = {"spacing": np.float32, "position": np.int64, "modality": np.int64}


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Samples of `Stream` as one batch of tensors; see `loader` for its keys and shapes."""
    return tensors(stack(samples))


def tensors(batch: dict[str, Any]) -> dict[str, Any]:
    """The same batch with tensors for arrays, which share their memory."""
    return {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in batch.items()
    }


def stack(
    samples: Sequence[dict[str, Any]],
    allocate: Callable[[tuple[int, ...], np.dtype], np.ndarray] = np.empty,
) -> dict[str, Any]:
    """Samples as one batch of arrays, by the same names; fields that are not known here become lists.

    Args:
        allocate: gives the memory of the images [B, C, ...], C the largest of the samples.
    """
    images = [sample["image"] for sample in samples]
    channels = max(len(image) for image in images)
    dtype = smallest_dtype({image.dtype for image in images})
    batch: dict[str, Any] = {"image": allocate((len(images), channels, *images[0].shape[1:]), dtype)}
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
        else:
            batch[name] = values
    return batch


def smallest_dtype(dtypes: set[np.dtype]) -> np.dtype:
    """Smallest dtype that holds all of these; float32 where only float64 or int64 would."""
    common = np.result_type(*dtypes)
    return np.dtype(np.float32) if common.itemsize > 4 else common
