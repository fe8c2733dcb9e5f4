"""DICOM films: ultrasound, angiography and endoscopy loops, MPEG inside DICOM -> one picture a frame.

Frames are decoded one at a time, and only those that are kept. Where the file calibrates its ultrasound
regions, they become facts (numbers only: their kind, box and spacing), and with `crop` the picture is cut to
the box around them: what the scanner writes beside the scan, names above all, is then left behind. A file
whose regions do not fit its picture, because it was cut later, is refused with `crop` rather than guessed at.

Source: DICOM PS3.3 C.8.5.5 (US Region Calibration), C.7.6.5 (Cine).
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import ReadError
from ..sample import Given, Image
from . import dicom_fields as fields
from . import video
from .dicom_planes import frame_planes
from .dicom_series import picture

_FILMS = tuple(f"1.2.840.10008.1.2.4.{number}" for number in range(100, 109))  # MPEG-2, H.264, HEVC
_KINDS = range(19)  # Region Data Type
_EARLY = 1e-6  # seconds


def is_film(dataset: Any) -> bool:
    """Whether the pixels are an MPEG-2, H.264 or HEVC stream."""
    return str(dataset.file_meta.TransferSyntaxUID).removesuffix(".1") in _FILMS


def frames(name: str, dataset: Any, given: Given) -> Iterator[Image]:
    """Frames that are kept, [C, H, W], with the facts "frame", "frames" and, where known, "time" in seconds.

    Raises:
        ReadError: undecodable, or `every` is asked of a file that states no time between frames.
    """
    if is_film(dataset):
        yield from _film(name, dataset, given)
        return
    count = fields.count(dataset, "NumberOfFrames") or 1
    times = _times(dataset, count)
    kept = _kept(times, count, given, name)
    for index, plane in zip(kept, frame_planes(name, dataset, kept), strict=True):
        image = shown(picture(plane), dataset, name, given.crop)
        image.facts |= {"frame": index, "frames": count}
        if times is not None:
            image.facts["time"] = round(times[index], 4)
        yield image


def shown(image: Image, dataset: Any, name: str, crop: bool) -> Image:
    """Add the ultrasound regions of a picture to its facts, and cut it to them.

    Raises:
        ReadError: `crop`, and an ultrasound picture whose regions are not stated or do not fit.
    """
    if fields.text(dataset, "Modality").upper() not in ("US", "IVUS"):
        return image
    height, width = image.array.shape[1:]
    regions = list(_regions(dataset))
    fit = [r for r in regions if r["box"][2] <= height and r["box"][3] <= width]
    if fit and len(fit) == len(regions):
        image.facts["regions"] = fit
    if not crop:
        return image
    if not regions or len(fit) < len(regions):
        why = "states no ultrasound regions" if not regions else "was cut after its regions were written"
        raise ReadError(f"{name}: {why}, expected them for `crop`; cut it yourself, or leave crop out")
    boxes = np.array([region["box"] for region in fit])
    top, left, bottom, right = (int(n) for n in (*boxes[:, :2].min(axis=0), *boxes[:, 2:].max(axis=0)))
    moved = [
        {**region, "box": [y0 - top, x0 - left, y1 - top, x1 - left]}
        for region in fit
        for y0, x0, y1, x1 in [region["box"]]
    ]
    facts = {**image.facts, "regions": moved, "cropped": True}
    return replace(image, array=image.array[:, top:bottom, left:right], affine=None, facts=facts)


def _regions(dataset: Any) -> Iterator[dict[str, Any]]:
    """Kind, box [top, left, bottom, right) in pixels, and mm a pixel (y, x) of each region."""
    for region in fields.items(dataset, "SequenceOfUltrasoundRegions"):
        keys = ("RegionLocationMinY0", "RegionLocationMinX0", "RegionLocationMaxY1", "RegionLocationMaxX1")
        found = [number for key in keys if (number := fields.integer(region, key)) is not None]
        if len(found) < 4 or min(found) < 0 or found[2] <= found[0] or found[3] <= found[1]:
            continue
        top, left, bottom, right = found
        kind = fields.count(region, "RegionDataType")
        spacing = fields.region_spacing(region)
        yield {
            "kind": kind if kind in _KINDS else 0,
            "box": [top, left, bottom + 1, right + 1],
            "spacing": None if spacing is None else list(spacing),
        }


def _times(dataset: Any, count: int) -> list[float] | None:
    """Seconds of each frame from the first, None when the file does not say."""
    vector = fields.numbers(dataset, "FrameTimeVector", count)
    if vector and min(vector) >= 0:
        # The first step belongs to no pair of frames.
        return [total / 1000 for total in itertools.accumulate((0.0, *vector[1:]))]
    step = fields.positive(dataset, "FrameTime")
    if step:
        return [index * step / 1000 for index in range(count)]
    for key in ("CineRate", "RecommendedDisplayFrameRate"):
        if rate := fields.positive(dataset, key):
            return [index / rate for index in range(count)]
    return None


def _kept(times: list[float] | None, count: int, given: Given, name: str) -> list[int]:
    """Numbers of the frames that are kept: the first at or after each multiple of `every`, `most` of them."""
    kept = list(range(count))
    if given.every:
        if times is None:
            raise ReadError(
                f"{name}: states no time between frames, expected one for `every`; use `most` instead"
            )
        due, kept = 0.0, []
        for index, time in enumerate(times):
            if time + _EARLY >= due:
                kept.append(index)
                due = ((time + _EARLY) // given.every + 1) * given.every
    if given.most and len(kept) > given.most:
        step = len(kept) / given.most
        kept = [kept[int(number * step)] for number in range(given.most)]
    return kept


def _film(name: str, dataset: Any, given: Given) -> Iterator[Image]:
    from pydicom.encaps import generate_fragments, parse_basic_offsets

    try:
        packed = io.BytesIO(dataset.PixelData)
        parse_basic_offsets(packed)  # stands before the fragments
        stream = io.BytesIO(b"".join(generate_fragments(packed)))
    except Exception as error:  # damaged items raise many kinds
        line = fields.line(error, dataset)
        raise ReadError(f"{name}: its film cannot be unpacked ({line}); copy it again") from error
    for image in video.frames_of(stream, name, given):
        cut = shown(image, dataset, name, given.crop)
        cut.spacing = fields.pixel_spacing(dataset)
        cut.facts.pop("format")
        yield cut
