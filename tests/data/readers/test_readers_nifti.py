"""NIfTI: orientation against nibabel, dtypes and scaling, frames; damaged files refused with a reason."""

from __future__ import annotations

import gzip
import itertools
import struct
import tracemalloc
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from medloom.data.errors import ConfigError, ReadError
from medloom.data.readers import nifti, read
from nibabel.affines import apply_affine

RNG = np.random.default_rng(0)


def save(
    path: Path, array: np.ndarray, affine: np.ndarray | None = None, kind: type = nib.Nifti1Image
) -> Path:
    dtype = array.dtype if array.dtype.kind in "iu" else None  # nibabel asks before it writes int64
    nib.save(kind(array, np.eye(4) if affine is None else affine, dtype=dtype), path)
    return path


def rotation(angles: tuple[float, float, float]) -> np.ndarray:
    result = np.eye(3)
    for axis, angle in enumerate(angles):
        c, s = np.cos(angle), np.sin(angle)
        turn = np.eye(3)
        i, j = [k for k in range(3) if k != axis]
        turn[i, i], turn[i, j], turn[j, i], turn[j, j] = c, -s, s, c
        result = result @ turn
    return result


def affines() -> list[np.ndarray]:
    """All 48 axis orders and flips, each made oblique by a little, anisotropic and with an origin."""
    result = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((-1, 1), repeat=3):
            base = np.zeros((3, 3))
            for column, row in enumerate(order):
                base[row, column] = signs[column] * (0.7, 1.3, 4.0)[column]
            affine = np.eye(4)
            affine[:3, :3] = rotation((0.21, -0.12, 0.16)) @ base
            affine[:3, 3] = (-31, 17, 250)
            result.append(affine)
    return result


@pytest.mark.parametrize("affine", affines())
def test_oblique_volume_agrees_with_nibabels_closest_canonical(tmp_path: Path, affine: np.ndarray) -> None:
    array = np.zeros((5, 6, 7), np.int16)
    array[1, 4, 2] = 1000
    path = save(tmp_path / "a.nii.gz", array, affine)
    (image,) = read([path])
    oracle = nib.as_closest_canonical(nib.load(path))
    assert np.array_equal(image.array[0], np.asarray(oracle.dataobj).transpose(2, 1, 0))
    # The marked voxel keeps its place in the world.
    index = np.argwhere(image.array[0] == 1000)[0]
    assert image.affine is not None and image.spacing is not None
    world = apply_affine(affine, [1, 4, 2])
    assert np.allclose(apply_affine(image.affine, index), world, atol=1e-3)
    assert np.allclose(image.spacing, nib.affines.voxel_sizes(oracle.affine)[::-1], atol=1e-4)
    # w runs mostly to R, h to A, d to S.
    assert (np.abs(image.affine[:3, :3]).argmax(axis=0) == [2, 1, 0]).all()
    assert image.affine[2, 0] > 0 and image.affine[1, 1] > 0 and image.affine[0, 2] > 0
    assert image.array.flags.c_contiguous
    # The original axis codes are recorded slice first.
    assert image.facts["orientation"] == "".join(nib.aff2axcodes(affine))[::-1]


@pytest.mark.parametrize(
    ("stored", "read_as"),
    [("uint8", "uint8"), ("int8", "int8"), ("int16", "int16"), ("uint16", "uint16"), ("int32", "int16"),
     ("uint32", "int16"), ("int64", "int16"), ("uint64", "int16"), ("float32", "float32"),
     ("float64", "float32")],
)  # fmt: skip
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_dtype_keeps_its_values(tmp_path: Path, stored: str, read_as: str, order: str) -> None:
    array = np.arange(60).reshape(3, 4, 5).astype(np.dtype(stored).newbyteorder(order))
    image = nib.Nifti1Image(array, np.eye(4), nib.Nifti1Header(endianness=order), dtype=stored)
    path = tmp_path / "a.nii"
    nib.save(image, path)
    (result,) = read([path])
    assert result.array.dtype == np.dtype(read_as) and result.array.dtype.isnative
    assert np.array_equal(result.array[0], array.transpose(2, 1, 0))


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [(0, 40_000, "uint16"), (-5, 40_000, "int32"), (0, 2**31 - 1, "int32"), (0, 2**31, "float32")],
)
def test_wide_integers_become_the_narrowest_that_holds_them(
    tmp_path: Path, low: int, high: int, dtype: str
) -> None:
    array = np.full((2, 2, 2), low, np.int64)
    array[1, 1, 1] = high
    (image,) = read([save(tmp_path / "a.nii", array, kind=nib.Nifti2Image)])
    assert image.array.dtype == np.dtype(dtype)
    assert int(image.array.max()) == high and int(image.array.min()) == low


