"""mosaicml-streaming: MDS shards, StreamingDataset and StreamingDataLoader."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .base import Batch, Load, Material, Peer, blank, box, decode_jpeg
from .medloom_shards import SHARDS


class Mosaic(Peer):
    """Volumes as arrays, pictures as JPEG bytes; an item is read whole."""

    name = "mosaic"
    settings = "MDSWriter, StreamingDataset(shuffle=True), StreamingDataLoader; volumes: raw arrays, cut"
    needs = ("streaming",)

    def prepare(self, material: Material, folder: Path) -> None:
        from streaming import MDSWriter

        names, volume = material.names, material.kind == "volume"
        columns = {"name": "str", "image": f"ndarray:{material.raw(names[0]).dtype}" if volume else "bytes"}
        total = sum(material.source(name).stat().st_size for name in names)
        limit = 1 << 26 if volume else int(total / SHARDS * 1.02)
        with MDSWriter(out=str(folder), columns=columns, size_limit=limit, exist_ok=True) as writer:
            for name in names:
                image = np.asarray(material.raw(name)) if volume else material.source(name).read_bytes()
                writer.write({"name": name, "image": image})

    def files(self, material: Material, folder: Path) -> list[Path]:
        return sorted(folder.glob("shard.*.mds"))

    def shards(self, material: Material, folder: Path) -> dict[str, int] | None:
        index = json.loads((folder / "index.json").read_text())
        numbers = [n for n, shard in enumerate(index["shards"]) for _ in range(shard["samples"])]
        return dict(zip(material.names, numbers, strict=True))

    def batches(self, material: Material, folder: Path, load: Load) -> Iterator[Batch]:
        from streaming import StreamingDataLoader, StreamingDataset
        from streaming.base.util import clean_stale_shared_memory

        class Items(StreamingDataset):
            def __getitem__(self, at: Any) -> tuple[np.ndarray, str]:
                return _decoded(super().__getitem__(at), load)

        clean_stale_shared_memory()
        # An epoch of many passes: on few samples its own shuffling at every epoch would be the whole measure.
        dataset = Items(
            local=str(folder), shuffle=True, batch_size=load.batch, epoch_size=200_000, shuffle_seed=load.seed
        )
        loader = StreamingDataLoader(
            dataset,
            batch_size=load.batch,
            num_workers=load.workers,
            persistent_workers=load.workers > 0,
            prefetch_factor=load.prefetch if load.workers else None,
        )
        while True:
            for image, name in loader:
                yield image, list(name)


def _decoded(item: dict[str, Any], load: Load) -> tuple[np.ndarray, str]:
    image = item["image"]
    if isinstance(image, bytes):
        return (decode_jpeg(image) if load.decode else blank(load)), item["name"]
    return np.ascontiguousarray(image[box(image.shape, load.crop)])[None], item["name"]
