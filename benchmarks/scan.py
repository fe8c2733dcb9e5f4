"""How fast a collection of many files is scanned, layout by layout, with the folders in the page cache.

    python -m benchmarks.scan [--files 100000] [--layouts bids,coco] [--repeats 3] [--work FOLDER]

Every tree is generated: names, tables and annotations as the formats have them, images of a few bytes (for
`yolo`, which looks at headers, PNG pictures). Scanned is a whole collection: salted keys, splits,
subjects, checks. Shown are files a second of the fastest repeat, by the clock and by the process's CPU
time (other work on the machine spoils the first), and how many images were opened. `dicom_tree` reads a
header a file, and gets a twentieth of the files.
"""

from __future__ import annotations

import argparse
import json
import shutil
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from medloom.data.collection import Collection, SourceConfig, scan, source_of_config

PNG = b"\x89PNG\r\n\x1a\n" + b"".join(
    struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    for kind, data in (
        (b"IHDR", struct.pack(">2I5B", 640, 480, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(481 * 640))),
        (b"IEND", b""),
    )
)
IMAGES = (".png", ".jpg", ".nii.gz", ".mp4")


@dataclass
class Tree:
    """A generated dataset: what a source's `options` are, and how many files its scan has to do with."""

    files: int
    records: int
    options: dict[str, Any] = field(default_factory=dict)
    keys: dict[str, Any] = field(default_factory=dict)  # further keys of the source


def put(path: Path, data: bytes = b"x") -> None:
    """Write a file; folders are made when the first one needs them."""
    try:
        path.write_bytes(data)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def image_folder(root: Path, files: int) -> Tree:
    for number in range(files):
        put(root / f"class{number % 10}/{number // 1000:03d}/{number:06d}.png")
    return Tree(files, files)


def table(root: Path, files: int) -> Tree:
    for number in range(files):
        put(root / f"images/{number // 1000:03d}/{number:06d}.png")
    lines = (f"images/{n // 1000:03d}/{n:06d}.png,{n % 7},p{n // 4},train" for n in range(files))
    (root / "manifest.csv").write_text("\n".join(["path,label,subject,split", *lines]))
    return Tree(files, files, {"label": "label", "subject": "subject", "split": "split"})


def msd(root: Path, files: int) -> Tree:
    for number in range(files // 2):
        put(root / f"imagesTr/x_{number:06d}.nii.gz")
        put(root / f"labelsTr/x_{number:06d}.nii.gz")
    entry = "./{}Tr/x_{:06d}.nii.gz"
    training = [
        {"image": entry.format("images", n), "label": entry.format("labels", n)} for n in range(files // 2)
    ]
    (root / "dataset.json").write_text(
        json.dumps({"modality": {"0": "CT"}, "labels": {}, "training": training})
    )
    return Tree(files, files // 2)


def nnunet_raw(root: Path, files: int) -> Tree:
    cases = files // 3
    for number in range(cases):
        for channel in range(2):
            put(root / f"imagesTr/x_{number:06d}_000{channel}.nii.gz")
        put(root / f"labelsTr/x_{number:06d}.nii.gz")
    facts = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "a": 1},
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(facts))
    return Tree(3 * cases, cases)


def cases(root: Path, files: int) -> Tree:
    words = ["flair", "t1", "t1ce", "t2"]
    for number in range(files // 5):
        for word in (*words, "seg"):
            put(root / f"case_{number:06d}/case_{number:06d}_{word}.nii.gz")
    return Tree(files // 5 * 5, files // 5, {"channels": words, "mask": "seg"})


def bids(root: Path, files: int) -> Tree:
    subjects = files // 5
    for number in range(subjects):
        stem = f"sub-{number:05d}/ses-1/anat/sub-{number:05d}_ses-1"
        for suffix in ("T1w", "T2w"):
            put(root / f"{stem}_{suffix}.nii.gz")
            put(root / f"{stem}_{suffix}.json")
        put(root / f"derivatives/labels/{stem}_T1w_seg.nii.gz")
    lines = (f"sub-{n:05d}\t{20 + n % 60}\tF" for n in range(subjects))
    (root / "participants.tsv").write_text("\n".join(["participant_id\tage\tsex", *lines]))
    return Tree(5 * subjects, 2 * subjects, {"masks": "derivatives/labels"})


def coco(root: Path, files: int) -> Tree:
    images, annotations = [], []
    for number in range(files):
        put(root / f"train/{number:06d}.jpg")
        images.append({"id": number, "file_name": f"{number:06d}.jpg", "width": 640, "height": 480})
        box = {"image_id": number, "category_id": 1, "bbox": [10, 20, 30, 40.5]}
        outline = box | {"segmentation": [[10, 20, 40, 20, 40, 60.5, 25, 70]]}
        annotations += [{"id": 2 * number, **box}, {"id": 2 * number + 1, **outline}]
    facts = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "polyp"}]}
    put(root / "annotations/instances_train.json", json.dumps(facts).encode())
    return Tree(files, files)


