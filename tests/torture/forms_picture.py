"""Pictures: PNG, JPEG, WebP, GIF, BMP, PNM and TIFF in every depth, colour model and compression."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from medloom.data.sample import Image
from PIL import Image as Pillow
from PIL import ImageOps

from .form import Check, Form, smooth
from .oracles import both, equals

GREY = smooth((40, 48), 0, 250, np.uint8)
DEEP = smooth((40, 48), 0, 65_000, np.uint16)
COLOUR = np.stack([GREY, 255 - GREY, GREY // 2], axis=-1)
DEEP_COLOUR = np.stack([DEEP, 65_535 - DEEP, DEEP // 2], axis=-1)


def chw(array: np.ndarray) -> np.ndarray:
    """[H, W] or [H, W, C] as [C, H, W]."""
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def file(data: Callable[[], bytes], name: str) -> Callable[[Path], list[Path]]:
    """A form of one file with these bytes."""

    def write(folder: Path) -> list[Path]:
        (folder / name).write_bytes(data())
        return [folder / name]

    return write


def pillow(array: np.ndarray | Pillow.Image, name: str, **options: Any) -> Callable[[Path], list[Path]]:
    """A form that Pillow writes."""

    def write(folder: Path) -> list[Path]:
        picture = array if isinstance(array, Pillow.Image) else Pillow.fromarray(array)
        picture.save(folder / name, **options)
        return [folder / name]

    return write


def by_pillow(*, turned: bool = False, atol: float = 0.0) -> Check:
    """Pillow sees the same colours."""

    def check(paths: list[Path], images: list[Image]) -> None:
        with Pillow.open(paths[0]) as picture:
            picture = ImageOps.exif_transpose(picture) if turned else picture
            expected = chw(np.asarray(picture if picture.mode in ("L", "I;16") else picture.convert("RGB")))
        (image,) = images
        assert image.array.shape == expected.shape
        assert np.abs(image.array.astype(int) - expected.astype(int)).max() <= atol

    return check


def by_imagecodecs(decode: Callable[[bytes], np.ndarray], *, channels: int = 3, atol: float = 0.0) -> Check:
    """A codec of imagecodecs sees the same pixels."""

    def check(paths: list[Path], images: list[Image]) -> None:
        expected = chw(np.asarray(decode(paths[0].read_bytes())))[:channels]
        (image,) = images
        assert image.array.shape == expected.shape
        assert np.abs(image.array.astype(int) - expected.astype(int)).max() <= atol

    return check


def chunks(*parts: tuple[bytes, bytes]) -> bytes:
    """A PNG of these chunks."""
    body = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def png(pixels: np.ndarray, bits: int, colour: int, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG by hand: `pixels` [H, W] or [H, W, C] of `bits` a sample, colour type 0, 2, 3, 4 or 6."""
    height, width = pixels.shape[:2]
    rows = pixels.reshape(height, -1)
    if bits == 16:
        packed = [row.astype(">u2").tobytes() for row in rows]
    elif bits == 8:
        packed = [row.astype(np.uint8).tobytes() for row in rows]
    else:
        planes = (rows[..., None].astype(np.uint8) >> np.arange(bits - 1, -1, -1)) & 1
        packed = [np.packbits(row).tobytes() for row in planes.reshape(height, -1)]
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in packed))
    return chunks((b"IHDR", header), *extra, (b"IDAT", data), (b"IEND", b""))


