"""Slides, films, MetaImage and segmented DICOM, from a collection into shards."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from medloom.data.collection import Collection, scan
from medloom.data.errors import ConfigError
from medloom.data.ingest.build import build
from medloom.data.ingest.headers import header_of
from medloom.data.ingest.needs import need_of
from medloom.data.ingest.units import plan
from medloom.data.readers import read
from medloom.data.shards.reader import Shards

from .readers.clips import pattern, write_clip
from .readers.slides import specimen, write_huge, write_svs

CANARY = "Mustermann"


def collection(folder: Path, **source) -> Collection:
    text = {"name": "c", "salt": "a salt for tests", "sources": [{"root": ".", **source}]}
    path = folder.parent / f"{folder.name}.yaml"
    path.write_text(yaml.safe_dump({**text, "root": str(folder)}))
    return Collection.load(path)


def metas(out: Path) -> list[dict]:
    shards = Shards.open(out)
    return [shards.meta(ref) for ref in shards.refs()]


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    pytest.importorskip("tiffslide", reason="slides need tiffslide; pip install 'medloom[formats]'")
    folder = tmp_path / "slides"
    folder.mkdir()
    for number in range(2):
        write_svs(folder / f"{CANARY}-{number}.svs", specimen(700, 900, number))
    return folder


def slide_source(folder: Path, **reading) -> Collection:
    return collection(folder, dataset="wsi", layout="image_folder", modality="histopathology",
                      reading={"mpp": 0.25, "tile": 128, **reading})  # fmt: skip


def test_tiles_of_slides_become_samples_that_keep_their_keys(slides: Path, tmp_path: Path) -> None:
    result = build(slide_source(slides), tmp_path / "some")
    assert result.failures == []
    some = {meta["key"]: meta for meta in metas(tmp_path / "some")}
    build(slide_source(slides, tissue=0.0), tmp_path / "all")
    every = {meta["key"]: meta for meta in metas(tmp_path / "all")}
    assert 10 < len(some) < len(every) == 2 * 5 * 7
    assert all(meta["content_hash"] == every[key]["content_hash"] for key, meta in some.items())
    assert len({meta["subject"] for meta in some.values()}) == 2
    first = next(iter(some.values()))
    assert first["modality"] == "histopathology" and first["spacing"] == [0.00025, 0.00025]
    for path in (tmp_path / "some").rglob("*"):
        assert path.is_dir() or CANARY.encode() not in path.read_bytes(), path


def test_what_is_read_of_a_slide_is_part_of_its_unit(slides: Path, tmp_path: Path) -> None:
    build(slide_source(slides, most=3), tmp_path / "out")
    assert len(metas(tmp_path / "out")) == 6
    build(slide_source(slides, most=4), tmp_path / "out")
    assert len(metas(tmp_path / "out")) == 8


def test_a_slide_that_breaks_in_the_middle_leaves_nothing(slides: Path, tmp_path: Path) -> None:
    broken = slides / f"{CANARY}-0.svs"
    data = bytearray(broken.read_bytes())
    data[len(data) // 3 : len(data) // 3 + 64] = bytes(64)
    broken.write_bytes(data)
    result = build(slide_source(slides, tissue=0.0), tmp_path / "out")
    (failure,) = result.failures
    assert "truncated or corrupt" in failure.reason and CANARY not in failure.reason
    assert len(metas(tmp_path / "out")) == 35


def test_options_of_reading_are_checked(slides: Path) -> None:
    for wrong, reason in (({"tile": 3}, "tile: 3 is out of bounds"), ({"mppp": 1.0}, "mpp"),
                          ({"tissue": 2.0}, "tissue")):  # fmt: skip
        with pytest.raises(ConfigError, match=reason):
            slide_source(slides, **wrong)


def test_frames_of_films_become_samples(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="videos need PyAV; pip install 'medloom[formats]'")
    folder = tmp_path / "films"
    folder.mkdir()
    write_clip(folder / f"{CANARY}.mkv", pattern(25))
    source = {"dataset": "film", "layout": "image_folder", "modality": "endoscopy"}
    build(collection(folder, **source, reading={"every": 1.0}), tmp_path / "few")
    build(collection(folder, **source), tmp_path / "all")
    few, every = metas(tmp_path / "few"), {meta["key"]: meta for meta in metas(tmp_path / "all")}
    assert [meta["frame"] for meta in few] == [0, 10, 20] and len(every) == 25
    assert all(every[meta["key"]]["content_hash"] == meta["content_hash"] for meta in few)


def test_a_film_with_a_cut_end_is_refused_as_a_whole(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="videos need PyAV; pip install 'medloom[formats]'")
    folder = tmp_path / "films"
    folder.mkdir()
    write_clip(folder / "good.mkv", pattern(5))
    path = write_clip(folder / "cut.mkv", pattern(45))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    result = build(collection(folder, dataset="film", layout="image_folder"), tmp_path / "out")
    assert len(result.failures) == 1 and len(metas(tmp_path / "out")) == 5


def test_a_dicom_tree_with_its_segmentation(tmp_path: Path, dicom_with_seg) -> None:
    folder, labels = dicom_with_seg
    found = scan(collection(folder, dataset="ct", layout="dicom_tree", options={"masks": "seg"}))
    ((_, record),) = found.records
    assert record.mask == folder / "a" / "seg.dcm"
    build(collection(folder, dataset="ct", layout="dicom_tree", options={"masks": "seg"}), tmp_path / "out")
    shards = Shards.open(tmp_path / "out")
    (ref,) = shards.refs()
    meta, mask = shards.meta(ref), shards.read_mask(ref)
    assert meta["mask"]["classes"] == {"1": "liver", "2": "neoplasm"}
    assert np.bincount(mask.ravel()).tolist() == np.bincount(labels.ravel()).tolist()
    declared = collection(folder, dataset="ct", layout="dicom_tree", options={"masks": "seg"},
                          mask_classes={4: "Neoplasm"})  # fmt: skip
    build(declared, tmp_path / "named")
    shards = Shards.open(tmp_path / "named")
    (ref,) = shards.refs()
    assert np.array_equal(shards.read_mask(ref) == 4, mask == 2)
    assert shards.meta(ref)["mask"]["classes"] == {"4": "Neoplasm"}


@pytest.fixture
def dicom_with_seg(tmp_path: Path) -> tuple[Path, np.ndarray]:
    pytest.importorskip("highdicom", reason="writes the segmentation; pip install 'medloom[formats]'")
    from pydicom.uid import generate_uid

    from .readers.conftest import _series
    from .readers.test_readers_structures import SHAPE, balls, write_seg

    folder = tmp_path / "tree"
    rng = np.random.default_rng(0)
    paths = _series(folder / "a", rng.integers(0, 99, SHAPE).astype(np.int16),
                    FrameOfReferenceUID=generate_uid(), StudyID="1", PatientBirthDate="", PatientSex="",
                    StudyDate="", StudyTime="", AccessionNumber="", ReferringPhysicianName="",
                    SeriesNumber=1)  # fmt: skip
    first, second = balls()
    write_seg(folder / "a" / "seg.dcm", paths, [first, second])
    return folder, first + 2 * second


def test_detached_voxels_belong_to_the_record(tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK", reason="writes the file; pip install 'medloom[formats]'")
    folder = tmp_path / "mhd"
    folder.mkdir()
    array = np.random.default_rng(0).integers(0, 999, (40, 128, 128)).astype(np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(folder / "a.mhd"))
    source = {"dataset": "mhd", "layout": "image_folder"}
    ((_, record),) = scan(collection(folder, **source)).records
    header = header_of(record)
    assert header is not None and (header.kind, header.ndim, header.bytes) == (
        "mha/nrrd 16 bit",
        3,
        array.nbytes,
    )
    build(collection(folder, **source), tmp_path / "out")
    (before,) = metas(tmp_path / "out")
    (folder / "a.raw").write_bytes((array + 1).tobytes())
    build(collection(folder, **source), tmp_path / "out")
    (after,) = metas(tmp_path / "out")
    assert before["key"] == after["key"] and before["content_hash"] != after["content_hash"]
    (unit,) = plan(scan(collection(folder, **source)).records, shard_bytes=1 << 30, salt=b"12345678")
    assert need_of(unit) >= 3 * array.nbytes


def test_headers_tell_what_will_be_stored(slides: Path, tmp_path: Path) -> None:
    records = [record for _, record in scan(slide_source(slides, tissue=0.0)).records]
    header = header_of(records[0])
    images = read(records[0].paths, given=records[0].given)
    assert header is not None and header.bytes == sum(image.array.nbytes for image in images)
    assert header.from_disk and header.at_once < 1 << 26
    pytest.importorskip("av", reason="videos need PyAV; pip install 'medloom[formats]'")
    films = tmp_path / "films"
    films.mkdir()
    write_clip(films / "a.mkv", pattern(25))
    ((_, record),) = scan(
        collection(films, dataset="f", layout="image_folder", reading={"every": 0.5})
    ).records
    header = header_of(record)
    found = sum(image.array.nbytes for image in read(record.paths, given=record.given))
    assert header is not None and (header.kind, header.bytes) == ("film", found)


@pytest.mark.slow
def test_a_huge_slide_is_built_in_bounded_memory(tmp_path: Path) -> None:
    pytest.importorskip("tiffslide", reason="slides need tiffslide; pip install 'medloom[formats]'")
    folder = tmp_path / "slides"
    folder.mkdir()
    write_huge(folder / "huge.svs")
    slide_source(folder, mpp=2.0, tile=512)
    script = (
        "import resource, sys\n"
        "from medloom.data.collection import Collection\n"
        "from medloom.data.ingest.build import build\n"
        "result = build(Collection.load(sys.argv[1]), sys.argv[2], workers=1)\n"
        # The workers' peak; that of this process would start at what the process that forked it had.
        "print(result.manifest.count, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
    )
    arguments = [str(tmp_path / "slides.yaml"), str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True
    )
    count, peak = map(int, done.stdout.split()[-2:])
    assert count > 100 and peak < 1_500_000  # KiB, the interpreter and its libraries included
