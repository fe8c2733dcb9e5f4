"""Headers of NRRD (.nrrd, .nhdr): lines `field: value`, `key:=value` pairs, and an empty line.

Axes whose direction is `none`, or that are colours, vectors or matrices by their kind, are no space axes. A
space other than the three of patients (LPS, RAS, LAS, each with -time) gives the spacing alone: such a volume
keeps its stored order. Free text and key:=value pairs stay in the reader; those of 3D Slicer's segmentations
are understood by `structures_nrrd.py`.

Source: Teem, Definition of NRRD File Format, https://teem.sourceforge.net/nrrd/format.html
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from ..errors import ReadError
from . import messages
from .stored import CHANNEL, FOURTH, SPACE, Stored, beside, check_shape, listed

_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": (
        "longlong", "long long", "long long int", "signed long long", "signed long long int", "int64",
        "int64_t",
    ),
    "u8": (
        "ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t",
    ),
    "f4": ("float",),
    "f8": ("double",),
}  # fmt: skip
_DTYPES = {word: code for code, words in _TYPES.items() for word in words}
_ENCODINGS = {
    "raw": "raw", "gz": "deflate", "gzip": "deflate", "bz2": "bzip2", "bzip2": "bzip2", "txt": "text",
    "text": "text", "ascii": "text", "hex": "hex",
}  # fmt: skip
# Signs that turn a space into RAS+.
_SPACES = {
    "left-posterior-superior": (-1, -1, 1), "lps": (-1, -1, 1),
    "right-anterior-superior": (1, 1, 1), "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1), "las": (-1, 1, 1),
}  # fmt: skip
_CHANNELS = re.compile(r".*(vector|color|gradient|normal|matrix|quaternion|complex|point).*")
_SPACE_KINDS = ("domain", "space")


def matches(head: bytes) -> bool:
    """Whether the first 512 bytes of a file are an NRRD header."""
    return head.startswith(b"NRRD000")


def parse(data: bytes, path: Path) -> tuple[Stored, int]:
    """The header at the start of `data`, and its length in bytes.

    Raises:
        ReadError: a field is missing or cannot be understood.
    """
    if not matches(data[:512]):
        raise ReadError(f"{path.name}: no NRRD header found; is it another format?")
    fields, words, lines, end = _fields(data)
    try:
        return _stored(fields, words, lines, path), end
    except (KeyError, ValueError, IndexError) as error:
        what = messages.line(error, data)
        raise ReadError(f"{path.name}: NRRD header cannot be read ({what}); repair it") from error


def _fields(data: bytes) -> tuple[dict[str, str], dict[str, str], list[str], int]:
    """Fields, key:=value pairs, the lines after `data file: LIST`, and where the voxels start."""
    fields: dict[str, str] = {}
    words: dict[str, str] = {}
    at = data.find(b"\n") + 1
    while 0 < at < len(data):
        end = data.find(b"\n", at)
        line = data[at : end if end >= 0 else len(data)].decode("utf-8", "replace").rstrip("\r")
        at = end + 1 if end >= 0 else len(data)
        if not line.strip():
            break
        key, pair, value = line.partition(":=")
        if pair and ": " not in key:
            words[key] = value
            continue
        key, _, value = line.partition(":")
        if not line.startswith("#"):
            fields[key.strip().lower()] = value.strip()
        if key.strip().lower() in ("data file", "datafile") and value.split()[:1] == ["LIST"]:
            return fields, words, data[at:].decode("latin-1").splitlines(), len(data)
    return fields, words, [], at


def _stored(fields: dict[str, str], words: dict[str, str], lines: list[str], path: Path) -> Stored:
    kind = fields["type"].lower()
    if kind not in _DTYPES:
        raise ValueError("its type is no number of known size")
    encoding = _ENCODINGS.get(fields["encoding"].lower())
    if encoding is None:
        raise ValueError("its encoding is unknown")
    dtype = np.dtype(_DTYPES[kind])
    if dtype.itemsize > 1 and encoding != "text":
        dtype = dtype.newbyteorder(">" if ("little", "big").index(fields["endian"].lower()) else "<")
    sizes = tuple(int(word) for word in fields["sizes"].split())
    if len(sizes) != int(fields["dimension"]):
        raise ValueError(f"{len(sizes)} sizes where its dimension is another")
    check_shape(sizes, dtype, path.name)
    directions = _directions(fields, len(sizes))
    axes = _axes(fields, directions, len(sizes))
    affine, spacing = _placed(fields, directions, axes)
    where = fields.get("data file", fields.get("datafile"))
    return Stored(
        name=path.name,
        format="nrrd",
        sizes=sizes,
        axes=axes,
        dtype=dtype,
        encoding=encoding,
        files=(path,) if where is None else _files(path, where, lines),
        skip=int(fields.get("byte skip", fields.get("byteskip", "0"))),
        skip_lines=min(int(fields.get("line skip", fields.get("lineskip", "0"))), 1 << 16),
        affine=affine,
        spacing=spacing,
        words=words,
    )


def _files(path: Path, where: str, lines: list[str]) -> tuple[Path, ...]:
    words = where.split()
    if words[0] == "LIST" or ("%" in words[0] and len(words) > 2):
        return listed(path, words, lines)
    return (beside(path, where),)


def _directions(fields: dict[str, str], count: int) -> list[np.ndarray | None] | None:
    """A vector an axis, None for `none`; None altogether without space directions."""
    if "space directions" not in fields:
        return None
    found = re.findall(r"none|\(([^)]*)\)", fields["space directions"])
    vectors = [np.array([float(part) for part in text.split(",")]) if text else None for text in found]
    if len(vectors) != count:
        raise ValueError(f"{len(vectors)} space directions for dimension {count}")
    return [None if vector is None or np.isnan(vector).all() else vector for vector in vectors]


def _axes(fields: dict[str, str], directions: list[np.ndarray | None] | None, count: int) -> tuple[str, ...]:
    """What each axis is; at most three are space."""
    kinds = fields["kinds"].lower().split() if "kinds" in fields else [""] * count
    if len(kinds) != count:
        raise ValueError(f"{len(kinds)} kinds for dimension {count}")
    axes = []
    for number, kind in enumerate(kinds):
        if _CHANNELS.fullmatch(kind):
            axes.append(CHANNEL)
        elif directions is not None:
            axes.append(SPACE if directions[number] is not None else FOURTH)
        elif kind in _SPACE_KINDS or kind in ("", "???", "none"):
            axes.append(SPACE)
        else:
            axes.append(FOURTH)
    while axes.count(SPACE) > 3:  # time beside three axes of space: the slowest
        axes[len(axes) - 1 - axes[::-1].index(SPACE)] = FOURTH
    if axes.count(SPACE) < 2:
        raise ValueError(f"{axes.count(SPACE)} space axes, expected 2 or 3")
    return tuple(axes)


def _placed(
    fields: dict[str, str], directions: list[np.ndarray | None] | None, axes: tuple[str, ...]
) -> tuple[np.ndarray | None, tuple[float, ...] | None]:
    """Affine of (x, y, z) in RAS+ mm where the space is a patient's; else the spacing, if the file has it."""
    space = [number for number, axis in enumerate(axes) if axis == SPACE]
    if directions is None:
        found = [float(word) for word in fields.get("spacings", "").split()]
        steps = [abs(found[number]) for number in space] if len(found) == len(axes) else []
        good = steps and all(np.isfinite(step) and step > 0 for step in steps)
        return None, tuple(steps) if good else None
    vectors = [vector for number in space if (vector := directions[number]) is not None]
    signs = _SPACES.get(fields.get("space", "").lower().removesuffix("-time").removesuffix("t"))
    if signs is None or len(space) != 3 or any(len(vector) < 3 for vector in vectors):
        return None, tuple(float(np.linalg.norm(vector)) for vector in vectors)
    affine = np.eye(4)
    affine[:3, :3] = np.column_stack([vector[:3] for vector in vectors])
    if "space origin" in fields:
        affine[:3, 3] = [float(part) for part in fields["space origin"].strip("() ").split(",")[:3]]
    return np.diag([*signs, 1.0]) @ affine, None
