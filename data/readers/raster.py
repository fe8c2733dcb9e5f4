"""Pictures (PNG, JPEG, TIFF, WebP, BMP, GIF, PNM) -> Image [C, H, W], 8 or 16 bit.

JPEG source bytes travel along (never re-encoded) when their decode is the picture; everything that may
identify a person is stripped from them. Alpha is dropped, palettes and CMYK become RGB, the EXIF turn is
applied, and grey stored as lossless RGB becomes one channel. Resolution tags are not believed: no spacing.
"""

from __future__ import annotations

import io
import itertools
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow
from PIL import ImageSequence, UnidentifiedImageError

from ..errors import ReadError
from ..sample import Image
from . import jpeg, messages, values
from .source import check_fourth_axis, content, single

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".pnm")

_ORIENTATION = 0x0112
_PLAIN = ("MINISBLACK", "MINISWHITE", "RGB")  # photometric interpretations of TIFF that need no conversion
_DEEP = "deep jpeg"
_ALPHA = (1, 2)  # kinds of extra samples; others are channels
_PNM_DEPTH = re.compile(rb"P[36]\s+(?:#[^\n]*\n\s*)*\d+\s+(?:#[^\n]*\n\s*)*\d+\s+(?:#[^\n]*\n\s*)*(\d+)")
_GREY_MODES = {"1", "L", "I;16", "I;16B", "I;16L", "I", "F"}


class _Refused(Exception):
    """A sound picture of a kind that is not read."""


def matches(head: bytes) -> bool:
    """Whether the first 512 bytes of a file are a picture that this reader knows."""
    return head.startswith(
        (b"\x89PNG", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"BM", b"GIF8")
    ) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


@messages.quiet()
def read(paths: Sequence[Path], *, fourth_axis: str = "channels") -> list[Image]:
    """Read one picture file; a file with several pages or frames gives one Image each.

    Returns:
        Images [1 | 3, H, W] (a multi-channel TIFF keeps its channels), dtype as stored.

    Raises:
        ReadError: not a picture, truncated, corrupt, or above about 179 million pixels.
    """
    check_fourth_axis(fourth_axis)
    path = single(list(paths), "picture")
    data = content(path)
    try:
        images = [_image(array, facts, path.name) for array, facts in _pages(data)]
        if len(images) == 1 and images[0].facts["format"] == "jpeg":
            images[0].jpeg = _source_bytes(data, path.name)
        elif images and images[0].facts["format"] == _DEEP:
            jpeg.strip(data, path.name)  # notices a missing end, which the decoder makes up
    except ReadError:
        raise
    except Pillow.DecompressionBombError as error:
        raise ReadError(f"{path.name}: {_line(error, data)}; cut it into tiles first") from error
    except _Refused as error:
        raise ReadError(f"{path.name}: {error}; convert it") from error
    except UnidentifiedImageError as error:
        raise ReadError(
            f"{path.name}: not a picture of a known kind, expected {', '.join(SUFFIXES)}; check it"
        ) from error
    except Exception as error:  # decoders raise many kinds on damaged data; all mean the same to the user
        raise ReadError(
            f"{path.name}: truncated or corrupt ({_line(error, data)}); copy or download it again"
        ) from error
    if not images:
        raise ReadError(f"{path.name}: no picture inside, expected at least one page; exclude it")
    if len(images) > 1:
        for index, image in enumerate(images):
            image.facts |= {"frame": index, "frames": len(images)}
    return images


@messages.quiet()
def read_labels(path: Path) -> np.ndarray:
    """Read a label picture: stored integers [1 | 3, H, W]; of a palette the indices, not the colours.

    Raises:
        ReadError: as `read`, or several pages.
    """
    data = content(path)
    if data[:4] in (b"\x89PNG", b"GIF8") or data[:2] == b"BM":
        try:
            with Pillow.open(io.BytesIO(data)) as picture:
                if picture.mode == "P":
                    return _turned(np.asarray(picture)[None], picture.getexif().get(_ORIENTATION, 1))
        except Exception as error:
            why = _line(error, data)
            raise ReadError(f"{path.name}: truncated or corrupt ({why}); copy it again") from error
    images = read([path])
    if len(images) != 1:
        raise ReadError(f"{path.name}: {len(images)} pages, expected one label map")
    return values.grey_if_equal(images[0].array)


