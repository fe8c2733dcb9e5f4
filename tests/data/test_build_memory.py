"""A build keeps to its memory: units wait for each other by what their headers say that they need."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from medloom.data.collection import Collection
from medloom.data.ingest.build import build
from medloom.data.ingest.headers import Header, header_of
from medloom.data.ingest.needs import FACTOR, UNKNOWN, WORKER_BYTES, free_memory, need_of
from medloom.data.ingest.pool import Job, Pool
from medloom.data.ingest.units import HeldOutSets, Unit
from medloom.data.sample import Record
from PIL import Image as Pillow

GB = 1 << 30


class Idle:
    """Stands in for a worker process."""

    job: Job | None = None

    def give(self, job: Job) -> None:
        self.job = job


def handed_out(needs: dict[str, int], memory: int | None, *, workers: int, rounds: int) -> list[list[str]]:
    """Which units are under way in each round; all of a round are done before the next."""
    pool = Pool(Path(), b"", HeldOutSets(), workers, memory)
    pool.needs = needs
    pool._hire = lambda: pool.workers.append(Idle()) or pool.workers[-1]  # type: ignore[assignment,func-returns-value]
    waiting = deque(Unit(name=name, source=None, records=()) for name in needs)  # type: ignore[arg-type]
    seen = []
    for _ in range(rounds):
        pool._hand_out(waiting)
        seen.append(sorted(worker.job.unit.name for worker in pool.workers if worker.job))
        for worker in pool.workers:
            worker.job = None
    assert not waiting
    pool.workers.clear()
    return seen


def test_units_share_the_memory_and_small_ones_overtake():
    base = WORKER_BYTES
    needs = {"a": 3 * GB, "b": 3 * GB, "c": GB, "d": 9 * GB}
    assert handed_out(needs, 4 * GB + 2 * base, workers=4, rounds=3) == [["a", "c"], ["b"], ["d"]]
    assert handed_out(needs, 100 * GB, workers=2, rounds=2) == [["a", "b"], ["c", "d"]]
    assert handed_out(needs, None, workers=4, rounds=1) == [["a", "b", "c", "d"]]


def test_a_unit_larger_than_the_memory_is_done_alone_and_not_never():
    assert handed_out({"a": GB, "b": 50 * GB}, 2 * GB, workers=2, rounds=2) == [["a"], ["b"]]
    assert handed_out({"a": 50 * GB, "b": GB}, 2 * GB, workers=2, rounds=2) == [["a"], ["b"]]


def test_too_little_memory_changes_nothing_but_the_time(tmp_path, make_collection, files_of):
    collection = Collection.load(make_collection(tmp_path / "in"))
    build(collection, tmp_path / "one", shard_bytes=20_000)
    build(collection, tmp_path / "two", shard_bytes=20_000, workers=2, memory=1)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def record(*paths: Path) -> Record:
    return Record(dataset="a", name="a", subject="a", paths=paths)


@pytest.mark.parametrize(
    ("dtype", "slope", "kind", "width"),
    [("u1", 1, "8 bit", 1), ("i2", 1, "16 bit", 2), ("i2", 2.5, "float", 4), ("f8", 1, "float", 4)],
)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_headers_of_nifti(tmp_path, dtype, slope, kind, width, suffix):
    image = nibabel.Nifti1Image(np.zeros((30, 20, 10), dtype), np.eye(4))
    image.header.set_slope_inter(slope, 0)
    nibabel.save(image, tmp_path / f"a{suffix}")
    expected = Header(f"{suffix[1:]} {kind}", 3, 6000 * width)
    assert header_of(record(tmp_path / f"a{suffix}")) == expected


def test_headers_of_pictures_and_of_what_is_none(tmp_path):
    Pillow.fromarray(np.zeros((30, 20, 3), np.uint8)).save(tmp_path / "a.png")
    Pillow.fromarray(np.zeros((30, 20), np.uint16)).save(tmp_path / "b.png")
    Pillow.fromarray(np.zeros((30, 20), np.uint8)).save(tmp_path / "c.jpg")
    (tmp_path / "d.nii.gz").write_bytes(b"\x1f\x8b rubbish")
    found = [header_of(record(tmp_path / name)) for name in ("a.png", "b.png", "c.jpg", "d.nii.gz", "no.png")]
    assert found == [
        Header("png 8 bit", 2, 1800), Header("png 16 bit", 2, 1200), Header("jpeg", 2, 600), None, None
    ]  # fmt: skip


def test_a_series_needs_its_slices_times_the_factor(tmp_path):
    source = Path(pydicom.data.get_testdata_file("CT_small.dcm"))
    dataset = pydicom.dcmread(source)
    paths = []
    for number in range(8):
        dataset.SOPInstanceUID = f"1.2.3.{number}"
        dataset.ImagePositionPatient = [0, 0, number]
        paths.append(tmp_path / f"{number}.dcm")
        dataset.save_as(paths[-1])
    series = record(*paths)
    assert header_of(series) == Header("dicom volume", 3, 8 * 128 * 128 * 2)
    files = sum(path.stat().st_size for path in paths)
    unit = Unit(name="a", source=None, records=(series, record(paths[0])))  # type: ignore[arg-type]
    assert need_of(unit) == FACTOR["dicom"] * 8 * 128 * 128 * 2 + 2 * files
    rubbish = tmp_path / "rubbish.nii.gz"
    rubbish.write_bytes(bytes(1 << 20))
    assert need_of(Unit(name="b", source=None, records=(record(rubbish),))) == UNKNOWN << 20  # type: ignore[arg-type]


def test_free_memory_is_a_part_of_the_machine():
    assert 0 < free_memory() < 1 << 50
