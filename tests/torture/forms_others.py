"""MetaImage, NRRD, bare arrays and video: one row for each way of storing them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from medloom.data.sample import Image

from .form import Form, smooth
from .oracles import by_itk, equals

VOLUME = smooth((6, 9, 8), -900, 3000, np.int16)


def itk(name: str, array: np.ndarray = VOLUME, **options: Any) -> Callable[[Path], list[Path]]:
    """A form that SimpleITK writes: an oblique volume."""

    def write(folder: Path) -> list[Path]:
        sitk = pytest.importorskip("SimpleITK", reason="SimpleITK writes this form")
        picture = sitk.GetImageFromArray(array, isVector=array.ndim == 4)
        turn = np.deg2rad(25)
        picture.SetDirection((np.cos(turn), -np.sin(turn), 0, np.sin(turn), np.cos(turn), 0, 0, 0, 1))
        picture.SetSpacing((0.7, 0.9, 2.5))
        picture.SetOrigin((-10, 20, 30))
        sitk.WriteImage(picture, str(folder / name), **options)
        return [folder / name]

    return write


def bytes_of(data: Callable[[], bytes], name: str) -> Callable[[Path], list[Path]]:
    """A form of one file with these bytes."""

    def write(folder: Path) -> list[Path]:
        (folder / name).write_bytes(data())
        return [folder / name]

    return write


def npy(array: np.ndarray, **options: Any) -> bytes:
    """The array as NumPy writes it."""
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def b2nd() -> bytes:
    """The array as a Blosc2 frame."""
    import blosc2

    return blosc2.asarray(VOLUME).to_cframe()


def film(folder: Path) -> list[Path]:
    """Eight frames of a moving edge, lossless."""
    av = pytest.importorskip("av", reason="PyAV writes this form")
    with av.open(str(folder / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=4)
        stream.width, stream.height, stream.pix_fmt = 48, 40, "bgr0"
        for picture in frames():
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return [folder / "a.mkv"]


def frames() -> list[np.ndarray]:
    """The film's pictures [H, W, 3]."""
    grey = smooth((40, 48), 0, 250, np.uint8)
    colour = np.stack([grey, 255 - grey, grey // 2], axis=-1)
    return [np.ascontiguousarray(np.roll(colour, 3 * number, axis=1)) for number in range(8)]


def film_seen(paths: list[Path], images: list[Image]) -> None:
    seen = np.stack([image.array for image in images])
    expected = np.stack(frames()).transpose(0, 3, 1, 2)
    assert seen.shape == expected.shape
    assert np.array_equal(seen, expected)


FORMS = [
    Form("meta-attached", itk("a.mha"), by_itk()),
    Form("meta-compressed", itk("a.mha", useCompression=True), by_itk()),
    Form("meta-detached", itk("a.mhd"), by_itk()),
    Form("meta-float", itk("a.mha", VOLUME / np.float32(7)), by_itk(atol=1e-3)),
    Form("meta-vector", itk("a.mha", np.stack([VOLUME, VOLUME // 2, -VOLUME], axis=-1)), by_itk()),
    Form("nrrd-attached", itk("a.nrrd"), by_itk()),
    Form("nrrd-compressed", itk("a.nrrd", useCompression=True), by_itk()),
    Form("nrrd-detached", itk("a.nhdr"), by_itk()),
    Form("nrrd-unsigned", itk("a.nrrd", np.abs(VOLUME).astype(np.uint16)), by_itk()),
    Form("array-npy", bytes_of(lambda: npy(VOLUME), "a.npy"), equals(VOLUME[None])),
    Form(
        "array-npy-fortran", bytes_of(lambda: npy(np.asfortranarray(VOLUME)), "a.npy"), equals(VOLUME[None])
    ),
    Form("array-npy-big-endian", bytes_of(lambda: npy(VOLUME.astype(">i2")), "a.npy"), equals(VOLUME[None])),
    Form(
        "array-npy-objects",
        bytes_of(lambda: npy(np.array([{}, None])), "a.npy"),
        refused="not numbers|corrupt",
    ),
    Form("array-b2nd", bytes_of(b2nd, "a.b2nd"), equals(VOLUME[None])),
    Form("video-lossless", film, film_seen),
    Form("video-called-mp4", bytes_of(lambda: b"\0\0\0\x18ftypmp42" + bytes(400), "a.mp4"), refused="video"),
]
