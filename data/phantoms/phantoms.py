"""The built-in collection: synthetic phantoms of seven modalities, written as real image files.

Everything downstream (readers, shards, training, evaluation, the demo and the tests) can run on it anywhere,
without a download and without a patient. It is drawn by structure and physics (see the phantom_* modules). It
has classes, masks, subjects with several images, splits by subject, and two tasks that are learnable but not
by a threshold: lesions of the liver in CT, and benign or malignant lesions in breast ultrasound. What is
learnt on it says nothing about patients.

At the defaults: 372 images in 1,000 files, 20 MB, about 15 s on one core.
"""

from __future__ import annotations

import logging
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic import write_text
from ..errors import CollectionError, ConfigError
from . import files
from . import head as phantom_head
from . import pictures as phantom_pictures
from . import tissue as phantom_tissue
from . import torso as phantom_torso

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]

LICENCE = "CC0-1.0"
SALT = (
    "medloom-phantoms-are-nobody"  # public on purpose: there is no one to protect, and builds are comparable
)
FEWEST_SUBJECTS = 6  # fewer leave a split without one of the classes
MARKER = "PHANTOM.txt"  # in each dataset's folder: written by this module, may be replaced by it
CT_STRUCTURES = {phantom_torso.LIVER: "liver", phantom_torso.LESION: "lesion"}
MR_STRUCTURES = {phantom_head.EDEMA: "oedema", phantom_head.CORE: "core"}


@dataclass(frozen=True, slots=True)
class _Plan:
    """What every dataset's writer needs to know."""

    out: Path
    seed: int
    subjects: int
    size: int

    def generator(self, dataset: str, *indices: int) -> np.random.Generator:
        """The generator of one subject or image: the same whatever else is drawn, in whatever order."""
        return np.random.default_rng([self.seed, zlib.crc32(dataset.encode()), *indices])


def generate(
    out: Path, *, seed: int = 0, subjects: int = 24, size: int = 48, progress: Progress | None = None
) -> Path:
    """Write the collection below `out` and return the path of its YAML, which is written last.

    Args:
        out: folder; datasets of an earlier call in it are replaced.
        seed: the same seed, subjects and size give the same bytes.
        subjects: per dataset; half as many for MR (two series each), three times as many for ultrasound.
        size: voxels across a volume; pictures have three or four times as many pixels.
        progress: called with (done, total, what) after each subject.

    Raises:
        ConfigError: fewer than 6 subjects, or a size below 32 or not a multiple of 8.
        CollectionError: `out` holds a folder of a dataset's name that this function did not write.
    """
    if subjects < FEWEST_SUBJECTS:
        raise ConfigError(f"subjects: {subjects}, expected at least {FEWEST_SUBJECTS} for three splits")
    if size < 32 or size % 8:
        raise ConfigError(f"size: {size}, expected a multiple of 8 from 32 on")
    plan = _Plan(Path(out), seed, subjects, size)
    for dataset in DATASETS:
        _check_replaceable(plan.out / dataset)
    target = plan.out / "collection.yaml"
    target.unlink(missing_ok=True)
    for dataset in DATASETS:
        folder = plan.out / dataset
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / MARKER).write_text("Synthetic phantoms written by medloom; no patient was imaged.\n")
    total, done = sum(part.count(subjects) for part in PARTS), 0
    for part in PARTS:
        for _ in part.write(plan):
            done += 1
            if progress is not None:
                progress(done, total, " and ".join(part.sources))
    sources = [
        {"dataset": dataset, "root": dataset, "licence": LICENCE, **source}
        for part in PARTS
        for dataset, source in part.sources.items()
    ]
    write_text(target, _yaml(sources))
    logger.info("phantoms: %d subjects in %d datasets below %s", done, len(sources), plan.out)
    return target


def splits_of(labels: Sequence[str], rng: np.random.Generator) -> list[str]:
    """Assign subjects to train, val and test: about 60, 15 and 25 % of each class, at least one of each.

    Args:
        labels: class of each subject; every class at least three times.
        rng: generator of the draw.
    """
    result = ["train"] * len(labels)
    for label in sorted(set(labels)):
        members = rng.permutation([index for index, other in enumerate(labels) if other == label])
        tests, vals = max(1, round(0.25 * len(members))), max(1, round(0.15 * len(members)))
        for index in members[:tests]:
            result[index] = "test"
        for index in members[tests : tests + vals]:
            result[index] = "val"
    return result


def _check_replaceable(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()) and not (folder / MARKER).exists():
        raise CollectionError(f"{folder}: exists and was not written as a phantom; give another folder")


