"""litdata: chunks of serialised samples, StreamingDataset and StreamingDataLoader."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .base import Batch, Load, Material, Peer, blank, box, decode_jpeg
from .medloom_shards import SHARDS
from .webdataset_tar import shard_numbers


class LitData(Peer):
    """Volumes as arrays, pictures as JPEG bytes; an item is read whole."""

    name = "litdata"
    settings = "optimize(); StreamingDataset(shuffle=True), StreamingDataLoader; volumes: raw arrays, cut"
    needs = ("litdata",)
    ends_slowly = True

    def prepare(self, material: Material, folder: Path) -> None:
        import litdata

        names = material.names
        volume = material.kind == "volume"
        litdata.optimize(
            partial(_item, material),
            inputs=names,
            output_dir=str(folder),
            num_workers=1,
            chunk_size=1 if volume else -(-len(names) // SHARDS),
            start_method="fork",
            verbose=False,
            keep_data_ordered=True,
            reorder_files=False,
        )

    def files(self, material: Material, folder: Path) -> list[Path]:
        return sorted(folder.glob("chunk-*.bin"))

    def shards(self, material: Material, folder: Path) -> dict[str, int] | None:
        return shard_numbers(material) if material.kind == "picture" else None

    def batches(self, material: Material, folder: Path, load: Load) -> Iterator[Batch]:
        import litdata

        class Items(litdata.StreamingDataset):
            def __getitem__(self, index: Any) -> tuple[np.ndarray, str]:
                return _decoded(super().__getitem__(index), load)

        dataset = Items(str(folder), shuffle=True, seed=load.seed, drop_last=True)
        loader = litdata.StreamingDataLoader(
            dataset,
            batch_size=load.batch,
            num_workers=load.workers,
            persistent_workers=load.workers > 0,
            prefetch_factor=load.prefetch if load.workers else None,
        )
        while True:
            for image, name in loader:
                yield image, list(name)


def _item(material: Material, name: str) -> dict[str, Any]:
    if material.kind == "volume":
        return {"name": name, "image": np.asarray(material.raw(name))}
    return {"name": name, "image": material.source(name).read_bytes()}


def _decoded(item: dict[str, Any], load: Load) -> tuple[np.ndarray, str]:
    image = item["image"]
    if isinstance(image, bytes):
        return (decode_jpeg(image) if load.decode else blank(load)), item["name"]
    image = np.asarray(image)
    return np.ascontiguousarray(image[box(image.shape, load.crop)])[None], item["name"]
