"""What travels between the training process and its loader workers: requests there, parcels back.

A request is the positions of a micro-batch and a free slot of the ring; a parcel is the batch, with its image
left in the slot. Both are small and pickled as they are: no tensors, no descriptors, nothing to clean up.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from ..errors import MedloomError
from ..stream.crop_reader import Place
from .batches import Canvas, aligned, stack, tensors
from .ring import Ring

log = logging.getLogger(__name__)

_BYTE = np.dtype(np.uint8)


class Samples(Protocol):
    """Where samples come from: a `Stream`."""

    def __getitems__(
        self, positions: Sequence[int], place: Callable[[int], Place] | None = None
    ) -> list[dict[str, Any]]:
        """Samples at these positions; images may be written where `place` says for their row."""
        ...


class Batches(Protocol):
    """Positions of the micro-batches, in order: a `PositionBatches`."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[list[int]]: ...


class Parcel(NamedTuple):
    """What a worker sends: a batch whose image lies in a slot, or here for want of a slot that holds it."""

    slot: int | None
    shape: tuple[int, ...]
    dtype: str
    image: np.ndarray | None
    fields: dict[str, Any]
    mask: tuple[tuple[int, ...], str] | None = None  # shape and dtype of label maps behind the image


class BatchReader(Dataset):
    """Reads one micro-batch for each request (positions, slot or None).

    An error that the user can mend is returned instead of raised: torch would wrap it in a traceback.
    """

    def __init__(self, stream: Samples) -> None:
        self.stream = stream
        self.ring: Ring | None = None  # set before workers start

    def __getitem__(self, request: tuple[Sequence[int], int | None]) -> Parcel | MedloomError:
        positions, slot = request
        kept: list[np.ndarray] = []

        def allocate(shape: tuple[int, ...], dtype: np.dtype, behind: int = 0) -> np.ndarray:
            found = None if self.ring is None or slot is None else self.ring.array(slot, shape, dtype, behind)
            if found is None:
                found = np.empty(shape, dtype)
                kept.append(found)
            return found

        try:
            canvas = Canvas(len(positions), allocate)
            batch = stack(self.stream.__getitems__(positions, canvas.place), allocate, canvas)
        except MedloomError as error:
            return error
        image, mask = batch.pop("image"), batch.get("mask")
        sent = next((array for array in kept if array is image), None)
        behind = None
        if sent is None and mask is not None and all(array is not mask for array in kept):
            behind = mask.shape, batch.pop("mask").dtype.str
        return Parcel(slot, image.shape, image.dtype.str, sent, batch, behind)


class Requests(Sampler[tuple[Sequence[int], int | None]]):
    """Adds a free slot to the positions of a micro-batch when torch asks for it, in the training process."""

    def __init__(self, batches: Batches, reader: BatchReader) -> None:
        self.batches, self.reader = batches, reader

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Sequence[int], int | None]]:
        ring, told = self.reader.ring, False
        if ring is not None:
            # Requests of an iteration that was broken off. By now torch has had the answers to all of them.
            ring.reclaim()
        for positions in self.batches:
            slot = None if ring is None else ring.take()
            if ring is not None and slot is None and not told:
                told = True
                log.warning(
                    "all %d slots of the loader are kept: batches now travel in messages, which is slower; "
                    "keep fewer batches, or raise data.prefetch",
                    ring.slots,
                )
            yield positions, slot


def unpack(parcel: Parcel, ring: Ring | None) -> dict[str, Any]:
    """The batch as tensors; the image is a view of its slot, and gives it back when it goes."""
    image = parcel.image
    if image is None and parcel.mask is not None:
        return _with_mask(parcel, ring)
    if image is None:
        assert ring is not None and parcel.slot is not None, "only a ring has slots"
        image = ring.lend(parcel.slot, parcel.shape, np.dtype(parcel.dtype))
    elif ring is not None and parcel.slot is not None:
        ring.release(parcel.slot)
    return tensors({"image": image, **parcel.fields})


def _with_mask(parcel: Parcel, ring: Ring | None) -> dict[str, Any]:
    """`unpack` where label maps lie behind the image: two views of one array keep the slot."""
    assert ring is not None and parcel.slot is not None and parcel.mask is not None, "only a ring has slots"
    parts = {"image": (parcel.shape, np.dtype(parcel.dtype), 0)}
    size = math.prod(parcel.shape) * parts["image"][1].itemsize
    parts["mask"] = (parcel.mask[0], np.dtype(parcel.mask[1]), aligned(size))
    shape, dtype, behind = parts["mask"]
    slot = torch.from_numpy(ring.lend(parcel.slot, (behind + math.prod(shape) * dtype.itemsize,), _BYTE))
    views: dict[str, Any] = {}
    for name, (shape, dtype, behind) in parts.items():
        part = slot[behind : behind + math.prod(shape) * dtype.itemsize]
        views[name] = part.view(torch.from_numpy(np.empty(0, dtype)).dtype).view(shape)
    return tensors(views | parcel.fields)
