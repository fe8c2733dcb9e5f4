"""Peers with one file for each image, read by a map-style dataset through torch's own DataLoader."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .base import Batch, Load, Material, Peer, blank, box, decode_jpeg


class Mapped(Peer):
    """Random access: `image(name)` is one item; the rest is torch's DataLoader."""

    def image(self, material: Material, folder: Path, name: str, load: Load) -> np.ndarray:
        """One crop, [1, d, h, w] or [3, h, w]."""
        raise NotImplementedError

    def batches(self, material: Material, folder: Path, load: Load) -> Iterator[Batch]:
        """Draw images with replacement, so that there is no end and no pause between epochs."""
        from torch.utils.data import DataLoader, RandomSampler

        items: Any = _Items(self, material, folder, load)
        loader = DataLoader(
            items,
            batch_size=load.batch,
            sampler=RandomSampler(items, replacement=True, num_samples=1 << 40),
            num_workers=load.workers,
            persistent_workers=load.workers > 0,
            prefetch_factor=load.prefetch if load.workers else None,
        )
        yield from loader


class _Items:
    def __init__(self, peer: Mapped, material: Material, folder: Path, load: Load) -> None:
        self.peer, self.material, self.folder, self.load = peer, material, folder, load
        self.names = material.names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[np.ndarray, str]:
        name = self.names[index]
        return self.peer.image(self.material, self.folder, name, self.load), name


class PlainFiles(Mapped):
    """Volumes as int16 .npy, mapped; pictures as the JPEG files themselves."""

    name = "plain"
    settings = "volumes: native .npy, np.load(mmap_mode='r'); pictures: JPEG files, Pillow; torch DataLoader"

    def prepare(self, material: Material, folder: Path) -> None:
        for name in material.names if material.kind == "volume" else ():
            np.save(folder / f"{name}.npy", material.raw(name))

    def files(self, material: Material, folder: Path) -> list[Path]:
        if material.kind == "volume":
            return super().files(material, folder)
        return [material.source(name) for name in material.names]

    def image(self, material: Material, folder: Path, name: str, load: Load) -> np.ndarray:
        if material.kind == "picture":
            data = material.source(name).read_bytes()
            return decode_jpeg(data) if load.decode else blank(load)
        volume = np.load(folder / f"{name}.npy", mmap_mode="r")
        return np.ascontiguousarray(volume[box(volume.shape, load.crop)])[None]


class Nifti(Mapped):
    """The .nii.gz files themselves."""

    name = "nifti"
    settings = (
        ".nii.gz, nibabel, slices of dataobj (decompresses as far as the last of them), torch DataLoader"
    )
    kinds = ("volume",)
    needs = ("nibabel",)

    def files(self, material: Material, folder: Path) -> list[Path]:
        return [material.source(name) for name in material.names]

    def image(self, material: Material, folder: Path, name: str, load: Load) -> np.ndarray:
        import nibabel

        stored: Any = nibabel.load(material.source(name))  # type: ignore[attr-defined]
        place = box(stored.shape[::-1], load.crop)[::-1]
        return np.ascontiguousarray(np.asarray(stored.dataobj[place]).T)[None]


class NnsslStyle(Mapped):
    """nnssl and nnU-Net: float32 z-scores, one Blosc2 file a case, mapped."""

    name = "nnssl"
    settings = (
        "float32 z-scores, a .b2nd a case (zstd 8, nnU-Net's chunks for this patch), mmap, torch DataLoader"
    )
    kinds = ("volume",)
    needs = ("blosc2",)
    grid = 1

    def prepare(self, material: Material, folder: Path) -> None:
        import blosc2

        crop = json.loads((material.folder / "case.json").read_text())["crop"]
        blosc2.set_nthreads(os.cpu_count() or 1)
        scores = {}
        for name in material.names:
            raw = np.asarray(material.raw(name))
            mean, std = float(raw.mean()), float(raw.std())
            data: Any = ((raw.astype(np.float32) - np.float32(mean)) / np.float32(std))[None]
            blocks, chunks = nnunet_blocks(data.shape, crop)
            cparams: Any = {"codec": blosc2.Codec.ZSTD, "clevel": 8}
            blosc2.asarray(
                data, chunks=chunks, blocks=blocks, cparams=cparams, urlpath=str(folder / f"{name}.b2nd")
            )
            scores[name] = (mean, std)
        (folder / "scores.json").write_text(json.dumps(scores))

    def files(self, material: Material, folder: Path) -> list[Path]:
        return sorted(folder.glob("*.b2nd"))

    def image(self, material: Material, folder: Path, name: str, load: Load) -> np.ndarray:
        import blosc2

        blosc2.set_nthreads(1)
        how: Any = {"mode": "r", "mmap_mode": "r", "dparams": {"nthreads": 1}}
        stored: Any = blosc2.open(str(folder / f"{name}.b2nd"), **how)
        return np.asarray(stored[(slice(None), *box(stored.shape[1:], load.crop, self.grid))])

    def restore(self, image: np.ndarray, name: str, material: Material) -> np.ndarray:
        scores = json.loads((material.folder / "peers" / "nnssl" / "scores.json").read_text())
        mean, std = scores[name]
        values = image[0].astype(np.float64) * std + mean
        dtype = material.raw(name).dtype
        return np.rint(values).astype(dtype) if dtype.kind in "iu" else values.astype(dtype)


class NnsslGrid(NnsslStyle):
    """The same files, but crops on the grid that medloom uses."""

    name = "nnssl-grid"
    settings = "as nnssl, its crops on medloom's grid of 32 voxels"
    grid = 32

    def prepare(self, material: Material, folder: Path) -> None:
        other = folder.with_name(NnsslStyle.name)
        if not (other / "scores.json").exists():
            other.mkdir(exist_ok=True)
            super().prepare(material, other)
        folder.rmdir()
        folder.symlink_to(other, target_is_directory=True)


def nnunet_blocks(shape: Any, patch: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """nnU-Net's rule for (blocks, chunks): blocks fill 80 % of a 32 kB L1, chunks of 1.4 MB of L3."""
    spatial, patch = list(shape[1:]), np.asarray(patch)
    block = np.asarray([2 ** math.ceil(math.log2(n)) for n in patch])
    while int(block.prod()) * shape[0] * 4 > 0.8 * 32768:
        axis = max((a for a in range(3) if block[a] > 1), key=lambda a: block[a] / patch[a])
        block[axis] = min(2 ** math.floor(math.log2(block[axis] - 1)), spatial[axis])
    block = np.minimum(block, spatial)
    chunk = block.copy()
    while int(chunk.prod()) * shape[0] * 4 < 0.8 * 1441792 and (chunk < spatial).any():
        axis = min((a for a in range(3) if chunk[a] < spatial[a]), key=lambda a: chunk[a] / block[a])
        before = int(chunk[axis])
        chunk[axis] = min(before + block[axis], spatial[axis])
        if float(np.mean(chunk / patch)) > 1.5:
            chunk[axis] = before
            break
    return (shape[0], *map(int, block)), (shape[0], *map(int, chunk))
