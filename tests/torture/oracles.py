"""Independent readers, and the comparison with what medloom reads.

Volumes are compared in space: both are turned to the closest canonical orientation, then voxels and affine
must agree. SimpleITK (ITK and GDCM) and dcm2niix share no code with medloom's readers; nibabel, Pillow,
tifffile and imagecodecs are used where medloom reads the form through another library, or its array is known.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from medloom.data.sample import Image

from .form import Check

_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def same_volume(image: Image, xyz: np.ndarray, affine: np.ndarray, *, atol: float = 0.0) -> None:
    """Assert that `image` [C, D, H, W] is the volume (x, y, z[, c]) with its RAS affine."""
    turned = nib.as_closest_canonical(nib.Nifti1Image(xyz, affine, dtype=xyz.dtype))
    expected = np.asarray(turned.dataobj)
    expected = expected[..., None] if expected.ndim == 3 else expected
    expected = expected.transpose(3, 2, 1, 0)
    assert image.array.shape == expected.shape
    assert np.allclose(image.array.astype(float), expected.astype(float), rtol=1e-5, atol=atol)
    assert image.affine is not None
    ours = image.affine[:, [2, 1, 0, 3]]
    assert np.allclose(ours, turned.affine, atol=2e-3), f"{ours}\n{turned.affine}"
    assert image.spacing is not None
    assert np.allclose(image.spacing[::-1], np.linalg.norm(turned.affine[:3, :3], axis=0), atol=1e-3)


def itk_volume(paths: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """(x, y, z[, c]) and RAS affine, as SimpleITK reads one file, or a series of slices in its own order."""
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is the independent reader of this form")
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    if len(paths) == 1:
        picture = sitk.ReadImage(str(paths[0]))
    else:
        names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(paths[0].parent))
        picture = sitk.ReadImage(names)
    affine = np.eye(4)
    direction = np.array(picture.GetDirection()).reshape(picture.GetDimension(), -1)[:3, :3]
    size = min(3, picture.GetDimension())
    affine[:size, :size] = direction[:size, :size] * picture.GetSpacing()[:size]
    affine[:size, 3] = picture.GetOrigin()[:size]
    array = sitk.GetArrayFromImage(picture)
    lead = picture.GetDimension()
    xyz = array.transpose(*reversed(range(lead)), *range(lead, array.ndim))
    return xyz, _LPS @ affine


def by_itk(*, atol: float = 0.0) -> Check:
    """SimpleITK sees the same voxels in the same places."""

    def check(paths: list[Path], images: list[Image]) -> None:
        (image,) = images
        xyz, affine = itk_volume(paths)
        xyz = xyz.reshape(*xyz.shape[:3], -1) if xyz.ndim >= 3 else xyz[..., None, None]
        same_volume(image, xyz, affine, atol=atol)

    return check


def by_flat_itk(paths: list[Path], images: list[Image]) -> None:
    """SimpleITK sees the same pixels of one picture."""
    xyz, _ = itk_volume(paths)
    seen = xyz.reshape(*xyz.shape[:2], -1).transpose(2, 1, 0)
    assert np.array_equal(images[0].array, seen)


def by_nibabel(*, scale: float = 1.0) -> Check:
    """nibabel sees the same voxels in the same places; `scale` millimetres a unit."""

    def check(paths: list[Path], images: list[Image]) -> None:
        (image,) = images
        nifti = nib.load(paths[0])
        affine = nifti.affine.copy()
        affine[:3] *= scale
        xyz = np.asarray(nifti.dataobj)
        same_volume(image, xyz if xyz.ndim > 3 else xyz[..., None], affine)

    return check


def by_dcm2niix(*, atol: float = 0.0) -> Check:
    """dcm2niix makes the same volume of the folder."""

    def check(paths: list[Path], images: list[Image]) -> None:
        if shutil.which("dcm2niix") is None:
            pytest.skip("dcm2niix is the independent reader of this form: apt-get install dcm2niix")
        (image,) = images
        with tempfile.TemporaryDirectory() as out:
            command = [
                "dcm2niix",
                "-b",
                "n",
                "-z",
                "n",
                "-m",
                "y",
                "-f",
                "a",
                "-o",
                out,
                str(paths[0].parent),
            ]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            made = sorted(Path(out).glob("*.nii"))
            assert len(made) == 1, f"{made}\n{done.stdout}\n{done.stderr}"
            nifti = nib.load(made[0])
            same_volume(image, np.asarray(nifti.dataobj), nifti.affine, atol=atol)

    return check


def equals(*pictures: np.ndarray, atol: float = 0.0) -> Check:
    """The images are these arrays [C, H, W] or [C, D, H, W], which were written."""

    def check(paths: list[Path], images: list[Image]) -> None:
        assert len(images) == len(pictures)
        for image, expected in zip(images, pictures, strict=True):
            assert image.array.shape == expected.shape
            assert np.allclose(image.array.astype(float), expected.astype(float), atol=atol)

    return check


def both(*checks: Check) -> Check:
    """Every one of the checks."""

    def check(paths: list[Path], images: list[Image]) -> None:
        for one in checks:
            one(paths, images)

    return check