def _png() -> list[Form]:
    rows = []
    for bits in (1, 2, 4):
        levels = GREY >> (8 - bits)
        scale = 1 if bits == 1 else 255 // (2**bits - 1)  # one bit reads as 0 and 1, others fill a byte
        rows.append(
            Form(
                f"png-grey-{bits}",
                file(lambda p=levels, b=bits: png(p, b, 0), "a.png"),
                equals(chw(levels * scale)),
            )
        )
    for bits in (1, 2, 4, 8):
        index = GREY >> (8 - min(bits, 5))
        table = np.random.default_rng(bits).integers(0, 255, (2 ** min(bits, 5), 3), np.uint8)
        rows.append(
            Form(
                f"png-palette-{bits}",
                file(lambda i=index, b=bits, t=table: png(i, b, 3, (b"PLTE", t.tobytes())), "a.png"),
                both(by_pillow(), equals(chw(table[index]))),
            )
        )
    alpha = GREY[..., None] // 2
    deep_alpha = DEEP[..., None] // 2
    interlaced = _adam7(COLOUR)
    return [
        *rows,
        Form("png-grey-8", pillow(GREY, "a.png"), by_imagecodecs(imagecodecs.png_decode)),
        Form("png-grey-16", pillow(DEEP, "a.png"), by_imagecodecs(imagecodecs.png_decode)),
        Form("png-rgb-8", pillow(COLOUR, "a.png"), by_imagecodecs(imagecodecs.png_decode)),
        Form(
            "png-rgb-16", file(lambda: imagecodecs.png_encode(DEEP_COLOUR), "a.png"), equals(chw(DEEP_COLOUR))
        ),
        Form("png-rgba-8", pillow(np.concatenate([COLOUR, alpha], -1), "a.png"), equals(chw(COLOUR))),
        Form(
            "png-rgba-16",
            file(lambda: imagecodecs.png_encode(np.concatenate([DEEP_COLOUR, deep_alpha], -1)), "a.png"),
            equals(chw(DEEP_COLOUR)),
        ),
        Form(
            "png-grey-alpha-8",
            file(lambda: png(np.concatenate([GREY[..., None], alpha], -1), 8, 4), "a.png"),
            equals(chw(GREY)),
        ),
        Form(
            "png-grey-alpha-16",
            file(lambda: png(np.concatenate([DEEP[..., None], deep_alpha], -1), 16, 4), "a.png"),
            equals(chw(DEEP)),
        ),
        Form(
            "png-transparent-colour",
            file(lambda: png(COLOUR, 8, 2, (b"tRNS", bytes(6))), "a.png"),
            equals(chw(COLOUR)),
        ),
        Form(
            "png-transparent-palette",
            file(lambda: png(GREY >> 6, 2, 3, (b"PLTE", bytes(range(12))), (b"tRNS", bytes(3))), "a.png"),
            equals(chw(np.arange(12).reshape(4, 3)[GREY >> 6])),
        ),
        Form("png-interlaced", file(lambda: interlaced, "a.png"), both(by_pillow(), equals(chw(COLOUR)))),
        Form(
            "png-gamma",
            file(lambda: png(GREY, 8, 0, (b"gAMA", struct.pack(">I", 100_000))), "a.png"),
            equals(chw(GREY)),
        ),
        Form("png-exif-turned", _png_turned, by_pillow(turned=True)),
        Form("png-animated", _apng, equals(chw(COLOUR), chw(COLOUR[::-1]))),
        Form("png-called-jpg", pillow(GREY, "a.jpg", format="PNG"), equals(chw(GREY))),
        Form(
            "png-palette-index-too-high",
            file(lambda: png(GREY >> 5, 4, 3, (b"PLTE", bytes(range(6)))), "a.png"),
            by_pillow(),
        ),
        Form(
            "png-palette-missing",
            file(lambda: png(GREY >> 6, 2, 3), "a.png"),
            refused="truncated or corrupt|palette",
        ),
        Form(
            "png-no-pixels",
            file(
                lambda: chunks((b"IHDR", struct.pack(">IIBBBBB", 9, 9, 8, 0, 0, 0, 0)), (b"IEND", b"")),
                "a.png",
            ),
            refused="truncated or corrupt",
        ),
        Form(
            "png-zero-wide",
            file(lambda: png(np.zeros((5, 0), np.uint8), 8, 0), "a.png"),
            refused="truncated or corrupt|not a picture",
        ),
        Form(
            "png-bomb",
            file(
                lambda: chunks(
                    (b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)),
                    (b"IDAT", zlib.compress(b"")),
                    (b"IEND", b""),
                ),
                "a.png",
            ),
            refused="tiles",
        ),
        Form(
            "png-text-bomb",
            file(lambda: png(GREY, 8, 0, (b"zTXt", b"a\0\0" + zlib.compress(bytes(80 << 20)))), "a.png"),
            refused="truncated or corrupt|tiles|chunk",
        ),
    ]


