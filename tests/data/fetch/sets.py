"""Small archives in exactly the form of the Decathlon's and MedMNIST's own, and a site that serves them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
from medloom.data.catalog import Catalog, MsdTask, load
from medloom.data.catalog.records import MedMnistSet
from medloom.data.fetch.fetch import Options
from medloom.data.remote.stores import Patience
from PIL import Image

# `modality` of the ten dataset.json, as they are in the archives.
CHANNELS = {
    "Task01": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"},
    "Task05": {"0": "T2", "1": "ADC"},
    **{f"Task{n:02d}": {"0": "MRI"} for n in (2, 4)},
    **{f"Task{n:02d}": {"0": "CT"} for n in (3, 6, 7, 8, 9, 10)},
}
QUICK = Options(patience=Patience(attempts=3, timeout=5.0, wait=0.01, longest_wait=0.02))
SPLEEN = "msd-task09-spleen"
SHAPE = (14, 12, 10)
TRAIN, TEST = 3, 2


def msd_tar(path: Path, task: MsdTask, filler: int = 0) -> Path:
    """A Decathlon archive of five small cases: one folder, dataset.json, AppleDouble litter.

    Args:
        filler: bytes of a further file, where a test needs time.
    """
    random = np.random.default_rng(int(task.task_id[-2:]))
    word = task.name.lower()
    channels = CHANNELS[task.task_id]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        cases = [f"{word}_{number:03d}.nii.gz" for number in range(TRAIN + TEST)]
        facts = {
            "name": task.name,
            "description": f"{task.name} segmentation",
            "reference": task.institution,
            "licence": "CC-BY-SA 4.0",
            "release": "1.0 04/05/2018",
            "tensorImageSize": "4D" if len(channels) > 1 else "3D",
            "modality": channels,
            "labels": {str(value): name for value, name in task.labels.items()},
            "numTraining": TRAIN,
            "numTest": TEST,
            "training": [
                {"image": f"./imagesTr/{case}", "label": f"./labelsTr/{case}"} for case in cases[:TRAIN]
            ],
            "test": [f"./imagesTs/{case}" for case in cases[TRAIN:]],
        }
        _add(archive, f"{task.folder}/dataset.json", json.dumps(facts, indent=4).encode())
        if filler:
            _add(archive, f"{task.folder}/filler.bin", random.bytes(filler))
        for number, case in enumerate(cases):
            shape = (*SHAPE, len(channels)) if len(channels) > 1 else SHAPE
            folder = "imagesTr" if number < TRAIN else "imagesTs"
            image = random.integers(-1000, 1000, shape).astype(np.float32)
            _add(archive, f"{task.folder}/{folder}/{case}", _nifti(image))
            _add(archive, f"{task.folder}/{folder}/._{case}", b"\0\5\26\7Mac OS X")
            if number < TRAIN:
                labels = random.integers(0, len(task.labels), SHAPE).astype(np.uint8)
                _add(archive, f"{task.folder}/labelsTr/{case}", _nifti(labels))
    return path


def medmnist_npz(path: Path, known: MedMnistSet, size: int, counts: tuple[int, int, int] = (5, 3, 4)) -> Path:
    """An .npz of MedMNIST; where there are enough images, every class is among those of a split."""
    random = np.random.default_rng(size)
    three = known.id.endswith("3d")
    shape = (size,) * (3 if three else 2) + ((3,) if known.n_channels == 3 and not three else ())
    arrays = {}
    for split, count in zip(("train", "val", "test"), counts, strict=True):
        arrays[f"{split}_images"] = random.integers(0, 256, (count, *shape), dtype=np.uint8)
        labels = random.permutation(count)[:, None] % known.n_classes
        if "multi-label" in known.task:
            labels = random.integers(0, 2, (count, known.n_classes))
        arrays[f"{split}_labels"] = labels.astype(np.uint8)
    np.savez_compressed(path, **arrays)
    return path


def names(folder: Path) -> list[str]:
    """Files below a folder, with forward slashes."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def zip_of(path: Path, members: list[str]) -> Path:
    """A zip of small pictures, all different."""
    with zipfile.ZipFile(path, "w") as archive:
        for member in members:
            buffer = io.BytesIO()
            Image.new("L", (40, 30), sum(member.encode()) % 256).save(buffer, "PNG")
            archive.writestr(member, buffer.getvalue())
    return path


def served(catalog: Catalog, site: Path, url: str) -> Catalog:
    """The catalogue, with the addresses and digests of what lies in `site` in the place of the real ones."""
    md5 = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in site.iterdir()}
    tasks = [
        replace(task, url_aws=f"{url}/{task.folder}.tar", archive_md5=md5[f"{task.folder}.tar"])
        if f"{task.folder}.tar" in md5
        else task
        for task in catalog.msd.values()
    ]
    sets = []
    for item in catalog.medmnist.values():
        names = {size: f"{item.id}{'' if size == 28 else f'_{size}'}.npz" for size in item.sizes}
        there = {size: name for size, name in names.items() if name in md5}
        urls = {size: f"{url}/{name}?download=1" for size, name in there.items()}
        known = {size: md5[name] for size, name in there.items()}
        sets.append(replace(item, url=item.url | urls, md5=item.md5 | known))
    return Catalog(catalog.datasets, catalog.overlaps, tasks, sets)


def built_in() -> Catalog:
    """The packaged catalogue."""
    return load(())


def _nifti(array: np.ndarray) -> bytes:
    image = nibabel.Nifti1Image(array, np.diag([0.8, 0.8, 2.5, 1.0]))
    return gzip.compress(image.to_bytes())


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))
