"""What the header of a record's files says of the image: dimensions, bytes, kind. No pixel is decoded.

A build admits its workers by these bytes, and the dry run counts with them. A header costs 0.1 ms (NIfTI,
PNG, JPEG) to 1 ms (DICOM). What cannot be read this way gives None: the reader will say why, later.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import ReadError
from ..readers import dicom, itk, nifti, raster, reader_of, slide, video
from ..sample import Given, Record

_HEAD = 1 << 16  # bytes of a file that are looked at


@dataclass(frozen=True, slots=True)
class Header:
    """An image before it is decoded."""

    kind: str  # a key of dry_run.RATIOS
    ndim: int  # 2 or 3
    bytes: int  # in the dtype in which it will be stored, all channels and frames
    at_once: int = 0  # bytes that are decoded at a time, where that is less than all; 0: all
    from_disk: bool = False  # the file itself is never in memory as a whole


def header_of(record: Record) -> Header | None:
    """Look at the header of a record's first file; other channels in files of their own count as much."""
    if record.given is not None and record.given.channels:
        found = header_of(replace(record, paths=record.paths[:1], given=replace(record.given, channels=())))
        return found and replace(found, bytes=found.bytes * len(record.paths))
    path = record.paths[0]
    try:
        reader = reader_of(path)
        if reader is nifti:
            return _nifti(path)
        if slide.wanted(path, record.given) or reader is slide:
            return _slide(path, record.given or Given())
        if reader is video:
            return _video(path, record.given or Given())
        if reader is itk:
            return _itk(path)
        if reader is dicom:
            return _dicom(path, len(record.paths), record.given or Given())
        if reader is raster:
            return _raster(path)
    except Exception:  # damaged headers raise many kinds; the build will list the file with its reason
        return None
    return None


def _nifti(path: Path) -> Header:
    import nibabel as nib

    with path.open("rb") as stream:
        head = stream.read(_HEAD)
    packed = head[:2] == b"\x1f\x8b"
    if packed:
        head = zlib.decompressobj(wbits=31).decompress(head, 1024)
    if not nifti.matches(head[:512]):
        raise ReadError("no NIfTI header")
    kind = nib.Nifti2Header if head[4:7] in (b"n+2", b"ni2") else nib.Nifti1Header
    header = kind(head[: kind.sizeof_hdr], check=False)
    dtype, (slope, _) = header.get_data_dtype(), header.get_slope_inter()
    shape = header.get_data_shape()
    if dtype.names:
        width, name = len(dtype.names[:3]), "8 bit"
    elif dtype.kind in "iu" and dtype.itemsize <= 2 and (slope is None or float(slope).is_integer()):
        width, name = dtype.itemsize, f"{8 * dtype.itemsize} bit"
    else:
        width, name = 4, "float"
    return Header(
        f"{'nii.gz' if packed else 'nii'} {name}", 2 if len(shape) == 2 else 3, width * math.prod(shape)
    )


def _itk(path: Path) -> Header:
    stored = itk.header(path)
    dtype = stored.dtype
    small = dtype.kind in "iu" and dtype.itemsize <= 2
    width, name = (dtype.itemsize, f"{8 * dtype.itemsize} bit") if small else (4, "float")
    packed = ".gz" if stored.encoding in ("deflate", "bzip2") else ""
    flat = stored.axes.count("space") == 2
    return Header(f"mha/nrrd{packed} {name}", 2 if flat else 3, width * math.prod(stored.sizes))


def _slide(path: Path, given: Given) -> Header:
    """Tiles: as many as lie on the slide, a third of them when only tissue is kept."""
    grid = slide.grid_at(path, given)
    one, tiles = 3 * math.prod(grid.size), math.prod(grid.count)
    kept = min(given.most or tiles, tiles if given.tissue <= 0 else max(1, tiles // 3))
    # While a tile is made, so is what it is reduced from; before, the overview.
    reduced = max(one * math.ceil(grid.scale[0] + 1) * math.ceil(grid.scale[1] + 1), slide.OVERVIEW_BYTES)
    return Header("slide", 2, one * kept, reduced, True)


def _video(path: Path, given: Given) -> Header:
    size, length, rate = video.described(path)
    frames = math.ceil(length * min(rate, 1 / given.every if given.every else rate)) or 1
    kept = min(given.most or frames, frames)
    return Header("film", 2, size * kept, 4 * size, True)  # decoders keep some frames for reference


def _dicom(path: Path, files: int, given: Given) -> Header:
    import pydicom

    found = dicom.header(path)
    pixels = pydicom.dcmread(
        path, stop_before_pixels=True, force=True, specific_tags=["SamplesPerPixel", "BitsAllocated"]
    )
    samples, bits = int(pixels.get("SamplesPerPixel", 1)), int(pixels.get("BitsAllocated", 16))
    planes = files * found.frames
    stack = planes > 1 and (found.position is not None or found.modality in ("CT", "MR", "PT"))
    plane = found.rows * found.cols * samples * max(1, bits // 8)
    size = planes * plane
    if files == 1 and found.frames > 1 and not stack:  # a film, decoded frame by frame
        return Header("dicom picture", 2, min(given.most or planes, planes) * plane, plane)
    return Header("dicom volume" if stack else "dicom picture", 3 if stack else 2, size)


def _raster(path: Path) -> Header:
    from PIL import Image as Pillow

    with Pillow.open(path) as picture:
        deep = picture.mode in ("I", "F") or picture.mode.startswith("I;16")
        bands = 3 if picture.mode in ("P", "CMYK", "YCbCr", "RGBA", "RGB") else 1
        kind = str(picture.format).lower()
        frames = getattr(picture, "n_frames", 1)
        size = picture.width * picture.height * frames * (2 if deep else bands)
    if kind != "jpeg":
        kind = f"{'png' if kind == 'png' else 'picture'} {16 if deep else 8} bit"
    return Header(kind, 2, size)