def _adam7(pixels: np.ndarray) -> bytes:
    height, width = pixels.shape[:2]
    passes = (
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    )
    rows = [b"\0" + row.tobytes() for y, x, dy, dx in passes for row in pixels[y::dy, x::dx]]
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1)
    return chunks((b"IHDR", header), (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b""))


def _png_turned(folder: Path) -> list[Path]:
    exif = Pillow.Exif()
    exif[0x0112] = 6
    return pillow(COLOUR, "a.png", exif=exif)(folder)


def _apng(folder: Path) -> list[Path]:
    more = [Pillow.fromarray(np.ascontiguousarray(COLOUR[::-1]))]
    return pillow(COLOUR, "a.png", save_all=True, append_images=more)(folder)


def _jpeg() -> list[Form]:
    see = by_imagecodecs(imagecodecs.jpeg8_decode)
    turned = []
    for turn in range(2, 9):
        exif = Pillow.Exif()
        exif[0x0112] = turn
        turned.append(Form(f"jpeg-exif-{turn}", pillow(COLOUR, "a.jpg", exif=exif), by_pillow(turned=True)))
    cmyk = Pillow.fromarray(COLOUR).convert("CMYK")
    return [
        *turned,
        Form("jpeg-grey", pillow(GREY, "a.jpg"), both(see, kept)),
        Form("jpeg-rgb", pillow(COLOUR, "a.jpg"), both(see, kept)),
        *(
            Form(f"jpeg-{name}", pillow(COLOUR, "a.jpg", **options), both(see, kept))
            for name, options in {
                "progressive": {"progressive": True},
                "444": {"subsampling": 0},
                "422": {"subsampling": 1},
                "420": {"subsampling": 2},
                "optimised": {"optimize": True},
                "restarts": {"restart_marker_blocks": 2},
                "quality-1": {"quality": 1},
                "quality-100": {"quality": 100},
                "adobe-rgb": {"keep_rgb": True},
            }.items()
        ),
        Form("jpeg-odd-size", pillow(COLOUR[:37, :41], "a.jpg"), both(see, kept)),
        Form("jpeg-one-pixel", pillow(COLOUR[:1, :1], "a.jpg"), both(see, kept)),
        Form("jpeg-cmyk", pillow(cmyk, "a.jpg", quality=95), by_pillow()),
        Form(
            "jpeg-12-bit",
            file(lambda: imagecodecs.jpeg8_encode(DEEP >> 4, bitspersample=12), "a.jpg"),
            by_imagecodecs(imagecodecs.jpeg8_decode),
        ),
        Form(
            "jpeg-lossless",
            file(lambda: imagecodecs.ljpeg_encode(DEEP, bitspersample=16), "a.jpg"),
            equals(chw(DEEP)),
        ),
        Form("jpeg-tail", _with_tail, both(see, kept)),
        Form("jpeg-many-pictures", _mpo, both(by_pillow(), kept)),
        Form("jpeg-no-end", file(lambda: _bytes(COLOUR)[:-2], "a.jpg"), refused="truncated"),
        Form("jpeg-only-header", file(lambda: _bytes(COLOUR)[:300], "a.jpg"), refused="truncated or corrupt"),
        Form(
            "jpeg-2000",
            file(lambda: imagecodecs.jpeg2k_encode(COLOUR, codecformat="jp2", reversible=True), "a.jp2"),
            refused="unknown format",
        ),
        Form("jpeg-xl", file(lambda: imagecodecs.jpegxl_encode(COLOUR), "a.jxl"), refused="unknown format"),
        Form(
            "jpeg-2000-called-jpg",
            file(lambda: imagecodecs.jpeg2k_encode(COLOUR, codecformat="jp2", reversible=True), "a.jpg"),
            equals(chw(COLOUR)),
        ),
    ]


def kept(paths: list[Path], images: list[Image]) -> None:
    """The stored JPEG bytes decode to the picture."""
    from medloom.data.shards.pictures import decode_jpeg

    assert images[0].jpeg is not None
    assert np.array_equal(decode_jpeg(images[0].jpeg), images[0].array)


