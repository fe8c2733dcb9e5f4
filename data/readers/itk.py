"""MetaImage (.mha, .mhd) and NRRD (.nrrd, .nhdr) -> Image, in closest canonical orientation.

Vectors and colours become channels, a fourth axis what the source says. Attached or detached voxels (one
file, a list, a pattern; never outside of the header's folder), raw, gzip, zlib, bzip2 or text, either byte
order. SimpleITK reads the same voxels in the same places: the tests compare.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import ReadError
from ..interop import archive
from ..sample import Image
from . import geometry, metaimage, nrrd, values
from .source import check_fourth_axis, content, head_of, single
from .stored import CHANNEL, FOURTH, SPACE, Stored, voxels

SUFFIXES = (".mha", ".mhd", ".nrrd", ".nhdr")

_HEAD = 1 << 16  # bytes that hold a header, list of files aside


def matches(head: bytes) -> bool:
    """Whether the first 512 bytes of a file are a MetaImage or NRRD header."""
    return nrrd.matches(head) or metaimage.matches(head)


def header(path: Path) -> Stored:
    """What the header says, without the voxels. Raises ReadError."""
    if archive.split(path)[1]:
        data = content(path)
    else:
        head_of(path)  # says why, when it cannot be opened
        with path.open("rb") as stream:
            data = stream.read(_HEAD)
    return _parse(data, path)[0]


def data_files(paths: Sequence[Path]) -> tuple[Path, ...]:
    """The files in which the voxels of detached headers lie; none for other or unreadable files."""
    found: list[Path] = []
    for path in paths:
        if path.name.lower().endswith((".mhd", ".nhdr")):
            with contextlib.suppress(ReadError):
                found += [file for file in header(path).files if file != path]
    return tuple(found)


def stored_of(path: Path) -> tuple[Stored, np.ndarray]:
    """Header and voxels, axes slowest first. Raises ReadError."""
    data = content(path)
    stored, end = _parse(data, path)
    return stored, voxels(stored, data[end:], path)


def read(paths: Sequence[Path], *, fourth_axis: str = "channels") -> list[Image]:
    """Read one MetaImage or NRRD file.

    Returns:
        Images [C, D, H, W], or [C, H, W] of two space axes. A volume that the file does not place in a
        patient keeps its stored order and has no affine.

    Raises:
        ReadError: truncated, corrupt, singular directions, no finite value, more than one further axis.
    """
    check_fourth_axis(fourth_axis)
    path = single(list(paths), "MetaImage or NRRD")
    stored, array = stored_of(path)
    if stored.affine is not None:
        geometry.check_affine(stored.affine, path.name)
    images = [_image(frame, stored) for frame in _frames(array, stored, fourth_axis)]
    if len(images) > 1:
        for index, image in enumerate(images):
            image.facts |= {"frame": index, "frames": len(images)}
    return images


def ordered(array: np.ndarray, stored: Stored) -> np.ndarray:
    """[T, C, (D,) H, W] of voxels whose axes are slowest first."""
    axes = stored.axes[::-1]
    order = [n for role in (FOURTH, CHANNEL, SPACE) for n, axis in enumerate(axes) if axis == role]
    array = array.transpose(order)
    space = axes.count(SPACE)
    if max(axes.count(FOURTH), axes.count(CHANNEL)) > 1:
        extra = [size for size, axis in zip(stored.sizes, stored.axes, strict=True) if axis != SPACE]
        if sum(size > 1 for size in extra) > 1:
            raise ReadError(f"{stored.name}: {len(extra)} axes beside space {extra}, expected 1; split it")
    times = int(np.prod([s for s, axis in zip(stored.sizes, stored.axes, strict=True) if axis == FOURTH]))
    return array.reshape(times, -1, *array.shape[array.ndim - space :])


def _parse(data: bytes, path: Path) -> tuple[Stored, int]:
    kind = nrrd if nrrd.matches(data[:512]) else metaimage
    return kind.parse(data, path)


def _frames(array: np.ndarray, stored: Stored, fourth_axis: str) -> list[np.ndarray]:
    """Frames [C, (D,) H, W]."""
    array = ordered(array, stored)
    times, channels = array.shape[:2]
    if array.dtype == np.uint8 and channels == 4 and CHANNEL in stored.axes and array.ndim == 4:
        array = array[:, :3]  # the fourth of a picture is alpha
    if fourth_axis == "frames":
        return list(array)
    if times > 1 and channels > 1:
        raise ReadError(f"{stored.name}: {times} frames of {channels} channels; set fourth_axis: frames")
    return [array[0] if times == 1 else array[:, 0]]


def _image(frame: np.ndarray, stored: Stored) -> Image:
    array, affine, spacing = values.narrow(frame), stored.affine, stored.spacing
    facts: dict = {"format": stored.format}
    if affine is not None and array.ndim == 4:
        turned = geometry.reverse_axes(affine)
        facts["orientation"] = geometry.axis_codes(turned)
        array, affine, _ = geometry.canonical(array, turned)
        spacing = geometry.spacing_of(affine)
    elif spacing is not None:
        affine, spacing = None, spacing[::-1]
    if array.ndim == 3:
        array = values.grey_if_equal(array)
    array, mended = values.finite(array, stored.name)
    return Image(array=np.ascontiguousarray(array), spacing=spacing, affine=affine, facts={**facts, **mended})
