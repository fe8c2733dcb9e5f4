"""Whole-slide images -> tiles [3, H, W] of tissue at one resolution; the slide is never in memory as a whole.

Tiles lie on a fixed grid from the slide's upper left corner, so a tile keeps its place (and its key) whatever
else is kept. They are read from the coarsest stored level that is fine enough: level pixels as they are where
the level is within 2 % of the resolution asked for, else reduced (Lanczos, with the pixels around a tile, so
that neighbours fit). Nothing is enlarged. What a tile holds of tissue is judged on an overview of at most 16
million pixels, or on the tile itself where a slide has no small level: that reads every tile.

Read are Aperio .svs, Hamamatsu .ndpi, Leica .scn, Ventana .bif and pyramidal or large .tif, by tiffslide. The
label and the macro picture, which show names and barcodes, and all texts stay in the file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow

from ..errors import ReadError
from ..interop import archive
from ..sample import Given, Image
from . import messages
from .source import head_of, single
from .tissue import share_of_tissue, tissue_mask

SUFFIXES = (".svs", ".ndpi", ".scn", ".bif")
TIFF_SUFFIXES = (".tif", ".tiff")

MPP = 0.5  # micrometres a pixel: what a 20x objective gives
_OBJECTIVE = 10.0  # times micrometres a pixel: 20x has 0.5
_BELIEVED = (0.02, 20.0)  # micrometres a pixel that a scanner may have; 72 dpi is no scan
_SAME = 0.02  # share by which a level may miss the resolution and is taken as it is
_OVERVIEW_PIXELS = 1 << 24
OVERVIEW_BYTES = 3 * _OVERVIEW_PIXELS
_OVERVIEW_MPP = 8.0
_CHUNK_PIXELS = 1 << 26  # of a stored tile or strip: more would be the slide as a whole
_LARGE = 16 << 20  # bytes of a .tif from which its header is looked at


@dataclass(frozen=True, slots=True)
class Grid:
    """Where the tiles of a slide lie."""

    level: int
    scale: tuple[float, float]  # pixels of the level to one of a tile, (y, x)
    mpp: tuple[float, float]  # of the tiles, (y, x)
    downsample: tuple[float, float]  # pixels of level 0 to one of the level, (y, x)
    size: tuple[int, int]  # of a tile, (height, width)
    count: tuple[int, int]  # tiles, (rows, columns)

    def box(self, row: int, column: int) -> tuple[float, float, float, float]:
        """(top, left, bottom, right) of a tile in pixels of the level."""
        top, left = row * self.size[0] * self.scale[0], column * self.size[1] * self.scale[1]
        return top, left, top + self.size[0] * self.scale[0], left + self.size[1] * self.scale[1]


@dataclass(frozen=True, slots=True)
class Place:
    """One tile of a grid."""

    row: int
    column: int
    share: float  # that is tissue
    array: np.ndarray | None = None  # uint8 [H, W, 3], when it had to be read to be judged


def matches(head: bytes) -> bool:
    """A slide's first bytes are those of any TIFF: without a suffix it counts as a picture."""
    return False


def wanted(path: Path, given: Given | None) -> bool:
    """Whether a .tif is to be read as a slide: the source gives `mpp`, or it is too large for a picture."""
    if not path.name.lower().endswith(TIFF_SUFFIXES) or archive.split(path)[1]:
        return False
    if given is not None and given.mpp is not None:
        return True
    try:
        if path.stat().st_size < _LARGE:
            return False
        import tifffile

        with messages.quiet(), tifffile.TiffFile(path) as tiff:
            page: Any = tiff.pages[0]
            return page.is_tiled and page.imagewidth * page.imagelength > 2 * (Pillow.MAX_IMAGE_PIXELS or 0)
    except Exception:  # the reader of pictures will say why
        return False


def read(
    paths: Sequence[Path], *, fourth_axis: str = "channels", given: Given | None = None
) -> Iterator[Image]:
    """Read the tiles of one slide, row by row.

    Args:
        given: `tile` pixels an edge, `mpp` micrometres a pixel, least share of `tissue`, `most` tiles; and
            `spacing` (mm a pixel, y and x) of a slide that does not state its own.

    Yields:
        Images uint8 [3, tile, tile] (smaller only where the slide is); facts "frame" (number on the grid, row
        by row), "x" and "y" (upper left corner in pixels of the full resolution), "mpp" and "tissue" (share).

    Raises:
        ReadError: no slide, damaged, of unknown or too low resolution, no tissue, or stored in pieces that
            cannot be read one at a time.
    """
    path = single([Path(path) for path in paths], "slide")
    given = given or Given()
    slide = _opened(path)
    with slide:
        grid = _checked(grid_of, slide, given, path.name)
        found = 0
        for place in _places(slide, grid, given, path.name):
            array = place.array
            if array is None:
                array = _checked(_tile, slide, grid, place.row, place.column, path.name)
            found += 1
            yield _image(array, grid, place)
    if not found:
        raise ReadError(f"{path.name}: no tile is {given.tissue:.0%} tissue; lower `tissue`, or exclude it")


