"""Two small tasks made of files, two small encoders, a finished run of each kind, shared by the tests."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

SALT = "a salt for tests only"  # stated in the records, so that no test touches the user's own


class Workshop:
    """A folder with datasets, task records and encoders."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cache = root / "cache"

    def record(self, name: str, values: dict[str, Any]) -> Path:
        """Write a task record beside the datasets."""
        path = self.root / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"name": name, "salt": SALT, **values}))
        return path

    def config(self, task: Path, out: Path, *items: str) -> Any:
        """A configuration that trains for seconds."""
        from medloom.finetune.config import load_config

        encoder = "encoder3d" if "volumes" in task.stem else "encoder2d"
        return load_config(task, [
            f"encoder={self.root / encoder}", f"root={self.root}", f"cache={self.cache}", f"out={out}",
            "steps=6", "validations=2", "batch_size=2", "head.width=8", "head.most=16", "device=cpu", *items,
        ])  # fmt: skip


def volume_case(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """A noisy volume [x, y, z] with a bright box (1) that holds a brighter one (2), and its label map."""
    labels = np.zeros(shape, dtype=np.uint8)
    low = [int(rng.integers(1, side // 3)) for side in shape]
    labels[tuple(slice(a, a + side // 2) for a, side in zip(low, shape, strict=True))] = 1
    labels[tuple(slice(a + 2, a + side // 4 + 2) for a, side in zip(low, shape, strict=True))] = 2
    return (rng.normal(0, 20, shape) + 200.0 * labels).astype(np.int16), labels


def write_volumes(
    folder: Path, count: int = 10, shape: tuple[int, ...] = (16, 20, 18)
) -> list[dict[str, str]]:
    """NIfTI cases of subjects `patient-NN` with a table; returns its rows."""
    import nibabel as nib

    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    rows = []
    for number in range(count):
        image, labels = volume_case(rng, shape)
        for name, array in (("image", image), ("mask", labels)):
            nib.Nifti1Image(array, np.eye(4)).to_filename(folder / f"patient-{number:02d}-{name}.nii.gz")
        split = "test" if number >= count - 3 else "val" if number >= count - 5 else "train"
        subject = f"patient-{number:02d}"
        rows.append({"path": f"{subject}-image.nii.gz", "mask": f"{subject}-mask.nii.gz",
                     "subject": subject, "split": split})  # fmt: skip
    write_table(folder, rows)
    return rows


def write_table(folder: Path, rows: list[dict[str, str]]) -> None:
    """manifest.csv of a dataset."""
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def write_pictures(folder: Path, subjects: int = 24) -> None:
    """Two PNGs a subject, `dark` or `bright` on noise."""
    from PIL import Image

    rng = np.random.default_rng(1)
    folder.mkdir(parents=True)
    rows = []
    for number in range(subjects):
        name = "bright" if number % 2 else "dark"
        for view in range(2):
            pixels = rng.normal(90, 10, (40, 56))
            pixels[10:30, 10:40] += 80 if name == "bright" else -60
            file = f"patient-{number:02d}-{view}.png"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / file)
            split = ("train", "train", "val", "test")[number // 2 % 4]
            rows.append({"path": file, "label": name, "subject": f"patient-{number:02d}", "split": split})
    write_table(folder, rows)


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Datasets `volumes` (segmentation) and `pictures` (classification), records and encoders."""
    import torch
    from medloom.pretrain.encoders import build_encoder
    from medloom.pretrain.weights import save_encoder

    torch.set_num_threads(1)
    shop = Workshop(tmp_path_factory.mktemp("workshop"))
    write_volumes(shop.root / "volumes")
    write_pictures(shop.root / "pictures")
    sections = {
        "encoder3d": {"name": "vit3d", "depth": 2, "embed_dim": 24, "num_heads": 2, "patch_size": [8, 8, 8]},
        "encoder2d": {"name": "vit", "model": "vit_tiny_patch16_224", "img_size": 32, "patch_size": 8,
                      "depth": 2, "embed_dim": 24, "num_heads": 2},
    }  # fmt: skip
    for name, section in sections.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            encoder = build_encoder(section)
        save_encoder(shop.root / name, encoder, {
            "input": {"rule": "medloom-1", "crop": [32] * encoder.ndim, "channels": encoder.in_channels},
            "training": {"manifest": "0" * 64, "sources": [{"id": "other-2d", "dataset": "other"}]},
            "held_out": {"rules": [], "excluded": {}, "not_checked": []},
        })  # fmt: skip
    return shop


@pytest.fixture(scope="session")
def volumes(workshop: Workshop) -> Path:
    """Record of the segmentation task."""
    return workshop.record("volumes", {
        "kind": "segmentation", "structures": {1: "outer", 2: "inner"}, "nsd_tolerance_mm": 1.0, "flips": [2],
        "source": {"dataset": "volumes", "layout": "table", "root": "volumes", "modality": "mri",
                   "options": {"mask": "mask", "subject": "subject", "split": "split"}},
    })  # fmt: skip


@pytest.fixture(scope="session")
def pictures(workshop: Workshop) -> Path:
    """Record of the classification task."""
    return workshop.record("pictures", {
        "kind": "classification", "classes": ["dark", "bright"],
        "source": {"dataset": "pictures", "layout": "table", "root": "pictures", "modality": "x-ray",
                   "options": {"label": "label", "subject": "subject", "split": "split"}},
    })  # fmt: skip


@pytest.fixture(scope="session")
def segmentation_run(workshop: Workshop, volumes: Path) -> Path:
    """A finished run with both arms. Read it, never write to it."""
    from medloom.finetune.run import finetune

    return finetune(workshop.config(volumes, workshop.root / "run-volumes"))


@pytest.fixture(scope="session")
def classification_run(workshop: Workshop, pictures: Path) -> Path:
    """A finished linear run with its three arms. Read it, never write to it."""
    from medloom.finetune.run import finetune

    return finetune(
        workshop.config(pictures, workshop.root / "run-pictures", "protocol=logistic", "batch_size=8")
    )


@pytest.fixture
def task_of(workshop: Workshop) -> Callable[..., Any]:
    """Open a task with its data, plan and split: `task_of(record, *overrides)`."""
    from medloom.finetune.data import prepare
    from medloom.finetune.planner import make_plan
    from medloom.finetune.splits import make_split
    from medloom.finetune.tasks import TASKS
    from medloom.pretrain.weights import load_encoder

    def open_task(record: Path, *items: str) -> Any:
        config = workshop.config(record, workshop.root / "unused", *items)
        data = prepare(config.task, root=workshop.root, cache=workshop.cache)
        split = make_split(data.items(), config.task.split, data.rank)
        encoder, report = load_encoder(config.encoder)
        metas = [case.meta for case in data.cases if split[case.key] == "train"]
        plan = make_plan(config.task, config, metas, encoder, crop=report.record["input"]["crop"])
        return TASKS[config.task.kind](config, data, plan, split)

    return open_task
