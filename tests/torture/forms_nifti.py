"""NIfTI and its relatives: versions, byte orders, types, scalings, orientations, axes, pairs, odd files."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from .form import Form, smooth
from .oracles import both, by_itk, by_nibabel, equals, same_volume

AFFINE = np.array([[-0.9, 0.1, 0.2, 10], [0.15, 1.1, -0.3, -20], [0.1, 0.4, 2.1, 30], [0, 0, 0, 1.0]])
STRAIGHT = np.diag([-1.5, 2.0, 3.0, 1.0]) + np.array([[0, 0, 0, 5], [0, 0, 0, -6], [0, 0, 0, 7], [0] * 4])
SHAPE = (7, 6, 5)


def rotation(x: float, y: float, z: float) -> np.ndarray:
    """Rotation about x, then y, then z by degrees, with voxels of 1, 2 and 3 mm."""
    cx, sx, cy, sy, cz, sz = (f(np.deg2rad(a)) for a in (x, y, z) for f in (np.cos, np.sin))
    turn = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    turn = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]]) @ turn
    turn = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]]) @ turn
    affine = np.eye(4)
    affine[:3, :3] = turn * [1, 2, 3]
    affine[:3, 3] = [3, -4, 5]
    return affine


OBLIQUE = rotation(20, -15, 70)


def nifti(
    array: np.ndarray, affine: np.ndarray | None = OBLIQUE, kind: Any = nib.Nifti1Image, **header: Any
) -> Any:
    """An image with both forms set to `affine`; `header` overrides fields."""
    picture = kind(array, affine, dtype=array.dtype)
    if affine is not None:
        picture.set_sform(affine, 1)
        picture.set_qform(affine, 1)
    for key, value in header.items():
        picture.header[key] = value
    return picture


def saved(make: Callable[[], Any], name: str = "a.nii") -> Callable[[Path], list[Path]]:
    def write(folder: Path) -> list[Path]:
        nib.save(make(), folder / name)
        return [folder / name]

    return write


def patched(
    array: np.ndarray,
    *patches: tuple[int, str, Any],
    affine: np.ndarray = OBLIQUE,
    name: str = "a.nii",
    tail: bytes = b"",
) -> Callable[[Path], list[Path]]:
    """A NIfTI-1 file with header fields (offset, struct format, value) overwritten."""

    def write(folder: Path) -> list[Path]:
        nib.save(nifti(array, affine), folder / "whole.nii")
        data = bytearray((folder / "whole.nii").read_bytes()) + tail
        (folder / "whole.nii").unlink()
        for offset, form, value in patches:
            data[offset : offset + struct.calcsize(form)] = struct.pack(form, *np.atleast_1d(value).tolist())
        path = folder / name
        path.write_bytes(gzip.compress(bytes(data)) if name.endswith(".gz") else bytes(data))
        return [path]

    return write


def swapped(array: np.ndarray, kind: Any) -> Callable[[Path], list[Path]]:
    """A file of the other byte order."""

    def write(folder: Path) -> list[Path]:
        header = nifti(array, kind=kind).header.as_byteswapped(">")
        picture = kind(array.astype(array.dtype.newbyteorder(">")), OBLIQUE, header)
        picture.to_filename(folder / "a.nii")
        head = (folder / "a.nii").read_bytes()[:4]
        assert head == struct.pack(">i", 348 if kind is nib.Nifti1Image else 540)
        return [folder / "a.nii"]

    return write


CT = smooth(SHAPE, -1000, 2000, np.int16)
BYTES = smooth(SHAPE, 0, 255, np.uint8)


def _versions() -> list[Form]:
    rows = []
    for number, kind in ((1, nib.Nifti1Image), (2, nib.Nifti2Image)):
        see = by_itk() if number == 1 else by_hand  # ITK reads no NIfTI-2
        rows += [
            Form(f"nifti{number}", saved(lambda kind=kind: nifti(CT, kind=kind)), see),
            Form(f"nifti{number}-gz", saved(lambda kind=kind: nifti(CT, kind=kind), "a.nii.gz"), see),
            Form(f"nifti{number}-big-endian", swapped(CT, kind), see),
        ]
    return [
        *rows,
        Form(
            "nifti-big-endian-float", swapped(CT.astype(np.float32) / 7, nib.Nifti1Image), by_itk(atol=1e-4)
        ),
        Form("nifti-upper-case-suffix", _renamed("A.NII"), _ct),
        Form("nifti-gz-called-nii", _renamed("a.nii", pack=True), _ct),
        Form("nifti-plain-called-gz", _renamed("a.nii.gz"), _ct),
        Form("nifti-gz-of-two-members", _two_members, _ct),
        Form("nifti-gz-with-padding", _padded, _ct),
        Form("nifti-trailing-bytes", patched(CT, tail=b"left over" * 30), by_itk()),
        Form("nifti-extension", _extended, by_itk()),
        Form("pair-hdr-img", saved(lambda: nifti(CT, kind=nib.Nifti1Pair), "a.hdr"), by_itk()),
        Form("pair-named-by-img", _by_img, refused="unknown format.*hdr"),
        Form("pair-gz", saved(lambda: nifti(CT, kind=nib.Nifti1Pair), "a.hdr.gz"), by_nibabel()),
        Form("pair-without-img", _lonely, refused=r"a\.img.*(no such file|missing)"),
        Form("analyze-7.5", saved(lambda: nib.AnalyzeImage(CT, STRAIGHT), "a.hdr"), refused="Analyze"),
        Form("spm99-analyze", saved(lambda: nib.Spm99AnalyzeImage(CT, STRAIGHT), "a.hdr"), refused="Analyze"),
        Form(
            "freesurfer-mgz", saved(lambda: nib.MGHImage(BYTES, STRAIGHT), "a.mgz"), refused="unknown format"
        ),
        Form("cifti", _cifti, refused="6 axes|expected at most 4"),
        Form("html-called-nii", _text, refused="no NIfTI header"),
    ]


def by_hand(paths: list[Path], images: list[Any]) -> None:
    """NIfTI-2 by the offsets of its standard, https://nifti.nimh.nih.gov/pub/dist/doc/nifti2.h."""
    data = paths[0].read_bytes()
    data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    order = "<" if data[:4] == struct.pack("<i", 540) else ">"
    shape = struct.unpack_from(f"{order}8q", data, 16)[1:4]
    offset = struct.unpack_from(f"{order}q", data, 168)[0]
    rows = np.array(struct.unpack_from(f"{order}12d", data, 400)).reshape(3, 4)
    voxels = np.frombuffer(data, f"{order}i2", int(np.prod(shape)), offset).reshape(shape, order="F")
    assert struct.unpack_from(f"{order}h", data, 12)[0] == 4  # DT_INT16
    same_volume(images[0], voxels[..., None].astype("i2"), np.vstack([rows, [0, 0, 0, 1]]))


