"""How a file becomes an Image: NIfTI, DICOM, raster pictures and bare arrays.

A reader is one module with SUFFIXES, `matches(head)` and `read(paths, *, fourth_axis)`, and one line in
READERS; that of arrays also takes what the source says of them (`given`). A known suffix decides; a file
without one is recognised by its first bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from ..errors import ReadError
from ..sample import Given, Image
from . import array, channels, dicom, nifti, raster
from .labels import read_label_map
from .source import head_of

__all__ = ["READERS", "SUFFIXES", "read", "read_label_map", "reader_of"]

READERS: dict[str, ModuleType] = {
    "nifti": nifti,
    "dicom": dicom,
    "raster": raster,
    "array": array,
}

SUFFIXES: dict[str, str] = {suffix: name for name, module in READERS.items() for suffix in module.SUFFIXES}


def reader_of(path: Path) -> ModuleType:
    """Return the module of READERS that reads `path`, by suffix or else by the first 512 bytes.

    Raises:
        ReadError: the file is missing or empty, or no reader knows it.
    """
    lower = path.name.lower()
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if lower.endswith(suffix):
            return READERS[SUFFIXES[suffix]]
    head = head_of(path)
    for module in READERS.values():
        if module.matches(head):
            return module
    raise ReadError(f"{path.name}: unknown format, expected one of {', '.join(sorted(SUFFIXES))}; convert it")


def read(paths: Sequence[Path], *, fourth_axis: str = "channels", given: Given | None = None) -> list[Image]:
    """Read one image: one file, the files of a DICOM series in any order, or a file a channel.

    Args:
        paths: at least one.
        fourth_axis: what a fourth axis becomes: "channels" of one image, or "frames", one image each.
        given: what the source says of an array file (other files speak for themselves), and that the files
            are channels.

    Returns:
        Images [C, D, H, W] or [C, H, W] in their native dtype; volumes in closest canonical orientation. More
        than one only for frames, pages, and pictures of one series.

    Raises:
        ReadError: nothing usable can be read; the message names the file and the reason.
    """
    paths = [Path(path) for path in paths]
    if not paths:
        raise ReadError("no file given, expected at least one")
    if given is not None and given.channels:
        return channels.read(paths, given, fourth_axis=fourth_axis)
    reader = reader_of(paths[0])
    if reader is array:
        return array.read(paths, fourth_axis=fourth_axis, given=given)
    return reader.read(paths, fourth_axis=fourth_axis)