def _image(array: np.ndarray, facts: dict[str, str], name: str) -> Image:
    if not array.size:
        raise ReadError(f"{name}: {array.shape} pixels, expected one or more; copy or download it again")
    array, mended = values.finite(values.narrow(array), name)
    return Image(array=np.ascontiguousarray(array), facts={**facts, **mended})


def _source_bytes(data: bytes, name: str) -> bytes | None:
    """Stripped source bytes, or None when the decode needs more than them (a turn, a colour conversion)."""
    with Pillow.open(io.BytesIO(data)) as picture:
        plain = picture.mode in ("L", "RGB") and picture.getexif().get(_ORIENTATION, 1) in (0, 1)
    return jpeg.strip(data, name) if plain else None


def _pages(data: bytes) -> Iterator[tuple[np.ndarray, dict[str, str]]]:
    """Decoded pages [C, H, W] of a file with their facts."""
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        yield from _tiff_pages(data)
        return
    if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) > 25 and data[24] == 16 and data[25] != 0:
        yield _deep_png(data), {"format": "png"}
        return
    if data[:3] == b"\xff\xd8\xff" and jpeg.beyond_baseline(data):
        yield _deep_jpeg(data), {"format": _DEEP}
        return
    with Pillow.open(io.BytesIO(data)) as picture:
        kind = str(picture.format).lower()
        _check_whole(picture, kind, data)
        turn = picture.getexif().get(_ORIENTATION, 1)
        if kind in (
            "jpeg",
            "mpo",
        ):  # what follows the picture in an MPO is a preview, a gain map or another eye
            yield _turned(_decoded(picture), turn), {"format": "jpeg"}
            return
        for page in ImageSequence.Iterator(picture):
            yield values.grey_if_equal(_turned(_decoded(page), turn)), {"format": kind}


def _check_whole(picture: Pillow.Image, kind: str, data: bytes) -> None:
    """Refuse what Pillow would read with a loss and without a word."""
    if kind == "png" and picture.mode == "P" and b"PLTE" not in data:
        raise _Refused("a palette picture without its palette")
    if kind == "ppm" and (depth := _PNM_DEPTH.match(data)) and int(depth[1]) > 255 and picture.mode == "RGB":
        raise _Refused("16-bit colours, which are read from PNG and TIFF only")


def _deep_jpeg(data: bytes) -> np.ndarray:
    """JPEG of 12 bit, or a lossless one: what Pillow does not read."""
    import imagecodecs

    return _channels_first(np.asarray(imagecodecs.jpeg_decode(data)))


def _deep_png(data: bytes) -> np.ndarray:
    """16-bit colour or alpha PNG, which Pillow would cut to 8 bit."""
    import imagecodecs

    with Pillow.open(io.BytesIO(data)) as picture:
        picture.load()  # verifies the checksums, which imagecodecs does not report
        turn = picture.getexif().get(_ORIENTATION, 1)
    array = _channels_first(np.asarray(imagecodecs.png_decode(data)))
    array = array[: 1 if array.shape[0] <= 2 else 3]
    return values.grey_if_equal(_turned(array, turn))


def _decoded(page: Pillow.Image) -> np.ndarray:
    """Pixels of one Pillow page [C, H, W] without palette, alpha or CMYK."""
    mode = page.mode
    if mode == "P":
        page = page.convert("RGBA" if "transparency" in page.info else "RGB")
        mode = page.mode
    if mode in ("LA", "La"):
        page = page.getchannel(0)
    elif mode == "RGBA":
        # Channel by channel: convert("RGB") would be the same today, but drops alpha by documented accident.
        page = Pillow.merge("RGB", page.split()[:3])
    elif mode not in _GREY_MODES and mode != "RGB":
        page = page.convert("RGB")
    return _channels_first(np.asarray(page))