def voc(root: Path, files: int) -> Tree:
    corners = "<bndbox><xmin>5</xmin><ymin>6</ymin><xmax>70</xmax><ymax>80</ymax></bndbox>"
    inner = f"<object><name>cell</name>{corners}</object>" * 3
    for number in range(files // 2):
        put(root / f"JPEGImages/{number:06d}.jpg")
        text = f"<annotation><filename>{number:06d}.jpg</filename>{inner}</annotation>"
        put(root / f"Annotations/{number:06d}.xml", text.encode())
    return Tree(files // 2 * 2, files // 2)


def yolo(root: Path, files: int) -> Tree:
    for number in range(files // 2):
        put(root / f"images/train/{number:06d}.png", PNG)
        put(root / f"labels/train/{number:06d}.txt", b"0 0.5 0.5 0.25 0.25\n1 0.1 0.1 0.05 0.05\n")
    (root / "data.yaml").write_text("train: images/train\nnames: [polyp, tool]\n")
    return Tree(files // 2 * 2, files // 2)


def labelme(root: Path, files: int) -> Tree:
    shape = {
        "label": "cell",
        "shape_type": "polygon",
        "points": [[1, 2], [30, 4], [20, 40]],
        "group_id": None,
    }
    for number in range(files // 2):
        put(root / f"{number // 1000:03d}/{number:06d}.jpg")
        said = {"imagePath": f"{number:06d}.jpg", "imageData": None, "shapes": [shape, shape]}
        put(root / f"{number // 1000:03d}/{number:06d}.json", json.dumps(said).encode())
    return Tree(files // 2 * 2, files // 2)


def video(root: Path, files: int) -> Tree:
    for number in range(files):
        put(root / f"class{number % 5}/{number // 1000:03d}/{number:06d}.mp4")
    return Tree(files, files, {"class_folders": True})


def medmnist(root: Path, files: int) -> Tree:
    counts = {"train": files * 7 // 10, "val": files // 10, "test": files - files * 7 // 10 - files // 10}
    arrays = {}
    for split, count in counts.items():
        arrays[f"{split}_images"] = np.zeros((count, 28, 28, 3), np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % 9).astype(np.uint8)[:, None]
    np.savez_compressed(root / "pathmnist.npz", **arrays)
    return Tree(files, files)


def dicom_tree(root: Path, files: int) -> Tree:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    files = max(1, files // 20)
    for number in range(files):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}"
        made = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        made.SOPClassUID, made.SOPInstanceUID, made.Modality = CTImageStorage, f"1.2.3.{number}", "CT"
        made.SeriesInstanceUID, made.StudyInstanceUID = f"1.2.4.{number // 100}", f"1.2.5.{number // 100}"
        made.PatientID, made.InstanceNumber = f"p{number // 100}", number
        made.ImagePositionPatient, made.ImageOrientationPatient = [0, 0, number], [1, 0, 0, 0, 1, 0]
        made.Rows = made.Columns = 2
        made.PixelData = b"\0" * 8
        path = root / f"{number // 100:04d}/{number:06d}.dcm"
        path.parent.mkdir(exist_ok=True)
        made.save_as(path, enforce_file_format=True)
    return Tree(files, -(-files // 100))


MAKERS = (
    image_folder, table, msd, nnunet_raw, cases, bids, coco, voc, yolo, labelme, video, medmnist, dicom_tree,
)  # fmt: skip
TREES: dict[str, Callable[[Path, int], Tree]] = {make.__name__: make for make in MAKERS}


class Opened:
    """Counts the images that are opened while it is entered; audit hooks cannot be taken out again."""

    _current: Opened | None = None
    _hooked = False

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> Opened:
        Opened._current = self
        if not Opened._hooked:
            sys.addaudithook(Opened._seen)
            Opened._hooked = True
        return self

    def __exit__(self, *_: object) -> None:
        Opened._current = None

    @staticmethod
    def _seen(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and Opened._current is not None and str(arguments[0]).endswith(IMAGES):
            Opened._current.count += 1


def collection_of(layout: str, root: Path, tree: Tree) -> Collection:
    """A collection of the one source."""
    config = SourceConfig(dataset="d", layout=layout, root=str(root), options=tree.options, **tree.keys)
    source = source_of_config(config, Path("/"), layout)
    return Collection("scan", root, (source,), (), "a salt of sixteen characters")


@dataclass
class Measured:
    """One layout."""

    layout: str
    tree: Tree
    wall: float  # seconds of the fastest repeat
    cpu: float
    opened: int  # images


def measure(layout: str, root: Path, files: int, repeats: int) -> Measured:
    """Generate a tree and scan it, once to warm up."""
    tree = TREES[layout](root, files)
    with Opened() as images:
        found = scan(collection_of(layout, root, tree))
    if len(found.records) != tree.records or found.failures:
        raise SystemExit(
            f"{layout}: {len(found.records)} records of {tree.records}, {len(found.failures)} failures"
        )
    del found
    best = [float("inf"), float("inf")]
    for _ in range(repeats):
        clock, cpu = time.perf_counter(), time.process_time()
        scan(collection_of(layout, root, tree))
        best = [min(best[0], time.perf_counter() - clock), min(best[1], time.process_time() - cpu)]
    return Measured(layout, tree, *best, images.count)


def report(rows: list[Measured]) -> str:
    """The table, as Markdown."""
    lines = [
        "| layout | files | images | files/s, clock | files/s, CPU | images opened |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        numbers = (
            row.tree.files,
            row.tree.records,
            row.tree.files / row.wall,
            row.tree.files / row.cpu,
            row.opened,
        )
        lines.append(f"| {row.layout} | " + " | ".join(f"{number:,.0f}" for number in numbers) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure the layouts one after another and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--layouts", default=",".join(TREES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", type=Path, help="folder for the trees; default: a temporary one")
    given = parser.parse_args()
    rows = []
    for layout in given.layouts.split(","):
        root = Path(tempfile.mkdtemp(prefix=f"scan-{layout}-", dir=given.work))
        try:
            rows.append(measure(layout, root, given.files, given.repeats))
        finally:
            shutil.rmtree(root)
        print(report(rows[-1:]).splitlines()[-1], flush=True)
    print("\n" + report(rows))


if __name__ == "__main__":
    main()
