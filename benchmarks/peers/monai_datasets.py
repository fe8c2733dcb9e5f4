"""MONAI's CacheDataset (half of the volumes in memory) and PersistentDataset (tensors on disk)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .base import Batch, Load, Material, Peer


class MonaiCache(Peer):
    """LoadImaged, RandSpatialCropd; each item of a pass once, as MONAI's loader does it."""

    name = "monai-cache"
    settings = "CacheDataset(cache_rate=0.5) of .nii.gz, LoadImaged, RandSpatialCropd, monai DataLoader"
    kinds = ("volume",)
    needs = ("monai", "nibabel")

    def files(self, material: Material, folder: Path) -> list[Path]:
        return [material.source(name) for name in material.names]

    def dataset(self, items: list[dict[str, Any]], transform: Any, folder: Path) -> Any:
        """The dataset under test."""
        from monai.data import CacheDataset  # type: ignore[attr-defined]

        return CacheDataset(items, transform, cache_rate=0.5, num_workers=1, progress=False)

    def batches(self, material: Material, folder: Path, load: Load) -> Iterator[Batch]:
        from monai.data import DataLoader  # type: ignore[attr-defined]
        from monai.transforms import Compose, LoadImaged, RandSpatialCropd  # type: ignore[attr-defined]

        steps = [
            LoadImaged("image", ensure_channel_first=True, image_only=True),
            RandSpatialCropd("image", load.crop[::-1], random_size=False),
        ]
        items = [{"image": str(material.source(name)), "name": name} for name in material.names]
        loader = DataLoader(
            self.dataset(items, Compose(steps), folder),
            batch_size=load.batch,
            shuffle=True,
            drop_last=True,
            num_workers=load.workers,
            persistent_workers=load.workers > 0,
            prefetch_factor=load.prefetch if load.workers else None,
        )
        while True:
            for batch in loader:
                yield batch["image"], batch["name"]

    def restore(self, image: np.ndarray, name: str, material: Material) -> np.ndarray:
        return image[0].T.astype(material.raw(name).dtype)


class MonaiPersistent(MonaiCache):
    """The same transforms; what comes before the random crop is kept as a .pt of the whole volume."""

    name = "monai-persistent"
    settings = "PersistentDataset: a float32 .pt of each whole volume, RandSpatialCropd, monai DataLoader"

    def prepare(self, material: Material, folder: Path) -> None:
        load = Load(crop=(8, 8, 8), batch=1, workers=0)
        for _, _ in zip(material.names, self.batches(material, folder, load), strict=False):
            pass

    def files(self, material: Material, folder: Path) -> list[Path]:
        return sorted(folder.rglob("*.pt"))

    def dataset(self, items: list[dict[str, Any]], transform: Any, folder: Path) -> Any:
        from monai.data import PersistentDataset  # type: ignore[attr-defined]

        return PersistentDataset(items, transform, cache_dir=folder)