def _without_place(paths: list[Path], images: list[Any]) -> None:
    assert images[0].affine is None and images[0].spacing == (3.0, 2.0, 1.0)
    assert np.array_equal(images[0].array[0], CT.transpose(2, 1, 0))


def _ct(paths: list[Path], images: list[Any]) -> None:
    same_volume(images[0], CT[..., None], OBLIQUE)


def _renamed(name: str, *, pack: bool = False) -> Callable[[Path], list[Path]]:
    def write(folder: Path) -> list[Path]:
        data = nifti(CT).to_bytes()
        (folder / name).write_bytes(gzip.compress(data) if pack else data)
        return [folder / name]

    return write


def _two_members(folder: Path) -> list[Path]:
    data = nifti(CT).to_bytes()
    (folder / "a.nii.gz").write_bytes(gzip.compress(data[:500]) + gzip.compress(data[500:]))
    return [folder / "a.nii.gz"]


def _padded(folder: Path) -> list[Path]:
    (folder / "a.nii.gz").write_bytes(gzip.compress(nifti(CT).to_bytes()) + bytes(600))
    return [folder / "a.nii.gz"]


def _extended(folder: Path) -> list[Path]:
    picture = nifti(CT)
    picture.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"free text " * 40))
    nib.save(picture, folder / "a.nii")
    return [folder / "a.nii"]


def _by_img(folder: Path) -> list[Path]:
    nib.save(nifti(CT, kind=nib.Nifti1Pair), folder / "a.hdr")
    return [folder / "a.img"]


def _lonely(folder: Path) -> list[Path]:
    nib.save(nifti(CT, kind=nib.Nifti1Pair), folder / "a.hdr")
    (folder / "a.img").unlink()
    return [folder / "a.hdr"]


def _cifti(folder: Path) -> list[Path]:
    array = np.zeros((1, 1, 1, 1, 4, 9), np.float32)
    nib.save(nifti(array, np.eye(4), nib.Nifti2Image, intent_code=3006), folder / "a.dscalar.nii")
    return [folder / "a.dscalar.nii"]


def _text(folder: Path) -> list[Path]:
    (folder / "a.nii").write_bytes(b"<html>404 Not Found</html>" * 40)
    return [folder / "a.nii"]