def _bytes(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Pillow.fromarray(array).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def _with_tail(folder: Path) -> list[Path]:
    return file(lambda: _bytes(COLOUR) + b"after the end" * 50, "a.jpg")(folder)


def _mpo(folder: Path) -> list[Path]:
    """As cameras write them: the picture, then a preview or a gain map."""
    more = [Pillow.fromarray(np.ascontiguousarray(GREY[:20, :24]))]
    Pillow.fromarray(COLOUR).save(folder / "a.jpg", "MPO", save_all=True, append_images=more)
    return [folder / "a.jpg"]


def _others() -> list[Form]:
    loop = [COLOUR // 64 * 64, COLOUR[::-1] // 64 * 64]
    pages = [Pillow.fromarray(np.ascontiguousarray(page)) for page in loop]
    index = Pillow.fromarray(GREY // 16, "P")
    index.putpalette(np.random.default_rng(0).integers(0, 255, 48, np.uint8).tolist())
    return [
        Form(
            "webp-lossless",
            pillow(COLOUR, "a.webp", lossless=True),
            both(by_imagecodecs(imagecodecs.webp_decode), equals(chw(COLOUR))),
        ),
        Form("webp-lossy", pillow(COLOUR, "a.webp", quality=90), by_imagecodecs(imagecodecs.webp_decode)),
        Form(
            "webp-alpha",
            pillow(np.concatenate([COLOUR, GREY[..., None]], -1), "a.webp", lossless=True, exact=True),
            equals(chw(COLOUR)),
        ),
        Form("webp-animated", _saved(pages, "a.webp", lossless=True), equals(*(chw(page) for page in loop))),
        Form("gif", pillow(index, "a.gif"), by_pillow()),
        Form("gif-animated", _saved(pages, "a.gif"), _two_pages),
        Form("bmp-1", pillow(Pillow.fromarray(GREY > 90), "a.bmp"), _one_bit),
        Form("bmp-palette", pillow(index, "a.bmp"), by_pillow()),
        Form(
            "bmp-24",
            pillow(COLOUR, "a.bmp"),
            both(by_imagecodecs(imagecodecs.bmp_decode), equals(chw(COLOUR))),
        ),
        Form("bmp-32", pillow(np.concatenate([COLOUR, GREY[..., None]], -1), "a.bmp"), equals(chw(COLOUR))),
        Form("pgm", pillow(GREY, "a.pgm"), equals(chw(GREY))),
        Form("pgm-16", pillow(DEEP, "a.pgm"), equals(chw(DEEP))),
        Form("ppm", pillow(COLOUR, "a.ppm"), equals(chw(COLOUR))),
        Form(
            "pgm-ascii",
            file(lambda: b"P2\n# a comment\n3 2\n255\n0 10 20\n30 40 250\n", "a.pgm"),
            equals(np.array([[[0, 10, 20], [30, 40, 250]]])),
        ),
        Form("pbm-ascii", file(lambda: b"P1\n3 2\n0 1 0\n1 1 0\n", "a.pnm"), _any_bits),
        Form(
            "ppm-16",
            file(lambda: b"P6 48 40 65535\n" + DEEP_COLOUR.astype(">u2").tobytes(), "a.ppm"),
            refused="16-bit colours",
        ),
        Form(
            "picture-text",
            file(lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>" * 20, "a.png"),
            refused="not a picture",
        ),
        Form("picture-icon", pillow(COLOUR, "a.ico"), refused="unknown format"),
    ]


def _saved(pages: list[Pillow.Image], name: str, **options: Any) -> Callable[[Path], list[Path]]:
    def write(folder: Path) -> list[Path]:
        pages[0].save(folder / name, save_all=True, append_images=pages[1:], **options)
        return [folder / name]

    return write


def _two_pages(paths: list[Path], images: list[Image]) -> None:
    with Pillow.open(paths[0]) as picture:
        for number, image in enumerate(images):
            picture.seek(number)
            assert np.array_equal(image.array, chw(np.asarray(picture.convert("RGB"))))
    assert len(images) == 2


def _one_bit(paths: list[Path], images: list[Image]) -> None:
    assert np.array_equal(images[0].array[0] > 0, GREY > 90)


def _any_bits(paths: list[Path], images: list[Image]) -> None:
    assert np.array_equal(images[0].array[0] > 0, np.array([[1, 0, 1], [0, 0, 1]]))  # 1 is black


FORMS = [*_png(), *_jpeg(), *_others()]
