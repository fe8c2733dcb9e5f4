"""Contact sheets of what a curation found: a picture a rule, each image beside the one that it is a copy of.

At most 24 images a rule, evenly spread over what it found. They are read again from the collection. Captions
name datasets and numbers, never files; but lettering burnt into pixels stays readable, so sheets are for the
person who curates and are not to be passed on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..atomic import replacing
from ..readers import each
from ..shards.pictures import resize
from .curation import DROP
from .findings import RULES, Finding
from .table import Table

if TYPE_CHECKING:
    from .curate import Result

MOST = 24
_TILE, _GAP, _LINE, _COLUMNS = 176, 10, 15, 4
_PAGE, _BRIGHT, _DIM = (18, 20, 26), (235, 238, 244), (150, 158, 172)


def draw(result: Result, folder: Path) -> list[Path]:
    """Write one PNG for each rule that found images that were looked at; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {f"{rule}.png" for rule in RULES}
    for path in folder.glob("*.png"):
        if path.name in wanted:
            path.unlink()  # of a curation with other thresholds
    made = []
    for rule in RULES:
        found = [finding for finding in result.findings if finding.rule == rule]
        if found:
            chosen = [
                found[n] for n in np.unique(np.linspace(0, len(found) - 1, min(MOST, len(found))).astype(int))
            ]
            made.append(_sheet(result, rule, chosen, len(found), folder / f"{rule}.png"))
    return made


def _sheet(result: Result, rule: str, chosen: Sequence[Finding], count: int, path: Path) -> Path:
    from PIL import Image, ImageDraw

    pairs = any(finding.of is not None for finding in chosen)
    width = (2 * _TILE + 2 if pairs else _TILE) + _GAP
    height = _TILE + 3 * _LINE + _GAP
    columns = _COLUMNS if pairs else 2 * _COLUMNS
    rows = -(-len(chosen) // columns)
    sheet = Image.new("RGB", (columns * width + _GAP, rows * height + 56), _PAGE)
    pen = ImageDraw.Draw(sheet)
    dropped = sum(result.action(f) == DROP for f in result.findings if f.rule == rule)
    title = f"{rule}: {count} found, {dropped} dropped" + (
        f"; {len(chosen)} shown" if count > len(chosen) else ""
    )
    pen.text((_GAP, 8), title, _BRIGHT, font=_font(16))
    pen.text((_GAP, 30), RULES[rule][1], _DIM, font=_font(11))
    for number, finding in enumerate(chosen):
        left, top = _GAP + number % columns * width, 54 + number // columns * height
        images = [finding.image, *([finding.of] if finding.of is not None else [])]
        for place, image in enumerate(images):
            assert image is not None
            tile = Image.fromarray(_tile(result.table, image))
            sheet.paste(tile, (left + place * (_TILE + 2), top))
        for line, text in enumerate(_caption(result, finding)):
            font, shade = _font(11), _BRIGHT if line == 0 else _DIM
            while font.getlength(text) > width - _GAP:
                text = text[:-2] + "…"
            pen.text((left, top + _TILE + 2 + line * _LINE), text, shade, font=font)
    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG")
    return path


def _caption(result: Result, finding: Finding) -> Iterator[str]:
    assert finding.image is not None
    one = result.table.record(finding.image)
    yield f"{result.action(finding)} · {one.dataset}"
    numbers = [(n, v) for n, v in finding.numbers.items() if n != "threshold" and not isinstance(v, str)]
    yield ", ".join(f"{name} {value:g}" for name, value in numbers)
    if finding.of is not None:
        other = result.table.record(finding.of)
        words = [] if other.dataset == one.dataset else [f"of {other.dataset}"]
        words += [str(finding.numbers["turn"])] if "turn" in finding.numbers else []
        words += ["same subject"] if (one.dataset, one.subject) == (other.dataset, other.subject) else []
        words += [f"{one.split} / {other.split}"] if one.split != other.split else []
        yield ", ".join(words)


def _tile(table: Table, image: int) -> np.ndarray:
    """An image as uint8 [176, 176, 3]; of a volume the central axial plane; grey when it cannot be read."""
    source, record = table.source(image), table.record(image)
    number = int(table.rows["image"][image])
    images = each(record.paths, fourth_axis=source.fourth_axis, given=record.given)
    try:
        array = next(islice(images, number, None)).array
    except Exception:  # it was readable when it was looked at: the sheet shows that it no longer is
        return np.full((_TILE, _TILE, 3), 60, np.uint8)
    if array.ndim == 4:
        array = array[:, array.shape[1] // 2, ::-1, ::-1]
    array = np.ascontiguousarray(array if array.shape[0] == 3 else array[:1])
    scale = _TILE / max(array.shape[1:])
    size = [max(1, round(n * scale)) for n in array.shape[1:]]
    shown = resize(array.astype(np.float32), (0, 0, *array.shape[1:]), size)
    low, high = np.percentile(shown, (0.5, 99.5))
    grey = np.clip((shown - low) * (255 / max(high - low, 1e-6)), 0, 255).astype(np.uint8)
    tile = np.zeros((_TILE, _TILE, 3), np.uint8)
    top, left = (_TILE - size[0]) // 2, (_TILE - size[1]) // 2
    tile[top : top + size[0], left : left + size[1]] = np.moveaxis(grey, 0, -1)
    return tile


def _font(size: int):
    import matplotlib
    from PIL import ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"  # the same letters everywhere
    return ImageFont.truetype(str(folder / "DejaVuSans.ttf"), size)
