"""What a peer is: it stores the same images in its own way, and loads batches of crops in its own way.

Each adapter uses its library as that library's documentation recommends: its own loader class, persistent
workers, a prefetch of `Load.prefetch` batches a worker. What it does is told by `settings`, printed with the
results. A batch is (images, names): images [B, C, *crop] in whatever dtype the peer hands over.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

Batch = tuple[Any, list[str]]


@dataclass(frozen=True)
class Material:
    """Images that every peer stores: `source/NAME.nii.gz` or `.jpg`, and `raw/NAME.npy`, the same pixels.

    Volumes [D, H, W]; pictures [H, W, 3].
    """

    folder: Path
    kind: str  # "volume" or "picture"

    @property
    def names(self) -> list[str]:
        """Names of the images, sorted."""
        return sorted(path.name.split(".")[0] for path in (self.folder / "source").iterdir())

    def source(self, name: str) -> Path:
        """The file that a hospital or a public dataset would give."""
        return self.folder / "source" / f"{name}{'.nii.gz' if self.kind == 'volume' else '.jpg'}"

    def raw(self, name: str) -> np.ndarray:
        """The pixels, mapped."""
        return np.load(self.folder / "raw" / f"{name}.npy", mmap_mode="r")


@dataclass(frozen=True)
class Load:
    """What is asked of a loader."""

    crop: tuple[int, ...]  # voxels (D, H, W), or pixels (H, W): a picture is taken whole, at its own size
    batch: int
    workers: int
    prefetch: int = 2  # batches a worker reads ahead
    seed: int = 0
    decode: bool = True  # False: bytes are read, but a blank [3, *crop] stands for what they decode to


class Peer:
    """Base of the adapters."""

    name: ClassVar[str]
    settings: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]] = ("volume", "picture")
    needs: ClassVar[tuple[str, ...]] = ()  # modules beyond torch and numpy
    ends_slowly: ClassVar[bool] = False  # its workers take ten seconds to leave: the process is ended instead

    def prepare(self, material: Material, folder: Path) -> None:
        """Store the images in `folder`, once."""

    def ready(self, material: Material) -> None:
        """What only the benchmark needs (which name an image has); before anything is timed."""

    def batches(self, material: Material, folder: Path, load: Load) -> Iterator[Batch]:
        """Batches without an end."""
        raise NotImplementedError

    def files(self, material: Material, folder: Path) -> list[Path]:
        """Files that the loader reads pixels from."""
        return [path for path in sorted(folder.rglob("*")) if path.is_file()]

    def shards(self, material: Material, folder: Path) -> dict[str, int] | None:
        """Number of the shard that holds each image; None: this peer has a file for each."""
        return None

    def restore(self, image: np.ndarray, name: str, material: Material) -> np.ndarray:
        """An image of a batch [C, ...] as it lies in `raw`: [d, h, w] or [h, w, 3], its dtype."""
        return image[0] if material.kind == "volume" else image.transpose(1, 2, 0)


def blank(load: Load) -> np.ndarray:
    """What stands for a decoded picture where decoding is left out: uint8 [3, h, w]."""
    return np.zeros((3, *load.crop), np.uint8)


def decode_jpeg(data: bytes) -> np.ndarray:
    """JPEG bytes -> uint8 [3, H, W], as most training code does."""
    import io

    from PIL import Image

    with Image.open(io.BytesIO(data)) as picture:
        return np.ascontiguousarray(np.asarray(picture.convert("RGB")).transpose(2, 0, 1))


def box(shape: Any, crop: tuple[int, ...], grid: int = 1) -> tuple[slice, ...]:
    """A random box of a volume [D, H, W], uniform over its origins, or over those on a grid."""
    room = [max(0, n - c) // grid for n, c in zip(shape, crop, strict=True)]
    origin = [random.randint(0, r) * grid for r in room]  # torch seeds it in each worker
    return tuple(slice(o, o + c) for o, c in zip(origin, crop, strict=True))
