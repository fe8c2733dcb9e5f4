"""MetaImage and NRRD: SimpleITK finds the same voxels in the same places; damaged files are refused."""

from __future__ import annotations

import bz2
import gzip
import zlib
from pathlib import Path

import numpy as np
import pytest
from medloom.data.errors import ReadError
from medloom.data.readers import read
from medloom.data.sample import Image

sitk = pytest.importorskip("SimpleITK", reason="the independent reader; pip install 'medloom[formats]'")

RNG = np.random.default_rng(0)
OBLIQUE = np.linalg.qr(np.array([[0.1, -0.9, 0.3], [0.8, 0.2, 0.1], [0.2, 0.3, -0.9]]))[0]
SAGITTAL = np.array([[0.0, 0, 1], [1, 0, 0], [0, -1, 0]])


def values(shape, dtype: str) -> np.ndarray:
    if np.dtype(dtype).kind == "f":
        return RNG.normal(size=shape).astype(dtype)
    limits = np.iinfo(dtype)
    return RNG.integers(max(limits.min, -(2**31)), min(limits.max, 2**31 - 1), shape).astype(dtype)


def placed(array: np.ndarray, direction: np.ndarray | None = None, *, vector: bool = False):
    image = sitk.GetImageFromArray(array, isVector=vector)
    if image.GetDimension() == 3:
        image.SetSpacing((0.7, 1.1, 2.5))
        image.SetOrigin((-31.25, 12.5, 100.0))
        image.SetDirection((np.eye(3) if direction is None else direction).ravel().tolist())
    return image


def assert_same_places(image: Image, oracle) -> None:
    """Every voxel of `image` has the value that SimpleITK finds at its millimetres."""
    assert image.affine is not None
    shape = image.array.shape[1:]
    index = np.indices(shape).reshape(3, -1)
    ras = (image.affine @ np.vstack([index, np.ones(index.shape[1])]))[:3]
    for (d, h, w), point in zip(index.T[::7], (ras * [[-1], [-1], [1]]).T[::7], strict=True):
        pixel = oracle[oracle.TransformPhysicalPointToIndex(point.tolist())]
        assert np.array_equal(image.array[:, d, h, w], np.atleast_1d(pixel).astype(image.array.dtype))
    assert sorted(image.spacing or ()) == pytest.approx(sorted(oracle.GetSpacing()), abs=1e-6)
    assert image.array[0].size == np.prod(oracle.GetSize())


