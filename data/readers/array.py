"""Bare arrays: NumPy `.npy` and Blosc2 `.b2nd` -> Image [C, D, H, W] or [C, H, W].

An array has no geometry and does not name its axes; what the layout knows is in `Record.given`. Without it
the axes are guessed from the shape where one reading is plausible (`guess_axes`), and refused otherwise.
Nothing is unpickled, and no memory is taken for a shape before the bytes for it are there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import ReadError
from ..interop import archive, nnunet
from ..interop.stacked import HEAD_BYTES, npy_header
from ..sample import Given, Image
from . import geometry, values
from .source import check_fourth_axis, content, single

SUFFIXES = (".npy", ".b2nd")

_CHANNELS = 4  # an axis this short can be channels


def matches(head: bytes) -> bool:
    """Whether the first 512 bytes of a file are an NPY or Blosc2 header."""
    return head.startswith(b"\x93NUMPY") or head[2:9] == b"b2frame"


def read(paths: Sequence[Path], *, fourth_axis: str = "channels", given: Given | None = None) -> list[Image]:
    """Read one array file.

    Args:
        given: axes, spacing, nnU-Net's properties.

    Returns:
        One Image; in closest canonical orientation when the geometry is known, else as stored.

    Raises:
        ReadError: damaged, not numbers, axes that cannot be guessed, no finite value.
    """
    check_fourth_axis(fourth_axis)
    path = single(list(paths), "array")
    given = given or Given()
    stored = decode(path)
    axes = given.axes or guess_axes(stored.shape, path.name)
    array = _ordered(stored, axes, path.name)
    if not given.axes and axes == "HWC" and array.dtype == np.uint8:
        array = array[:3]  # the fourth is alpha
    if array.ndim == 3 and not given.axes:
        array = values.grey_if_equal(array)
    image = _placed(array, given, path.name)
    image.array, mended = values.finite(values.narrow(image.array), path.name)
    image.array = np.ascontiguousarray(image.array)
    image.facts |= {"format": path.suffix[1:].lower(), **mended}
    if given.normalised:
        image.facts["normalised"] = True
    return [image]


def read_labels(path: Path, ndim: int, given: Given | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """Read a label array for an image of `ndim` spatial axes: [C, D, H, W] or [C, H, W], and its affine.

    Raises:
        ReadError: as `read`.
    """
    given = given or Given()
    stored = decode(path)
    axes = given.axes
    if stored.ndim == ndim and "C" in (axes or "C"):
        axes = axes.replace("C", "") or "DHW"[-ndim:]
    image = _placed(
        _ordered(stored, axes or guess_axes(stored.shape, path.name), path.name), given, path.name
    )
    labels = image.array
    if given.properties is not None:
        labels = np.where(labels == -1, 0, labels)  # nnU-Net: outside of what was not empty
    return labels, image.affine


def guess_axes(shape: Sequence[int], name: str) -> str:
    """Axes of an array of this shape: HW, HWC, CHW, DHW, CDHW or DHWC.

    Raises:
        ReadError: one or more than four axes, or several readings are plausible.
    """
    match len(shape):
        case 2:
            return "HW"
        case 3:
            first, last = shape[0] <= _CHANNELS, shape[-1] in (3, _CHANNELS)
            if not (first and last):
                return "CHW" if first else "HWC" if last else "DHW"
        case 4:
            first, last = shape[0] <= _CHANNELS, shape[-1] <= _CHANNELS
            if first != last:
                return "CDHW" if first else "DHWC"
    raise ReadError(
        f"{name}: what the axes of shape {tuple(shape)} are cannot be told; name them, e.g. axes: CDHW"
    )


def decode(path: Path) -> np.ndarray:
    """The array as stored. Raises ReadError."""
    data = content(path)
    try:
        array = _npy(data) if data.startswith(b"\x93NUMPY") else _b2nd(data)
    except MemoryError:
        raise
    except Exception as error:  # damaged headers raise many kinds
        line = " ".join(str(error).split())[:160] or type(error).__name__
        raise ReadError(
            f"{path.name}: truncated or corrupt array ({line}); copy or download it again"
        ) from error
    if array.dtype.kind not in "biuf" or array.size == 0:
        raise ReadError(f"{path.name}: {array.dtype} of shape {array.shape}, expected numbers; exclude it")
    return array


def _npy(data: bytes) -> np.ndarray:
    shape, fortran, dtype, start = npy_header(data[:HEAD_BYTES])
    if math.prod(shape) * dtype.itemsize != len(data) - start:
        raise ValueError(f"{len(data) - start} bytes for shape {shape} of {dtype}")
    return np.frombuffer(data, dtype, offset=start).reshape(shape, order="F" if fortran else "C")


def _b2nd(data: bytes) -> np.ndarray:
    import blosc2

    from ..shards.codec import SCALE, unscaled

    frame = blosc2.ndarray_from_cframe(data)
    if math.prod(frame.shape) * frame.dtype.itemsize > archive.MOST_BYTES:
        raise ValueError(f"shape {frame.shape} of {frame.dtype} is larger than {archive.MOST_BYTES:,} bytes")
    array, scale = np.asarray(frame[:]), frame.schunk.meta.get(SCALE)  # a scale: a volume out of a shard
    return array if scale is None else unscaled(array, scale)


def _ordered(array: np.ndarray, axes: str, name: str) -> np.ndarray:
    """[C, D, H, W] or [C, H, W] of an array with the given axes."""
    if len(axes) != array.ndim:
        raise ReadError(f"{name}: axes {axes!r} for an array of shape {array.shape}; give one letter an axis")
    order = [axes.index(letter) for letter in "CDHW" if letter in axes]
    array = array.transpose(order)
    return array if "C" in axes else array[None]


def _placed(array: np.ndarray, given: Given, name: str) -> Image:
    """Image with its geometry; canonical orientation where that is known."""
    if given.properties is None:
        spacing = given.spacing
        if spacing is not None and len(spacing) != array.ndim - 1:
            raise ReadError(
                f"{name}: spacing {spacing} for {array.ndim - 1} spatial axes; give as many numbers"
            )
        return Image(array=array, spacing=spacing)
    case = nnunet.geometry_of(given, array.shape[1:], name)
    if case.flat:
        return Image(array=array[:, 0])
    if case.affine is None:
        return Image(array=array.transpose(0, *(1 + axis for axis in case.backward)), spacing=case.spacing)
    geometry.check_affine(case.affine, name)
    codes = geometry.axis_codes(case.affine)
    array, affine, _ = geometry.canonical(array, case.affine)
    spacing = geometry.spacing_of(affine)
    return Image(array=array, spacing=spacing, affine=affine, facts={"orientation": codes})