def _types() -> list[Form]:
    rows = []
    for code in ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"):
        kind = np.dtype(code)
        low, high = (-100, 100) if kind.kind == "i" and kind.itemsize == 1 else (0, 250)
        low, high = (
            (low, high) if kind.itemsize == 1 else (0, 60_000) if code[0] == "u" else (-30_000, 30_000)
        )
        array = smooth(SHAPE, low, high, kind)
        array = (array / np.float64(7) if kind.kind == "f" else array).astype(kind)
        rows.append(Form(f"type-{kind.name}", saved(lambda a=array: nifti(a)), by_itk(atol=0.01)))
    wide = smooth(SHAPE, -(2**40), 2**40, np.int64)
    rgb = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    for number, channel in enumerate("RGB"):
        rgb[channel] = np.roll(BYTES, number)
    rgba = np.zeros(SHAPE, [(channel, "u1") for channel in "RGBA"])
    for channel in "RGB":
        rgba[channel] = rgb[channel]
    colours = np.stack([rgb[channel] for channel in "RGB"], axis=-1)

    def in_colour(paths: list[Path], images: list[Any]) -> None:
        same_volume(images[0], colours, OBLIQUE)

    return [
        *rows,
        Form("type-int64-wide", saved(lambda: nifti(wide)), by_itk(atol=1e6)),
        Form("type-float128", patched(BYTES, (70, "<h", 1536), (72, "<h", 128)), refused="cannot be read"),
        Form("type-rgb24", saved(lambda: nifti(rgb)), both(by_itk(), in_colour)),
        Form("type-rgba32", saved(lambda: nifti(rgba)), in_colour),
        *(
            Form(f"type-{name}", saved(lambda name=name: nifti(CT.astype(name))), refused="complex")
            for name in ("complex64", "complex128")
        ),
        Form("type-binary", patched(BYTES, (70, "<h", 1), (72, "<h", 1)), refused="cannot be read"),
        Form("type-unknown", patched(BYTES, (70, "<h", 77)), refused="cannot be read"),
    ]


def _scalings() -> list[Form]:
    slopes = {
        "half": (0.5, 0),
        "hounsfield": (1, -1024),
        "negative": (-2, 10),
        "tiny": (1e-4, 0.25),
        "none": (0, 55),
        "nan": (np.nan, 3),
    }
    rows = [
        Form(
            f"slope-{name}",
            patched(smooth(SHAPE, 0, 4000, np.int16), (112, "<ff", pair)),
            by_nibabel() if name in ("nan", "none") else by_itk(atol=1e-2),
        )
        for name, pair in slopes.items()
    ]
    holed = CT.astype(np.float32)
    holed[2, 3, 1:3] = np.nan
    filled = np.where(np.isnan(holed), np.nanmin(holed), holed)

    def floor(paths: list[Path], images: list[Any]) -> None:
        same_volume(images[0], filled[..., None], OBLIQUE)
        assert images[0].facts["nonfinite"] == 2

    return [
        *rows,
        Form("slope-of-float", patched(CT.astype(np.float32), (112, "<ff", (2.5, 1))), by_itk(atol=1e-2)),
        Form("slope-infinite", patched(CT, (112, "<ff", (np.inf, 0))), by_nibabel()),
        Form("values-some-nan", saved(lambda: nifti(holed)), floor),
        Form(
            "values-all-nan", saved(lambda: nifti(np.full(SHAPE, np.nan, "f4"))), refused="every value is NaN"
        ),
        Form("values-constant", saved(lambda: nifti(np.zeros(SHAPE, "i2"))), by_itk()),
    ]


def _coded(
    sform: np.ndarray | None, qform: np.ndarray | None, array: np.ndarray = CT
) -> Callable[[Path], list[Path]]:
    def make() -> Any:
        picture = nib.Nifti1Image(array, OBLIQUE, dtype=array.dtype)
        picture.set_sform(sform, 1 if sform is not None else 0)
        picture.set_qform(qform, 1 if qform is not None else 0)
        return picture

    return saved(make)


