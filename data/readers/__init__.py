"""How a file becomes an Image: NIfTI, DICOM and raster pictures.

A reader is one module with SUFFIXES, `matches(head)` and `read(paths, *, fourth_axis)`, and one line in
READERS. A known suffix decides; a file without one is recognised by its first bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from ..errors import ReadError
from ..sample import Image
from . import dicom, nifti, raster
from .labels import read_label_map

__all__ = ["READERS", "SUFFIXES", "read", "read_label_map", "reader_of"]

READERS: dict[str, ModuleType] = {
    "nifti": nifti,
    "dicom": dicom,
    "raster": raster,
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
    try:
        with path.open("rb") as stream:
            head = stream.read(512)
    except OSError as error:
        raise ReadError(f"{path.name}: cannot be opened ({error.strerror}); check the path") from error
    if not head:
        raise ReadError(f"{path.name}: 0 bytes, expected an image; copy or download it again")
    for module in READERS.values():
        if module.matches(head):
            return module
    raise ReadError(f"{path.name}: unknown format, expected one of {', '.join(sorted(SUFFIXES))}; convert it")


def read(paths: Sequence[Path], *, fourth_axis: str = "channels") -> list[Image]:
    """Read one image: one file, or the files of a DICOM series in any order.

    Args:
        paths: at least one.
        fourth_axis: what a fourth axis becomes: "channels" of one image, or "frames", one image each.

    Returns:
        Images [C, D, H, W] or [C, H, W] in their native dtype; volumes in closest canonical orientation. More
        than one only for frames, pages, and pictures of one series.

    Raises:
        ReadError: nothing usable can be read; the message names the file and the reason.
    """
    paths = [Path(path) for path in paths]
    if not paths:
        raise ReadError("no file given, expected at least one")
    return reader_of(paths[0]).read(paths, fourth_axis=fourth_axis)
