"""DICOM in every transfer syntax that the plug-ins decode, and in those that they do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset

from .dicom_files import big_endian, compressed, encoded, one, slice_of, written
from .form import Form, smooth
from .oracles import both, by_flat_itk, equals

GREY = smooth((40, 48), 0, 250, np.uint8)
DEEP = smooth((40, 48), 10, 4000, np.uint16)
SIGNED = DEEP.astype(np.int16) - 2000
COLOUR = np.stack([GREY, 255 - GREY, GREY // 2], axis=-1)

NATIVE = {
    "implicit": uid.ImplicitVRLittleEndian,
    "explicit": uid.ExplicitVRLittleEndian,
    "big-endian": uid.ExplicitVRBigEndian,
    "deflated": uid.DeflatedExplicitVRLittleEndian,
}
LOSSLESS = {
    "jpeg-lossless": uid.JPEGLossless,
    "jpeg-lossless-sv1": uid.JPEGLosslessSV1,
    "jpeg-ls": uid.JPEGLSLossless,
    "jpeg-2000-lossless": uid.JPEG2000Lossless,
    "htj2k-lossless": uid.HTJ2KLossless,
    "htj2k-lossless-rpcl": uid.HTJ2KLosslessRPCL,
}
LOSSY = {
    "jpeg-baseline": uid.JPEGBaseline8Bit,
    "jpeg-extended": uid.JPEGExtended12Bit,
    "jpeg-ls-near": uid.JPEGLSNearLossless,
    "jpeg-2000": uid.JPEG2000,
    "htj2k": uid.HTJ2K,
}
ITK_CANNOT = {uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K}  # GDCM 3.0
UNKNOWN = {
    "jpeg-xl": "1.2.840.10008.1.2.4.110",
    "mpeg2": uid.MPEG2MPML,
    "mpeg4": uid.MPEG4HP41,
    "hevc": uid.HEVCMP51,
    "jpip": "1.2.840.10008.1.2.4.94",
    "jpeg-2000-multi-component": uid.JPEG2000MC,
    "private": "1.2.3.4.5",
}


def _native() -> list[Form]:
    rows = []
    for name, syntax in NATIVE.items():
        for kind, pixels in {"8": GREY, "16": DEEP, "signed": SIGNED, "rgb": COLOUR}.items():
            expected = pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels[None]
            rows.append(
                Form(
                    f"syntax-{name}-{kind}",
                    one(_in_native(pixels, syntax)),
                    both(by_flat_itk, equals(expected)),
                )
            )
    return rows


def _in_native(pixels: np.ndarray, syntax: str) -> Callable[[], Dataset]:
    def make() -> Dataset:
        dataset = slice_of(pixels)
        dataset.file_meta.TransferSyntaxUID = syntax
        if syntax == uid.ExplicitVRBigEndian:
            dataset = big_endian(dataset, pixels)
        return dataset

    return make


def _in(pixels: np.ndarray, syntax: str, photometric: str = "", **how: Any) -> Callable[[], Dataset]:
    """One frame, or several of [F, H, W], encapsulated."""

    def make() -> Dataset:
        frames = pixels if (pixels.ndim == 3 and pixels.shape[-1] != 3) or pixels.ndim == 4 else pixels[None]
        dataset = slice_of(pixels)
        if pixels is DEEP:
            dataset.BitsStored, dataset.HighBit = 12, 11
        if photometric:
            dataset.PhotometricInterpretation = photometric
        return compressed(
            dataset, syntax, [encoded(np.ascontiguousarray(frame), syntax) for frame in frames], **how
        )

    return make


def _compressed() -> list[Form]:
    rows = []
    for name, syntax in LOSSLESS.items():
        see = [] if syntax in ITK_CANNOT else [by_flat_itk]
        rows += [
            Form(f"syntax-{name}-8", one(_in(GREY, syntax)), both(*see, equals(GREY[None]))),
            Form(f"syntax-{name}-16", one(_in(DEEP, syntax)), both(*see, equals(DEEP[None]))),
        ]
        if syntax not in (uid.JPEGLossless, uid.JPEGLosslessSV1):
            model = "YBR_RCT" if "2000" in name or "htj2k" in name else "RGB"
            rows.append(
                Form(
                    f"syntax-{name}-rgb",
                    one(_in(COLOUR, syntax, model)),
                    both(*see, equals(COLOUR.transpose(2, 0, 1))),
                )
            )
    for name, syntax in LOSSY.items():
        see = [] if syntax in ITK_CANNOT else [_near_itk]
        rows.append(Form(f"syntax-{name}-8", one(_in(GREY, syntax)), both(*see, equals(GREY[None], atol=4))))
        if syntax != uid.JPEGBaseline8Bit:
            rows.append(
                Form(f"syntax-{name}-16", one(_in(DEEP, syntax)), both(*see, equals(DEEP[None], atol=40)))
            )
    frames = np.stack([GREY, GREY[::-1], GREY // 2])
    each = equals(*frames[:, None])
    rgb = COLOUR.transpose(2, 0, 1)
    return [
        *rows,
        Form(
            "syntax-jpeg-baseline-ybr-422",
            one(_in(COLOUR, uid.JPEGBaseline8Bit, "YBR_FULL_422")),
            both(_near_itk, equals(rgb, atol=16)),
        ),
        Form(
            "syntax-jpeg-baseline-labelled-rgb", one(_in(COLOUR, uid.JPEGBaseline8Bit, "RGB")), _labelled_rgb
        ),
        Form("syntax-rle-8", one(lambda: _rle(GREY)), both(by_flat_itk, equals(GREY[None]))),
        Form("syntax-rle-16", one(lambda: _rle(DEEP)), both(by_flat_itk, equals(DEEP[None]))),
        Form("syntax-rle-rgb", one(lambda: _rle(COLOUR)), both(by_flat_itk, equals(rgb))),
        Form(
            "syntax-jpeg-2000-signed",
            one(_in(SIGNED, uid.JPEG2000Lossless)),
            both(by_flat_itk, equals(SIGNED[None])),
        ),
        Form("frames-table", one(_in(frames, uid.JPEGLSLossless)), each),
        Form("frames-no-table", one(_in(frames, uid.JPEGLSLossless, table=False)), each),
        Form("frames-fragments", one(_in(frames, uid.JPEG2000Lossless, fragments=3)), each),
        Form(
            "frames-fragments-no-table",
            one(_in(frames, uid.JPEG2000Lossless, fragments=3, table=False)),
            each,
        ),
        Form(
            "frame-in-many-fragments",
            one(_in(GREY, uid.JPEGLSLossless, fragments=4, table=False)),
            equals(GREY[None]),
        ),
        Form(
            "frames-missing",
            one(lambda: _set(_in(frames, uid.JPEGLSLossless)(), NumberOfFrames=5)),
            refused="cannot be decoded",
        ),
        Form(
            "frames-too-many",
            one(lambda: _set(_in(frames, uid.JPEGLSLossless)(), NumberOfFrames=2)),
            equals(*frames[:2, None]),
        ),
        Form(
            "encapsulated-rows-disagree",
            one(lambda: _set(_in(GREY, uid.JPEGLSLossless)(), Rows=30)),
            refused="cannot be decoded",
        ),
        Form(
            "encapsulated-garbage",
            one(lambda: compressed(slice_of(GREY), uid.JPEG2000Lossless, [b"no codestream" * 9])),
            refused="cannot be decoded",
        ),
        Form(
            "encapsulated-empty-frame",
            one(lambda: compressed(slice_of(GREY), uid.JPEGBaseline8Bit, [bytes(2)])),
            refused="cannot be decoded",
        ),
        Form(
            "encapsulated-said-native",
            relabelled(_in(GREY, uid.JPEGLSLossless), uid.ExplicitVRLittleEndian),
            refused="cannot be decoded",
        ),
        Form(
            "native-said-encapsulated",
            relabelled(lambda: slice_of(GREY), uid.JPEG2000Lossless),
            refused="cannot be (decoded|read)",
        ),
        Form(
            "jpeg-2000-said-jpeg-ls",
            one(
                lambda: compressed(slice_of(GREY), uid.JPEGLSLossless, [encoded(GREY, uid.JPEG2000Lossless)])
            ),
            refused="cannot be decoded",
        ),
        *(
            Form(
                f"syntax-{name}",
                relabelled(_in(GREY, uid.JPEGLSLossless), syntax),
                refused="cannot be decoded|not a video",
            )
            for name, syntax in UNKNOWN.items()
        ),
    ]


def _near_itk(paths: list[Path], images: list[Any]) -> None:
    from .oracles import itk_volume

    xyz, _ = itk_volume(paths)
    seen = xyz.reshape(*xyz.shape[:2], -1).transpose(2, 1, 0)
    assert np.abs(images[0].array.astype(int) - seen.astype(int)).max() <= 3  # inverse transforms may round


def _labelled_rgb(paths: list[Path], images: list[Any]) -> None:
    """The JPEG is YCbCr inside, whatever the header says: the colours come out right, or nothing does."""
    assert np.abs(images[0].array.astype(int) - COLOUR.transpose(2, 0, 1)).mean() < 6


def _rle(pixels: np.ndarray) -> Dataset:
    dataset = slice_of(pixels)
    if pixels is DEEP:
        dataset.BitsStored, dataset.HighBit = 12, 11
    dataset.compress(uid.RLELossless, generate_instance_uid=False)
    return dataset


def _set(dataset: Dataset, **fields: Any) -> Dataset:
    for key, value in fields.items():
        setattr(dataset, key, value)
    return dataset


def relabelled(make: Callable[[], Dataset], syntax: str) -> Callable[[Path], list[Path]]:
    """A file whose header states another transfer syntax than the one in which it is written."""

    def write(folder: Path) -> list[Path]:
        path = written(folder / "a.dcm", make())
        data = path.read_bytes()
        place = data.index(b"\x02\x00\x10\x00UI") + 6
        end = place + 2 + int.from_bytes(data[place : place + 2], "little")
        new = syntax.encode() + bytes(len(syntax) % 2)
        path.write_bytes(data[:place] + len(new).to_bytes(2, "little") + new + data[end:])
        return [path]

    return write


FORMS = [*_native(), *_compressed()]
