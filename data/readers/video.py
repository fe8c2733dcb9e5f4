"""Video files -> pictures [3 | 1, H, W], one for every so many seconds (endoscopy, ultrasound, microscopy).

Frames are decoded one after another and let go, so memory holds one of them however long the video is; the
price is that every frame is decoded, wanted or not, because a seek gives other frames with other codecs.
Sound, titles, dates, places and device names are not read. What is missing at the end of a cut file is found
by its duration; most codecs carry no checksums, so a flipped bit that their decoder forgives passes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..errors import ReadError
from ..interop import archive
from ..sample import Given, Image
from . import messages, values
from .source import content, head_of, single

SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv")

_MISSING = (0.05, 1.0)  # share and seconds of the duration that may be without frames
_EARLY = 1e-6  # seconds; times are binary fractions
_STILL = (b"heic", b"heix", b"mif1", b"avif")  # brands of pictures in the same container
_BROKEN = "damaged or cut short; copy or download it again"


def matches(head: bytes) -> bool:
    """Whether the first 512 bytes of a file are those of MP4, Matroska, AVI, MPEG or WMV."""
    return (
        (head[4:8] == b"ftyp" and head[8:12] not in _STILL)
        or head.startswith((b"\x1aE\xdf\xa3", b"\0\0\1\xba", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"))
        or (head[:4] == b"RIFF" and head[8:12] == b"AVI ")
    )


def read(
    paths: Sequence[Path], *, fourth_axis: str = "frames", given: Given | None = None
) -> Iterator[Image]:
    """Read the frames of one video, as displayed (turned as its header says).

    Args:
        fourth_axis: time always becomes frames.
        given: `every` seconds a frame, the first at 0 (None: every frame); `most` frames, evenly spread.

    Yields:
        Images with the facts "frame" (its number in the file, from 0) and "time" in seconds.

    Raises:
        ReadError: no video inside, damaged or cut short.
    """
    path = single([Path(path) for path in paths], "video")
    head_of(path)  # says why, when it cannot be opened
    inside = bool(archive.split(path)[1])
    if inside:
        import io

        yield from frames_of(io.BytesIO(content(path)), path.name, given or Given())
    else:
        yield from frames_of(str(path), path.name, given or Given())


def frames_of(source: str | IO[bytes], name: str, given: Given) -> Iterator[Image]:
    """Frames of a video file or stream; see `read`."""
    found = 0
    with _opened(source, name) as (container, stream):
        length = _seconds(container, stream)
        every = _interval(given, length, name)
        try:
            for image in _kept(container, stream, every, length, name):
                yield image
                found += 1
                if found == given.most:
                    return
        except (ReadError, MemoryError):
            raise
        except Exception as error:  # every codec raises its own kinds
            raise ReadError(f"{name}: {_BROKEN} (after {found} frames: {_said(error)})") from error
    if not found:
        raise ReadError(f"{name}: a video without frames; {_BROKEN}")


def described(path: Path) -> tuple[int, float, float]:
    """Bytes of an RGB frame, seconds, frames a second (0 where not stated). Raises ReadError."""
    with _opened(str(path), path.name) as (container, stream):
        length = _seconds(container, stream) or 0.0
        return 3 * int(stream.height) * int(stream.width), length, float(stream.average_rate or 0)


@contextlib.contextmanager
def _opened(source: str | IO[bytes], name: str) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream that is no cover picture; closed at the end."""
    try:
        import av
    except ImportError as error:
        raise ReadError(f"{name}: a video needs PyAV; pip install 'medloom[formats]'") from error
    with messages.quiet():
        try:
            container = av.open(source, metadata_errors="ignore")
        except (av.FFmpegError, OSError, ValueError, IndexError) as error:
            raise ReadError(
                f"{name}: not a video that can be opened, or {_BROKEN} ({_said(error)})"
            ) from error
    with container:
        streams = [s for s in container.streams.video if not s.disposition & s.disposition.attached_pic]
        if not streams:
            raise ReadError(f"{name}: holds no video stream, expected one; exclude it")
        streams[0].codec_context.options = {"err_detect": "crccheck"}
        streams[0].codec_context.thread_count = 1  # a build has a process a core
        yield container, streams[0]


def _said(error: Exception) -> str:
    """FFmpeg's own word for an error, without the path that it adds; the kind of any other."""
    return str(getattr(error, "strerror", None) or type(error).__name__)


def _seconds(container: Any, stream: Any) -> float | None:
    """Duration of the video, None when no header states it."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return None if container.duration is None else container.duration / 1e6  # AV_TIME_BASE


def _interval(given: Given, length: float | None, name: str) -> float:
    """Seconds from one kept frame to the next; 0 keeps all."""
    every = given.every or 0.0
    if given.most:
        if length is None:
            raise ReadError(f"{name}: states no duration, so `most` frames cannot be spread; give `every`")
        every = max(every, length / given.most)
    return every


def _kept(container: Any, stream: Any, every: float, length: float | None, name: str) -> Iterator[Image]:
    """The first frame at or after each multiple of `every`."""
    start = float((stream.start_time or 0) * stream.time_base)
    rate = float(stream.average_rate or 0)
    due, time = 0.0, 0.0
    for number, frame in enumerate(container.decode(stream)):
        if frame.is_corrupt:
            raise ReadError(f"{name}: frame {number} is damaged; copy or download the video again")
        if frame.time is not None:
            time = frame.time - start
        elif rate:
            time = number / rate
        if time + _EARLY >= due:
            yield _image(frame, number, time, name)
            due = ((time + _EARLY) // every + 1) * every if every else 0.0
    share, seconds = _MISSING
    step = 1 / rate if rate else 0.0
    if length is not None and time + step < length - max(share * length, seconds):
        raise ReadError(f"{name}: ends after {time:.1f} of {length:.1f} seconds; {_BROKEN}")


def _image(frame: Any, number: int, time: float, name: str) -> Image:
    components = frame.format.components
    deep = components[0].bits > 8
    if len(components) == 1 and not frame.format.has_palette:
        array = frame.to_ndarray(format="gray16le" if deep else "gray")[None]
    else:
        array = frame.to_ndarray(format="rgb24").transpose(2, 0, 1)
    if frame.rotation % 90:
        raise ReadError(f"{name}: turned by {frame.rotation} degrees, expected a multiple of 90; convert it")
    array = np.rot90(array, frame.rotation // 90, axes=(1, 2))
    return Image(
        array=np.ascontiguousarray(values.grey_if_equal(array)),
        facts={"format": "video", "frame": number, "time": round(time, 3)},
    )
