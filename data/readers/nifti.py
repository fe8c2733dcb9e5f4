"""NIfTI-1 and NIfTI-2 (.nii, .nii.gz, and .hdr beside .img) -> Image, in closest canonical orientation.

The file is decompressed whole and its gzip checksum verified: a truncated or flipped download is refused,
which nibabel's lazy reading would miss. Values keep their dtype (see values.py), scl_slope/scl_inter applied.
The sform counts before the qform; a file with neither says nothing of left and right (nibabel and ITK guess
differently), so it lies as it was stored, with its spacing and no affine.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.fileholders import FileHolder

from ..errors import ReadError
from ..interop import archive
from ..sample import Image
from . import geometry, values
from .messages import line, quiet
from .source import check_fourth_axis, content, single

SUFFIXES = (".nii", ".nii.gz", ".hdr", ".hdr.gz")

_PIECE = 1 << 18  # compressed bytes at a time
_MILLIMETRES = {"meter": 1000.0, "mm": 1.0, "micron": 0.001, "unknown": 1.0}


def matches(head: bytes) -> bool:
    """Whether the first 512 bytes of a file are an uncompressed NIfTI header."""
    return head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] in (b"n+2\0", b"ni2\0")


@quiet()
def read(paths: Sequence[Path], *, fourth_axis: str = "channels") -> list[Image]:
    """Read one NIfTI file.

    Args:
        paths: exactly one path.
        fourth_axis: "channels" makes [C, D, H, W] of a 4D file, "frames" one Image a frame.

    Returns:
        Images [C, D, H, W] (a depth of 1 stays 3D) or, for a file with only two axes, [C, H, W].

    Raises:
        ReadError: truncated, corrupt, singular affine, no finite value, complex numbers, more than four axes.
    """
    check_fourth_axis(fourth_axis)
    path = single(list(paths), "NIfTI")
    nifti, sizes, data = _open(path)
    affine, spacing = _geometry(nifti, sizes, path.name)
    array = _values(nifti, data, path.name)
    flat = len(nifti.shape) == 2
    del data  # scaled values are a copy: let go of the stored ones before turning makes another
    frames = _frames(array, fourth_axis, path.name)
    if affine is None:
        images = [_as_stored(frame, spacing, flat, path.name) for frame in frames]
    else:
        images = [_image(frame, affine, flat, path.name) for frame in frames]
    if len(images) > 1:
        for index, image in enumerate(images):
            image.facts |= {"frame": index, "frames": len(images)}
    return images


def _open(path: Path) -> tuple[Any, np.ndarray, bytes | bytearray]:
    """The image as nibabel sees its header, pixdim as it is written, and the bytes that hold the voxels."""
    data = _content(path)
    head = bytes(data[:540])
    if not matches(head):
        if len(data) == 348 and 348 in struct.unpack("<i", head[:4]) + struct.unpack(">i", head[:4]):
            raise ReadError(
                f"{path.name}: Analyze 7.5, which does not tell left from right; convert it to NIfTI"
            )
        raise ReadError(f"{path.name}: no NIfTI header found in {len(data)} bytes; is it another format?")
    second = head[4:8] in (b"n+2\0", b"ni2\0")
    try:
        if b"ni2" not in head[4:7] and b"ni1" not in head[344:347]:
            kind = nib.Nifti2Image if second else nib.Nifti1Image
            # Header and extensions alone: nibabel would hold a copy of the voxels.
            nifti = kind.from_bytes(bytes(data[: max(_data_offset(data), 1024)]))
            return nifti, _pixdim(nifti, head), data
        kind = nib.Nifti2Pair if second else nib.Nifti1Pair
        holders = {"header": FileHolder(fileobj=io.BytesIO(data)), "image": FileHolder(fileobj=io.BytesIO())}
        nifti = kind.from_file_map(holders)
    except Exception as error:  # nibabel raises many kinds on a damaged header; all mean the same to the user
        why = line(error, data)
        raise ReadError(f"{path.name}: NIfTI header cannot be read ({why}); repair it") from error
    return nifti, _pixdim(nifti, head), _content(voxels_of(path))


def _pixdim(nifti: Any, head: bytes) -> np.ndarray:
    """pixdim[1..3]; nibabel would make 1 of a 0."""
    kind, place = ("f8", 104) if nifti.header["sizeof_hdr"] == 540 else ("f4", 76)
    return np.frombuffer(head, f"{nifti.header.endianness}{kind}", 4, place)[1:].astype(float)


def voxels_of(path: Path) -> Path:
    """The .img (or .img.gz) that belongs to a .hdr."""
    stem = path.name[: path.name.lower().rindex(".hdr")]
    names = [f"{stem}{suffix}" for suffix in (".img", ".img.gz", ".IMG")]
    found = (path.with_name(name) for name in names if archive.exists(path.with_name(name)))
    return next(found, path.with_name(names[0]))


def _content(path: Path) -> bytes | bytearray:
    data = content(path)
    if data[:2] != b"\x1f\x8b":
        return data
    try:
        return _gunzip(data)
    except (EOFError, zlib.error) as error:
        raise ReadError(
            f"{path.name}: truncated or corrupt gzip ({error}); copy or download it again"
        ) from error


def _gunzip(data: bytes) -> bytearray:
    """As gzip.decompress, checksums included, in a quarter of the memory: nothing is joined or held twice."""
    result, rest = bytearray(), memoryview(data)
    while len(rest):
        member = zlib.decompressobj(wbits=31)
        while not member.eof:
            if not len(rest):
                raise EOFError("it ends before its end marker")
            result += member.decompress(rest[:_PIECE])
            rest = rest[min(_PIECE, len(rest)) - len(member.unused_data) :]
        if rest[:1] == b"\0" and not bytes(rest).strip(b"\0"):
            break  # padding
    return result


def _data_offset(data: bytes | bytearray) -> int:
    """`vox_offset` of a header in either byte order; 0 when there is none."""
    size, field, place = (540, "q", 168) if data[4:7] == b"n+2" else (348, "f", 108)
    for order in "<>":
        if struct.unpack_from(f"{order}i", data)[0] == size:
            return int(struct.unpack_from(f"{order}{field}", data, place)[0])
    return 0


def _geometry(nifti: Any, sizes: np.ndarray, name: str) -> tuple[np.ndarray | None, tuple[float, ...]]:
    """Affine of (d, h, w) in RAS+ mm, None when none is stated; voxel size in mm by pixdim (d, h, w)."""
    header = nifti.header
    try:
        unit = _MILLIMETRES.get(header.get_xyzt_units()[0], 1.0)
        stated = int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0
        affine = np.array(nifti.affine, np.float64) if stated else None
    except Exception as error:
        why = line(error, header.binaryblock)
        raise ReadError(f"{name}: orientation cannot be read ({why}); repair the header") from error
    axes = min(3, len(nifti.shape))
    size = np.abs(sizes[:axes]) * unit
    if int(header["sform_code"]) <= 0 and not (np.isfinite(size) & (size > 0)).all():
        raise ReadError(f"{name}: the voxel size is {size.tolist()} mm, expected above 0; repair pixdim")
    spacing = tuple(round(float(length), 6) for length in reversed(size))
    if affine is None:
        return None, spacing
    geometry.check_affine(affine, name)
    affine[:3] *= unit
    return geometry.reverse_axes(affine), spacing


def _values(nifti: Any, data: bytes | bytearray, name: str) -> np.ndarray:
    """Scaled values as stored: (x, y[, z[, t[, c]]]); RGB becomes c."""
    try:
        proxy = nifti.dataobj
        raw = np.ndarray(proxy.shape, proxy.dtype, buffer=data, offset=proxy.offset, order="F")
    except (
        Exception
    ) as error:  # truncated .nii: OSError; absurd shapes: ValueError, MemoryError, OverflowError
        raise ReadError(f"{name}: voxels cannot be read ({line(error, data)}); copy it again") from error
    if raw.dtype.names:
        raw = np.stack([raw[channel] for channel in raw.dtype.names[:3]], axis=-1)
        raw = raw.reshape(*raw.shape[:-1], *(1,) * max(0, 5 - raw.ndim), 3)
    if raw.size == 0:
        raise ReadError(f"{name}: shape {raw.shape} holds no voxel; exclude it")
    try:
        return values.rescale(raw, nifti.dataobj.slope, nifti.dataobj.inter)
    except ReadError as error:
        raise ReadError(f"{name}: {error}; exclude it or convert it") from error


def _frames(array: np.ndarray, fourth_axis: str, name: str) -> list[np.ndarray]:
    """Split (x, y[, z[, t[, c]]]) into frames [C, D, H, W]."""
    if array.ndim > 5:
        if any(size > 1 for size in array.shape[5:]):
            raise ReadError(f"{name}: {array.ndim} axes {array.shape}, expected at most 4; split the file")
        array = array.reshape(array.shape[:5])
    array = array.reshape(array.shape + (1,) * (5 - array.ndim))
    # (x, y, z, t, c) -> [t, c, z, y, x]; NIfTI is stored in Fortran order, so this is a view.
    array = array.transpose(3, 4, 2, 1, 0)
    times, channels = array.shape[:2]
    if fourth_axis == "frames":
        return list(array)
    if times > 1 and channels > 1:
        raise ReadError(f"{name}: {times} frames of {channels} channels; set fourth_axis: frames")
    return [array[0] if times == 1 else array[:, 0]]


def _as_stored(frame: np.ndarray, spacing: tuple[float, ...], flat: bool, name: str) -> Image:
    """A frame whose place in the patient is not known."""
    array, facts = values.finite(frame.squeeze(1) if flat else frame, name)
    facts = {"format": "nifti", **facts}
    spacing = (*(1.0,) * (array.ndim - 1 - len(spacing)), *spacing)  # a file of one axis
    return Image(array=np.ascontiguousarray(array), spacing=spacing, facts=facts)


def _image(frame: np.ndarray, affine: np.ndarray, flat: bool, name: str) -> Image:
    codes = geometry.axis_codes(affine)
    array, affine, order = geometry.canonical(frame, affine)
    array, facts = values.finite(array, name)
    if flat:
        # The one axis that the file does not have becomes the (dropped) first one.
        keep = [axis for axis in range(3) if axis != order[0]]
        affine = affine[:, [int(order[0]), *keep, 3]]
        array = np.ascontiguousarray(array.squeeze(1 + int(order[0])))
    spacing = geometry.spacing_of(affine)[3 - (array.ndim - 1) :]
    return Image(
        array=array, spacing=spacing, affine=affine, facts={"format": "nifti", "orientation": codes, **facts}
    )