def _orientations() -> list[Form]:
    other = rotation(-50, 25, 10)
    flipped = OBLIQUE @ np.diag([-1, 1, 1, 1.0])
    shear = np.eye(4)
    shear[0, 2] = 0.4
    rows = [
        Form(f"oblique-{x}-{y}-{z}", _coded(a := rotation(x, y, z), a), by_itk())
        for x, y, z in (
            (0, 0, 90),
            (90, 0, 0),
            (0, 90, 0),
            (180, 0, 0),
            (44, 44, 44),
            (46, -46, 46),
            (90, 90, 10),
        )
    ]
    return [
        *rows,
        Form("sform-only", _coded(OBLIQUE, None), by_itk()),
        Form("qform-only", _coded(None, OBLIQUE), by_itk()),
        Form("qform-left-handed", _coded(None, flipped), by_itk()),
        Form("qform-sform-conflict", _coded(other, OBLIQUE), both(by_itk(), by_nibabel())),
        Form("no-form", _coded(None, None), _without_place),
        Form("sform-sheared", _coded(OBLIQUE @ shear, None), by_nibabel()),
        Form("sform-zero", patched(CT, (280, "<12f", [0] * 12)), refused="singular"),
        Form("sform-nan", patched(CT, (280, "<f", np.nan)), refused="NaN"),
        Form(
            "qform-quaternion-too-long",
            patched(CT, (254, "<h", 0), (256, "<fff", (0.9, 0.9, 0.9))),
            refused="cannot be read .w2 should be positive",
        ),
        Form(
            "pixdim-zero", patched(CT, (254, "<h", 0), (80, "<fff", (0, 0, 0))), refused="singular|voxel size"
        ),
        Form("pixdim-negative", patched(CT, (254, "<h", 0), (80, "<f", -1)), by_nibabel()),
        Form("units-metre", patched(CT, (123, "<B", 1)), by_nibabel(scale=1000)),
        Form("units-micron", patched(CT, (123, "<B", 3)), by_nibabel(scale=0.001)),
        Form("units-unknown", patched(CT, (123, "<B", 0)), by_nibabel()),
    ]


def _axes() -> list[Form]:
    series, vector = smooth((*SHAPE, 4), -50, 90, np.int16), smooth((*SHAPE, 1, 3), -1, 1, np.float32)
    flat = smooth((7, 6), 0, 90, np.int16)

    def frames(paths: list[Path], images: list[Any]) -> None:
        assert len(images) == 4
        for number, image in enumerate(images):
            same_volume(image, series[..., number, None], OBLIQUE)

    def components(paths: list[Path], images: list[Any]) -> None:
        same_volume(images[0], vector[..., 0, :], OBLIQUE)

    return [
        Form("one-slice", saved(lambda: nifti(CT[..., :1])), by_itk()),
        Form("one-column", saved(lambda: nifti(CT[:1])), by_itk()),
        Form("one-voxel", saved(lambda: nifti(CT[:1, :1, :1])), by_itk()),
        Form("two-axes", saved(lambda: nifti(flat, STRAIGHT)), equals(flat[::-1].T[None])),
        Form("four-axes-channels", saved(lambda: nifti(series)), by_nibabel()),
        Form("four-axes-frames", saved(lambda: nifti(series)), frames, read={"fourth_axis": "frames"}),
        Form("four-axes-one-frame", saved(lambda: nifti(series[..., :1])), by_itk()),
        Form("five-axes-vector", saved(lambda: nifti(vector, intent_code=1007)), components),
        Form(
            "five-axes-frames-of-vectors",
            saved(lambda: nifti(smooth((*SHAPE, 2, 3), 0, 9, "f4"))),
            refused="fourth_axis: frames",
        ),
        Form(
            "six-axes",
            saved(lambda: nifti(smooth((*SHAPE, 1, 1, 2), 0, 9, "f4"))),
            refused="expected at most",
        ),
        Form("seven-axes-of-one", saved(lambda: nifti(CT.reshape(*SHAPE, 1, 1, 1, 1))), _ct),
        Form("dim0-zero", patched(CT, (40, "<h", 0)), refused="."),
        Form("dim0-nine", patched(CT, (40, "<h", 9)), refused="."),
        Form("dim-negative", patched(CT, (42, "<h", -3)), refused="."),
        Form("dim-empty", patched(CT, (42, "<h", 0)), refused="no voxel|cannot be read"),
        Form("dim-larger-than-file", patched(CT, (42, "<hhh", (3000, 3000, 3000))), refused="cannot be read"),
        Form("offset-behind-end", patched(CT, (108, "<f", 1e6)), refused="cannot be read"),
        Form("offset-nan", patched(CT, (108, "<f", np.nan)), refused="cannot be read"),
        Form("offset-negative", patched(CT, (108, "<f", -500)), refused="cannot be read"),
        Form("magic-wrong", patched(CT, (344, "<4s", b"xxxx")), refused="no NIfTI header"),
        Form("header-size-wrong", patched(CT, (0, "<i", 1000)), _ct),
    ]


FORMS = [*_versions(), *_types(), *_scalings(), *_orientations(), *_axes()]