@pytest.mark.parametrize(
    ("dtype", "slope", "intercept", "expected"),
    [
        ("uint16", 1, -1024, "int32"),
        ("int16", 1, -1024, "int16"),  # a CT
        ("uint8", 2, 0, "int16"),
        ("int16", -1, 0, "int16"),
        ("uint16", 1, 1000, "uint16"),
        ("uint16", 2, -100, "int32"),
        ("int16", 0.5, 0, "float32"),
        ("uint8", 1, 0.25, "float32"),
        ("int32", 70000, 0, "float32"),
        ("float32", 2, 1, "float32"),
    ],
)
def test_scaling_stays_integer_where_that_is_exact(
    tmp_path: Path, dtype: str, slope: float, intercept: float, expected: str
) -> None:
    kind = np.dtype(dtype)
    top = 60_000 if kind.kind in "iu" and kind.itemsize > 1 else 250
    top = min(top, np.iinfo(kind).max) if kind.kind in "iu" else top
    array = np.linspace(0, top, 27).reshape(3, 3, 3).astype(dtype)
    path = save(tmp_path / "a.nii", array)
    data = bytearray(path.read_bytes())
    data[112:120] = struct.pack("<ff", slope, intercept)  # scl_slope, scl_inter
    path.write_bytes(bytes(data))
    oracle = nib.load(path).get_fdata()
    assert np.allclose(oracle, array.astype(float) * slope + intercept)
    (result,) = read([path])
    assert result.array.dtype == np.dtype(expected)
    assert np.allclose(result.array[0], oracle.transpose(2, 1, 0), rtol=1e-6)


def test_random_integer_scalings_equal_wide_arithmetic() -> None:
    from medloom.data.readers.values import rescale

    for _ in range(300):
        kind = np.dtype(RNG.choice(["uint8", "int8", "int16", "uint16", "int32", "uint32"]))
        limits = np.iinfo(kind)
        array = RNG.integers(limits.min, limits.max, 40, endpoint=True).astype(kind)
        slope, intercept = int(RNG.integers(-4, 5)) or 1, int(RNG.integers(-3000, 3000))
        exact = array.astype(np.int64) * slope + intercept
        result = rescale(array, slope, intercept)
        if result.dtype.kind == "f":
            assert exact.min() < -(2**31) or exact.max() >= 2**31
            assert np.allclose(result, exact, rtol=1e-6)
        else:
            assert np.array_equal(result.astype(np.int64), exact)


def test_fourth_axis_becomes_channels_or_frames(tmp_path: Path) -> None:
    array = RNG.integers(0, 99, (4, 5, 6, 3)).astype(np.int16)
    path = save(tmp_path / "a.nii.gz", array)
    (image,) = read([path])
    assert image.array.shape == (3, 6, 5, 4)
    frames = read([path], fourth_axis="frames")
    assert [frame.array.shape for frame in frames] == [(1, 6, 5, 4)] * 3
    assert [frame.facts["frame"] for frame in frames] == [0, 1, 2]
    assert np.array_equal(np.concatenate([frame.array for frame in frames]), image.array)
    with pytest.raises(ConfigError, match="channels, frames"):
        read([path], fourth_axis="time")


def test_depth_one_stays_a_volume_and_two_axes_are_a_picture(tmp_path: Path) -> None:
    (thin,) = read([save(tmp_path / "a.nii", np.ones((4, 5, 1), np.uint8))])
    assert thin.array.shape == (1, 1, 5, 4) and thin.ndim == 3
    array = np.arange(20, dtype=np.uint8).reshape(4, 5)
    affine = np.diag([2.0, 3.0, 5.0, 1])
    (flat,) = read([save(tmp_path / "b.nii", array, affine)])
    assert flat.ndim == 2 and np.array_equal(flat.array[0], array.T)
    assert flat.spacing == (3.0, 2.0)


