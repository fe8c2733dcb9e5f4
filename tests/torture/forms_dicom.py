"""DICOM series: planes, orders, scalings, and what makes a series no volume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset

from .dicom_edits import HU, VOLUME, changed, dropped, each, turned, without
from .dicom_files import series
from .form import Form, smooth
from .oracles import both, by_dcm2niix, by_itk, equals, itk_volume, same_volume


def _series() -> list[Form]:
    see = both(by_itk(), by_dcm2niix())
    ct = {"fields": HU}
    slopes = [(1.0 + 0.5 * n) for n in range(len(VOLUME))]
    scaled = np.stack([plane * slope for plane, slope in zip(VOLUME, slopes, strict=True)])
    repeated = np.repeat(VOLUME, 2, axis=0)

    def times(paths: list[Path], images: list[Any]) -> None:
        assert [image.array.shape for image in images] == [(1, *VOLUME.shape)] * 2
        for image in images:
            assert np.array_equal(image.array[0][:, ::-1, ::-1], VOLUME)  # to anterior and right

    planes = {
        "sagittal": (0.0, 1.0, 0.0, 0.0, 0.0, -1.0),
        "coronal": (1.0, 0.0, 0.0, 0.0, 0.0, -1.0),
        "oblique": turned(25, 0),
        "double-oblique": turned(-35, 20),
        "feet-first": (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        "prone": (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0),
    }
    return [
        Form("series-ct", series(VOLUME, **ct), see),
        *(
            Form(f"series-{name}", series(VOLUME, orientation=plane, **ct), see)
            for name, plane in planes.items()
        ),
        Form("series-signed", series(VOLUME - 1500), see),
        Form("series-unsigned-16", series(smooth((6, 9, 8), 0, 65000, np.uint16)), see),
        Form("series-descending", series(VOLUME, gap=-2.5, **ct), by_itk()),
        Form(
            "series-thick-slices-apart",
            series(VOLUME, gap=7.0, fields={**HU, "SpacingBetweenSlices": 7}),
            see,
        ),
        Form(
            "series-gantry-tilt",
            series(VOLUME, shear=(0, 0.9, 0), fields={**HU, "GantryDetectorTilt": 20}),
            _tilted,
        ),
        Form(
            "series-fractional-slope",
            series(VOLUME, fields={"RescaleSlope": 0.37, "RescaleIntercept": -3}),
            by_itk(atol=1e-2),
        ),
        Form(
            "series-slope-a-slice",
            series(VOLUME, each(RescaleSlope=lambda n: slopes[n], RescaleIntercept=lambda n: 0)),
            equals(scaled[None, :, ::-1, ::-1], atol=1e-3),
        ),
        Form("series-modality-pet", series(VOLUME, fields={"Modality": "PT", "Units": "BQML"}), by_itk()),
        Form("series-missing-slice", series(VOLUME, dropped(3)), refused="a slice is missing"),
        Form("series-missing-two", series(VOLUME, dropped(1, 4)), refused="a slice is missing"),
        Form("series-missing-end", series(VOLUME, dropped(5)), by_itk()),
        Form(
            "series-variable-spacing",
            series(VOLUME, each(ImagePositionPatient=lambda n: [0, 0, 2.5 * n + 0.2 * n * n])),
            refused="expected even gaps",
        ),
        Form("series-slice-twice", _twice, by_itk()),
        Form(
            "series-two-times",
            series(repeated, each(ImagePositionPatient=lambda n: [0, 0, 2.5 * (n // 2)])),
            times,
            read={"fourth_axis": "frames"},
        ),
        Form(
            "series-a-time-missing",
            series(repeated, _time_missing),
            refused="expected each equally often|slice is missing",
        ),
        Form(
            "series-localizer-inside",
            series(VOLUME, changed(2, ImageOrientationPatient=[1, 0, 0, 0, 0, -1])),
            refused="expected one orientation",
        ),
        Form("series-two-shapes", series(VOLUME, _cropped), refused="expected one shape"),
        Form(
            "series-two-spacings",
            series(VOLUME, changed(2, PixelSpacing=[0.5, 0.5])),
            refused="expected one spacing",
        ),
        Form(
            "series-two-mixed",
            series(VOLUME, changed(2, SeriesInstanceUID="1.2.3")),
            refused="2 series mixed",
        ),
        Form(
            "series-drift",
            series(VOLUME, changed(3, ImagePositionPatient=[40, 20, 37.5])),
            refused="straight line",
        ),
        Form(
            "series-singular-orientation",
            series(VOLUME, each(ImageOrientationPatient=lambda n: [1, 0, 0, 1, 0, 0])),
            refused="singular|slice is missing",
        ),
        Form("series-no-pixel-spacing", series(VOLUME, without("PixelSpacing")), refused="no pixel spacing"),
        Form(
            "series-by-number",
            series(VOLUME, without("ImagePositionPatient", "ImageOrientationPatient")),
            equals(VOLUME[None]),
        ),
        Form(
            "series-by-number-missing",
            series(
                VOLUME,
                lambda n, d: dropped(2)(n, without("ImagePositionPatient", "ImageOrientationPatient")(n, d)),
            ),
            refused="a slice is missing",
        ),
        Form("series-slope-zero", series(VOLUME, fields={"RescaleSlope": 0}), refused="slope 0"),
        Form("series-slope-text", series(VOLUME, _text_slope), equals(VOLUME[None, :, ::-1, ::-1])),
        Form("slice-alone", series(VOLUME[:1], **ct), equals(VOLUME[:1] - 1024)),
        Form(
            "series-monochrome1",
            series(VOLUME.astype(np.uint16), fields={"PhotometricInterpretation": "MONOCHROME1"}),
            equals(65535 - VOLUME[None, :, ::-1, ::-1].astype(int)),
        ),
        Form("series-implicit", series(VOLUME, _syntax(uid.ImplicitVRLittleEndian)), by_itk()),
    ]


def _syntax(syntax: str) -> Callable[[int, Dataset], Dataset]:
    def edit(index: int, dataset: Dataset) -> Dataset:
        dataset.file_meta.TransferSyntaxUID = syntax
        return dataset

    return edit


def _tilted(paths: list[Path], images: list[Any]) -> None:
    """GDCM gives voxels and orientation but cannot hold the shear: its columns are compared one by one."""
    (image,) = images
    xyz, affine = itk_volume(paths)
    affine[:3, 2] = np.diag([-1.0, -1.0, 1.0]) @ [0, 0.9, 2.5]
    same_volume(image, xyz[..., None], affine)


def _twice(folder: Path) -> list[Path]:
    paths = series(VOLUME)(folder)
    (folder / "copies").mkdir()
    copy = folder / "copies" / "again.dcm"
    copy.write_bytes(paths[2].read_bytes())
    return [*paths, copy]


def _time_missing(index: int, dataset: Dataset) -> Dataset | None:
    dataset.ImagePositionPatient = [0, 0, 2.5 * (index // 2)]
    return None if index == 5 else dataset


def _cropped(index: int, dataset: Dataset) -> Dataset:
    if index == 2:
        dataset.Rows = 5
        dataset.PixelData = dataset.PixelData[: 5 * 8 * 2]
    return dataset


def _text_slope(index: int, dataset: Dataset) -> Dataset:
    dataset.add_new(0x00281053, "LO", "one")
    return dataset


FORMS = _series()
