"""Every way in which tools spoil a mask's grid is told by name, through the reader and from files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from medloom.data.errors import ReadError
from medloom.data.readers import read, read_label_map
from medloom.data.sample import Image

# x to the left, 0.8 x 0.8 x 3 mm, not at the origin: as a CT has it.
AFFINE = np.array([[-0.8, 0, 0, 90.0], [0, 0.8, 0, -70.0], [0, 0, 3.0, -300.0], [0, 0, 0, 1]])
SHAPE = (20, 24, 10)  # x, y, z


def moved(x: float, y: float, z: float) -> np.ndarray:
    result = AFFINE.copy()
    result[:3, 3] += (x, y, z)
    return result


def turned(degrees: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn @ AFFINE


HALVED = np.array(
    [[0.5, 0, 0, -0.25], [0, 0.5, 0, -0.25], [0, 0, 1, 0], [0, 0, 0, 1.0]]
)  # voxels in the plane
FAULTS: list[tuple[str, tuple[int, ...], np.ndarray, str]] = [
    ("header lost", SHAPE, np.eye(4), "its header was lost"),
    ("header lost, flipped", SHAPE, np.diag([-1.0, -1.0, 1.0, 1.0]), "its header was lost"),
    ("LPS as RAS", SHAPE, np.diag([-1.0, -1.0, 1.0, 1.0]) @ AFFINE, "LPS had been written as RAS"),
    ("half a voxel", SHAPE, moved(-0.4, 0.4, 0), r"corner of a voxel, not the centre"),
    ("shifted", SHAPE, moved(0, 0, 12), r"shifted by \(0, 0, 12\) mm .* \(4, 0, 0\) voxels"),
    ("spacing", SHAPE, AFFINE @ np.diag([1, 1, 5 / 3, 1.0]), "voxels of 5 x 0.8 x 0.8 mm, the image's are"),
    ("turned", SHAPE, turned(4), "turned by 4 degrees against the image's; sform and qform"),
    ("crop", (12, 14, 6), AFFINE @ np.array([[1, 0, 0, 4], [0, 1, 0, 5], [0, 0, 1, 2], [0, 0, 0, 1.0]]),
     r"crop of the image that begins at its voxel \(2, 5, 4\)"),
    ("padded", (20, 24, 14), moved(0, 0, -6), r"same voxels, but it begins at voxel \(-2, 0, 0\)"),
    ("resampled", (40, 48, 10), AFFINE @ HALVED,
     "same space with voxels of 3 x 0.4 x 0.4 mm instead of 3 x 0.8 x 0.8 mm"),
    ("another copy", (10, 12, 5), np.eye(4), "0.5 times as large"),
    ("one slice fewer", (20, 24, 9), moved(0, 0, 100), "1 slices fewer|begins at voxel"),
    ("another image", (33, 17, 8), np.eye(4), "another image's mask"),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "affine", "reason"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_a_fault_of_a_volumes_mask_is_named(
    tmp_path: Path, shape: tuple[int, ...], affine: np.ndarray, reason: str
) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros(SHAPE, np.int16), AFFINE), tmp_path / "i.nii")
    nibabel.save(nibabel.Nifti1Image(np.zeros(shape, np.uint8), affine), tmp_path / "m.nii")
    (image,) = read([tmp_path / "i.nii"])
    with pytest.raises(ReadError, match=reason) as error:
        read_label_map(tmp_path / "m.nii", image)
    assert str(error.value).startswith("m.nii: ") and "\n" not in str(error.value)


def test_axes_exchanged_in_an_array_without_geometry(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", np.zeros((24, 20, 10), np.uint8))
    image = Image(array=np.zeros((1, 10, 24, 20), np.int16))
    with pytest.raises(ReadError, match="the image's shape stored in the order H, W, D: axes were exchanged"):
        read_label_map(tmp_path / "m.npy", image)


def test_a_picture_turned_after_it_was_annotated(
    tmp_path: Path, png: Callable[[Path, np.ndarray], Path]
) -> None:
    mask = png(tmp_path / "m.png", np.zeros((30, 20), np.uint8))
    with pytest.raises(ReadError, match=r"the image's shape transposed: .*EXIF"):
        read_label_map(mask, Image(array=np.zeros((3, 20, 30), np.uint8)))


@pytest.fixture
def png() -> Callable[[Path, np.ndarray], Path]:
    from PIL import Image as Pillow

    def write(path: Path, array: np.ndarray) -> Path:
        Pillow.fromarray(array).save(path)
        return path

    return write