@pytest.mark.parametrize("affine", affines()[::5])
def test_a_picture_of_two_axes_keeps_its_place_whatever_its_plane(tmp_path: Path, affine: np.ndarray) -> None:
    array = np.zeros((4, 5), np.uint8)
    array[1, 3] = 9
    (image,) = read([save(tmp_path / "a.nii", array, affine)])
    row, column = np.argwhere(image.array[0] == 9)[0]
    assert image.affine is not None
    assert np.allclose(
        apply_affine(image.affine, [0, row, column]), apply_affine(affine, [1, 3, 0]), atol=1e-3
    )


def test_rgb_becomes_three_channels(tmp_path: Path) -> None:
    array = RNG.integers(0, 255, (4, 5, 6, 3)).astype(np.uint8)
    rgb = array.copy().view([("R", "u1"), ("G", "u1"), ("B", "u1")]).reshape(4, 5, 6)
    (image,) = read([save(tmp_path / "a.nii", rgb)])
    assert np.array_equal(image.array, array.transpose(3, 2, 1, 0))


def test_five_axes_are_frames_of_channels_or_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", np.zeros((2, 3, 4, 5, 6), np.uint8))
    with pytest.raises(ReadError, match="fourth_axis: frames"):
        read([path])
    frames = read([path], fourth_axis="frames")
    assert len(frames) == 5 and frames[0].array.shape == (6, 4, 3, 2)
    vector = save(tmp_path / "b.nii", np.zeros((2, 3, 4, 1, 3), np.uint8))
    assert read([vector])[0].array.shape == (3, 4, 3, 2)
    with pytest.raises(ReadError, match="6 axes"):
        read([save(tmp_path / "c.nii", np.zeros((2, 2, 2, 2, 2, 2), np.uint8))])


def test_units_other_than_millimetres_are_converted(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((3, 3, 3), np.uint8), np.diag([200.0, 200, 500, 1]))
    image.header.set_xyzt_units("micron")
    nib.save(image, tmp_path / "a.nii")
    (result,) = read([tmp_path / "a.nii"])
    assert result.spacing == pytest.approx((0.5, 0.2, 0.2))


def test_partly_nan_is_filled_with_the_minimum_and_said(tmp_path: Path) -> None:
    array = np.arange(27, dtype=np.float32).reshape(3, 3, 3) - 5
    array[0, 0, 0], array[2, 2, 2], array[1, 1, 1] = np.nan, np.inf, -np.inf
    (image,) = read([save(tmp_path / "a.nii", array)])
    assert image.facts["nonfinite"] == 3
    assert np.isfinite(image.array).all()
    assert image.array[0, 0, 0, 0] == -4 and image.array[0, 2, 2, 2] == 20


@pytest.mark.parametrize("fill", [np.nan, np.inf])
def test_all_nan_is_refused(tmp_path: Path, fill: float) -> None:
    with pytest.raises(ReadError, match=r"a\.nii: every value is NaN"):
        read([save(tmp_path / "a.nii", np.full((3, 3, 3), fill, np.float32))])


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
def test_truncated_gzip_is_refused(tmp_path: Path, kept: float) -> None:
    path = save(tmp_path / "a.nii.gz", RNG.integers(0, 999, (16, 16, 16)).astype(np.int16))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ReadError, match="truncated or corrupt"):
        read([path])


