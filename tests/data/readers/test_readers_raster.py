"""Pictures: every colour model and depth, EXIF turns, JPEG source bytes without metadata, damaged files."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from medloom.data.errors import ReadError
from medloom.data.readers import jpeg, read
from medloom.data.shards.pictures import decode_jpeg
from PIL import Image, ImageOps, PngImagePlugin

RNG = np.random.default_rng(0)
CANARY = b"Mustermann, Erika"


def grey(shape: tuple[int, int] = (40, 30)) -> np.ndarray:
    y, x = np.mgrid[: shape[0], : shape[1]]
    return (y * 3 + x * 2).astype(np.uint8)


def colour(shape: tuple[int, int] = (40, 30)) -> np.ndarray:
    return np.stack([grey(shape), 255 - grey(shape), grey(shape) // 2], axis=-1)


def png_grey_alpha(array: np.ndarray) -> bytes:
    """A 16-bit PNG with alpha 0, which the usual writers do not offer."""
    rows = np.stack([array, np.zeros_like(array)], axis=-1).astype(">u2")
    height, width = array.shape
    body = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, 16, 4, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(body)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def one(path: Path):
    (image,) = read([path])
    assert image.ndim == 2 and image.spacing is None and image.affine is None
    assert image.array.flags.c_contiguous
    return image


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp", "tif", "gif", "ppm"])
def test_lossless_grey_and_colour(tmp_path: Path, suffix: str) -> None:
    for array in (grey(), colour()):
        if suffix == "gif":
            array = (array // 64 * 64)[:8, :8]  # GIF has 256 colours
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(array).save(path, **({"lossless": True} if suffix == "webp" else {}))
        image = one(path)
        expected = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
        assert np.array_equal(image.array, expected)
        assert image.array.dtype == np.uint8 and image.jpeg is None


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp", "tif"])
def test_grey_stored_as_lossless_rgb_becomes_one_channel(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.repeat(grey()[..., None], 3, axis=2)).save(
        path, **({"lossless": True} if suffix == "webp" else {})
    )
    assert np.array_equal(one(path).array, grey()[None])


def test_sixteen_bit_grey_and_colour_png_keep_their_depth(tmp_path: Path) -> None:
    deep = (grey().astype(np.uint16) * 257) ^ 0x0F0F
    Image.fromarray(deep).save(tmp_path / "grey.png")
    assert np.array_equal(one(tmp_path / "grey.png").array, deep[None])
    rgb = np.stack([deep, deep[::-1], deep // 3], axis=-1)
    alpha = np.concatenate([rgb, np.full_like(rgb[..., :1], 9)], axis=-1)
    for name, array in {"rgb": rgb, "rgba": alpha}.items():
        (tmp_path / f"{name}.png").write_bytes(imagecodecs.png_encode(array))
        image = one(tmp_path / f"{name}.png")
        assert image.array.dtype == np.uint16
        assert np.array_equal(image.array, rgb.transpose(2, 0, 1))
    (tmp_path / "la.png").write_bytes(png_grey_alpha(deep))
    assert np.array_equal(one(tmp_path / "la.png").array, deep[None])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"tile": (16, 16)}, {"byteorder": ">"}])
def test_tiff_depths(tmp_path: Path, dtype: str, options: dict) -> None:
    for array in (grey().astype(dtype), colour().astype(dtype)):
        photometric = "rgb" if array.ndim == 3 else "minisblack"
        tifffile.imwrite(tmp_path / "a.tif", array, photometric=photometric, **options)
        image = one(tmp_path / "a.tif")
        assert image.array.dtype == np.dtype(dtype) and image.array.dtype.isnative
        assert np.array_equal(image.array, array[None] if array.ndim == 2 else array.transpose(2, 0, 1))


def test_tiff_white_is_zero_planar_and_alpha(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "white.tif", 255 - grey(), photometric="miniswhite")
    assert np.array_equal(one(tmp_path / "white.tif").array, grey()[None])
    planes = colour().transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "planar.tif", planes, photometric="rgb", planarconfig="separate")
    assert np.array_equal(one(tmp_path / "planar.tif").array, planes)
    rgba = np.concatenate([colour(), grey()[..., None]], axis=-1)
    tifffile.imwrite(tmp_path / "alpha.tif", rgba, photometric="rgb", extrasamples=["unassalpha"])
    assert np.array_equal(one(tmp_path / "alpha.tif").array, planes)


def test_tiff_and_gif_pages_are_frames_but_pyramid_levels_are_not(tmp_path: Path) -> None:
    pages = np.stack([grey(), grey()[::-1], grey() // 2])
    tifffile.imwrite(tmp_path / "a.tif", pages, photometric="minisblack")
    frames = read([tmp_path / "a.tif"])
    assert [frame.facts["frame"] for frame in frames] == [0, 1, 2]
    assert np.array_equal(np.concatenate([frame.array for frame in frames]), pages)
    with tifffile.TiffWriter(tmp_path / "pyramid.tif") as writer:
        writer.write(grey((64, 64)), photometric="minisblack")
        writer.write(grey((64, 64))[::2, ::2], photometric="minisblack")
    assert one(tmp_path / "pyramid.tif").array.shape == (1, 64, 64)
    loop = [Image.fromarray(page // 64 * 64) for page in pages]
    loop[0].save(tmp_path / "a.gif", save_all=True, append_images=loop[1:])
    assert len(read([tmp_path / "a.gif"])) == 3


def test_palette_becomes_colour_and_grey_palettes_grey(tmp_path: Path) -> None:
    index = (grey() % 4).astype(np.uint8)
    picture = Image.fromarray(index, "P")
    picture.putpalette([0, 0, 0, 250, 10, 10, 10, 250, 10, 10, 10, 250])
    picture.save(tmp_path / "a.png")
    assert np.array_equal(
        one(tmp_path / "a.png").array, np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
    )
    picture.putpalette([value for step in (0, 80, 160, 240) for value in (step,) * 3])
    picture.save(tmp_path / "b.png", transparency=0)
    assert np.array_equal(one(tmp_path / "b.png").array, index[None] * 80)


def test_alpha_is_dropped_not_blended(tmp_path: Path) -> None:
    alpha = np.zeros_like(grey())
    Image.fromarray(np.dstack([colour(), alpha])).save(tmp_path / "a.png")
    assert np.array_equal(one(tmp_path / "a.png").array, colour().transpose(2, 0, 1))
    Image.fromarray(np.dstack([grey(), alpha]), "LA").save(tmp_path / "b.png")
    assert np.array_equal(one(tmp_path / "b.png").array, grey()[None])


def test_one_bit_pictures_are_zero_and_one(tmp_path: Path) -> None:
    Image.fromarray(grey() > 60).save(tmp_path / "a.png")
    image = one(tmp_path / "a.png")
    assert image.array.dtype == np.uint8
    assert np.array_equal(image.array[0], grey() > 60)


def test_cmyk_jpeg_becomes_rgb_without_source_bytes(tmp_path: Path) -> None:
    picture = Image.fromarray(colour()).convert("CMYK")
    picture.save(tmp_path / "a.jpg", quality=95)
    image = one(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as decoded:
        assert np.array_equal(image.array, np.asarray(decoded.convert("RGB")).transpose(2, 0, 1))
    assert image.jpeg is None


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_the_exif_turn_is_applied(tmp_path: Path, turn: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(colour()).save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    image = one(path)
    with Image.open(path) as picture:
        expected = np.asarray(ImageOps.exif_transpose(picture).convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(image.array, expected)
    assert (image.jpeg is not None) == (suffix == "jpg" and turn == 1)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 2}, {"optimize": True}])
@pytest.mark.parametrize("mode", ["grey", "colour"])
def test_jpeg_bytes_lose_their_metadata_and_nothing_else(tmp_path: Path, mode: str, options: dict) -> None:
    exif = Image.Exif()
    exif[0x010E] = CANARY.decode()
    array = RNG.integers(0, 255, (70, 50) if mode == "grey" else (70, 50, 3)).astype(np.uint8)
    path = tmp_path / "a.jpg"
    Image.fromarray(array).save(
        path, exif=exif, comment=CANARY, icc_profile=b"icc " + CANARY, dpi=(300, 300), **options
    )
    data = path.read_bytes() + b"after the end: " + CANARY
    path.write_bytes(data)
    assert data.count(CANARY) == 4
    image = one(path)
    assert image.jpeg is not None and CANARY not in image.jpeg
    assert len(image.jpeg) < len(data)
    assert np.array_equal(decode_jpeg(image.jpeg), image.array)
    with Image.open(path) as before, Image.open(io.BytesIO(image.jpeg)) as after:
        assert np.array_equal(np.asarray(before), np.asarray(after))
        assert not after.getexif() and "icc_profile" not in after.info and "comment" not in after.info
    # The entropy-coded data is the source's own, byte for byte.
    scan = data[data.rindex(b"\xff\xda") : data.rindex(b"\xff\xd9", 0, -len(CANARY) - 10)]
    assert scan in image.jpeg
    assert jpeg.strip(image.jpeg, "a.jpg") == image.jpeg


def test_jpeg_thumbnails_and_restart_markers(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(colour((64, 64))).save(buffer, "JPEG", restart_marker_blocks=2)
    data = buffer.getvalue()
    body = b"JFIF\0\x01\x02\x00\x00\x01\x00\x01\x05\x01" + CANARY[:15]  # a thumbnail of 5 x 1 pixels
    app0 = b"\xff\xe0" + (len(body) + 2).to_bytes(2, "big") + body
    extension = b"\xff\xe0" + (7 + len(CANARY)).to_bytes(2, "big") + b"JFXX\0" + CANARY
    length = int.from_bytes(data[4:6], "big")
    (tmp_path / "a.jpg").write_bytes(data[:2] + app0 + extension + b"\xff" + data[4 + length :])
    image = one(tmp_path / "a.jpg")
    assert image.jpeg is not None and CANARY[:15] not in image.jpeg
    assert np.array_equal(decode_jpeg(image.jpeg), image.array)


def test_the_adobe_colour_transform_survives(tmp_path: Path) -> None:
    Image.fromarray(colour()).save(tmp_path / "a.jpg", keep_rgb=True, quality=95)
    image = one(tmp_path / "a.jpg")
    assert np.abs(image.array.astype(int) - colour().transpose(2, 0, 1)).mean() < 4
    assert image.jpeg is not None and np.array_equal(decode_jpeg(image.jpeg), image.array)


def test_grey_jpeg_stored_as_rgb_stays_as_it_is(tmp_path: Path) -> None:
    Image.fromarray(np.repeat(grey()[..., None], 3, axis=2)).save(tmp_path / "a.jpg")
    image = one(tmp_path / "a.jpg")
    assert image.array.shape[0] == 3 and image.jpeg is not None


def test_png_text_does_not_travel(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Patient", CANARY.decode())
    Image.fromarray(grey()).save(tmp_path / "a.png", pnginfo=info)
    assert CANARY.decode() not in str(one(tmp_path / "a.png").facts)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp", "bmp", "gif"])
@pytest.mark.parametrize("kept", [0.03, 0.3, 0.8])
def test_truncated_pictures_are_refused(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"a.{suffix}"
    noise = RNG.integers(0, 255, (90, 80, 3)).astype(np.uint8)
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ReadError, match=rf"a\.{suffix}: "):
        read([path])


def test_zero_byte_and_foreign_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(ReadError, match=r"a\.png: 0 bytes"):
        read([tmp_path / "a.png"])
    (tmp_path / "b.png").write_bytes(b"<html>404 Not Found</html>" * 9)
    with pytest.raises(ReadError, match=r"b\.png: not a picture"):
        read([tmp_path / "b.png"])
    (tmp_path / "c.xyz").write_bytes(b"unknown" * 99)
    with pytest.raises(ReadError, match=r"c\.xyz: unknown format, expected one of .*\.png"):
        read([tmp_path / "c.xyz"])
    (tmp_path / "d").write_bytes(b"")
    with pytest.raises(ReadError, match="d: 0 bytes"):
        read([tmp_path / "d"])
    with pytest.raises(ReadError, match="cannot be opened"):
        read([tmp_path / "missing"])


def test_a_png_with_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    for deep in (
        RNG.integers(0, 255, (60, 60)).astype(np.uint8),
        RNG.integers(0, 65535, (60, 60, 3)).astype("u2"),
    ):
        data = bytearray(imagecodecs.png_encode(deep))
        data[len(data) // 2] ^= 0x55
        path.write_bytes(bytes(data))
        with pytest.raises(ReadError, match="truncated or corrupt"):
            read([path])


def test_a_decompression_bomb_is_refused(tmp_path: Path) -> None:
    data = bytearray(imagecodecs.png_encode(grey()))
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(bytes(data))
    with pytest.raises(ReadError, match="tiles"):
        read([tmp_path / "a.png"])


def test_pictures_are_recognised_by_content(tmp_path: Path) -> None:
    for kind in ("PNG", "JPEG", "TIFF", "WEBP", "BMP"):
        Image.fromarray(grey()).save(tmp_path / "picture", kind)
        assert one(tmp_path / "picture").array.shape[1:] == (40, 30)
    Image.fromarray(grey()).save(tmp_path / "really-png.jpg", "PNG")
    assert np.array_equal(one(tmp_path / "really-png.jpg").array, grey()[None])


def test_damaged_jpegs_never_raise_anything_but_read_error(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 255, (40, 40, 3)).astype(np.uint8)).save(buffer, "JPEG")
    good, path = buffer.getvalue(), tmp_path / "a.jpg"
    for _ in range(300):
        data = bytearray(good)
        for _ in range(RNG.integers(1, 4)):
            data[RNG.integers(0, len(data))] = RNG.integers(0, 256)
        path.write_bytes(bytes(data))
        try:
            images = read([path])
        except ReadError as error:
            assert str(error).startswith("a.jpg") and "\n" not in str(error)
        else:
            if images[0].jpeg is not None:
                assert np.array_equal(decode_jpeg(images[0].jpeg), images[0].array)