@pytest.mark.parametrize("suffix", ["mha", "mhd", "nrrd", "nhdr"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("direction", [None, OBLIQUE, SAGITTAL], ids=["axial", "oblique", "sagittal"])
def test_volumes_lie_where_simpleitk_puts_them(tmp_path: Path, suffix, compressed, direction) -> None:
    oracle = placed(values((5, 6, 7), "int16"), direction)
    path = tmp_path / f"a.{suffix}"
    sitk.WriteImage(oracle, str(path), compressed)
    (image,) = read([path])
    assert image.array.dtype == np.int16
    assert_same_places(image, sitk.ReadImage(str(path)))
    assert image.facts["format"] == ("metaimage" if suffix[1] == "h" and suffix[0] == "m" else "nrrd")


@pytest.mark.parametrize(
    ("stored", "kept"),
    [("uint8", "uint8"), ("int8", "int8"), ("uint16", "uint16"), ("int32", "int32"), ("float32", "float32"),
     ("float64", "float32"), ("int64", "int32")],
)  # fmt: skip
@pytest.mark.parametrize("suffix", ["mha", "nrrd"])
def test_every_type_of_number(tmp_path: Path, stored: str, kept: str, suffix: str) -> None:
    array = values((3, 4, 5), stored)
    path = tmp_path / f"a.{suffix}"
    sitk.WriteImage(placed(array), str(path))
    (image,) = read([path])
    assert image.array.dtype == kept
    assert_same_places(image, sitk.Cast(sitk.ReadImage(str(path)), sitk.sitkFloat64))


@pytest.mark.parametrize("suffix", ["mha", "nrrd"])
def test_vectors_become_channels_and_pictures_stay_flat(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    sitk.WriteImage(placed(values((3, 4, 5, 2), "int16"), OBLIQUE, vector=True), str(path))
    (image,) = read([path])
    assert image.array.shape[0] == 2
    assert_same_places(image, sitk.ReadImage(str(path)))
    colour = values((6, 8, 3), "uint8")
    picture = sitk.GetImageFromArray(colour, isVector=True)
    picture.SetSpacing((0.25, 0.5))
    sitk.WriteImage(picture, str(path))
    (image,) = read([path])
    assert np.array_equal(image.array, colour.transpose(2, 0, 1))
    assert image.spacing == (0.5, 0.25) and image.affine is None


@pytest.mark.parametrize("suffix", ["mha", "nrrd"])
def test_a_fourth_axis_is_channels_or_frames(tmp_path: Path, suffix: str) -> None:
    array = values((3, 4, 5, 6), "uint16")  # t z y x
    image = sitk.GetImageFromArray(array, isVector=False)
    image.SetSpacing((0.7, 1.1, 2.5, 1.0))
    path = tmp_path / f"a.{suffix}"
    sitk.WriteImage(image, str(path))
    (whole,) = read([path])
    frames = read([path], fourth_axis="frames")
    assert whole.array.shape == (3, 4, 5, 6) and len(frames) == 3
    for number, frame in enumerate(frames):
        assert np.array_equal(frame.array[0], whole.array[number]) and frame.facts["frame"] == number
        oracle = sitk.Extract(sitk.ReadImage(str(path)), (6, 5, 4, 0), (0, 0, 0, number))
        if frame.affine is not None:
            assert_same_places(frame, oracle)
        else:
            assert np.array_equal(frame.array[0], sitk.GetArrayFromImage(oracle))


NRRD = (
    b"NRRD0004\n# a comment\ntype: short\ndimension: 3\nspace: %s\nsizes: 4 3 2\n"
    b"space directions: (0.5,0,0) (0,0.75,0) (0,0,2)\nkinds: domain domain domain\nendian: %s\n"
    b"encoding: %s\nspace origin: (1,2,3)\n"
)
COUNT = np.arange(24, dtype=np.int16).reshape(2, 3, 4)


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [(b"raw", bytes), (b"gzip", gzip.compress), (b"bzip2", bz2.compress),
     (b"hex", lambda d: d.hex().encode()),
     (b"ascii", lambda d: " ".join(map(str, np.frombuffer(d, ">i2"))).encode())],
)  # fmt: skip
@pytest.mark.parametrize(("space", "corner"), [
    (b"left-posterior-superior", (-1, -2, 3)), (b"RAS", (1, 2, 3)), (b"left-anterior-superior", (-1, 2, 3)),
])  # fmt: skip
def test_nrrd_by_the_letter_of_its_definition(tmp_path: Path, encoding, pack, space, corner) -> None:
    path = tmp_path / "a.nrrd"
    path.write_bytes(NRRD % (space, b"big", encoding) + b"\n" + pack(COUNT.astype(">i2").tobytes()))
    (image,) = read([path])
    assert image.affine is not None and sorted(image.array.ravel()) == list(range(24))
    index = np.append(np.argwhere(image.array[0] == 0)[0], 1)
    assert image.affine @ index == pytest.approx([*corner, 1])
    assert image.spacing == (2.0, 0.75, 0.5)


def test_nrrd_without_a_patient_keeps_its_order(tmp_path: Path) -> None:
    path = tmp_path / "a.nrrd"
    path.write_bytes(NRRD % (b"scanner-xyz", b"little", b"raw") + b"\n" + COUNT.tobytes())
    (image,) = read([path])
    assert np.array_equal(image.array[0], COUNT)
    assert image.affine is None and image.spacing == (2.0, 0.75, 0.5)


@pytest.mark.parametrize("axis", [0, 3])
@pytest.mark.parametrize(("kind", "channels"), [(b"list", 1), (b"vector", 5)])
def test_nrrd_axes_that_are_not_space(tmp_path: Path, axis: int, kind: bytes, channels: int) -> None:
    array = values((2, 3, 4, 5), "uint8")  # z y x t
    path = tmp_path / "a.nrrd"
    kinds, directions = [b"domain"] * 3, [b"(1,0,0)", b"(0,1,0)", b"(0,0,1)"]
    sizes = [b"4", b"3", b"2"]
    kinds.insert(axis, kind), directions.insert(axis, b"none"), sizes.insert(axis, b"5")
    head = (b"type: uchar", b"dimension: 4", b"space: RAS", b"encoding: raw", b"space origin: (0,0,0)")
    lines = [b"NRRD0005", *head, b"kinds: " + b" ".join(kinds), b"sizes: " + b" ".join(sizes),
             b"space directions: " + b" ".join(directions), b"", b""]  # fmt: skip
    stored = array if axis == 0 else np.moveaxis(array, -1, 0)
    path.write_bytes(b"\n".join(lines) + stored.tobytes())
    (whole,) = read([path])
    assert np.array_equal(whole.array, np.moveaxis(array, -1, 0))
    frames = read([path], fourth_axis="frames")
    assert len(frames) == 5 // channels and frames[0].array.shape == (channels, 2, 3, 4)


def test_detached_voxels_in_one_file_a_list_and_a_pattern(tmp_path: Path) -> None:
    array = values((4, 3, 2), "int16")
    for number, part in enumerate(array):
        (tmp_path / f"part{number}.raw").write_bytes(b"junk\n" + part.tobytes())
    (tmp_path / "all of it.raw").write_bytes(bytes(7) + array.tobytes())
    mhd = b"NDims = 3\nDimSize = 2 3 4\nElementType = MET_SHORT\nElementSpacing = 1 1 1\n"
    nhdr = b"NRRD0005\ntype: short\ndimension: 3\nsizes: 2 3 4\nendian: little\nencoding: raw\n"
    heads = {
        "a.mhd": mhd + b"HeaderSize = 7\nElementDataFile = all of it.raw\n",
        "b.mhd": mhd + b"HeaderSize = -1\nElementDataFile = part%d.raw 0 3 1\n",
        "c.mhd": mhd
        + b"HeaderSize = 5\nElementDataFile = LIST\npart0.raw\npart1.raw\npart2.raw\npart3.raw\n",
        "a.nhdr": nhdr + b"byte skip: 7\ndata file: all of it.raw\n",
        "b.nhdr": nhdr + b"line skip: 1\ndata file: part%d.raw 0 3 1\n",
        "c.nhdr": nhdr + b"byte skip: -1\ndata file: LIST\npart0.raw\npart1.raw\npart2.raw\npart3.raw\n",
    }
    for name, head in heads.items():
        (tmp_path / name).write_bytes(head)
        found = np.sort(read([tmp_path / name])[0].array.ravel())
        assert np.array_equal(found, np.sort(array.ravel())), name
        oracle = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / name)))
        assert np.array_equal(oracle, array), name


