"""NumPy's .npz with one image inside -> Image, as readers/array.py reads it; a mask may lie beside it.

Which array is the image: the only one with two axes or more that does not call itself a mask. Of several,
one is named by its address, `case.npz::image.npy`; of stacked ones by its row, `images.npz::x.npy::17.npy`.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from ..errors import ReadError
from ..interop import archive
from ..interop.stacked import HEAD_BYTES, npy_header
from ..sample import Given, Image
from . import array
from .source import check_fourth_axis, content, single

SUFFIXES = (".npz",)


def matches(head: bytes) -> bool:
    """Whether the first 512 bytes of a file are a zip whose first member is an NPY array."""
    return head[:4] == b"PK\x03\x04" and b".npy" in head[30:286]


def read(paths: Sequence[Path], *, fourth_axis: str = "channels", given: Given | None = None) -> list[Image]:
    """Read the one image of an .npz.

    Raises:
        ReadError: no array, or several, can be the image; otherwise as readers/array.py.
    """
    check_fourth_axis(fourth_axis)
    path = single(list(paths), "npz")
    (image,) = array.read([address_of(path)], fourth_axis=fourth_axis, given=given)
    image.facts["format"] = "npz"
    return [image]


def address_of(path: Path, *, mask: bool = False) -> Path:
    """Address of the one image, or of the one label map, in an .npz.

    Raises:
        ReadError: damaged, or not exactly one array can be meant.
    """
    from ..layouts.members import says_mask

    found = archive.Zip(io.BytesIO(content(path)), path.name)
    arrays = [name for name in found.names() if name.endswith(".npy") and _axes(found, name) >= 2]
    meant = [name for name in arrays if says_mask(name) == mask]
    if mask and not meant and len(arrays) == 1:
        meant = arrays
    if len(meant) == 1:
        return archive.join(path, meant[0])
    what = "label maps" if mask else "images"
    if not meant:
        raise ReadError(f"{path.name}: no array with two axes or more, expected one of {what}; exclude it")
    raise ReadError(
        f"{path.name}: {len(meant)} arrays could be {what} ({', '.join(meant[:5])}); "
        f"name one, e.g. {path.name}{archive.SEPARATOR}{meant[0]}"
    )


def _axes(found: archive.Zip, name: str) -> int:
    """Number of axes of an array; 0 of what is none."""
    try:
        return len(npy_header(found.head(name, HEAD_BYTES))[0])
    except Exception:  # not numbers, or a damaged header: not the image, at any rate
        return 0
