"""DICOM files: frames, colour models, compressed syntaxes, headers, privacy; damaged files refused."""

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
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
    generate_uid,
)

RNG = np.random.default_rng(0)
SERIES = generate_uid(entropy_srcs=["series"])  # that of the fixtures
AXIAL = (1.0, 0, 0, 0, 1, 0)


def example(name: str) -> Path:
    path = get_testdata_file(name, download=False)
    if path is None:
        pytest.skip(f"pydicom ships without {name}")
    return Path(str(path))


@pytest.mark.parametrize(
    ("code", "modality"),
    [("US", Modality.ULTRASOUND), ("CR", Modality.XRAY), ("DX", Modality.XRAY), ("MG", Modality.MAMMOGRAPHY),
     ("XA", Modality.DSA), ("PT", Modality.PET), ("NM", Modality.SPECT), ("OT", None)],
)  # fmt: skip
def test_single_pictures_keep_the_orientation_of_display(
    tmp_path: Path, code: str, modality, make, save, volume
) -> None:
    array = volume((6, 7))
    path = save(tmp_path / "a.dcm", make(array, Modality=code, ImagerPixelSpacing=[0.2, 0.3]))
    (image,) = read([path])
    assert np.array_equal(image.array[0], array) and image.ndim == 2
    assert image.modality == modality and image.spacing == (0.2, 0.3) and image.affine is None


def test_multi_frame_loops_give_an_image_a_frame(tmp_path: Path, make, save) -> None:
    array = RNG.integers(0, 255, (4, 6, 7)).astype(np.uint8)
    images = read([save(tmp_path / "a.dcm", make(array, Modality="US"))])
    assert np.array_equal(np.stack([image.array[0] for image in images]), array)
    colour = RNG.integers(0, 255, (4, 6, 7, 3)).astype(np.uint8)
    images = read([save(tmp_path / "b.dcm", make(colour, Modality="US"))])
    assert np.array_equal(np.stack([image.array for image in images]), colour.transpose(0, 3, 1, 2))


def test_ultrasound_regions_give_the_spacing(tmp_path: Path, make, save, volume) -> None:
    region = Dataset()
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3  # cm
    region.PhysicalDeltaX, region.PhysicalDeltaY = 0.02, 0.03
    path = save(
        tmp_path / "a.dcm",
        make(volume((4, 4)), Modality="US", SequenceOfUltrasoundRegions=Sequence([region])),
    )
    assert read([path])[0].spacing == pytest.approx((0.3, 0.2))


@pytest.mark.parametrize(("dtype", "bits"), [("uint8", 8), ("uint16", 12), ("int16", 16)])
def test_monochrome1_is_inverted(tmp_path: Path, dtype: str, bits: int, make, save) -> None:
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


def test_palette_and_planar_colours(tmp_path: Path, make, save) -> None:
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


def test_grey_stored_as_rgb_becomes_one_channel(tmp_path: Path, make, save) -> None:
    array = RNG.integers(0, 255, (4, 6)).astype(np.uint8)
    (image,) = read([save(tmp_path / "a.dcm", make(np.repeat(array[..., None], 3, axis=2), Modality="US"))])
    assert np.array_equal(image.array, array[None])


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_compression_that_pydicom_writes_reads_back(tmp_path: Path, syntax: str, series) -> None:
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


def test_headers_group_files_without_their_pixels(tmp_path: Path, series, volume) -> None:
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
def test_files_without_preamble_or_meta_read_if_they_name_a_class(
    tmp_path: Path, syntax: str, make, volume
) -> None:
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


def test_nothing_personal_leaves_the_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, series, volume
) -> None:
    names = ("InstitutionName", "ReferringPhysicianName", "SeriesDescription", "ProtocolName", "StationName")
    secrets = dict.fromkeys(names, "secret")
    maker = "GE MEDICAL SYSTEMS"
    paths = series(tmp_path, volume(), KVP=120, Manufacturer=maker, StudyDate="20200101", **secrets)
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
    assert image.facts["KVP"] == 120 and image.facts["Manufacturer"] == "GE"
    assert image.facts["orientation"] == "SPL"


def test_a_mosaic_is_refused_with_the_way_out(tmp_path: Path, make, save, volume) -> None:
    path = save(tmp_path / "a.dcm", make(volume((8, 8)), ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"]))
    with pytest.raises(ReadError, match="dcm2niix"):
        read([path])


def test_truncated_and_empty_files_are_refused(tmp_path: Path, series, volume) -> None:
    path = series(tmp_path, volume((1, 64, 64)))[0]
    data = path.read_bytes()
    for size in (0, 100, 200, len(data) // 2, len(data) - 10):
        path.write_bytes(data[:size])
        with pytest.raises(ReadError, match=r"000\.dcm: "):
            read([path])


def test_damaged_files_never_raise_anything_but_read_error(tmp_path: Path, series, volume) -> None:
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
