"""TIFF in every layout: depths, compressions, strips and tiles, byte orders, pages, colour models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from medloom.data.sample import Image
from PIL import Image as Pillow

from .form import Check, Form, smooth
from .forms_picture import COLOUR, DEEP, DEEP_COLOUR, GREY, by_pillow, chw, pillow
from .oracles import both, equals

FLOATS = smooth((40, 48), -3, 9, np.float32)


def tiff(array: np.ndarray, name: str = "a.tif", **options: Any) -> Callable[[Path], list[Path]]:
    """A form that tifffile writes; grey unless said otherwise."""
    options.setdefault("photometric", "rgb" if array.ndim == 3 and array.shape[-1] == 3 else "minisblack")

    def write(folder: Path) -> list[Path]:
        tifffile.imwrite(folder / name, array, **options)
        return [folder / name]

    return write


def pages(*arrays: np.ndarray, **options: Any) -> Callable[[Path], list[Path]]:
    """A form of several pages, as they are given."""

    def write(folder: Path) -> list[Path]:
        with tifffile.TiffWriter(folder / "a.tif", **options) as writer:
            for array in arrays:
                writer.write(array, photometric="minisblack", contiguous=False, metadata=None)
        return [folder / "a.tif"]

    return write


def near(array: np.ndarray, atol: float) -> Check:
    return equals(chw(array), atol=atol)


def _depths() -> list[Form]:
    rows = []
    for code in ("u1", "i1", "u2", "i2", "u4", "i4", "f2", "f4", "f8"):
        kind = np.dtype(code)
        low, high = (-100, 100) if kind.kind == "i" else (-3, 9) if kind.kind == "f" else (0, 250)
        array = smooth((40, 48), low, high, kind)
        rows.append(Form(f"tiff-{kind.name}", tiff(array), equals(chw(array))))
    one = GREY > 90
    for bits in (2, 4, 12):
        levels = GREY >> (8 - bits) if bits < 8 else DEEP >> 4
        kind = np.uint8 if bits < 8 else np.uint16
        rows.append(
            Form(f"tiff-{bits}-bit", tiff(levels.astype(kind), bitspersample=bits), equals(chw(levels)))
        )
    return [
        *rows,
        Form("tiff-1-bit", tiff(one), equals(chw(one))),
        Form(
            "tiff-1-bit-group-4",
            pillow(Pillow.fromarray(one), "a.tif", compression="group4"),
            equals(chw(one)),
        ),
        Form("tiff-1-bit-white-is-zero", tiff(one, photometric="miniswhite"), equals(chw(~one))),
        Form("tiff-complex", tiff(GREY.astype(np.complex64)), refused="complex|real numbers"),
        Form(
            "tiff-white-is-zero", tiff(DEEP, photometric="miniswhite"), equals(65_535 - chw(DEEP).astype(int))
        ),
        Form(
            "tiff-nan",
            tiff(np.where(FLOATS > 8, np.nan, FLOATS)),
            equals(chw(np.where(FLOATS > 8, FLOATS.min(), FLOATS))),
        ),
    ]


def _compressions() -> list[Form]:
    rows = []
    for name in ("lzw", "zlib", "packbits", "zstd", "lzma", "deflate"):
        for kind, array in {"grey": GREY, "rgb": COLOUR, "deep": DEEP}.items():
            see = (
                both(by_pillow(), equals(chw(array)))
                if name in ("lzw", "zlib", "packbits")
                else equals(chw(array))
            )
            rows.append(Form(f"tiff-{name}-{kind}", tiff(array, compression=name), see))
    return [
        *rows,
        Form(
            "tiff-lzw-predictor",
            tiff(DEEP, compression="lzw", predictor=True),
            both(by_pillow(), equals(chw(DEEP))),
        ),
        Form("tiff-float-predictor", tiff(FLOATS, compression="zlib", predictor=True), equals(chw(FLOATS))),
        Form(
            "tiff-jpeg-grey",
            tiff(GREY, compression="jpeg", compressionargs={"level": 95}),
            both(by_pillow(atol=1), near(GREY, 6)),
        ),
        Form(
            "tiff-jpeg-ycbcr",
            tiff(COLOUR, compression="jpeg", compressionargs={"level": 95}),
            both(by_pillow(atol=3), near(COLOUR, 24)),
        ),
        Form(
            "tiff-jpeg-tiles",
            tiff(COLOUR, compression="jpeg", tile=(16, 16), compressionargs={"level": 95}),
            near(COLOUR, 40),
        ),
        Form(
            "tiff-jpeg-by-libtiff", pillow(COLOUR, "a.tif", compression="jpeg", quality=95), near(COLOUR, 24)
        ),
        Form("tiff-jpeg-2000", tiff(COLOUR, compression="jpeg2000", tile=(32, 32)), equals(chw(COLOUR))),
        Form("tiff-jpeg-2000-aperio", tiff(COLOUR, compression=33005, tile=(32, 32)), equals(chw(COLOUR))),
        Form(
            "tiff-webp",
            tiff(COLOUR, compression="webp", compressionargs={"lossless": True}),
            equals(chw(COLOUR)),
        ),
        Form("tiff-png", tiff(DEEP, compression="png"), equals(chw(DEEP))),
        Form(
            "tiff-jpeg-xl",
            tiff(COLOUR, compression="jpegxl", compressionargs={"lossless": True}),
            equals(chw(COLOUR)),
        ),
        Form("tiff-jpeg-xr", tiff(GREY, compression="jpegxr"), near(GREY, 8)),
        Form("tiff-unknown-compression", _unknown, refused="truncated or corrupt"),
    ]


def _unknown(folder: Path) -> list[Path]:
    (path,) = tiff(GREY)(folder)
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags["Compression"].overwrite(9999)  # type: ignore[union-attr]
    return [path]


def _layouts() -> list[Form]:
    levels = [GREY, GREY[::2, ::2], GREY[::4, ::4]]
    alpha = np.concatenate([COLOUR, GREY[..., None]], -1)
    planes = np.stack([GREY, GREY[::-1], GREY // 2, GREY // 3, GREY // 5])
    sparse = np.zeros((64, 64), np.uint8)
    sparse[:16, :16] = 7
    return [
        Form("tiff-strips", tiff(COLOUR, rowsperstrip=7), both(by_pillow(), equals(chw(COLOUR)))),
        Form("tiff-tiles", tiff(COLOUR, tile=(16, 32)), both(by_pillow(), equals(chw(COLOUR)))),
        Form("tiff-tiles-odd-edge", tiff(COLOUR[:37, :41], tile=(16, 16)), equals(chw(COLOUR[:37, :41]))),
        Form(
            "tiff-planar",
            tiff(np.ascontiguousarray(chw(COLOUR)), photometric="rgb", planarconfig="separate"),
            equals(chw(COLOUR)),
        ),
        Form(
            "tiff-planar-tiles",
            tiff(
                np.ascontiguousarray(chw(COLOUR)), photometric="rgb", planarconfig="separate", tile=(16, 16)
            ),
            equals(chw(COLOUR)),
        ),
        Form("tiff-big-endian", tiff(DEEP_COLOUR, byteorder=">"), equals(chw(DEEP_COLOUR))),
        Form(
            "tiff-big-endian-float-lzw", tiff(FLOATS, byteorder=">", compression="lzw"), equals(chw(FLOATS))
        ),
        Form("tiff-big", tiff(DEEP, bigtiff=True), equals(chw(DEEP))),
        Form("tiff-alpha", tiff(alpha, photometric="rgb", extrasamples=["unassalpha"]), equals(chw(COLOUR))),
        Form(
            "tiff-grey-alpha",
            tiff(
                np.stack([GREY, GREY // 2], -1),
                photometric="minisblack",
                planarconfig="contig",
                extrasamples=["unassalpha"],
            ),
            equals(chw(GREY)),
        ),
        Form("tiff-palette", pillow(_palette(), "a.tif"), by_pillow()),
        Form("tiff-cmyk", pillow(Pillow.fromarray(COLOUR).convert("CMYK"), "a.tif"), by_pillow()),
        Form("tiff-lab", pillow(_lab(), "a.tif"), refused="CIELAB|LAB|colour"),
        *(
            Form(
                f"tiff-turned-{turn}",
                tiff(COLOUR, extratags=[(274, "H", 1, turn, True)]),
                by_pillow(turned=True),
            )
            for turn in range(2, 9)
        ),
        Form(
            "tiff-pages",
            pages(GREY, GREY[::-1], GREY // 2),
            equals(chw(GREY), chw(GREY[::-1]), chw(GREY // 2)),
        ),
        Form("tiff-pages-two-sizes", pages(GREY, GREY[:20]), equals(chw(GREY))),
        Form("tiff-pages-two-kinds", pages(GREY, DEEP), equals(chw(GREY), chw(DEEP))),
        Form("tiff-levels-as-pages", pages(*levels), equals(chw(GREY))),
        Form("tiff-levels-as-subifds", _subifds, equals(chw(GREY))),
        Form("tiff-ome", _ome, _five(planes)),
        Form("tiff-imagej", tiff(planes, imagej=True, metadata={"axes": "ZYX"}), _five(planes)),
        Form("tiff-many-channels", tiff(np.moveaxis(planes, 0, -1), planarconfig="contig"), equals(planes)),
        Form(
            "tiff-volume",
            tiff(np.stack([planes] * 2), volumetric=True, tile=(2, 16, 16)),
            refused="volume|depth|axes",
        ),
        Form("tiff-sparse-tiles", _sparse(sparse), equals(chw(sparse))),
        Form("tiff-one-pixel", tiff(GREY[:1, :1]), equals(chw(GREY[:1, :1]))),
        Form(
            "tiff-description", tiff(GREY, description="free text " * 500, metadata=None), equals(chw(GREY))
        ),
        Form("tiff-circular-pages", _circular, equals(chw(GREY))),
        Form("tiff-bomb", _bomb, refused="tiles"),
    ]


def _palette() -> Pillow.Image:
    picture = Pillow.fromarray(GREY // 16, "P")
    picture.putpalette(np.random.default_rng(0).integers(0, 255, 48, np.uint8).tolist())
    return picture


def _lab() -> Pillow.Image:
    return Pillow.merge("LAB", [Pillow.fromarray(np.ascontiguousarray(plane)) for plane in chw(COLOUR)])


def _subifds(folder: Path) -> list[Path]:
    with tifffile.TiffWriter(folder / "a.tif") as writer:
        writer.write(GREY, subifds=2, photometric="minisblack")
        writer.write(GREY[::2, ::2], subfiletype=1, photometric="minisblack")
        writer.write(GREY[::4, ::4], subfiletype=1, photometric="minisblack")
    return [folder / "a.tif"]


def _ome(folder: Path) -> list[Path]:
    planes = np.stack([GREY, GREY[::-1], GREY // 2, GREY // 3, GREY // 5])
    tifffile.imwrite(folder / "a.ome.tif", planes, photometric="minisblack", metadata={"axes": "ZYX"})
    return [folder / "a.ome.tif"]


def _five(planes: np.ndarray) -> Check:
    def check(paths: list[Path], images: list[Image]) -> None:
        assert np.array_equal(np.concatenate([image.array for image in images]), planes)

    return check


def _sparse(array: np.ndarray) -> Callable[[Path], list[Path]]:
    def write(folder: Path) -> list[Path]:
        (path,) = tiff(array, tile=(16, 16))(folder)
        with tifffile.TiffFile(path, mode="r+b") as file:
            tags = file.pages[0].tags  # type: ignore[union-attr]
            count = len(tags["TileByteCounts"].value)
            tags["TileByteCounts"].overwrite([256] + [0] * (count - 1))
            tags["TileOffsets"].overwrite([tags["TileOffsets"].value[0]] + [0] * (count - 1))
        return [path]

    return write


def _circular(folder: Path) -> list[Path]:
    (path,) = tiff(GREY, metadata=None)(folder)
    data = bytearray(path.read_bytes())
    first = int.from_bytes(data[4:8], "little")
    entries = int.from_bytes(data[first : first + 2], "little")
    link = first + 2 + 12 * entries
    data[link : link + 4] = first.to_bytes(4, "little")
    path.write_bytes(bytes(data))
    return [path]


def _bomb(folder: Path) -> list[Path]:
    (path,) = tiff(GREY, compression="zlib", rowsperstrip=40)(folder)
    with tifffile.TiffFile(path, mode="r+b") as file:
        for name in ("ImageWidth", "ImageLength"):
            file.pages[0].tags[name].overwrite(60_000)  # type: ignore[union-attr]
    return [path]


FORMS = [*_depths(), *_compressions(), *_layouts()]