@pytest.mark.parametrize("name", ["/etc/hostname", "../b.raw", "..\\b.raw", "c:/b.raw", "missing.raw"])
def test_voxels_outside_of_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "b.raw").write_bytes(bytes(48))
    for suffix, text in (
        ("mhd", f"NDims = 3\nDimSize = 2 3 4\nElementType = MET_SHORT\nElementDataFile = {name}\n"),
        ("nhdr", f"NRRD0004\ntype: short\ndimension: 3\nsizes: 2 3 4\nendian: little\nencoding: raw\n"
                 f"data file: {name}\n"),
    ):  # fmt: skip
        path = tmp_path / "inner" / f"a.{suffix}"
        path.write_text(text)
        with pytest.raises(ReadError, match=r"a\.(mhd|nhdr): .*beside the header") as caught:
            read([path])
        assert "b.raw" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["mha", "nrrd"])
def test_damaged_voxels_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    array = values((12, 13, 14), "int16")
    for compressed in (True, False):
        sitk.WriteImage(placed(array), str(path), compressed)
        data = path.read_bytes()
        for cut in (len(data) // 2, len(data) - 3):
            path.write_bytes(data[:cut])
            with pytest.raises(ReadError, match=r"a\..*(truncated|bytes)"):
                read([path])
    sitk.WriteImage(placed(array), str(path), True)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 8
    path.write_bytes(data)
    with pytest.raises(ReadError, match="corrupt"):
        read([path])


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, zlib.compress])
def test_a_bomb_stops_at_the_size_of_the_image(tmp_path: Path, pack) -> None:
    encoding = b"bzip2" if pack is bz2.compress else b"gzip"
    path = tmp_path / "a.nrrd"
    path.write_bytes(NRRD % (b"RAS", b"little", encoding) + b"\n" + pack(bytes(50_000_000)))
    with pytest.raises(ReadError, match="bytes"):
        read([path])


@pytest.mark.parametrize("sizes", ["400000 300000 200000", "4 3 -2", "4 3 0", "4 3", "4 3 2 1 1 1 1 1"])
def test_absurd_sizes_are_refused_before_memory_is_taken(tmp_path: Path, sizes: str) -> None:
    path = tmp_path / "a.mha"
    head = (
        f"NDims = {len(sizes.split())}\nDimSize = {sizes}\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    )
    path.write_bytes(head.encode() + bytes(20))
    with pytest.raises(ReadError, match=r"a\.mha"):
        read([path])


def test_messages_do_not_quote_the_header(tmp_path: Path) -> None:
    for name, text in (
        ("a.mha", "NDims = 3\nDimSize = 2 3 4\nElementType = Mustermann\nElementDataFile = LOCAL\n"),
        ("b.mha", "NDims = Mustermann\nDimSize = 2 3 4\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"),
        ("c.nrrd", "NRRD0004\ntype: Mustermann\ndimension: 3\nsizes: 2 3 4\nencoding: raw\n\n"),
        ("d.nrrd", "NRRD0004\ntype: short\ndimension: 3\nsizes: 2 3 4\nencoding: Mustermann\n\n"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ReadError) as caught:
            read([tmp_path / name])
        assert "ustermann" not in str(caught.value) and name in str(caught.value)


@pytest.mark.realdata
def test_real_nrrd_volumes_and_masks(realdata: Path) -> None:
    from medloom.data.readers import read_label_map

    folder = realdata / "mr_tumour_pyradiomics"
    pairs = {path: folder / "masks" / f"{path.stem.replace('_image', '_label')}.nrrd"
             for path in (folder / "images").glob("*_image.nrrd")}  # fmt: skip
    assert pairs
    for path, mask in pairs.items():
        (image,) = read([path])
        assert_same_places(image, sitk.ReadImage(str(path)))
        labels = read_label_map(mask, image)
        assert labels.any() and labels.sum() == sitk.GetArrayFromImage(sitk.ReadImage(str(mask))).sum()
