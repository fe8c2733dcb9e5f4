"""Batches of made-up samples, and whether two are the same bit for bit."""

from __future__ import annotations

import numpy as np
import torch
from medloom.data.errors import ShardError
from medloom.data.loader.loader import Loader
from medloom.data.loader.parcels import BatchReader

DTYPES = [np.uint8, np.uint16, np.int16, np.int32, np.float32]


class Made:
    """Samples that say which position they are, of mixed types and channels, one type a batch or several."""

    def __init__(self, side: int = 20, fail_at: int | None = None) -> None:
        self.side, self.fail_at = side, fail_at

    def __getitems__(self, positions, place=None) -> list[dict]:
        if self.fail_at in positions:
            raise ShardError(f"position {self.fail_at} cannot be read: mend it")
        return [self.sample(position) for position in positions]

    def sample(self, position: int) -> dict:
        rng = np.random.default_rng(position)
        channels = 3 if position % 5 == 0 else 1
        dtype = DTYPES[position // 7 % len(DTYPES)]
        numbers = {n: rng.random(channels).astype(np.float32) for n in ("low", "high", "mean", "std")}
        return numbers | {
            "image": rng.integers(0, 99, (channels, self.side, self.side)).astype(dtype),
            "spacing": rng.random(2).astype(np.float32), "modality": position % 3, "position": position,
            "key": f"made-{position}", "replaced": [{"key": "x"}] if position % 11 == 0 else None,
        }  # fmt: skip


def batches(count: int, size: int = 4) -> list[list[int]]:
    return [list(range(size * n, size * n + size)) for n in range(count)]


def made(count: int, *, workers: int = 2, samples: Made | None = None, slot_bytes=4 * 3 * 400 * 4, **kwargs):
    reader = BatchReader(samples or Made())
    return Loader(reader, batches(count), slot_bytes=slot_bytes, workers=workers, **kwargs)


def same(one: dict, other: dict) -> bool:
    """The same names in the same order of types, and all values bit for bit."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            if value.dtype != other[name].dtype or not torch.equal(value, other[name]):
                return False
        elif value != other[name]:
            return False
    return True


def all_same(ones, others) -> bool:
    return len(ones) == len(others) and all(map(same, ones, others))
