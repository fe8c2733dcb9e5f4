"""A small real folder of shards (pictures and volumes with classes that differ) and small runs on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

COLLECTION = """
name: tiny
salt: only for tests
sources:
- {dataset: tiny_pictures, layout: image_folder, root: pictures, modality: ultrasound, licence: CC0-1.0}
- {dataset: tiny_colour, layout: image_folder, root: colour, modality: dermoscopy, licence: CC-BY-4.0}
- {dataset: tiny_volumes, layout: table, root: volumes, modality: mri, licence: CC0-1.0,
   options: {path: path, label: label}}
"""


def write_collection(root: Path) -> Path:
    """Write pictures (stripes against blobs), colour pictures and volumes below `root`; returns the YAML."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[0:40, 0:48]
    for folder, channels in (("pictures", 1), ("colour", 3)):
        for number in range(24):
            name = ("stripes", "blobs")[number % 2]
            pattern = (
                np.sin(rows / 2 + number)
                if number % 2 == 0
                else np.hypot(rows - 20, columns - 24) < 8 + number % 5
            )
            image = 90.0 + 60 * pattern[..., None] + rng.normal(0, 8, (40, 48, channels))
            path = root / folder / name / f"case{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.clip(0, 255).astype(np.uint8).squeeze()).save(path)
    lines = ["path,label"]
    (root / "volumes").mkdir()
    grid = np.indices((20, 22, 24)) - np.array([10, 11, 12])[:, None, None, None]
    for number in range(16):
        ball = np.sqrt((grid**2).sum(0)) < 4 + 3 * (number % 2)
        volume = (400 * ball + rng.normal(100, 20, ball.shape)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), root / "volumes" / f"v{number}.nii.gz")
        lines.append(f"v{number}.nii.gz,{('small', 'large')[number % 2]}")
    (root / "volumes" / "manifest.csv").write_text("\n".join(lines) + "\n")
    path = root / "collection.yaml"
    path.write_text(COLLECTION)
    return path


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A built folder of shards: 24 grey pictures, 24 colour pictures, 16 MR volumes, two classes each."""
    from medloom.data.collection import Collection
    from medloom.data.ingest.build import build

    root = tmp_path_factory.mktemp("tiny")
    return build(Collection.load(write_collection(root)), root / "shards").manifest and root / "shards"


@pytest.fixture(scope="session")
def tiny_config(tiny_shards: Path) -> Callable[..., Any]:
    """(out, *overrides, ndim=2) -> configuration: 12 steps of a network of a few thousand parameters."""

    def make(out: Path, *overrides: str, ndim: int = 2, shards: Path = tiny_shards) -> Any:
        from medloom.data.config import structured
        from medloom.pretrain.config import PretrainConfig, complete

        small = {"embed_dim": 24, "depth": 1, "num_heads": 2}
        flat = {"name": "vit", "model": "vit_tiny_patch16_224", "img_size": 16, "patch_size": 8, **small}
        solid = {"name": "vit3d", "patch_size": [8, 8, 8], **small}
        data = {"shards": str(shards), "ndim": ndim, "crop": [16] * ndim, "batch_size": 4}
        values: dict[str, Any] = {
            "name": "tiny",
            "out": str(out),
            "data": {**data, "workers": 0, "snap": 4},
            "encoder": flat if ndim == 2 else solid,
            "objective": {"name": "mae", "decoder_dim": 12, "decoder_depth": 1, "decoder_heads": 2},
            "optim": {"base_lr": 0.1},
            "trainer": {"steps": 12, "log_every": 3, "checkpoint_every_steps": 4, "accelerator": "cpu"},
            "panels": {"samples": 2},
            "tracking": {"wandb": "disabled"},
        }
        return complete(structured(PretrainConfig, values, list(overrides)))

    return make


@pytest.fixture(scope="session")
def rows_of() -> Callable[[Path], list[dict[str, Any]]]:
    """run folder -> metrics.jsonl without what the clock says."""
    from medloom.pretrain.recorder import CLOCK
    from medloom.pretrain.tracking import METRICS, read_rows

    def rows(run: Path) -> list[dict[str, Any]]:
        return [{k: v for k, v in row.items() if k not in CLOCK} for row in read_rows(run / METRICS)]

    return rows
