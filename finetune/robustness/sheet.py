"""The contact sheet: one case in every corruption and severity, so that one sees what the numbers speak of.

Brightness is windowed as the clean image is, so that changes of exposure show. Volumes are shown on a middle
slice; slice thickness, which no slice shows, on the plane across.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...data.atomic import replacing
from ...data.shards.reader import SampleRef
from ..data import Case
from ..overlays import to_rgb
from .corruptions import CORRUPTIONS, corrupt, usual

_SIDE, _GAP, _MARGIN, _TOP = 150, 4, 128, 26  # pixels
_INK, _SOFT, _PAPER = (27, 28, 30), (90, 93, 99), (255, 255, 255)


@dataclass(frozen=True, slots=True)
class Strip:
    """One row of the sheet: an image [C, *spatial] with its `key.json`, and what befalls it."""

    image: np.ndarray
    meta: Mapping[str, Any]
    name: str  # of a corruption


def strips(image: np.ndarray, meta: Mapping[str, Any], names: Sequence[str] | None = None) -> list[Strip]:
    """A row for each corruption of the image, those of its modality by default."""
    return [Strip(image, meta, name) for name in (names if names is not None else usual(meta))]


def write_sheet(path: Path, rows: Sequence[Strip], severities: Sequence[int] = (1, 2, 3, 4, 5)) -> Path:
    """Write the sheet as a PNG: a row a strip, the clean image first, then one picture a severity."""
    from PIL import Image, ImageDraw, ImageFont

    columns = [0, *severities]
    size = (_MARGIN + len(columns) * (_SIDE + _GAP), _TOP + len(rows) * (_SIDE + _GAP))
    sheet = Image.new("RGB", size, _PAPER)
    draw, font, small = ImageDraw.Draw(sheet), ImageFont.load_default(14), ImageFont.load_default(12)
    for column, severity in enumerate(columns):
        words = f"severity {severity}" if severity else "clean"
        draw.text((_MARGIN + column * (_SIDE + _GAP), 6), words, _SOFT, small)
    for row, strip in enumerate(rows):
        top = _TOP + row * (_SIDE + _GAP)
        draw.text((6, top + _SIDE // 2 - 18), CORRUPTIONS[strip.name].title, _INK, font)
        draw.text((6, top + _SIDE // 2 + 2), str(strip.meta["modality"]), _SOFT, small)
        for column, severity in enumerate(columns):
            tile = _tile(corrupt(strip.image, strip.meta, strip.name, severity), strip)
            sheet.paste(Image.fromarray(tile), (_MARGIN + column * (_SIDE + _GAP), top))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG", optimize=True)
    return path


def _tile(image: np.ndarray, strip: Strip) -> np.ndarray:
    """One plane as [side, side, 3] uint8, fitted into a black square at its physical proportions."""
    from PIL import Image

    spacing = strip.meta.get("spacing") or (1.0,) * (image.ndim - 1)
    sides = tuple(float(mm) for mm in spacing)[-2:]
    if image.ndim == 4:
        across = CORRUPTIONS[strip.name].needs == "volume"
        middle = image.shape[2 if across else 1] // 2
        image = image[:, ::-1, middle] if across else image[:, middle, ::-1]  # head, or front, on top
        sides = (float(spacing[0]), float(spacing[2])) if across else sides
    case = Case(SampleRef(0, 0), {**strip.meta, "ndim": strip.meta["ndim"]})
    picture = Image.fromarray(to_rgb(case, image))
    height, width = picture.height * sides[0], picture.width * sides[1]
    scale = _SIDE / max(height, width)
    fitted = picture.resize(
        (max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BOX
    )
    tile = Image.new("RGB", (_SIDE, _SIDE))
    tile.paste(fitted, ((_SIDE - fitted.width) // 2, (_SIDE - fitted.height) // 2))
    return np.asarray(tile)
