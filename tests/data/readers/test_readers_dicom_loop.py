"""DICOM films: frames as pydicom decodes them, one for every so many seconds, regions, crops, MPEG inside."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pydicom
import pytest
from medloom.data.errors import ReadError
from medloom.data.readers import each, read
from medloom.data.sample import Given, Modality
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import MPEG2MPML, MPEG4HP41, RLELossless, UltrasoundMultiFrameImageStorage

from .clips import pattern, write_clip

RNG = np.random.default_rng(0)
US = {"Modality": "US", "SOPClassUID": UltrasoundMultiFrameImageStorage}


def region(
    top: int, left: int, bottom: int, right: int, *, units: int = 3, delta: float = 0.02, kind: int = 1
) -> Dataset:
    found = Dataset()
    found.RegionDataType, found.RegionSpatialFormat = kind, 1
    found.RegionLocationMinY0, found.RegionLocationMinX0 = top, left
    found.RegionLocationMaxY1, found.RegionLocationMaxX1 = bottom, right
    found.PhysicalUnitsXDirection = found.PhysicalUnitsYDirection = units
    found.PhysicalDeltaX = found.PhysicalDeltaY = delta
    return found


@pytest.mark.parametrize("compressed", [False, True])
def test_frames_are_those_that_pydicom_decodes(tmp_path: Path, make, save, compressed: bool) -> None:
    colour = RNG.integers(0, 255, (6, 20, 30, 3)).astype(np.uint8)
    dataset = make(colour, **US)
    if compressed:
        dataset.compress(RLELossless, generate_instance_uid=False)
    path = save(tmp_path / "a.dcm", dataset)
    images = read([path])
    oracle = pydicom.dcmread(path).pixel_array
    assert np.array_equal(np.stack([image.array for image in images]), oracle.transpose(0, 3, 1, 2))
    assert [image.facts["frame"] for image in images] == list(range(6))
    assert all(image.modality == Modality.ULTRASOUND and image.facts["frames"] == 6 for image in images)


def test_colours_stored_as_ybr_come_out_as_rgb(tmp_path: Path, make, save) -> None:
    colour = RNG.integers(0, 255, (3, 8, 8, 3)).astype(np.uint8)
    path = save(tmp_path / "a.dcm", make(colour, PhotometricInterpretation="YBR_FULL", **US))
    from pydicom.pixels import convert_color_space

    oracle = convert_color_space(colour.copy(), "YBR_FULL", "RGB", per_frame=True)
    found = np.stack([image.array for image in read([path])]).transpose(0, 2, 3, 1)
    assert np.array_equal(found, oracle) and not np.array_equal(found, colour)


@pytest.mark.parametrize(
    "clock",
    [{"FrameTime": 100}, {"CineRate": 10}, {"RecommendedDisplayFrameRate": 10},
     {"FrameTimeVector": [0] + [100] * 24}],
)  # fmt: skip
def test_a_frame_for_every_so_many_seconds(tmp_path: Path, make, save, clock) -> None:
    array = RNG.integers(0, 255, (25, 6, 7)).astype(np.uint8)
    path = save(tmp_path / "a.dcm", make(array, **US, **clock))
    images = read([path], given=Given(every=0.5))
    assert [image.facts["frame"] for image in images] == [0, 5, 10, 15, 20]
    assert [image.facts["time"] for image in images] == pytest.approx([0, 0.5, 1.0, 1.5, 2.0])
    for image in images:
        assert np.array_equal(image.array[0], array[image.facts["frame"]])
    assert [i.facts["frame"] for i in read([path], given=Given(most=5))] == [0, 5, 10, 15, 20]


def test_seconds_are_not_guessed(tmp_path: Path, make, save) -> None:
    array = RNG.integers(0, 255, (8, 6, 7)).astype(np.uint8)
    path = save(tmp_path / "a.dcm", make(array, **US))
    with pytest.raises(ReadError, match=r"a\.dcm: states no time between frames"):
        read([path], given=Given(every=1.0))
    assert [image.facts["frame"] for image in read([path], given=Given(most=2))] == [0, 4]
    assert "time" not in read([path])[0].facts


def test_one_frame_is_decoded_at_a_time(tmp_path: Path, make, save) -> None:
    array = np.zeros((60, 300, 400, 3), np.uint8)  # 22 MB
    array[:, 5:9, 5:9] = RNG.integers(0, 255, (60, 4, 4, 3))
    dataset = make(array, **US)
    dataset.compress(RLELossless, generate_instance_uid=False)
    path = save(tmp_path / "a.dcm", dataset)
    del array, dataset
    tracemalloc.start()
    count = sum(1 for _ in each([path]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 60 and peak < 12 * 300 * 400 * 3


def test_regions_become_numbers(tmp_path: Path, make, save) -> None:
    array = RNG.integers(0, 255, (2, 60, 90)).astype(np.uint8)
    regions = [region(10, 5, 39, 64), region(45, 0, 59, 89, units=4, kind=3)]
    path = save(tmp_path / "a.dcm", make(array, SequenceOfUltrasoundRegions=Sequence(regions), **US))
    image = read([path])[0]
    assert image.facts["regions"] == [
        {"kind": 1, "box": [10, 5, 40, 65], "spacing": [0.2, 0.2]},
        {"kind": 3, "box": [45, 0, 60, 90], "spacing": None},
    ]
    assert image.spacing == pytest.approx((0.2, 0.2)) and image.array.shape == (1, 60, 90)


def test_a_crop_leaves_what_is_written_around_the_scan(tmp_path: Path, make, save) -> None:
    array = RNG.integers(0, 200, (2, 60, 90)).astype(np.uint8)
    array[:, :8] = 255  # where scanners write the name
    regions = Sequence([region(10, 5, 39, 64), region(30, 20, 49, 79)])
    one = Sequence([region(10, 5, 39, 64)])
    loop = save(tmp_path / "a.dcm", make(array, SequenceOfUltrasoundRegions=regions, **US))
    picture = save(tmp_path / "b.dcm", make(array[0], SequenceOfUltrasoundRegions=one, Modality="US"))
    images = read([loop], given=Given(crop=True))
    assert np.array_equal(images[1].array[0], array[1, 10:50, 5:80])
    assert [r["box"] for r in images[1].facts["regions"]] == [[0, 0, 30, 60], [20, 15, 40, 75]]
    (image,) = read([picture], given=Given(crop=True))
    assert np.array_equal(image.array[0], array[0, 10:40, 5:65]) and image.facts["cropped"]


def test_a_crop_is_refused_where_the_regions_are_not_the_pictures(tmp_path: Path, make, save) -> None:
    array = RNG.integers(0, 200, (60, 90)).astype(np.uint8)
    none = save(tmp_path / "a.dcm", make(array, Modality="US"))
    wide = make(array, Modality="US", SequenceOfUltrasoundRegions=Sequence([region(0, 0, 99, 99)]))
    for path, reason in ((none, "no ultrasound regions"), (save(tmp_path / "b.dcm", wide), "was cut after")):
        with pytest.raises(ReadError, match=reason):
            read([path], given=Given(crop=True))
        assert read([path])[0].array.shape == (1, 60, 90)
    ct = save(tmp_path / "c.dcm", make(array))
    assert read([ct], given=Given(crop=True))[0].array.shape == (1, 60, 90)


@pytest.mark.parametrize(
    ("syntax", "suffix", "codec"), [(MPEG2MPML, "ts", "mpeg2video"), (MPEG4HP41, "mp4", "h264")]
)
def test_mpeg_inside_dicom(tmp_path: Path, make, save, syntax: str, suffix: str, codec: str) -> None:
    pytest.importorskip("av", reason="MPEG needs PyAV; pip install 'medloom[formats]'")
    smooth = [np.full((48, 64, 3), (40 + 4 * i, 90, 200 - 4 * i), np.uint8) for i in range(25)]
    clip = write_clip(tmp_path / f"a.{suffix}", smooth, codec, "yuv420p", rate=25)
    dataset = make(np.stack(smooth), Modality="ES")
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([clip.read_bytes()])
    dataset["PixelData"].is_undefined_length = True
    path = save(tmp_path / "a.dcm", dataset)
    images = read([path])
    assert len(images) == 25 and images[0].modality == Modality.ENDOSCOPY
    for image, frame in zip(images, smooth, strict=True):
        assert np.abs(image.array.astype(int) - frame.transpose(2, 0, 1)).max() <= 8
        assert image.facts["format"] == "dicom"
    assert [image.facts["frame"] for image in read([path], given=Given(every=0.5))] == [0, 13]


def test_a_film_that_is_cut_short_is_refused(tmp_path: Path, make, save) -> None:
    dataset = make(np.stack(pattern(9)), **US)
    dataset.compress(RLELossless, generate_instance_uid=False)
    dataset.NumberOfFrames = 12
    with pytest.raises(ReadError, match=r"a\.dcm"):
        read([save(tmp_path / "a.dcm", dataset)])


@pytest.mark.realdata
def test_real_ultrasound_pictures(realdata: Path) -> None:
    paths = sorted((realdata / "mr_us_breast_mimbcd" / "us").glob("*.dcm"))
    assert paths
    for path in paths:
        (image,) = read([path])
        oracle = pydicom.dcmread(path).pixel_array
        assert np.array_equal(image.array, oracle.transpose(2, 0, 1)[: len(image.array)])
        assert image.modality == Modality.ULTRASOUND and image.spacing is not None
        with pytest.raises(ReadError, match="was cut after its regions were written"):
            read([path], given=Given(crop=True))  # their regions reach beyond the pictures