def _tiff_pages(data: bytes) -> Iterator[tuple[np.ndarray, dict[str, str]]]:
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        pages: list[Any] = list(itertools.islice(tiff.pages, len(_offsets(data))))
        shapes = {(page.imagewidth, page.imagelength) for page in pages}
        # Sub-resolutions and thumbnails follow the picture: only pages of the first one's size are frames.
        for page in pages if len(shapes) == 1 else pages[:1]:
            if page.imagewidth * page.imagelength > 2 * (Pillow.MAX_IMAGE_PIXELS or 1 << 27):
                raise Pillow.DecompressionBombError(f"{page.imagewidth}x{page.imagelength} pixels")
            yield _tiff_page(page, data), {"format": "tiff"}


def _offsets(data: bytes) -> list[int]:
    """Where the pages of a TIFF stand, up to the first that was there before: links may lead back.

    Raises:
        ValueError: a link leads behind the end of the file; tifffile would give the pages before it.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = b"+" in data[2:4]
    count, entry, link = ("Q", 20, "Q") if big else ("H", 12, "I")
    found: list[int] = []
    (offset,) = struct.unpack_from(order + link, data, 8 if big else 4)
    while offset and offset not in found:
        found.append(offset)
        if offset + struct.calcsize(count) > len(data):
            raise ValueError(f"page {len(found)} lies behind the end of the file")
        (entries,) = struct.unpack_from(order + count, data, offset)
        (offset,) = struct.unpack_from(order + link, data, offset + struct.calcsize(count) + entry * entries)
    return found


def _tiff_page(page: Any, data: bytes) -> np.ndarray:
    """Pixels of one tifffile page [C, H, W]; colour models other than grey and RGB go through Pillow."""
    photometric = page.photometric.name
    if page.imagedepth > 1:
        raise _Refused(f"a volume of {page.imagedepth} slices (ImageDepth), expected pages of two axes")
    if photometric not in (*_PLAIN, "PALETTE", "SEPARATED", "YCBCR"):
        raise _Refused(f"colour model {photometric}, expected one of grey, RGB, YCbCr, palette, CMYK")
    if photometric not in _PLAIN and not (photometric == "YCBCR" and page.compression.name == "JPEG"):
        with Pillow.open(io.BytesIO(data)) as picture:
            picture.seek(page.index)
            return values.grey_if_equal(_decoded(picture))
    if any(
        start + size > len(data) for start, size in zip(page.dataoffsets, page.databytecounts, strict=True)
    ):
        raise ValueError("pixels behind the end of the file")
    array = page.asarray()
    axes = page.axes
    if "S" in axes:
        array = np.moveaxis(array, axes.index("S"), 0)
    array = array.reshape(-1, *array.shape[-2:]) if array.ndim != 2 else array[None]
    alpha = [kind for kind in page.extrasamples if photometric == "RGB" or int(kind) in _ALPHA]
    array = array[: array.shape[0] - len(alpha)]
    if photometric == "MINISWHITE" and array.dtype.kind in "bu":
        limit = 1 if array.dtype.kind == "b" else 2**page.bitspersample - 1
        array = (limit - array.astype(np.int64)).astype(array.dtype)
    tag = page.tags.get(_ORIENTATION)
    return values.grey_if_equal(_turned(array, int(tag.value) if tag else 1))


def _turned(array: np.ndarray, orientation: int) -> np.ndarray:
    """Apply the EXIF orientation 1..8 to [C, H, W]. Source: EXIF 2.32, tag 0x0112."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(-1, -2)
    if orientation in (3, 4, 7, 8):
        array = array[..., ::-1, :]
    if orientation in (2, 3, 6, 7):
        array = array[..., ::-1]
    return np.ascontiguousarray(array)


def _channels_first(array: np.ndarray) -> np.ndarray:
    return array[None] if array.ndim == 2 else np.ascontiguousarray(np.moveaxis(array, -1, 0))


def _line(error: BaseException, data: bytes) -> str:
    if isinstance(error, struct.error):
        return "a header field is cut short"
    return messages.line(error, data)
