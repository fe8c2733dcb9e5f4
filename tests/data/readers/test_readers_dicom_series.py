"""DICOM series: geometry of volumes, repeated positions, enhanced objects; unsound series refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from medloom.data.errors import ReadError
from medloom.data.readers import read
from medloom.data.sample import Modality
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    generate_uid,
)

RNG = np.random.default_rng(0)
SERIES = generate_uid(entropy_srcs=["series"])  # that of the fixtures
AXIAL = (1.0, 0, 0, 0, 1, 0)


def orientations() -> list[tuple[float, ...]]:
    tilt = np.array([[1, 0, 0], [0, np.cos(0.3), -np.sin(0.3)], [0, np.sin(0.3), np.cos(0.3)]])
    base = [
        (1, 0, 0, 0, 1, 0),  # axial
        (0, 1, 0, 0, 0, -1),  # sagittal
        (1, 0, 0, 0, 0, -1),  # coronal
        (-1, 0, 0, 0, 1, 0),  # flipped rows: slices run the other way
        (0, -1, 0, 1, 0, 0),
    ]
    turned = [tuple(np.concatenate([tilt @ row[:3], tilt @ row[3:]])) for row in map(np.array, base)]
    return [*base, *turned]


@pytest.mark.parametrize("orientation", orientations())
def test_a_marked_voxel_keeps_its_place_in_the_patient(tmp_path: Path, orientation, series) -> None:
    array = np.zeros((5, 6, 7), np.int16)
    array[3, 1, 4] = 1000
    (image,) = read(series(tmp_path, array, orientation=orientation))
    assert image.ndim == 3 and image.modality == Modality.CT
    index = np.argwhere(image.array[0] == 1000)[0]
    columns, rows = np.array(orientation[:3]), np.array(orientation[3:])
    # DICOM PS3.3 C.7.6.2.1.1: position + column index * column spacing * row cosines + ...
    patient = (
        np.array([-10.0, 20, 30]) + 3 * 2.5 * np.cross(columns, rows) + 4 * 1.1 * columns + 1 * 0.7 * rows
    )
    assert image.affine is not None and image.spacing is not None
    world = image.affine @ [*index, 1]
    assert np.allclose(world[:3], patient * [-1, -1, 1], atol=1e-3)  # LPS to RAS
    assert (np.abs(image.affine[:3, :3]).argmax(axis=0) == [2, 1, 0]).all()
    assert image.affine[2, 0] > 0 and image.affine[1, 1] > 0 and image.affine[0, 2] > 0
    assert sorted(image.spacing) == pytest.approx([0.7, 1.1, 2.5], abs=1e-4)


def test_axial_spacing_is_depth_height_width(tmp_path: Path, series, volume) -> None:
    (image,) = read(series(tmp_path, volume()))
    assert image.spacing == pytest.approx((2.5, 0.7, 1.1))
    assert image.array.shape == (1, 5, 6, 7)


def test_order_of_files_and_instance_numbers_do_not_matter(tmp_path: Path, series, volume) -> None:
    array = volume((9, 4, 4))
    paths = series(tmp_path, array)
    (expected,) = read(paths)
    # An axial series runs to posterior and to the left: canonical turns both.
    assert np.array_equal(expected.array[0], array[:, ::-1, ::-1])
    for path in paths:
        dataset = pydicom.dcmread(path)
        dataset.InstanceNumber = 100 - int(dataset.InstanceNumber)
        dataset.save_as(path)
    (image,) = read(list(RNG.permutation(paths)))
    assert np.array_equal(image.array, expected.array)


def test_a_ct_comes_out_in_hounsfield_units_as_int16(tmp_path: Path, series) -> None:
    stored = RNG.integers(0, 4096, (4, 5, 5)).astype(np.uint16)
    (image,) = read(series(tmp_path, stored, RescaleSlope=1, RescaleIntercept=-1024))
    assert image.array.dtype == np.int16
    assert np.array_equal(image.array[0], stored[:, ::-1, ::-1].astype(int) - 1024)


def test_slopes_that_differ_between_slices_are_applied_to_each(tmp_path: Path, series) -> None:
    stored = np.full((3, 4, 4), 10, np.uint16)
    paths = series(tmp_path, stored, Modality="PT")
    for path in paths:
        dataset = pydicom.dcmread(path)
        dataset.RescaleSlope, dataset.RescaleIntercept = 0.5 * int(dataset.InstanceNumber), 0
        dataset.save_as(path)
    (image,) = read(paths)
    assert image.array.dtype == np.float32 and image.modality == Modality.PET
    assert image.array[0, :, 0, 0].tolist() == [5, 10, 15]


def test_gantry_tilt_shears_the_affine_instead_of_failing(tmp_path: Path, series, volume) -> None:
    paths = series(tmp_path, volume())
    for path in paths:
        dataset = pydicom.dcmread(path)
        x, y, z = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x, y + 0.4 * (z - 30), z]
        dataset.save_as(path)
    (image,) = read(paths)
    assert image.affine is not None
    assert image.affine[:3, 0] == pytest.approx([0, -0.4 * 2.5, 2.5])


def test_a_missing_slice_is_refused_and_named(tmp_path: Path, series, volume) -> None:
    paths = series(tmp_path, volume((8, 4, 4)))
    (gone,) = [path for path in paths if pydicom.dcmread(path).InstanceNumber == 4]
    with pytest.raises(ReadError, match=r"5 mm after .* median gap is 2\.5 mm.*slice is missing"):
        read([path for path in paths if path != gone])


@pytest.mark.parametrize(("error", "accepted"), [(0.2, True), (0.3, False)])
def test_uneven_gaps_pass_within_ten_percent(
    tmp_path: Path, error: float, accepted: bool, series, volume
) -> None:
    paths = series(tmp_path, volume())
    dataset = pydicom.dcmread(paths[0])
    dataset.ImagePositionPatient = [
        *dataset.ImagePositionPatient[:2],
        dataset.ImagePositionPatient[2] - error,
    ]
    dataset.save_as(paths[0])
    if accepted:
        assert len(read(paths)) == 1
    else:
        with pytest.raises(ReadError, match="slice is missing"):
            read(paths)


def test_two_series_mixed_are_refused(tmp_path: Path, series, volume) -> None:
    one = series(tmp_path / "a", volume())
    two = series(tmp_path / "b", volume(), SeriesInstanceUID=generate_uid())
    with pytest.raises(ReadError, match="2 series mixed"):
        read([*one, *two])


def test_a_localizer_in_the_series_is_refused(tmp_path: Path, series, volume) -> None:
    paths = series(tmp_path / "a", volume()) + series(
        tmp_path / "b", volume()[:1], orientation=(0, 1, 0, 0, 0, -1)
    )
    with pytest.raises(ReadError, match="expected one orientation"):
        read(paths)


@pytest.mark.parametrize("field", ["shape", "spacing"])
def test_differing_grids_are_refused(tmp_path: Path, field: str, series, volume) -> None:
    paths = series(tmp_path, volume())
    dataset = pydicom.dcmread(paths[2])
    if field == "spacing":
        dataset.PixelSpacing = [0.8, 1.1]
    else:
        dataset.Rows, dataset.PixelData = 3, dataset.PixelData[: 3 * 7 * 2]
        dataset.PixelData += b"\0" * (len(dataset.PixelData) % 2)
    dataset.save_as(paths[2])
    with pytest.raises(ReadError, match=f"expected one {field}"):
        read(paths)


def test_positions_off_a_straight_line_are_refused(tmp_path: Path, series, volume) -> None:
    paths = series(tmp_path, volume())
    dataset = pydicom.dcmread(paths[2])
    dataset.ImagePositionPatient = [dataset.ImagePositionPatient[0] + 9, *dataset.ImagePositionPatient[1:]]
    dataset.save_as(paths[2])
    with pytest.raises(ReadError, match="straight line"):
        read(paths)


def test_the_same_object_twice_counts_once(tmp_path: Path, series, volume) -> None:
    paths = series(tmp_path, volume())
    copy = tmp_path / "copy.dcm"
    copy.write_bytes(paths[1].read_bytes())
    (image,) = read([*paths, copy])
    assert image.array.shape == (1, 5, 6, 7)


def test_positions_taken_several_times_are_channels_or_frames(tmp_path: Path, series) -> None:
    paths = []
    for echo in range(3):
        taken = series(tmp_path / str(echo), np.full((4, 5, 5), echo, np.int16), Modality="MR")
        for path in taken:
            dataset = pydicom.dcmread(path)
            dataset.InstanceNumber = int(dataset.InstanceNumber) + 10 * echo
            dataset.save_as(path)
        paths += taken
    (image,) = read(paths)
    assert image.array.shape == (3, 4, 5, 5) and image.array[:, 0, 0, 0].tolist() == [0, 1, 2]
    frames = read(paths, fourth_axis="frames")
    assert [int(frame.array.max()) for frame in frames] == [0, 1, 2]
    with pytest.raises(ReadError, match="taken"):
        read(paths[:-1])


def test_a_cine_loop_of_one_position_is_2d_frames(tmp_path: Path, make, save) -> None:
    paths = [
        save(
            tmp_path / f"{index}.dcm",
            make(
                np.full((4, 4), index, np.int16), Modality="MR", InstanceNumber=index,
                ImagePositionPatient=[0, 0, 0], ImageOrientationPatient=list(AXIAL), PixelSpacing=[2, 3],
            ),
        )
        for index in range(3)
    ]  # fmt: skip
    images = read(paths)
    assert [image.array.shape for image in images] == [(1, 4, 4)] * 3
    assert [image.facts["frame"] for image in images] == [0, 1, 2]
    assert images[0].spacing == (2, 3)


def test_slices_without_positions_stack_by_their_number(
    tmp_path: Path, series, volume, remove_fields
) -> None:
    array = volume()
    paths = series(tmp_path, array)
    remove_fields(paths, "ImagePositionPatient")
    (image,) = read(paths)
    assert image.affine is None and image.spacing == pytest.approx((2.5, 0.7, 1.1))
    assert np.array_equal(image.array[0], array)
    with pytest.raises(ReadError, match="not evenly spaced"):
        read([path for path in paths if pydicom.dcmread(path).InstanceNumber != 3])


def test_a_single_slice_is_a_picture_with_its_place(tmp_path: Path, series, volume) -> None:
    (path,) = series(tmp_path, volume()[:1])
    (image,) = read([path])
    assert image.ndim == 2 and image.affine is not None
    assert np.allclose((image.affine @ [0, 2, 3, 1])[:3], [10 - 3 * 1.1, -20 - 2 * 0.7, 30])


def test_enhanced_objects_take_geometry_and_rescale_from_their_groups(
    tmp_path: Path, make, save, series, volume
) -> None:
    array = volume((5, 6, 7))
    order = [3, 0, 4, 1, 2]
    frames = []
    for slot in order:
        frame = Dataset()
        frame.PlanePositionSequence = Sequence([Dataset()])
        frame.PlanePositionSequence[0].ImagePositionPatient = [-10, 20, 30 + 2.5 * slot]
        frames.append(frame)
    shared = Dataset()
    for name, fields in {
        "PlaneOrientationSequence": {"ImageOrientationPatient": list(AXIAL)},
        "PixelMeasuresSequence": {"PixelSpacing": [0.7, 1.1], "SliceThickness": 2.5},
        "PixelValueTransformationSequence": {"RescaleSlope": 1, "RescaleIntercept": -1000},
    }.items():
        item = Dataset()
        for key, value in fields.items():
            setattr(item, key, value)
        setattr(shared, name, Sequence([item]))
    dataset = make(
        array[order],
        PerFrameFunctionalGroupsSequence=Sequence(frames),
        SharedFunctionalGroupsSequence=Sequence([shared]),
    )
    (image,) = read([save(tmp_path / "a.dcm", dataset)])
    (expected,) = read(series(tmp_path / "series", array, RescaleSlope=1, RescaleIntercept=-1000))
    assert np.array_equal(image.array, expected.array)
    assert image.affine is not None and expected.affine is not None
    assert np.allclose(image.affine, expected.affine) and image.spacing == expected.spacing


def test_times_of_an_enhanced_object_go_by_its_dimensions_and_not_by_storage(
    tmp_path: Path, make, save, volume
) -> None:
    array = volume((2, 4, 6, 7))  # time, slice
    stored = [(1, 0), (0, 2), (0, 0), (1, 3), (1, 2), (0, 1), (0, 3), (1, 1)]
    frames = []
    for time, slot in stored:
        frame, place, content = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [-10, 20, 30 + 2.5 * slot]
        content.DimensionIndexValues = [1, slot + 1, time + 1]
        frame.PlanePositionSequence, frame.FrameContentSequence = Sequence([place]), Sequence([content])
        frames.append(frame)
    shared, turn, measures = Dataset(), Dataset(), Dataset()
    turn.ImageOrientationPatient, measures.PixelSpacing = list(AXIAL), [0.7, 1.1]
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = Sequence([turn]), Sequence([measures])
    dataset = make(
        np.stack([array[time, slot] for time, slot in stored]),
        PerFrameFunctionalGroupsSequence=Sequence(frames),
        SharedFunctionalGroupsSequence=Sequence([shared]),
    )
    path = save(tmp_path / "a.dcm", dataset)
    (image,) = read([path])
    assert np.array_equal(image.array, array[:, :, ::-1, ::-1])  # RAS+: rows and columns run backwards
    first, second = read([path], fourth_axis="frames")
    assert np.array_equal(first.array, image.array[:1]) and np.array_equal(second.array, image.array[1:])


def test_reconstructed_nuclear_medicine_is_a_volume(tmp_path: Path, make, save, volume) -> None:
    detector = Dataset()
    detector.ImagePositionPatient, detector.ImageOrientationPatient = [0, 0, 0], list(AXIAL)
    dataset = make(
        volume((5, 6, 7)), Modality="NM", NumberOfSlices=5, SpacingBetweenSlices=-3.0, PixelSpacing=[2, 2],
        DetectorInformationSequence=Sequence([detector]),
    )  # fmt: skip
    (image,) = read([save(tmp_path / "a.dcm", dataset)])
    assert image.array.shape == (1, 5, 6, 7) and image.spacing == pytest.approx((3, 2, 2))


def test_bad_rescale_and_missing_spacing_are_refused(tmp_path: Path, series, volume, remove_fields) -> None:
    with pytest.raises(ReadError, match="rescale slope 0"):
        read(series(tmp_path / "a", volume(), RescaleSlope=0, RescaleIntercept=0))
    with pytest.raises(ReadError, match="no pixel spacing"):
        paths = series(tmp_path / "b", volume())
        remove_fields(paths, "PixelSpacing")
        read(paths)
