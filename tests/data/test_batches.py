"""Samples become a batch: the smallest type that holds all of them, and no copy of what is in its place."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from medloom.data.loader.batches import Canvas, collate, smallest_dtype, stack


def test_collate_promotes_to_the_smallest_common_type():
    kinds = {
        name: np.dtype(name) for name in ("uint8", "int8", "uint16", "int16", "int32", "uint32", "float32")
    }
    assert smallest_dtype({kinds["uint8"], kinds["int16"]}) == np.int16
    assert smallest_dtype({kinds["uint16"], kinds["int16"]}) == np.int32
    assert smallest_dtype({kinds["int32"], kinds["float32"]}) == np.float32
    assert smallest_dtype({kinds["int32"], kinds["uint32"]}) == np.float32
    assert smallest_dtype({kinds["uint16"]}) == np.uint16
    common = {"position": 0, "modality": 0, "key": "k", "spacing": np.ones(2, np.float32)}
    numbers = {name: np.asarray([2.0], np.float32) for name in ("low", "high", "mean", "std")}
    grey = common | numbers | {"image": np.full((1, 2, 2), 60000, np.uint16)}
    colour = (
        common | {n: v.repeat(3) for n, v in numbers.items()} | {"image": np.full((3, 2, 2), 200, np.uint8)}
    )
    batch = collate([grey, colour])
    assert batch["image"].dtype == torch.uint16 and batch["image"].shape == (2, 3, 2, 2)
    assert batch["image"][0].unique().tolist() == [60000] and batch["low"].shape == (2, 3)


def test_a_whole_batch_in_place_is_the_memory_itself():
    memory = np.empty((2, 1, 3, 3), np.int16)
    canvas = Canvas(2, lambda shape, dtype: memory)
    samples = [{"image": canvas.place(row)((1, 3, 3), np.dtype(np.int16)), "position": row} for row in (0, 1)]
    for sample in samples:
        sample["image"][:] = sample["position"] + 5
    assert stack(samples, lambda *_: pytest.fail("nothing else is needed"), canvas)["image"] is memory
    assert canvas.place(1)((1, 3, 3), np.dtype(np.uint8)) is None
    samples[1]["image"] = np.full((1, 3, 3), 9, np.int16)  # one that was read elsewhere
    joined = stack(samples, lambda shape, dtype: memory, canvas)["image"]
    assert joined.tolist() == np.stack([np.full((1, 3, 3), 5), np.full((1, 3, 3), 9)]).tolist()
