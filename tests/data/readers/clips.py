"""Generated video clips for the tests."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np


def pattern(count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Coloured frames [H, W, 3] that differ from each other everywhere."""
    y, x = np.mgrid[:height, :width]
    return [
        np.stack([(3 * x + 5 * i) % 256, (4 * y + i) % 256, (x + y + 3 * i) % 256], -1).astype(np.uint8)
        for i in range(count)
    ]


def write_clip(
    path: Path,
    frames: list[np.ndarray],
    codec: str = "ffv1",
    pixels: str = "bgr0",
    *,
    rate: int = 10,
    times: list[float] | None = None,
    turn: int = 0,
) -> Path:
    """Write a video; the default codec loses nothing."""
    import av

    with av.open(str(path), "w") as container:
        container.metadata["title"] = "Mustermann^Erika"
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], pixels
        if turn:
            stream.set_display_rotation(turn)
        for number, frame in enumerate(frames):
            layout = "rgb24" if frame.ndim == 3 else "gray16le" if frame.dtype == np.uint16 else "gray"
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format=layout)
            if times is not None:
                picture.pts, picture.time_base = round(1000 * times[number]), Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path
