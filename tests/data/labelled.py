"""Shards with classes and label maps whose images say where each voxel came from."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from medloom.data.ingest.preprocess import describe
from medloom.data.sample import Sample
from medloom.data.shards.format import FORMAT_VERSION, META_KEYS
from medloom.data.shards.manifest import Manifest, SourceEntry
from medloom.data.shards.writer import ShardWriter
from PIL import Image as Pillow

NAMES = {"1": "one", "2": "two", "3": "three"}


def ramp(shape: tuple[int, ...], axis: int) -> np.ndarray:
    """Coordinates of the voxels' centres along an axis: linear, so that resampling keeps it."""
    where = np.arange(shape[axis]) + 0.5
    return np.broadcast_to(where.reshape([-1 if a == axis else 1 for a in range(len(shape))]), shape)


def label_of(coordinate: np.ndarray) -> np.ndarray:
    """The stored label of a voxel with this coordinate: bands of four voxels, 0 to 3."""
    return (np.floor(coordinate) // 4 % 4).astype(np.uint8)


def sample(key: str, image: np.ndarray, modality: str, mask: np.ndarray | None = None, **meta: Any) -> Sample:
    known: dict[str, Any] = dict.fromkeys(META_KEYS) | {
        "format": FORMAT_VERSION, "key": key, "dataset": key.rpartition("-")[0], "modality": modality,
        "organ": "other", "licence": "CC0-1.0", "ndim": image.ndim - 1, "shape": list(image.shape),
        "dtype": image.dtype.name, "labels": {}, "facts": {}, "subject": key,
        "stats": describe(image, modality),
    }  # fmt: skip
    if mask is not None:
        known["mask"] = {"classes": NAMES, "present": [], "dtype": "uint8", "shape": list(mask.shape)}
    jpeg = meta.pop("jpeg", None)
    return Sample(key=key, image=image, mask=mask, jpeg=jpeg, meta=known | meta)


def volume(key: str, shape: tuple[int, ...], axis: int, **meta: Any) -> Sample:
    """A volume that holds the coordinate along `axis`, and its label map."""
    where = ramp(shape, axis)
    return sample(key, where[None].astype(np.float32), "mri", label_of(where), **meta)


def picture(key: str, shape: tuple[int, int], axis: int, **meta: Any) -> Sample:
    """A picture that holds the coordinate along `axis`, and its label map."""
    where = ramp(shape, axis)
    return sample(key, where[None].astype(np.float32), "x-ray", label_of(where), **meta)


def photo(key: str, **meta: Any) -> Sample:
    """A JPEG of 256 columns with the grey value of the column."""
    grey = np.broadcast_to(np.arange(256, dtype=np.uint8), (160, 256))
    buffer = io.BytesIO()
    Pillow.fromarray(grey).save(buffer, "JPEG", quality=95)
    stored = np.asarray(Pillow.open(io.BytesIO(buffer.getvalue())))[None]
    mask = label_of(ramp(grey.shape, 1) / 8)
    return sample(key, stored, "photography", mask, jpeg=buffer.getvalue(), **meta)


def write(path: Path, sources: dict[str, list[Sample]], **entries: dict[str, Any]) -> Path:
    """A folder of shards; the manifest counts classes, splits and label maps as a build does.

    Args:
        entries: source id with _ for - -> more of its row.
    """
    path.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, samples in sources.items():
        with ShardWriter(path / f"{name}-00000.tar") as writer:
            for one in samples:
                writer.add(one)
        labels: dict[str, dict[str, int]] = {}
        splits: dict[str, int] = {}
        for one in samples:
            splits[one.meta["split"] or "none"] = splits.get(one.meta["split"] or "none", 0) + 1
            for key, value in one.meta["labels"].items():
                for word in value if isinstance(value, list) else [value]:
                    counts = labels.setdefault(key, {})
                    counts[str(word)] = counts.get(str(word), 0) + 1
        row: dict[str, Any] = {
            "id": name, "dataset": name[:-3], "ndim": int(name[-2]), "count": len(samples),
            "licence": "CC0-1.0", "shards": (writer.entry,), "labels": labels, "splits": splits,
            "masks": sum(one.mask is not None for one in samples),
        }  # fmt: skip
        rows.append(SourceEntry(**(row | entries.get(name.replace("-", "_"), {}))))
    Manifest(name="labelled", sources=tuple(rows)).save(path)
    return path
