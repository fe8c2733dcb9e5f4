"""Generated whole-slide images: pyramids of tiles as scanners write them, with tissue where we say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

GLASS = (243, 241, 244)
APERIO = (
    "Aperio Image Library v11.2.1 \r\n{w}x{h} [0,0 {w}x{h}] (256x256) JPEG/RGB Q=70|AppMag = {power}|"
    "StripeWidth = 2040|ScanScope ID = CPAPERIOCS|Filename = Mustermann-7|Date = 12/29/09|User = Mustermann|"
    "MPP = {mpp}"
)


def specimen(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Glass with a disc of stained texture in the middle, uint8 [H, W, 3]."""
    rng = np.random.default_rng(seed)
    slide = np.empty((height, width, 3), np.uint8)
    slide[:] = GLASS
    y, x = np.mgrid[:height, :width]
    disc = (y - height / 2) ** 2 + (x - width / 2) ** 2 < (min(height, width) / 3) ** 2
    texture = rng.normal(0, 20, (height, width, 1)) + np.array([200, 120, 180])
    slide[disc] = np.clip(texture, 0, 255).astype(np.uint8)[disc]
    return slide


def halved(array: np.ndarray, step: int) -> np.ndarray:
    """Mean of step x step pixels."""
    height, width = (n // step * step for n in array.shape[:2])
    blocks = array[:height, :width].reshape(height // step, step, width // step, step, 3)
    return blocks.mean(axis=(1, 3)).round().astype(np.uint8)


def write_svs(
    path: Path, slide: np.ndarray, *, steps: tuple[int, ...] = (4, 16), mpp: float = 0.25, tile: int = 64
) -> Path:
    """An Aperio-like file: base, thumbnail, levels, label and macro (with a name on them)."""
    height, width = slide.shape[:2]
    text = APERIO.format(w=width, h=height, power=round(10 / mpp), mpp=mpp)
    tiled: dict[str, Any] = {
        "tile": (tile, tile),
        "compression": "zlib",
        "photometric": "rgb",
        "metadata": None,
    }
    plain: dict[str, Any] = {"compression": "zlib", "photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(slide, description=text, **tiled)
        tiff.write(halved(slide, 8), description=text, rowsperstrip=16, **plain)
        for step in steps:
            tiff.write(halved(slide, step), description=text, **tiled)
        secret = np.full((50, 80, 3), (255, 0, 255), np.uint8)
        tiff.write(secret, description="Aperio Image\r\nlabel 80x50", subfiletype=1, **plain)
        tiff.write(secret, description="Aperio Image\r\nmacro 80x50", subfiletype=9, **plain)
    return path


def write_huge(path: Path, size: int = 100_000, tile: int = 512) -> Path:
    """A pyramid of size x size pixels whose tiles repeat, so that writing it takes seconds."""
    import imagecodecs

    glass = np.broadcast_to(np.array(GLASS, np.uint8), (tile, tile, 3))
    tissue = np.full((tile, tile, 3), (200, 120, 180), np.uint8)
    tissue[:, ::7, 1] = 90
    packed = [imagecodecs.zlib_encode(np.ascontiguousarray(part)) for part in (glass, tissue)]

    def tiles(count: int) -> Iterator[bytes]:
        middle = (count - 1) / 2
        for row in range(count):
            for column in range(count):
                inside = (row - middle) ** 2 + (column - middle) ** 2 < (count / 4) ** 2
                yield packed[int(inside)]

    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for step in (1, 4, 16, 64):
            length = size // step
            tiff.write(
                tiles(-(-length // tile)), shape=(length, length, 3), dtype="uint8", tile=(tile, tile),
                compression="zlib", photometric="rgb", metadata=None,
                description=APERIO.format(w=size, h=size, power=40, mpp=0.25),
            )  # fmt: skip
            if step == 1:
                tiff.write(np.full((64, 64, 3), 240, np.uint8), rowsperstrip=16, compression="zlib",
                           photometric="rgb", metadata=None)  # fmt: skip
    return path
