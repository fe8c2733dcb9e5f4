"""Decoded samples in the place of shards: what a Task reads when it predicts images that lie in no shard.

Volumes are handed out as they are, because shards keep every voxel. Pictures go through a shard in memory,
because a task reads them at its own size from the nearest stored level, and the picture that is predicted is
to be the one that was trained on, to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np

from ...data.sample import Sample
from ...data.shards.format import members_of
from ...data.shards.index import IndexBuilder
from ...data.shards.opened import OpenShard
from ...data.shards.reader import SampleRef, Shards
from ..data import Case, TaskData


class Held:
    """The part of `Shards` that reads a sample, over samples in memory."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = list(samples)
        self._opened: dict[int, OpenShard] = {}

    def meta(self, ref: SampleRef) -> dict[str, Any]:
        """`key.json` of the sample."""
        return self._samples[ref.ordinal].meta

    def read(
        self, ref: SampleRef, origin: Sequence[int] | None = None, shape: Sequence[int] | None = None
    ) -> np.ndarray:
        """The image [C, *shape] or a box of it."""
        image = self._samples[ref.ordinal].image
        if origin is None or shape is None:
            return image
        return image[(slice(None), *(slice(o, o + n) for o, n in zip(origin, shape, strict=True)))]

    def read_mask(self, ref: SampleRef, *box: Any) -> None:
        """None: new images have no label map."""

    def read_resized(self, ref: SampleRef, box: Sequence[float], size: Sequence[int]) -> np.ndarray:
        """A box of a picture at another size, as `Shards.read_resized`."""
        if ref.ordinal not in self._opened:
            self._opened[ref.ordinal] = _in_memory(self._samples[ref.ordinal])
        return self._opened[ref.ordinal].read_resized(0, box, size)

    def close(self) -> None:
        """Nothing is open."""


def hold(samples: Sequence[Sample], values: Sequence[int]) -> TaskData:
    """Samples as the data of a task; `values` are the record's mask values."""
    held = cast(Shards, Held(samples))
    cases = [Case(SampleRef(0, number), sample.meta) for number, sample in enumerate(samples)]
    return TaskData(held, cases, [], {}, values=sorted(values))


def _in_memory(sample: Sample) -> OpenShard:
    builder, pieces, offset = IndexBuilder(), {}, 0
    for member in members_of(sample, "fast"):
        builder.member(member.name, offset, member.data)
        pieces[offset] = member.data
        offset += len(member.data)
    starts = sorted(pieces)

    def fetch(ranges: Sequence[tuple[int, int]]) -> Iterator[memoryview]:
        for place, size in ranges:
            start = max(one for one in starts if one <= place)
            yield memoryview(pieces[start])[place - start :][:size]

    return OpenShard("the image", builder.finish(offset), fetch)
