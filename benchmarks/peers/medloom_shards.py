"""medloom itself, through the public loader; variants by profile and by the grid of crop origins."""

from __future__ import annotations

import csv
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .base import Batch, Load, Material, Peer, blank

SALT = "benchmarks-hold-no-patients"
SHARDS = 12  # pictures are cut into so many shards, as every peer's are


class Medloom(Peer):
    """`medloom shards build`, then `loader(Stream)`."""

    name = "medloom"
    settings = "profile small (zstd), origins on the default grid of 32 voxels, default transport"
    profile = "small"
    snap = 32

    def prepare(self, material: Material, folder: Path) -> None:
        from medloom.data.ingest.build import build

        more: dict[str, Any] = {}
        if "profile" in inspect.signature(build).parameters:
            more["profile"] = self.profile
        elif self.profile != "small":
            raise RuntimeError("this version of medloom builds one profile only")
        sizes = [material.source(name).stat().st_size for name in material.names]
        # Closed before it would grow larger: without room for one more picture there would be 13 of them.
        pictures = -(-sum(sizes) // SHARDS) + max(sizes)
        shard = pictures if material.kind == "picture" else max(1, sum(sizes) // 2)
        build(collection(material), folder, shard_bytes=shard, **more)

    def ready(self, material: Material) -> None:
        self.names = names_of(material)  # keys are salted hashes: the whole collection is scanned for this

    def batches(self, material: Material, folder: Path, load: Load) -> Iterator[Batch]:
        from medloom.data.loader.loader import loader

        if not load.decode:
            leave_out_decoding(blank(load))
        stream = stream_of(folder, material.kind, load, snap=self.snap)
        for batch in loader(stream, rank=0, world=1, start_step=0, steps=1 << 40):
            yield batch["image"], [self.names[key] for key in batch["key"]]

    def files(self, material: Material, folder: Path) -> list[Path]:
        return sorted([*folder.glob("*.tar"), *folder.glob("*.idx")])

    def shards(self, material: Material, folder: Path) -> dict[str, int]:
        from medloom.data import open_shards

        stored, names = open_shards(folder), names_of(material)
        return {names[stored.meta(ref)["key"]]: ref.shard for ref in stored.refs()}


class MedloomAnyOrigin(Medloom):
    """The same shards, read at any origin, as the peers are."""

    name = "medloom-any"
    settings = "as medloom, but data.snap=1: crops at any origin"
    kinds = ("volume",)
    snap = 1

    def prepare(self, material: Material, folder: Path) -> None:
        share(material, folder)


class MedloomFast(Medloom):
    """The profile for speed."""

    name = "medloom-fast"
    settings = "profile fast (lz4 and bitshuffle), otherwise as medloom"
    kinds = ("volume",)
    profile = "fast"


def share(material: Material, folder: Path) -> None:
    """Read what medloom stored: `folder` becomes a link to it."""
    stored = ensured(material)
    folder.rmdir()
    folder.symlink_to(stored, target_is_directory=True)


def ensured(material: Material) -> Path:
    """The folder of medloom's own shards, built if that peer was not asked for."""
    folder = material.folder / "peers" / Medloom.name
    if not (folder / "manifest.json").exists():
        Medloom().prepare(material, folder)
    return folder


def collection(material: Material) -> Any:
    """The images as a collection of one dataset, in a table."""
    import yaml
    from medloom.data.collection import Collection

    with (material.folder / "manifest.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["path"])
        writer.writerows([str(material.source(n).relative_to(material.folder))] for n in material.names)
    modality = "ct" if material.kind == "volume" else "histopathology"
    source = {"dataset": "bench", "layout": "table", "modality": modality, "options": {"path": "path"}}
    text = yaml.safe_dump({"name": "bench", "root": ".", "salt": SALT, "sources": [source]})
    path = material.folder / "collection.yaml"
    path.write_text(text, encoding="utf-8")
    return Collection.load(path)


def names_of(material: Material) -> dict[str, str]:
    """Keys in the shards -> names of the images."""
    from medloom.data.collection import Collection, scan
    from medloom.data.privacy import key_of

    loaded = Collection.load(material.folder / "collection.yaml")
    records = [record for _, record in scan(loaded).records]
    return {key_of(loaded.salt, r.dataset, r.name): r.paths[0].name.split(".")[0] for r in records}


def stream_of(folder: Path, kind: str, load: Load, *, snap: int = 32) -> Any:
    """A stream of these shards: volumes in uniform crops, pictures whole."""
    from medloom.data.stream.config import StreamConfig
    from medloom.data.stream.stream import Stream

    common: dict[str, Any] = {
        "shards": str(folder), "crop": list(load.crop), "batch_size": load.batch, "workers": load.workers,
        "prefetch": load.prefetch, "seed": load.seed,
    }  # fmt: skip
    if kind == "volume":
        return Stream(StreamConfig(**common, ndim=3, foreground=0.0, snap=snap))
    return Stream(StreamConfig(**common, ndim=2, crop_scale=[1.0, 1.0], aspect=[1.0, 1.0]))


def leave_out_decoding(picture: np.ndarray) -> None:
    """From now on bytes are read and verified in this process and its workers, but not decoded."""
    import medloom.data.shards.reader  # whatever of it decodes is loaded now

    places = [
        m for n, m in sys.modules.items() if n.startswith(medloom.__name__) and hasattr(m, "resize_jpeg")
    ]
    if not places:
        raise RuntimeError("no module of medloom has resize_jpeg to leave out: mend medloom_shards.py")
    for place in places:
        setattr(place, "resize_jpeg", lambda data, box, size: picture)  # noqa: B010
