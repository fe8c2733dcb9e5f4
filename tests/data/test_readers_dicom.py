"""DICOM: geometry of series, frames, compressed syntaxes, colour models; unsound series refused."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from medloom.data.errors import ReadError
from medloom.data.readers import dicom, read
from medloom.data.sample import Modality
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
    generate_uid,
)

RNG = np.random.default_rng(0)
SERIES = generate_uid(entropy_srcs=["series"])
AXIAL = (1.0, 0, 0, 0, 1, 0)


def make(pixels: np.ndarray, **fields) -> FileDataset:
    """A CT-like object; fields override or add elements."""
    pixels = np.asarray(pixels)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = generate_uid()
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID = SERIES, generate_uid(entropy_srcs=["study"])
    dataset.PatientID, dataset.PatientName, dataset.Modality = "P-17", "Mustermann^Erika", "CT"
    colours = pixels.shape[-1] if pixels.ndim > 2 and pixels.shape[-1] == 3 else 1
    dataset.Rows, dataset.Columns = pixels.shape[-3:-1] if colours == 3 else pixels.shape[-2:]
    dataset.SamplesPerPixel = colours
    dataset.PhotometricInterpretation = "RGB" if colours == 3 else "MONOCHROME2"
    if colours == 3:
        dataset.PlanarConfiguration = 0
    if pixels.ndim == (4 if colours == 3 else 3):
        dataset.NumberOfFrames = len(pixels)
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.dtype.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    for key, value in fields.items():
        setattr(dataset, key, value)
    return dataset


def save(path: Path, dataset: FileDataset) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(path, enforce_file_format=True)
    return path


def series(
    folder: Path, volume: np.ndarray, *, orientation=AXIAL, gap: float = 2.5, origin=(-10.0, 20, 30), **fields
) -> list[Path]:
    """Slices [D, H, W] along the normal, in files whose names say nothing of their order."""
    rows, columns = np.array(orientation[3:]), np.array(orientation[:3])
    normal = np.cross(columns, rows)
    paths = []
    for index, pixels in enumerate(volume):
        own = {
            "ImageOrientationPatient": [float(f"{value:.12f}") for value in orientation],
            "ImagePositionPatient": [float(f"{v:.9f}") for v in np.array(origin) + index * gap * normal],
            "PixelSpacing": [0.7, 1.1],
            "SliceThickness": gap,
            "InstanceNumber": index + 1,
        }
        dataset = make(pixels, **{**own, **fields})
        paths.append(save(folder / f"{(index * 7) % 31:03d}.dcm", dataset))
    return sorted(paths)


def volume(shape=(5, 6, 7)) -> np.ndarray:
    return RNG.integers(0, 2000, shape).astype(np.int16)


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
def test_a_marked_voxel_keeps_its_place_in_the_patient(tmp_path: Path, orientation) -> None:
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


def test_axial_spacing_is_depth_height_width(tmp_path: Path) -> None:
    (image,) = read(series(tmp_path, volume()))
    assert image.spacing == pytest.approx((2.5, 0.7, 1.1))
    assert image.array.shape == (1, 5, 6, 7)


def test_order_of_files_and_instance_numbers_do_not_matter(tmp_path: Path) -> None:
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


def test_a_ct_comes_out_in_hounsfield_units_as_int16(tmp_path: Path) -> None:
    stored = RNG.integers(0, 4096, (4, 5, 5)).astype(np.uint16)
    (image,) = read(series(tmp_path, stored, RescaleSlope=1, RescaleIntercept=-1024))
    assert image.array.dtype == np.int16
    assert np.array_equal(image.array[0], stored[:, ::-1, ::-1].astype(int) - 1024)


def test_slopes_that_differ_between_slices_are_applied_to_each(tmp_path: Path) -> None:
    stored = np.full((3, 4, 4), 10, np.uint16)
    paths = series(tmp_path, stored, Modality="PT")
    for path in paths:
        dataset = pydicom.dcmread(path)
        dataset.RescaleSlope, dataset.RescaleIntercept = 0.5 * int(dataset.InstanceNumber), 0
        dataset.save_as(path)
    (image,) = read(paths)
    assert image.array.dtype == np.float32 and image.modality == Modality.PET
    assert image.array[0, :, 0, 0].tolist() == [5, 10, 15]


def test_gantry_tilt_shears_the_affine_instead_of_failing(tmp_path: Path) -> None:
    paths = series(tmp_path, volume())
    for path in paths:
        dataset = pydicom.dcmread(path)
        x, y, z = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x, y + 0.4 * (z - 30), z]
        dataset.save_as(path)
    (image,) = read(paths)
    assert image.affine is not None
    assert image.affine[:3, 0] == pytest.approx([0, -0.4 * 2.5, 2.5])


def test_a_missing_slice_is_refused_and_named(tmp_path: Path) -> None:
    paths = series(tmp_path, volume((8, 4, 4)))
    (gone,) = [path for path in paths if pydicom.dcmread(path).InstanceNumber == 4]
    with pytest.raises(ReadError, match=r"5 mm after .* median gap is 2\.5 mm.*slice is missing"):
        read([path for path in paths if path != gone])


@pytest.mark.parametrize(("error", "accepted"), [(0.2, True), (0.3, False)])
def test_uneven_gaps_pass_within_ten_percent(tmp_path: Path, error: float, accepted: bool) -> None:
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


def test_two_series_mixed_are_refused(tmp_path: Path) -> None:
    one = series(tmp_path / "a", volume())
    two = series(tmp_path / "b", volume(), SeriesInstanceUID=generate_uid())
    with pytest.raises(ReadError, match="2 series mixed"):
        read([*one, *two])


def test_a_localizer_in_the_series_is_refused(tmp_path: Path) -> None:
    paths = series(tmp_path / "a", volume()) + series(
        tmp_path / "b", volume()[:1], orientation=(0, 1, 0, 0, 0, -1)
    )
    with pytest.raises(ReadError, match="expected one orientation"):
        read(paths)


@pytest.mark.parametrize("field", ["shape", "spacing"])
def test_differing_grids_are_refused(tmp_path: Path, field: str) -> None:
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


def test_positions_off_a_straight_line_are_refused(tmp_path: Path) -> None:
    paths = series(tmp_path, volume())
    dataset = pydicom.dcmread(paths[2])
    dataset.ImagePositionPatient = [dataset.ImagePositionPatient[0] + 9, *dataset.ImagePositionPatient[1:]]
    dataset.save_as(paths[2])
    with pytest.raises(ReadError, match="straight line"):
        read(paths)


def test_the_same_object_twice_counts_once(tmp_path: Path) -> None:
    paths = series(tmp_path, volume())
    copy = tmp_path / "copy.dcm"
    copy.write_bytes(paths[1].read_bytes())
    (image,) = read([*paths, copy])
    assert image.array.shape == (1, 5, 6, 7)


def test_positions_taken_several_times_are_channels_or_frames(tmp_path: Path) -> None:
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


def test_a_cine_loop_of_one_position_is_2d_frames(tmp_path: Path) -> None:
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


def test_slices_without_positions_stack_by_their_number(tmp_path: Path) -> None:
    array = volume()
    paths = series(tmp_path, array)
    series_fields_removed(paths, "ImagePositionPatient")
    (image,) = read(paths)
    assert image.affine is None and image.spacing == pytest.approx((2.5, 0.7, 1.1))
    assert np.array_equal(image.array[0], array)
    with pytest.raises(ReadError, match="not evenly spaced"):
        read([path for path in paths if pydicom.dcmread(path).InstanceNumber != 3])


def series_fields_removed(paths: list[Path], *names: str) -> None:
    for path in paths:
        dataset = pydicom.dcmread(path)
        for name in names:
            delattr(dataset, name)
        dataset.save_as(path)


@pytest.mark.parametrize(
    ("code", "modality"),
    [("US", Modality.ULTRASOUND), ("CR", Modality.XRAY), ("DX", Modality.XRAY), ("MG", Modality.MAMMOGRAPHY),
     ("XA", Modality.DSA), ("PT", Modality.PET), ("NM", Modality.SPECT), ("OT", None)],
)  # fmt: skip
def test_single_pictures_keep_the_orientation_of_display(tmp_path: Path, code: str, modality) -> None:
    array = volume((6, 7))
    path = save(tmp_path / "a.dcm", make(array, Modality=code, ImagerPixelSpacing=[0.2, 0.3]))
    (image,) = read([path])
    assert np.array_equal(image.array[0], array) and image.ndim == 2
    assert image.modality == modality and image.spacing == (0.2, 0.3) and image.affine is None


def test_a_single_slice_is_a_picture_with_its_place(tmp_path: Path) -> None:
    (path,) = series(tmp_path, volume()[:1])
    (image,) = read([path])
    assert image.ndim == 2 and image.affine is not None
    assert np.allclose((image.affine @ [0, 2, 3, 1])[:3], [10 - 3 * 1.1, -20 - 2 * 0.7, 30])


def test_multi_frame_loops_give_an_image_a_frame(tmp_path: Path) -> None:
    array = RNG.integers(0, 255, (4, 6, 7)).astype(np.uint8)
    images = read([save(tmp_path / "a.dcm", make(array, Modality="US"))])
    assert np.array_equal(np.stack([image.array[0] for image in images]), array)
    colour = RNG.integers(0, 255, (4, 6, 7, 3)).astype(np.uint8)
    images = read([save(tmp_path / "b.dcm", make(colour, Modality="US"))])
    assert np.array_equal(np.stack([image.array for image in images]), colour.transpose(0, 3, 1, 2))


def test_ultrasound_regions_give_the_spacing(tmp_path: Path) -> None:
    region = Dataset()
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3  # cm
    region.PhysicalDeltaX, region.PhysicalDeltaY = 0.02, 0.03
    path = save(
        tmp_path / "a.dcm",
        make(volume((4, 4)), Modality="US", SequenceOfUltrasoundRegions=Sequence([region])),
    )
    assert read([path])[0].spacing == pytest.approx((0.3, 0.2))


def test_enhanced_objects_take_geometry_and_rescale_from_their_groups(tmp_path: Path) -> None:
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


def test_reconstructed_nuclear_medicine_is_a_volume(tmp_path: Path) -> None:
    detector = Dataset()
    detector.ImagePositionPatient, detector.ImageOrientationPatient = [0, 0, 0], list(AXIAL)
    dataset = make(
        volume((5, 6, 7)), Modality="NM", NumberOfSlices=5, SpacingBetweenSlices=-3.0, PixelSpacing=[2, 2],
        DetectorInformationSequence=Sequence([detector]),
    )  # fmt: skip
    (image,) = read([save(tmp_path / "a.dcm", dataset)])
    assert image.array.shape == (1, 5, 6, 7) and image.spacing == pytest.approx((3, 2, 2))


@pytest.mark.parametrize(("dtype", "bits"), [("uint8", 8), ("uint16", 12), ("int16", 16)])
def test_monochrome1_is_inverted(tmp_path: Path, dtype: str, bits: int) -> None:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if dtype == "int16" else (0, 2**bits)
    array = RNG.integers(low, high, (5, 6)).astype(dtype)
    path = save(
        tmp_path / "a.dcm",
        make(
            array, Modality="DX", PhotometricInterpretation="MONOCHROME1", BitsStored=bits, HighBit=bits - 1
        ),
    )
    (image,) = read([path])
    assert np.array_equal(image.array[0].astype(int), low + high - 1 - array.astype(int))


def test_palette_and_planar_colours(tmp_path: Path) -> None:
    index = RNG.integers(0, 3, (4, 6)).astype(np.uint8)
    table = np.array([[0, 0, 0], [60000, 500, 700], [1000, 50000, 2000]], np.uint16)
    palette = {
        f"{colour}PaletteColorLookupTable{part}": value
        for channel, colour in enumerate(("Red", "Green", "Blue"))
        for part, value in (("Descriptor", [3, 0, 16]), ("Data", table[:, channel].tobytes()))
    }
    path = save(tmp_path / "a.dcm", make(index, PhotometricInterpretation="PALETTE COLOR", **palette))
    (image,) = read([path])
    assert image.array.dtype == np.uint8
    assert np.array_equal(image.array, (table[index] >> 8).transpose(2, 0, 1))
    colour = RNG.integers(0, 255, (4, 6, 3)).astype(np.uint8)
    planar = make(colour, PlanarConfiguration=1)
    planar.PixelData = colour.transpose(2, 0, 1).tobytes()
    assert np.array_equal(read([save(tmp_path / "b.dcm", planar)])[0].array, colour.transpose(2, 0, 1))


def test_grey_stored_as_rgb_becomes_one_channel(tmp_path: Path) -> None:
    array = RNG.integers(0, 255, (4, 6)).astype(np.uint8)
    (image,) = read([save(tmp_path / "a.dcm", make(np.repeat(array[..., None], 3, axis=2), Modality="US"))])
    assert np.array_equal(image.array, array[None])


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_compression_that_pydicom_writes_reads_back(tmp_path: Path, syntax: str) -> None:
    array = RNG.integers(0, 4000, (3, 64, 64)).astype(np.uint16)
    paths = series(tmp_path, array)
    (expected,) = read(paths)
    for path in paths:
        dataset = pydicom.dcmread(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset.compress(syntax, generate_instance_uid=False)
        dataset.save_as(path)
    assert np.array_equal(read(paths)[0].array, expected.array)


@pytest.mark.parametrize(
    ("compressed", "plain"),
    [
        ("MR_small_RLE.dcm", "MR_small.dcm"),
        ("MR_small_jp2klossless.dcm", "MR_small.dcm"),
        ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm"),
        ("MR_small_bigendian.dcm", "MR_small.dcm"),
        ("MR_small_implicit.dcm", "MR_small.dcm"),
        ("MR_small_padded.dcm", "MR_small.dcm"),
    ],
)
def test_pydicoms_own_files_agree_across_syntaxes(compressed: str, plain: str) -> None:
    (one,) = read([example(compressed)])
    (two,) = read([example(plain)])
    assert np.array_equal(one.array, two.array) and one.spacing == two.spacing


@pytest.mark.parametrize(
    ("name", "shape", "dtype"),
    [
        ("JPGExtended.dcm", (1, 1024, 256), "uint16"),
        ("JPEG2000.dcm", (1, 1024, 256), "int16"),
        ("JPEGLSNearLossless_16.dcm", (1, 50, 10), "uint16"),
        ("SC_rgb_jpeg_dcmtk.dcm", (3, 100, 100), "uint8"),
        ("SC_rgb_rle_16bit.dcm", (3, 100, 100), "uint16"),
        ("SC_ybr_full_422_uncompressed.dcm", (3, 100, 100), "uint8"),
        ("examples_palette.dcm", (3, 350, 800), "uint8"),
        ("image_dfl.dcm", (1, 512, 512), "uint8"),
        ("J2K_pixelrep_mismatch.dcm", (1, 512, 512), "int16"),
    ],
)
def test_pydicoms_compressed_and_coloured_files_read(name: str, shape: tuple, dtype: str) -> None:
    (image,) = read([example(name)])
    assert image.array.shape == shape and image.array.dtype == np.dtype(dtype)
    assert image.array.std() > 0


def example(name: str) -> Path:
    path = get_testdata_file(name, download=False)
    if path is None:
        pytest.skip(f"pydicom ships without {name}")
    return Path(str(path))


def test_a_ybr_loop_gives_frames_in_rgb() -> None:
    images = read([example("examples_ybr_color.dcm")])
    assert len(images) == 30 and images[0].array.shape == (3, 240, 320)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("MR_truncated.dcm", "pixels cannot be decoded"),
        ("rtplan.dcm", "RTPLAN without a picture"),
        ("rtdose.dcm", "RTDOSE without a picture"),
        ("liver_1frame.dcm", "SEG without a picture"),
        ("test-SR.dcm", "SR without a picture"),
    ],
)
def test_files_without_a_usable_picture_are_refused(name: str, reason: str) -> None:
    with pytest.raises(ReadError, match=reason):
        read([example(name)])


def test_headers_group_files_without_their_pixels(tmp_path: Path) -> None:
    path = series(tmp_path, volume()[:1], InstanceNumber=8)[0]
    found = dicom.header(path)
    assert (found.series_uid, found.subject, found.modality) == (SERIES, "P-17", "CT")
    assert (found.rows, found.cols, found.frames, found.instance_number) == (6, 7, 1, 8)
    assert found.position == (-10, 20, 30) and found.orientation == AXIAL and found.is_image
    assert not dicom.header(example("rtplan.dcm")).is_image
    with pytest.raises(ReadError, match="no such file"):
        dicom.header(tmp_path / "missing.dcm")
    for content in (b"", b"nothing of DICOM" * 30):
        (tmp_path / "b.dcm").write_bytes(content)
        with pytest.raises(ReadError, match=r"b\.dcm: "):
            dicom.header(tmp_path / "b.dcm")


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_files_without_preamble_or_meta_read_if_they_name_a_class(tmp_path: Path, syntax: str) -> None:
    array = volume((4, 4))
    dataset = make(array)
    if syntax == ExplicitVRBigEndian:
        dataset.PixelData = array.astype(">i2").tobytes()
    path = tmp_path / "a.dcm"
    bare = Dataset({element.tag: element for element in dataset})
    pydicom.dcmwrite(
        path, bare, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=syntax != ExplicitVRBigEndian
    )
    assert path.read_bytes()[128:132] != b"DICM"
    assert np.array_equal(read([path])[0].array[0], array)


def test_nothing_personal_leaves_the_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = ("InstitutionName", "ReferringPhysicianName", "SeriesDescription", "ProtocolName", "StationName")
    secrets = dict.fromkeys(names, "secret")
    paths = series(tmp_path, volume(), KVP=120, Manufacturer="ACME", StudyDate="20200101", **secrets)
    # A malformed field: pydicom would quote it in its log.
    data = paths[0].read_bytes()
    paths[0].write_bytes(data.replace(b"Mustermann^Erika", b"Mustermann\xff\xfe\\\\=a"))
    caplog.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (image,) = read(paths)
    assert caplog.text == ""
    text = repr(image.facts) + repr(image.modality)
    for word in ("Mustermann", "secret", "P-17", "2020", SERIES):
        assert word not in text
    assert image.facts["KVP"] == 120 and image.facts["Manufacturer"] == "ACME"
    assert image.facts["orientation"] == "SPL"


def test_bad_rescale_and_missing_spacing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="rescale slope 0"):
        read(series(tmp_path / "a", volume(), RescaleSlope=0, RescaleIntercept=0))
    with pytest.raises(ReadError, match="no pixel spacing"):
        paths = series(tmp_path / "b", volume())
        series_fields_removed(paths, "PixelSpacing")
        read(paths)


def test_a_mosaic_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = save(tmp_path / "a.dcm", make(volume((8, 8)), ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"]))
    with pytest.raises(ReadError, match="dcm2niix"):
        read([path])


def test_truncated_and_empty_files_are_refused(tmp_path: Path) -> None:
    path = series(tmp_path, volume((1, 64, 64)))[0]
    data = path.read_bytes()
    for size in (0, 100, 200, len(data) // 2, len(data) - 10):
        path.write_bytes(data[:size])
        with pytest.raises(ReadError, match=r"000\.dcm: "):
            read([path])


def test_damaged_files_never_raise_anything_but_read_error(tmp_path: Path) -> None:
    good = series(tmp_path, volume((1, 8, 8)))[0].read_bytes()
    path = tmp_path / "b.dcm"
    for _ in range(200):
        data = bytearray(good)
        for _ in range(RNG.integers(1, 6)):
            data[RNG.integers(132, len(data))] = RNG.integers(0, 256)
        path.write_bytes(bytes(data))
        try:
            images = read([path])
        except ReadError as error:
            assert str(error).startswith("b.dcm") and "\n" not in str(error)
        else:
            assert all(np.isfinite(image.array).all() for image in images)