def test_a_flipped_bit_in_the_gzip_is_noticed(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", RNG.integers(0, 999, (16, 16, 16)).astype(np.int16))
    data = bytearray(path.read_bytes())
    data[-5] ^= 1  # inside the stored length; lazy readers never look there
    path.write_bytes(bytes(data))
    with pytest.raises(ReadError, match="truncated or corrupt"):
        read([path])


def test_truncated_plain_file_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", np.zeros((16, 16, 16), np.int16))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ReadError, match=r"a\.nii: voxels cannot be read"):
        read([path])


def test_singular_and_infinite_affines_are_refused(tmp_path: Path) -> None:
    array = np.zeros((3, 3, 3), np.uint8)
    for name, affine in {
        "flat": np.diag([1.0, 1, 0, 1]),
        "parallel": np.array([[1.0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
        "nan": np.diag([1.0, np.nan, 1, 1]),
    }.items():
        image = nib.Nifti1Image(array, np.eye(4))
        image.header.set_sform(affine, 1)
        image.header.set_qform(None, 0)
        path = tmp_path / f"{name}.nii"
        path.write_bytes(bytes(image.header.binaryblock) + b"\0" * 4 + array.tobytes())
        with pytest.raises(ReadError, match=r"affine (is singular|holds NaN)"):
            read([path])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "0 bytes"),
        (b"not an image at all" * 40, "no NIfTI header"),
        (gzip.compress(b"neither is this", mtime=0), "no NIfTI header"),
        (b"\x1f\x8b\x08garbage", "truncated or corrupt"),
    ],
)
def test_files_that_are_no_nifti_are_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_bytes(content)
    with pytest.raises(ReadError, match=rf"a\.nii\.gz: .*{reason}"):
        read([path])


def test_missing_file_folder_and_several_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match="no such file"):
        read([tmp_path / "a.nii"])
    (tmp_path / "folder.nii").mkdir()
    with pytest.raises(ReadError, match="cannot be opened"):
        read([tmp_path / "folder.nii"])
    path = save(tmp_path / "b.nii", np.zeros((2, 2, 2), np.uint8))
    with pytest.raises(ReadError, match="2 NIfTI files given as one image"):
        read([path, path])
    with pytest.raises(ReadError, match="no file given"):
        read([])


def test_complex_values_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=r"a\.nii: .*complex64"):
        read([save(tmp_path / "a.nii", np.zeros((2, 2, 2), np.complex64))])


def test_damaged_headers_never_raise_anything_but_read_error(tmp_path: Path) -> None:
    good = save(tmp_path / "a.nii", RNG.integers(0, 99, (4, 4, 4)).astype(np.int16)).read_bytes()
    path = tmp_path / "b.nii"
    for _ in range(300):
        data = bytearray(good)
        for _ in range(RNG.integers(1, 6)):
            data[RNG.integers(0, 352)] = RNG.integers(0, 256)
        path.write_bytes(bytes(data))
        try:
            images = read([path], fourth_axis=str(RNG.choice(["channels", "frames"])))
        except ReadError as error:
            assert str(error).startswith("b.nii") and "\n" not in str(error)
        else:
            assert all(np.isfinite(image.array).all() and image.array.size for image in images)


def test_a_nifti_without_suffix_is_recognised(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", np.ones((2, 3, 4), np.uint8)).rename(tmp_path / "volume")
    assert read([path])[0].array.shape == (1, 4, 3, 2)
    assert nifti.matches(path.read_bytes()[:512])


@pytest.mark.parametrize("size", [0, 10, 4_000_000])
def test_gunzip_reads_what_gzip_reads(size: int) -> None:
    """Several members (bgzip, pigz), zero padding, more than one piece."""
    data = RNG.integers(0, 256, size, np.uint8).tobytes()
    parts = [data[: size // 3], data[size // 3 :]]
    for stored in (gzip.compress(data), b"".join(gzip.compress(part, 1) for part in parts)):
        for padding in (b"", bytes(700)):
            assert nifti._gunzip(stored + padding) == gzip.decompress(stored + padding) == data
        with pytest.raises((EOFError, zlib.error)):
            nifti._gunzip(stored[:-1])
        with pytest.raises((EOFError, zlib.error)):
            nifti._gunzip(stored + b"tail")


def test_reading_holds_the_voxels_twice_at_most(tmp_path: Path) -> None:
    """Once as they lie in the file, once turned; nibabel's own way holds them four times."""
    array = RNG.integers(0, 99, (120, 128, 128)).astype(np.int16)
    path = save(tmp_path / "a.nii.gz", array, np.diag([-1.0, -1, 1, 1]))
    read([path])
    tracemalloc.start()
    (image,) = read([path])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert image.array.nbytes <= peak < 2.7 * image.array.nbytes
