"""DICOM multi-frame objects, enhanced ones, and files that are not what they should be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset

from .dicom_edits import COLOUR, FRAMES, GREY, VOLUME, turned, without
from .dicom_files import AXIAL, enhanced, one, slice_of, written
from .form import Form
from .oracles import both, by_dcm2niix, equals, itk_volume, same_volume


def _objects() -> list[Form]:
    """Multi-frame objects, enhanced ones, and files that are not what they should be."""
    mr, ct = uid.EnhancedMRImageStorage, uid.EnhancedCTImageStorage
    loop = {"sop_class": uid.UltrasoundMultiFrameImageStorage, "Modality": "US"}
    colours = np.stack([COLOUR, COLOUR[::-1], COLOUR // 2])
    grey_frames = equals(*FRAMES[:, None])
    scales = [(1 + n / 2, n) for n in range(len(VOLUME))]
    scaled = np.stack([plane * slope + shift for plane, (slope, shift) in zip(VOLUME, scales, strict=True)])
    twice = np.repeat(VOLUME, 2, axis=0) + np.tile([[[0]], [[5]]], (len(VOLUME), 1, 1)).astype(np.int16)

    def two(paths: list[Path], images: list[Any]) -> None:
        assert len(images) == 2
        for shift, image in zip((0, 5), images, strict=True):
            assert np.array_equal(image.array[0][:, ::-1, ::-1], VOLUME + shift)

    return [
        Form("loop-grey", one(lambda: slice_of(FRAMES, **loop)), both(_itk_frames, grey_frames)),
        Form("loop-colour", one(lambda: slice_of(colours, **loop)), equals(*colours.transpose(0, 3, 1, 2))),
        Form(
            "loop-fewer-frames-than-said",
            one(lambda: slice_of(FRAMES, NumberOfFrames=9, **loop)),
            refused="cannot be decoded",
        ),
        Form(
            "loop-no-frame-count",
            one(lambda: without("NumberOfFrames")(0, slice_of(FRAMES, **loop))),
            refused="4 frames where the header says 1",
        ),
        Form("loop-frames-text", one(lambda: _odd_frames("many")), refused="cannot be decoded"),
        Form("enhanced-mr", one(lambda: enhanced(VOLUME, mr)), both(by_dcm2niix(), _as_volume)),
        Form(
            "enhanced-ct",
            one(lambda: enhanced(VOLUME, ct, modality="CT", scales=[(1, -1024)] * 6)),
            both(by_dcm2niix(), _as_volume_hu),
        ),
        Form("enhanced-shuffled", one(lambda: enhanced(VOLUME, mr, order=[3, 0, 5, 1, 4, 2])), _as_volume),
        Form("enhanced-place-a-frame", one(lambda: enhanced(VOLUME, mr, shared_place=False)), _as_volume),
        Form(
            "enhanced-oblique", one(lambda: enhanced(VOLUME, mr, orientation=turned(25, 10))), by_dcm2niix()
        ),
        Form(
            "enhanced-scale-a-frame",
            one(lambda: enhanced(VOLUME, mr, scales=scales)),
            equals(scaled[None, :, ::-1, ::-1], atol=1e-3),
        ),
        Form(
            "enhanced-two-times",
            one(lambda: enhanced(twice, mr, repeat=2)),
            two,
            read={"fourth_axis": "frames"},
        ),
        Form("enhanced-missing-frame", one(lambda: _missing_frame(mr)), refused="a slice is missing"),
        Form(
            "enhanced-without-groups",
            one(
                lambda: without("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence")(
                    0, slice_of(FRAMES, mr, Modality="MR")
                )
            ),
            grey_frames,
        ),
        Form("nuclear-reconstruction", one(_nuclear), _nuclear_seen),
        Form("file-without-preamble", _bare, equals(GREY[None])),
        Form(
            "file-without-class",
            one(lambda: without("SOPClassUID")(0, slice_of(GREY))),
            refused="no SOP class",
        ),
        Form("file-with-group-lengths", one(lambda: _group_lengths(GREY)), equals(GREY[None])),
        Form("file-undefined-lengths", one(lambda: _undefined(GREY)), equals(GREY[None])),
        Form("file-private-implicit", one(lambda: _private(GREY)), equals(GREY[None])),
        Form("file-trailing-padding", one(lambda: _trailing(GREY)), equals(GREY[None])),
        Form(
            "file-mosaic",
            one(lambda: slice_of(GREY, ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"])),
            refused="dcm2niix",
        ),
        *(
            Form(
                f"object-{name.lower()}",
                one(lambda name=name: slice_of(GREY, Modality=name)),
                refused="without a picture",
            )
            for name in ("SR", "PR", "KO", "RTPLAN", "REG")
        ),
        Form(
            "object-empty",
            one(lambda: Dataset(), name="b.dcm", implicit_vr=False, little_endian=True),
            refused="0 bytes",
        ),
    ]


def _as_volume(paths: list[Path], images: list[Any]) -> None:
    (image,) = images
    affine = np.array([[-1.1, 0, 0, 10], [0, -0.7, 0, -20], [0, 0, 2.5, 30], [0, 0, 0, 1.0]])
    same_volume(image, VOLUME.transpose(2, 1, 0)[..., None], affine)


def _as_volume_hu(paths: list[Path], images: list[Any]) -> None:
    assert images[0].array.dtype == np.int16 and images[0].array.min() == VOLUME.min() - 1024


def _itk_frames(paths: list[Path], images: list[Any]) -> None:
    xyz, _ = itk_volume(paths)
    assert np.array_equal(np.stack([image.array[0] for image in images]), xyz.transpose(2, 1, 0))


def _odd_frames(text: str) -> Dataset:
    dataset = slice_of(FRAMES, Modality="US")
    dataset.add_new(0x00280008, "LO", text)
    return dataset


def _missing_frame(sop_class: str) -> Dataset:
    dataset = enhanced(VOLUME, sop_class)
    groups = list(dataset.PerFrameFunctionalGroupsSequence)
    dataset.PerFrameFunctionalGroupsSequence = groups[:3] + groups[4:]
    dataset.NumberOfFrames = 5
    dataset.PixelData = np.delete(VOLUME, 3, axis=0).tobytes()
    return dataset


def _nuclear() -> Dataset:
    dataset = slice_of(
        VOLUME, uid.NuclearMedicineImageStorage, Modality="NM", SpacingBetweenSlices=4.0, PixelSpacing=[3, 3]
    )
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"]
    dataset.NumberOfSlices, dataset.SliceVector = 6, [1, 2, 3, 4, 5, 6]
    detector = Dataset()
    detector.ImagePositionPatient, detector.ImageOrientationPatient = [-10, 20, 30], list(AXIAL)
    dataset.DetectorInformationSequence = [detector]
    return dataset


def _nuclear_seen(paths: list[Path], images: list[Any]) -> None:
    (image,) = images
    assert image.spacing == (4.0, 3.0, 3.0)
    assert np.array_equal(image.array[0][:, ::-1, ::-1], VOLUME)


def _bare(folder: Path) -> list[Path]:
    dataset = slice_of(GREY)
    plain = Dataset({element.tag: element for element in dataset})
    return [written(folder / "a.dcm", plain, implicit_vr=True, little_endian=True)]


def _group_lengths(pixels: np.ndarray) -> Dataset:
    dataset = slice_of(pixels)
    for group in (0x0008, 0x0010, 0x0028):
        dataset.add_new((group, 0), "UL", 4)  # retired, and wrong
    return dataset


def _undefined(pixels: np.ndarray) -> Dataset:
    dataset = slice_of(pixels)
    item = Dataset()
    item.CodeValue, item.CodeMeaning = "T-D1100", "Head"
    item.is_undefined_length_sequence_item = True
    dataset.AnatomicRegionSequence = [item]
    dataset["AnatomicRegionSequence"].is_undefined_length = True
    return dataset


def _private(pixels: np.ndarray) -> Dataset:
    dataset = slice_of(pixels)
    dataset.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian
    block = dataset.private_block(0x0029, "VENDOR", create=True)
    block.add_new(0x10, "OB", bytes(range(256)))
    return dataset


def _trailing(pixels: np.ndarray) -> Dataset:
    dataset = slice_of(pixels)
    dataset.DataSetTrailingPadding = bytes(200)
    return dataset


FORMS = _objects()
