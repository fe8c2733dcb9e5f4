"""One DICOM picture in every layout of pixels that PS3.3 C.7.6.3 knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset

from .dicom_edits import COLOUR, GREY, HU, without
from .dicom_files import one, padded, slice_of
from .form import Form, smooth
from .oracles import both, by_flat_itk, equals


def _pixels() -> list[Form]:
    """One picture in every layout of pixels that PS3.3 C.7.6.3 knows."""
    deep = smooth((9, 8), 0, 4095, np.uint16)
    signed = deep.astype(np.int16) - 2048
    planar = slice_of(COLOUR, PlanarConfiguration=1)
    planar.PixelData = padded(COLOUR.transpose(2, 0, 1).tobytes())
    ybr = _ybr(COLOUR)
    odd = smooth((9, 7), 0, 250, np.uint8)
    bits = (GREY > 120).astype(np.uint8)
    floats = smooth((9, 8), -3, 7, np.float32)
    return [
        Form("pixels-8", one(lambda: slice_of(GREY)), both(by_flat_itk, equals(GREY[None]))),
        Form("pixels-8-odd-length", one(lambda: slice_of(odd)), equals(odd[None])),
        Form(
            "pixels-12-in-16",
            one(lambda: slice_of(deep, BitsStored=12, HighBit=11)),
            both(by_flat_itk, equals(deep[None])),
        ),
        Form(
            "pixels-12-signed", one(lambda: _masked(signed, 12, 11)), both(by_flat_itk, equals(signed[None]))
        ),
        Form(
            "pixels-12-overlay-in-high-bits",
            one(lambda: _masked(deep, 12, 11, extra=0xA000)),
            both(by_flat_itk, equals(deep[None])),
        ),
        Form(
            "pixels-12-signed-overlay-in-high-bits",
            one(lambda: _masked(signed, 12, 11, extra=0x5000)),
            equals(signed[None]),
        ),
        Form("pixels-12-left-aligned", one(lambda: _masked(deep, 12, 15)), refused="high bit 15"),
        Form(
            "pixels-32",
            one(lambda: slice_of(deep.astype(np.uint32) * 70_000)),
            equals(deep[None].astype(np.int64) * 70_000, atol=128),
        ),
        Form(
            "pixels-32-signed",
            one(lambda: slice_of(signed.astype(np.int32) * 70_000)),
            equals(signed[None].astype(np.int64) * 70_000),
        ),
        Form("pixels-1-bit", one(lambda: _one_bit(bits)), equals(bits[None])),
        Form("pixels-float", one(lambda: _float(floats)), equals(floats[None])),
        Form(
            "pixels-double", one(lambda: _float(floats.astype(np.float64))), equals(floats[None], atol=1e-5)
        ),
        Form(
            "pixels-12-packed",
            one(lambda: slice_of(deep, BitsAllocated=12, BitsStored=12, HighBit=11)),
            refused="cannot be decoded",
        ),
        Form(
            "pixels-rgb",
            one(lambda: slice_of(COLOUR, Modality="OT")),
            both(by_flat_itk, equals(COLOUR.transpose(2, 0, 1))),
        ),
        Form("pixels-rgb-planar", one(lambda: planar), both(by_flat_itk, equals(COLOUR.transpose(2, 0, 1)))),
        Form(
            "pixels-rgb-16",
            one(lambda: slice_of(COLOUR.astype(np.uint16) * 257)),
            equals(COLOUR.transpose(2, 0, 1).astype(int) * 257),
        ),
        Form(
            "pixels-ybr-full",
            one(lambda: slice_of(ybr, PhotometricInterpretation="YBR_FULL")),
            equals(COLOUR.transpose(2, 0, 1), atol=3),
        ),
        Form("pixels-ybr-422", one(lambda: _ybr_422(ybr)), by_flat_itk),
        Form(
            "pixels-argb",
            one(lambda: slice_of(COLOUR, SamplesPerPixel=4, PhotometricInterpretation="ARGB")),
            refused="cannot be decoded",
        ),
        Form(
            "pixels-monochrome1",
            one(lambda: slice_of(deep, BitsStored=12, HighBit=11, PhotometricInterpretation="MONOCHROME1")),
            equals(4095 - deep[None].astype(int)),
        ),
        Form(
            "pixels-monochrome1-signed",
            one(lambda: slice_of(signed, PhotometricInterpretation="MONOCHROME1")),
            equals(-1 - signed[None].astype(int)),
        ),
        Form(
            "pixels-monochrome1-hounsfield",
            one(
                lambda: slice_of(
                    deep, BitsStored=12, HighBit=11, PhotometricInterpretation="MONOCHROME1", **HU
                )
            ),
            equals(4095 - deep[None].astype(int) - 1024),
        ),
        Form("pixels-palette-8", one(lambda: _palette(GREY // 8, 8)), by_pillow_palette(8)),
        Form("pixels-palette-16", one(lambda: _palette(GREY // 8, 16)), by_pillow_palette(16)),
        Form("pixels-palette-segmented", one(lambda: _segmented(GREY // 8)), _segments),
        Form(
            "pixels-palette-without-table",
            one(lambda: slice_of(GREY, PhotometricInterpretation="PALETTE COLOR")),
            refused="cannot be decoded",
        ),
        Form(
            "pixels-modality-lut",
            one(lambda: _modality_lut(GREY // 8)),
            equals((GREY[None] // 8).astype(int) * 30 + 7),
        ),
        Form("pixels-overlay-60xx", one(lambda: _overlay(GREY)), equals(GREY[None])),
        Form(
            "pixels-padding-value",
            one(lambda: slice_of(signed, PixelPaddingValue=-2048)),
            equals(signed[None]),
        ),
        Form(
            "pixels-none", one(lambda: without("PixelData")(0, slice_of(GREY))), refused="cannot be decoded"
        ),
        Form("pixels-empty", one(lambda: slice_of(GREY, PixelData=b"")), refused="cannot be decoded"),
        Form("pixels-short", one(lambda: slice_of(GREY, PixelData=bytes(40))), refused="cannot be decoded"),
        Form(
            "pixels-long",
            one(lambda: slice_of(GREY, PixelData=GREY.tobytes() + bytes(20))),
            equals(GREY[None]),
        ),
        Form("pixels-no-rows", one(lambda: slice_of(GREY, Rows=0)), refused="without a picture"),
        Form(
            "pixels-bits-stored-too-many",
            one(lambda: slice_of(GREY, BitsStored=12, HighBit=11)),
            refused="cannot be decoded",
        ),
        Form(
            "pixels-photometric-unknown",
            one(lambda: slice_of(GREY, PhotometricInterpretation="STRANGE")),
            refused="Photometric Interpretation",
        ),
    ]


def _masked(pixels: np.ndarray, stored: int, high: int, extra: int = 0) -> Dataset:
    """Only `stored` bits of each word carry the value; `extra` sets others."""
    words = (pixels.astype(np.int64) & (2**stored - 1)) << (high + 1 - stored)
    dataset = slice_of((words | extra).astype(np.uint16), BitsStored=stored, HighBit=high)
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    return dataset


def _one_bit(bits: np.ndarray) -> Dataset:
    dataset = slice_of(bits, BitsAllocated=1, BitsStored=1, HighBit=0)
    dataset.PixelData = padded(np.packbits(bits.ravel(), bitorder="little").tobytes())
    return dataset


def _float(pixels: np.ndarray) -> Dataset:
    dataset = slice_of(np.zeros(pixels.shape, np.uint32), uid.ParametricMapStorage, Modality="MR")
    del dataset.PixelData, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation
    dataset.BitsAllocated = 8 * pixels.dtype.itemsize
    setattr(
        dataset, "FloatPixelData" if pixels.dtype.itemsize == 4 else "DoubleFloatPixelData", pixels.tobytes()
    )
    return dataset


def _ybr(rgb: np.ndarray) -> np.ndarray:
    """Full-range YCbCr. Source: DICOM PS3.3 C.7.6.3.1.2."""
    table = np.array([[0.299, 0.587, 0.114], [-0.1687, -0.3313, 0.5], [0.5, -0.4187, -0.0813]])
    return np.clip(np.rint(rgb @ table.T + [0, 128, 128]), 0, 255).astype(np.uint8)


def _ybr_422(ybr: np.ndarray) -> Dataset:
    pairs = ybr.reshape(-1, 2, 3)
    packed = np.stack([pairs[:, 0, 0], pairs[:, 1, 0], pairs[:, 0, 1], pairs[:, 0, 2]], axis=-1)
    dataset = slice_of(ybr, PhotometricInterpretation="YBR_FULL_422")
    dataset.PixelData = padded(packed.astype(np.uint8).tobytes())
    return dataset


def _palette(index: np.ndarray, bits: int, first: int = 0) -> Dataset:
    table = _table()
    dataset = slice_of(index.astype(np.uint8), PhotometricInterpretation="PALETTE COLOR", Modality="US")
    for channel, colour in enumerate(("Red", "Green", "Blue")):
        values = table[:, channel] * 257 if bits == 16 else table[:, channel]
        setattr(dataset, f"{colour}PaletteColorLookupTableDescriptor", [len(table), first, bits])
        setattr(
            dataset,
            f"{colour}PaletteColorLookupTableData",
            padded(values.astype("<u2" if bits == 16 else "u1").tobytes()),
        )
    return dataset


def _table() -> np.ndarray:
    steps = np.arange(32)
    return np.stack([steps * 8, 255 - steps * 5, (steps * 37) % 256], axis=-1)


def by_pillow_palette(bits: int) -> Any:
    def check(paths: list[Path], images: list[Any]) -> None:
        from PIL import Image as Pillow

        picture = Pillow.fromarray((GREY // 8).astype(np.uint8), "P")
        picture.putpalette(_table().astype(np.uint8).ravel().tolist())
        assert np.array_equal(images[0].array, np.asarray(picture.convert("RGB")).transpose(2, 0, 1))

    return check


def _segmented(index: np.ndarray) -> Dataset:
    dataset = slice_of(index.astype(np.uint8), PhotometricInterpretation="PALETTE COLOR", Modality="US")
    for colour, end in (("Red", 62_000), ("Green", 31_000), ("Blue", 15_500)):
        segments = np.array([0, 1, 0, 1, 31, end], "<u2")  # one discrete value, then a line to `end`
        setattr(dataset, f"{colour}PaletteColorLookupTableDescriptor", [32, 0, 16])
        setattr(dataset, f"Segmented{colour}PaletteColorLookupTableData", segments.tobytes())
    return dataset


def _segments(paths: list[Path], images: list[Any]) -> None:
    ramp = (GREY // 8)[None].astype(float) / 31 * np.array([62_000, 31_000, 15_500])[:, None, None] / 256
    assert images[0].array.dtype == np.uint8
    assert np.abs(images[0].array - ramp).max() <= 1


def _modality_lut(index: np.ndarray) -> Dataset:
    dataset = slice_of(index.astype(np.uint8))
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [32, 0, 16], "US"
    table.LUTData = (np.arange(32) * 30 + 7).astype("<u2").tobytes()
    dataset.ModalityLUTSequence = [table]
    table["LUTData"].VR = "OW"
    return dataset


def _overlay(pixels: np.ndarray) -> Dataset:
    dataset = slice_of(pixels)
    dataset.add_new(0x60000010, "US", pixels.shape[0])
    dataset.add_new(0x60000011, "US", pixels.shape[1])
    dataset.add_new(0x60000040, "CS", "G")
    dataset.add_new(0x60000050, "SS", [1, 1])
    dataset.add_new(0x60000100, "US", 1)
    dataset.add_new(0x60000102, "US", 0)
    dataset.add_new(0x60003000, "OW", padded(b"\xff" * (pixels.size // 8)))
    return dataset


FORMS = _pixels()