def _torsos(plan: _Plan) -> Iterator[None]:
    """Torsos in CT, without label maps, and the radiograph of each as a dataset of its own."""
    scans: list[dict[str, Any]] = []
    pictures: list[dict[str, Any]] = []
    for subject in range(plan.subjects):
        sick = subject % 2 == 1
        body = phantom_torso.torso(plan.generator("phantom_ct", subject), plan.size, opacity=sick)
        scan = f"images/phantom_ct_{subject:03d}.nii.gz"
        # Stored as older converters do: unsigned with an intercept.
        files.write_nifti(plan.out / "phantom_ct" / scan, body.hounsfield, body.spacing, intercept=-1024)
        picture = f"images/phantom_xray_{subject:03d}.png"
        shadow = phantom_torso.radiograph(plan.generator("phantom_xray", subject), body, 4 * plan.size)
        files.write_picture(plan.out / "phantom_xray" / picture, shadow)
        label = "opacity" if sick else "clear"
        scans.append({"path": scan, "subject": f"{subject:03d}"})
        pictures.append({"path": picture, "subject": f"{subject:03d}", "label": label})
        yield
    files.write_table(plan.out / "phantom_ct" / "manifest.csv", scans)
    _write_split_table(plan, "phantom_xray", pictures, "label")


def _write_split_table(plan: _Plan, dataset: str, rows: list[dict[str, Any]], label: str) -> None:
    """Write the manifest of a dataset with one row a subject, the split drawn within each class."""
    splits = splits_of([row[label] for row in rows], plan.generator(dataset))
    rows = [{**row, "split": split} for row, split in zip(rows, splits, strict=True)]
    files.write_table(plan.out / dataset / "manifest.csv", rows)


def _ct_seg(plan: _Plan) -> Iterator[None]:
    """Other torsos, with label maps, as the Medical Segmentation Decathlon lays them out."""
    dataset, cases = "phantom_ct_seg", []
    for subject in range(plan.subjects):
        body = phantom_torso.torso(plan.generator(dataset, subject), plan.size, opacity=subject % 3 == 0)
        case = f"{dataset}_{subject:03d}"
        files.write_nifti(plan.out / dataset / "imagesTr" / f"{case}.nii.gz", body.hounsfield, body.spacing)
        files.write_nifti(plan.out / dataset / "labelsTr" / f"{case}.nii.gz", body.labels, body.spacing)
        cases.append(case)
        yield
    files.write_decathlon(
        plan.out / dataset / "dataset.json", name=dataset, labels=CT_STRUCTURES, cases=cases
    )