def grid_of(slide: Any, given: Given, name: str) -> Grid:
    """Choose the level and lay the tiles. Raises ReadError."""
    native = _native(slide, given, name)
    target = given.mpp or MPP
    finest = max(native)
    if target < finest * (1 - _SAME):
        raise ReadError(
            f"{name}: scanned at {finest:.3g} micrometres a pixel, coarser than mpp {target:g}; "
            "give a larger mpp"
        )
    width, height = slide.dimensions
    level, down = 0, (1.0, 1.0)
    for number, (w, h) in enumerate(slide.level_dimensions):
        steps = (height / h, width / w)
        if all(step * n <= target * (1 + _SAME) for step, n in zip(steps, native, strict=True)):
            level, down = number, steps
    own = [step * n for step, n in zip(down, native, strict=True)]
    scale = [1.0 if abs(target / mpp - 1) <= _SAME else target / mpp for mpp in own]
    w, h = slide.level_dimensions[level]
    fit = [max(1, math.floor(n / s)) for n, s in zip((h, w), scale, strict=True)]
    size = [min(given.tile, n) for n in fit]
    _check_chunks(slide, level, name)
    return Grid(
        level=level,
        scale=(scale[0], scale[1]),
        mpp=(own[0] * scale[0], own[1] * scale[1]),
        downsample=down,
        size=(size[0], size[1]),
        count=(fit[0] // size[0], fit[1] // size[1]),
    )


def grid_at(path: Path, given: Given) -> Grid:
    """The grid of the slide at `path`, from its header. Raises ReadError."""
    with _opened(path) as slide:
        return _checked(grid_of, slide, given, path.name)


def _opened(path: Path) -> Any:
    if archive.split(path)[1]:
        raise ReadError(f"{path.name}: a slide inside an archive; unpack it: it is read at random places")
    head_of(path)  # says why, when it cannot be opened
    try:
        from tiffslide import TiffSlide
    except ImportError as error:
        raise ReadError(f"{path.name}: a slide needs tiffslide; pip install 'medloom[formats]'") from error
    return _checked(TiffSlide, path, name=path.name)


def _checked(call: Any, *arguments: Any, name: str = "") -> Any:
    """Call a function that decodes; whatever it raises becomes a ReadError that names the file."""
    name = name or arguments[-1]
    try:
        with messages.quiet():
            return call(*arguments)
    except (ReadError, MemoryError):
        raise
    except Exception as error:  # tifffile, zarr and the codecs raise many kinds, and quote what they read
        kind = type(error).__name__
        raise ReadError(
            f"{name}: not a slide, truncated or corrupt ({kind}); copy or download it again"
        ) from error


def _native(slide: Any, given: Given, name: str) -> tuple[float, float]:
    """Micrometres a pixel of the full resolution, (y, x): stated, from the objective, or the source's."""
    low, high = _BELIEVED
    if given.spacing is not None and len(given.spacing) == 2:
        return given.spacing[0] * 1000, given.spacing[1] * 1000
    found = [_number(slide.properties.get(f"tiffslide.mpp-{axis}")) for axis in "yx"]
    if all(low <= mpp <= high for mpp in found):
        return found[0], found[1]
    power = _number(slide.properties.get("tiffslide.objective-power"))
    if power and low <= _OBJECTIVE / power <= high:
        return _OBJECTIVE / power, _OBJECTIVE / power
    raise ReadError(
        f"{name}: states no resolution (micrometres a pixel, or objective); give spacing: [y, x] in mm"
    )


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return 0.0


def _check_chunks(slide: Any, level: int, name: str) -> None:
    """Refuse what is stored in strips or tiles so large that reading a place reads the slide."""
    composed = slide.properties.get("tiffslide.series-composition")  # Leica: several scanned areas
    index = next(iter(composed["located_series"])) if composed else slide.properties["tiffslide.series-index"]
    page = slide.ts_tifffile.series[int(index)].levels[level].keyframe
    if page.photometric.name not in ("RGB", "YCBCR") or page.dtype != np.uint8:
        raise ReadError(f"{name}: {page.photometric.name} of {page.dtype}, expected 8-bit colour; convert it")
    if math.prod(page.chunks[:2]) > _CHUNK_PIXELS:
        raise ReadError(
            f"{name}: stored in pieces of {math.prod(page.chunks[:2]):,} pixels; convert it to tiles of 256"
        )


def _places(slide: Any, grid: Grid, given: Given, name: str) -> Iterator[Place]:
    """The tiles that are kept."""
    overview = _checked(_overview, slide, grid, name)
    found = (
        place
        for row in range(grid.count[0])
        for column in range(grid.count[1])
        if (place := _judged(slide, grid, row, column, overview, name)).share >= given.tissue
    )
    if not given.most:
        yield from found
        return
    kept = [replace(place, array=None) for place in found]
    places = np.linspace(0, len(kept) - 1, min(given.most, len(kept)))
    yield from (kept[place] for place in places.round().astype(int))


def _overview(slide: Any, grid: Grid, name: str) -> np.ndarray | None:
    """Tissue of the whole slide as bool [H, W] from a small level, or None when there is none."""
    best = None
    native = grid.mpp[1] / grid.scale[1] / grid.downsample[1]
    for level, (w, h) in enumerate(slide.level_dimensions):
        fine = best is None or native * slide.level_downsamples[level] <= _OVERVIEW_MPP
        if w * h <= _OVERVIEW_PIXELS and fine:
            best = level
    if best is None:
        return None
    w, h = slide.level_dimensions[best]
    if min(h / max(1, grid.count[0]), w / max(1, grid.count[1])) < 4:
        return None  # too coarse to judge a tile by
    _check_chunks(slide, best, name)
    return tissue_mask(slide.read_region((0, 0), best, (w, h), as_array=True)[..., :3])


def _judged(slide: Any, grid: Grid, row: int, column: int, overview: np.ndarray | None, name: str) -> Place:
    """A tile and the share of it that is tissue."""
    if overview is None:
        array = _checked(_tile, slide, grid, row, column, name)
        return Place(row, column, share_of_tissue(array, grid.mpp[1], _OVERVIEW_MPP), array)
    w, h = slide.level_dimensions[grid.level]
    down, right = overview.shape[0] / h, overview.shape[1] / w
    top, left, bottom, stop = grid.box(row, column)
    part = overview[
        math.floor(top * down) : max(math.ceil(bottom * down), math.floor(top * down) + 1),
        math.floor(left * right) : max(math.ceil(stop * right), math.floor(left * right) + 1),
    ]
    return Place(row, column, float(part.mean()))


def _tile(slide: Any, grid: Grid, row: int, column: int, name: str) -> np.ndarray:
    """Pixels of one tile, uint8 [H, W, 3]."""
    top, left, bottom, right = grid.box(row, column)
    w, h = slide.level_dimensions[grid.level]
    around = [0 if scale == 1 else math.ceil(3 * scale) for scale in grid.scale]
    y0, x0 = max(0, math.floor(top) - around[0]), max(0, math.floor(left) - around[1])
    y1 = min(h, math.ceil(bottom - 1e-6) + around[0])
    x1 = min(w, math.ceil(right - 1e-6) + around[1])
    # tiffslide takes places of level 0 and rounds them down to the level's pixels.
    place = (
        math.ceil(x0 * slide.level_downsamples[grid.level]),
        math.ceil(y0 * slide.level_downsamples[grid.level]),
    )
    array = slide.read_region(place, grid.level, (x1 - x0, y1 - y0), as_array=True, padding=False)[..., :3]
    if array.shape[:2] != (y1 - y0, x1 - x0):
        raise ReadError(f"{name}: a tile of {array.shape[:2]} pixels where {(y1 - y0, x1 - x0)} are declared")
    if grid.scale == (1.0, 1.0):
        return array
    box = (left - x0, top - y0, min(right, w) - x0, min(bottom, h) - y0)
    size = (grid.size[1], grid.size[0])
    return np.asarray(Pillow.fromarray(array).resize(size, Pillow.Resampling.LANCZOS, box=box))


def _image(array: np.ndarray, grid: Grid, place: Place) -> Image:
    top, left, _, _ = grid.box(place.row, place.column)
    x, y = round(left * grid.downsample[1]), round(top * grid.downsample[0])
    mpp = round(grid.mpp[1], 4)
    return Image(
        array=np.ascontiguousarray(array.transpose(2, 0, 1)),
        spacing=(round(grid.mpp[0] / 1000, 9), round(grid.mpp[1] / 1000, 9)),
        facts={
            "format": "slide", "frame": place.row * grid.count[1] + place.column, "x": x, "y": y, "mpp": mpp,
            "tissue": round(place.share, 3),
        },
        part=f"tile-{grid.size[1]}-{mpp:g}-{x}-{y}",
    )  # fmt: skip
