"""Headers of MetaImage (.mha, .mhd): lines `Key = value`, the last of which says where the voxels are.

World space is LPS millimetres, as ITK writes it: row i of TransformMatrix is the direction of axis i.
`AnatomicalOrientation` only repeats it and is not read. Names, comments and ids stay in the file.

Source: https://itk.org/Wiki/ITK/MetaIO/Documentation
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import ReadError
from . import messages
from .geometry import LPS_TO_RAS
from .stored import CHANNEL, FOURTH, SPACE, Stored, beside, check_shape, listed

_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4",
    "MET_UINT": "u4", "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
_HEADER_BYTES = 1 << 20  # a longer header is none


def matches(head: bytes) -> bool:
    """Whether the first 512 bytes of a file are a MetaImage header."""
    words = head.lstrip().partition(b"\n")[0].split(b"=")
    return words[0].strip() in (b"ObjectType", b"NDims") and len(words) == 2


def parse(data: bytes, path: Path) -> tuple[Stored, int]:
    """The header at the start of `data`, and its length in bytes.

    Raises:
        ReadError: a key is missing or cannot be understood.
    """
    keys, lines, end = _keys(data, path.name)
    try:
        return _stored(keys, lines, path), end
    except (KeyError, ValueError, IndexError) as error:
        what = messages.line(error, data)
        raise ReadError(f"{path.name}: MetaImage header cannot be read ({what}); repair it") from error


def _keys(data: bytes, name: str) -> tuple[dict[str, str], list[str], int]:
    """Keys of the header, the lines after ElementDataFile (of a list), and where the voxels start."""
    keys: dict[str, str] = {}
    at = 0
    while True:
        end = data.find(b"\n", at, _HEADER_BYTES)
        line = data[at : end if end >= 0 else min(len(data), _HEADER_BYTES)].decode("latin-1")
        key, equals, value = line.partition("=")
        if line.strip() and not equals:
            raise ReadError(f"{name}: a line of the MetaImage header has no '='; repair it")
        keys[key.strip()] = value.strip()
        at = end + 1
        if key.strip() == "ElementDataFile":
            rest = data[at:].decode("latin-1").splitlines() if value.strip().startswith("LIST") else []
            return keys, rest, at if end >= 0 else len(data)
        if end < 0:
            raise ReadError(f"{name}: a MetaImage header without ElementDataFile; truncated? copy it again")


def _stored(keys: dict[str, str], lines: list[str], path: Path) -> Stored:
    count = int(keys["NDims"])
    sizes = tuple(int(word) for word in keys["DimSize"].split())
    channels = int(keys.get("ElementNumberOfChannels", "1"))
    kind = keys["ElementType"].removesuffix("_ARRAY")
    if kind not in _TYPES:
        raise ValueError("its ElementType is no number of known size")
    big = _true(keys, "BinaryDataByteOrderMSB") or _true(keys, "ElementByteOrderMSB")
    dtype = np.dtype(_TYPES[kind]).newbyteorder(">" if big else "<")
    if len(sizes) != count:
        raise ValueError(f"{len(sizes)} sizes for NDims {count}")
    axes = (SPACE,) * min(count, 3) + (FOURTH,) * (count - 3)
    if channels > 1:
        sizes, axes = (channels, *sizes), (CHANNEL, *axes)
    check_shape(sizes, dtype, path.name)
    affine, spacing = _placed(keys, count, path.name)
    encoding = "raw" if _true(keys, "BinaryData", default=True) else "text"
    where = keys["ElementDataFile"].split()
    return Stored(
        name=path.name,
        format="metaimage",
        sizes=sizes,
        axes=axes,
        dtype=dtype,
        encoding="deflate" if _true(keys, "CompressedData") else encoding,
        files=(path,) if where[0] in ("LOCAL", "Local", "local") else _files(path, keys, where, lines),
        skip=int(keys.get("HeaderSize", "0")) if where[0].upper() != "LOCAL" else 0,
        affine=affine,
        spacing=spacing,
    )


def _files(path: Path, keys: dict[str, str], where: list[str], lines: list[str]) -> tuple[Path, ...]:
    if where[0] == "LIST" or "%" in where[0]:
        return listed(path, where, lines)
    return (beside(path, keys["ElementDataFile"]),)  # the name may hold blanks


def _placed(
    keys: dict[str, str], count: int, name: str
) -> tuple[np.ndarray | None, tuple[float, ...] | None]:
    """Affine of (x, y, z) in RAS+ mm for volumes; for pictures the spacing alone."""
    spacing = _numbers(keys, ("ElementSpacing", "ElementSize"), count)
    if count < 3:
        return None, None if spacing is None else tuple(spacing)
    if spacing is None:
        return None, None
    origin = _numbers(keys, ("Offset", "Position", "Origin"), count)
    matrix = _numbers(keys, ("TransformMatrix", "Orientation", "Rotation"), count * count)
    lps = np.eye(4)
    turn = np.eye(3) if matrix is None else matrix.reshape(count, count)[:3, :3].T
    lps[:3, :3] = turn * spacing[:3]
    if origin is not None:
        lps[:3, 3] = origin[:3]
    return LPS_TO_RAS @ lps, None


def _numbers(keys: dict[str, str], names: tuple[str, ...], size: int) -> np.ndarray | None:
    for name in names:
        if name in keys:
            found = np.array([float(word) for word in keys[name].split()])
            if len(found) != size:
                raise ValueError(f"{name} has {len(found)} numbers, expected {size}")
            return found
    return None


def _true(keys: dict[str, str], name: str, *, default: bool = False) -> bool:
    return keys[name][:1] in ("T", "t", "1") if keys.get(name) else default