def _mri(plan: _Plan) -> Iterator[None]:
    """Heads in thick axial slices, T1 and T2 of each, as a tree of DICOM files."""
    dataset = "phantom_mri"
    width = plan.size * 4 // 3 // 2 * 2
    for subject in range(plan.subjects // 2):
        rng = plan.generator(dataset, subject)
        patient = f"PHANTOM-{subject:03d}"
        person = phantom_head.head(rng, (20, width, width), (150.0, 220.0, 220.0), grade=None)
        tilt = float(rng.uniform(-0.2, 0.2))
        for number, sequence in enumerate(("t1", "t2"), start=1):
            repetition, echo, _ = phantom_head.SEQUENCES[sequence]
            files.write_series(
                plan.out / dataset / patient,
                phantom_head.image(rng, person, sequence),
                person.spacing,
                patient=patient,
                description=f"{sequence} axial head",
                number=number,
                tilt=tilt,
                echo=(repetition, echo),
                order=rng.permutation(20),
            )
        yield


def _mri_tumour(plan: _Plan) -> Iterator[None]:
    """Heads with a tumour in isotropic FLAIR, label maps and a grade."""
    dataset = "phantom_mri_tumour"
    rows: list[dict[str, Any]] = []
    count = max(FEWEST_SUBJECTS, plan.subjects // 2)
    for subject in range(count):
        rng = plan.generator(dataset, subject)
        grade = ("low", "high")[subject % 2]
        person = phantom_head.head(rng, (plan.size, plan.size, plan.size), (204.0, 204.0, 204.0), grade=grade)
        name = f"{dataset}_{subject:03d}.nii.gz"
        volume = phantom_head.image(rng, person, "flair").astype(np.int16)
        mask = phantom_head.lesion_mask(person)
        folder = plan.out / dataset
        files.write_nifti(folder / "images" / name, volume, person.spacing, sagittal=True)
        files.write_nifti(folder / "masks" / name, mask, person.spacing, sagittal=True)
        rows.append({"path": f"images/{name}", "mask": f"masks/{name}", "grade": grade})
        yield
    _write_split_table(plan, dataset, rows, "grade")


def _ultrasound(plan: _Plan) -> Iterator[None]:
    """Two planes of each breast lesion with its mask, in folders by split and class."""
    dataset = "phantom_ultrasound"
    classes = phantom_pictures.ULTRASOUND_CLASSES
    labels = [classes[subject % 3] for subject in range(3 * plan.subjects)]
    splits = splits_of(labels, plan.generator(dataset))
    for subject, (label, split) in enumerate(zip(labels, splits, strict=True)):
        for view in (1, 2):
            rng = plan.generator(dataset, subject, view)
            picture, mask = phantom_pictures.ultrasound(rng, 3 * plan.size, label)
            stem = plan.out / dataset / split / label / f"phantom_us_{subject:03d}_{view}"
            files.write_picture(stem.with_suffix(".png"), picture)
            files.write_picture(stem.with_name(f"{stem.name}_mask.png"), mask * np.uint8(255))
        yield


def _fundus(plan: _Plan) -> Iterator[None]:
    """Both eyes of each subject; the class says whether there is retinopathy, `grade` how much."""
    dataset = "phantom_fundus"
    rows: list[dict[str, Any]] = []
    grades = [0 if subject % 2 == 0 else 1 + subject // 2 % 3 for subject in range(plan.subjects)]
    labels = [phantom_pictures.FUNDUS_CLASSES[int(grade > 0)] for grade in grades]
    splits = splits_of(labels, plan.generator(dataset))
    for subject, grade in enumerate(grades):
        for eye in ("left", "right"):
            rng = plan.generator(dataset, subject, len(eye))
            path = f"images/{dataset}_{subject:03d}_{eye}.jpg"
            picture = phantom_pictures.fundus(rng, 4 * plan.size, grade, left=eye == "left")
            files.write_picture(plan.out / dataset / path, picture)
            rows.append(
                {
                    "path": path,
                    "subject": f"{subject:03d}",
                    "eye": eye,
                    "label": labels[subject],
                    "grade": grade,
                    "split": splits[subject],
                }
            )
        yield
    files.write_table(plan.out / dataset / "manifest.csv", rows)


def _histology(plan: _Plan) -> Iterator[None]:
    """Three tiles of each slide, in folders by class; the stain belongs to the slide."""
    dataset = "phantom_histology"
    for subject in range(plan.subjects):
        label = phantom_tissue.CLASSES[subject % 2]
        stain = phantom_tissue.slide(plan.generator(dataset, subject))
        for index in range(3):
            picture = phantom_tissue.tile(
                plan.generator(dataset, subject, index), 4 * plan.size, label, stain
            )
            name = f"phantom_slide_{subject:03d}_{index}.jpg"
            files.write_picture(plan.out / dataset / label / name, picture)
        yield


@dataclass(frozen=True, slots=True)
class _Part:
    """Datasets that are written together."""

    write: Callable[[_Plan], Iterator[None]]  # one step a subject
    count: Callable[[int], int]  # steps for so many subjects
    sources: dict[str, dict[str, Any]]  # dataset id -> its entry in the collection


PARTS: tuple[_Part, ...] = (
    _Part(_torsos, lambda n: n, {
        "phantom_ct": {
            "layout": "table", "modality": "ct", "organ": "multi-organ",
            "options": {"path": "path", "subject": "subject"},
        },
        "phantom_xray": {
            "layout": "table", "modality": "x-ray", "organ": "chest", "classes": ["clear", "opacity"],
            "options": {"path": "path", "label": "label", "subject": "subject", "split": "split"},
        },
    }),
    _Part(_ct_seg, lambda n: n, {
        "phantom_ct_seg": {
            "layout": "msd", "organ": "liver", "options": {"subject_pattern": r"phantom_ct_seg_(\d+)"},
        },
    }),
    _Part(_mri, lambda n: n // 2, {"phantom_mri": {"layout": "dicom_tree", "organ": "brain"}}),
    _Part(_mri_tumour, lambda n: max(FEWEST_SUBJECTS, n // 2), {
        "phantom_mri_tumour": {
            "layout": "table", "modality": "mri", "organ": "brain", "classes": ["low", "high"],
            "mask_classes": MR_STRUCTURES,
            "options": {"path": "path", "mask": "mask", "label": "grade", "split": "split"},
        },
    }),
    _Part(_ultrasound, lambda n: 3 * n, {
        "phantom_ultrasound": {
            "layout": "image_folder", "modality": "ultrasound", "organ": "breast",
            "classes": list(phantom_pictures.ULTRASOUND_CLASSES),
            "mask_classes": {1: "lesion"}, "mask_values": {255: 1},
            "options": {
                "split_folders": True, "subject_pattern": r"phantom_us_(\d+)_", "mask_suffix": "_mask",
            },
        },
    }),
    _Part(_fundus, lambda n: n, {
        "phantom_fundus": {
            "layout": "table", "modality": "fundus", "organ": "eye",
            "classes": list(phantom_pictures.FUNDUS_CLASSES),
            "options": {
                "path": "path", "label": "label", "labels": ["grade", "eye"], "subject": "subject",
                "split": "split",
            },
        },
    }),
    _Part(_histology, lambda n: n, {
        "phantom_histology": {
            "layout": "image_folder", "modality": "histopathology", "organ": "colon",
            "classes": list(phantom_tissue.CLASSES),
            "options": {"subject_pattern": r"phantom_slide_(\d+)_"},
        },
    }),
)  # fmt: skip

DATASETS: tuple[str, ...] = tuple(dataset for part in PARTS for dataset in part.sources)


def _yaml(sources: list[dict[str, Any]]) -> str:
    import yaml

    collection = {
        "name": "phantoms",
        "root": ".",
        "salt": SALT,
        "held_out": [
            {"dataset": "phantom_ct_seg"},
            {"dataset": "phantom_ultrasound", "splits": ["val", "test"]},
        ],
        "sources": sources,
    }
    head = "# Synthetic phantoms: no patient was imaged, nothing learnt here speaks about patients.\n"
    return head + yaml.safe_dump(collection, sort_keys=False, allow_unicode=True, width=110)
