"""webdataset: a pipeline over tars, whole members. Volumes come from medloom's own shards, which it reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .base import Batch, Load, Material, Peer, blank, box, decode_jpeg
from .medloom_shards import SHARDS, names_of, share


class WebDataset(Peer):
    """Resampled shards, a shuffle buffer of 1,000 pictures, batches made by webdataset in the workers."""

    name = "webdataset"
    settings = (
        "WebLoader, resampled=True; pictures: own tars, .shuffle(1000); volumes: medloom's tars, the member "
        "decoded whole by blosc2, no buffer (each entry would hold a volume)"
    )
    needs = ("webdataset",)

    def prepare(self, material: Material, folder: Path) -> None:
        if material.kind == "volume":
            share(material, folder)
        else:
            write_tars(material, folder)

    def files(self, material: Material, folder: Path) -> list[Path]:
        return sorted(folder.glob("*.tar"))

    def shards(self, material: Material, folder: Path) -> dict[str, int] | None:
        return shard_numbers(material) if material.kind == "picture" else None

    def batches(self, material: Material, folder: Path, load: Load) -> Iterator[Batch]:
        import webdataset

        wds: Any = webdataset
        names = names_of(material) if material.kind == "volume" else {}
        urls = [str(path) for path in self.files(material, folder)]
        dataset: Any = wds.WebDataset(urls, resampled=True, shardshuffle=False, seed=load.seed)
        if material.kind == "picture":
            dataset = dataset.shuffle(1000)
        dataset = dataset.map(_Decode(load, names)).batched(load.batch)
        loader: Any = wds.WebLoader(
            dataset,
            batch_size=None,
            num_workers=load.workers,
            persistent_workers=load.workers > 0,
            prefetch_factor=load.prefetch if load.workers else None,
        )
        for image, name in loader:
            yield image, list(name)


class _Decode:
    def __init__(self, load: Load, names: dict[str, str]) -> None:
        self.load, self.names = load, names

    def __call__(self, sample: dict[str, Any]) -> tuple[np.ndarray, str]:
        key = sample["__key__"]
        if "b2nd" in sample:
            return crop_of_frame(sample["b2nd"], self.load), self.names[key]
        return (decode_jpeg(sample["jpg"]) if self.load.decode else blank(self.load)), key


def crop_of_frame(data: bytes, load: Load) -> np.ndarray:
    """Decode a Blosc2 frame [1, D, H, W] whole and cut a random box out of it."""
    import blosc2

    blosc2.set_nthreads(1)
    volume = np.asarray(blosc2.ndarray_from_cframe(data)[:])
    return np.ascontiguousarray(volume[(slice(None), *box(volume.shape[1:], load.crop))])


def write_tars(material: Material, folder: Path) -> None:
    """Twelve tars of JPEG files, written by webdataset."""
    import webdataset

    wds: Any = webdataset
    count = -(-len(material.names) // SHARDS)
    with wds.ShardWriter(str(folder / "%05d.tar"), maxcount=count, verbose=0) as writer:
        for name in material.names:
            writer.write({"__key__": name, "jpg": material.source(name).read_bytes()})


def shard_numbers(material: Material) -> dict[str, int]:
    """Shards of equal counts in the order of the names."""
    count = -(-len(material.names) // SHARDS)
    return {name: number // count for number, name in enumerate(material.names)}
