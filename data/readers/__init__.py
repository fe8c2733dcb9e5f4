"""How a file becomes Images: volumes, DICOM, pictures and bare arrays.

A reader is one module with SUFFIXES, `matches(head)` and `read(paths, *, fourth_axis)`, and one line in
READERS; those in TOLD also take what the source says of the file (`given`). `read` gives the images one by
one where a file holds many: a slide or a video is never in memory as a whole. A known suffix decides; a file
without one is recognised by its first bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from ..errors import ReadError
from ..sample import Given, Image
from . import array, channels, dicom, itk, nifti, npz, raster, slide, video
from .labels import read_label_map, read_named_label_map
from .source import head_of

__all__ = ["READERS", "SUFFIXES", "each", "read", "read_label_map", "read_named_label_map", "reader_of"]

READERS: dict[str, ModuleType] = {
    "nifti": nifti,
    "dicom": dicom,
    "raster": raster,
    "array": array,
    "itk": itk,
    "npz": npz,
    "video": video,
    "slide": slide,
}
TOLD = (array, dicom, npz, slide, video)  # readers that take `given`

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


def each(
    paths: Sequence[Path], *, fourth_axis: str = "channels", given: Given | None = None
) -> Iterator[Image]:
    """Read the images of one file, of a DICOM series (files in any order), or of a file a channel.

    One image is in memory at a time where the format allows it: the tiles of a slide, the frames of a video.

    Args:
        paths: at least one.
        fourth_axis: what a fourth axis becomes: "channels" of one image, or "frames", one image each.
        given: what the source says of the file, and that the files are channels.

    Yields:
        Images [C, D, H, W] or [C, H, W] in their native dtype; volumes in closest canonical orientation. Of
        several, each has the fact "frame", its number.

    Raises:
        ReadError: nothing usable can be read, or what follows cannot; the message names the file and the
            reason.
    """
    paths = [Path(path) for path in paths]
    if not paths:
        raise ReadError("no file given, expected at least one")
    if given is not None and given.channels:
        yield from channels.read(paths, given, fourth_axis=fourth_axis)
        return
    reader = slide if slide.wanted(paths[0], given) else reader_of(paths[0])
    if reader in TOLD:
        yield from reader.read(paths, fourth_axis=fourth_axis, given=given)
    else:
        yield from reader.read(paths, fourth_axis=fourth_axis)


def read(paths: Sequence[Path], *, fourth_axis: str = "channels", given: Given | None = None) -> list[Image]:
    """All images of `each` at once. Raises as `each`."""
    return list(each(paths, fourth_axis=fourth_axis, given=given))
