"""Shapes follow the image into its stored orientation; what does not fit is refused and explained."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest
from medloom.data.annotations.shapes import from_meta, shapes_on, to_meta
from medloom.data.errors import ReadError
from medloom.data.readers import read
from medloom.data.sample import Image, Shape

ORIENTATIONS = [
    np.diag([*signs, 1.0])[:, [*order, 3]]
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


def volume(path: Path, affine: np.ndarray) -> tuple[Image, tuple[int, int, int]]:
    """A NIfTI with one bright voxel, and the voxel's (z, y, x) in the file."""
    array = np.zeros((7, 6, 5), np.int16)  # x, y, z
    array[5, 1, 3] = 99
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    (image,) = read([path])
    return image, (3, 1, 5)


@pytest.mark.parametrize("affine", ORIENTATIONS, ids=[str(n) for n in range(48)])
def test_a_landmark_stays_on_its_voxel_in_all_48_orientations(tmp_path: Path, affine: np.ndarray) -> None:
    image, voxel = volume(tmp_path / "v.nii", affine)
    mark = Shape(kind="point", label="tip", points=(tuple(n + 0.5 for n in voxel),))
    (found,) = shapes_on(image, [mark])
    index = tuple(int(value) for value in np.floor(found.points[0]))
    assert image.array[0][index] == 99
    box = Shape(kind="box", label="b", points=(tuple(map(float, voxel)), tuple(n + 1.0 for n in voxel)))
    (found,) = shapes_on(image, [box])
    low, high = (np.asarray(point) for point in found.points)
    assert (low < high).all() and np.array_equal(low, index) and np.array_equal(high, np.add(index, 1))


def test_a_flat_nifti_takes_two_coordinates(tmp_path: Path) -> None:
    array = np.zeros((7, 6), np.uint8)
    array[5, 1] = 9
    nibabel.save(nibabel.Nifti1Image(array, np.diag([-1.0, 1, 1, 1])), tmp_path / "f.nii")
    (image,) = read([tmp_path / "f.nii"])
    (found,) = shapes_on(image, [Shape(kind="point", label="p", points=((1.5, 5.5),))])
    assert image.array[(0, *(int(v) for v in found.points[0]))] == 9


def test_pictures_keep_their_coordinates() -> None:
    image = Image(array=np.zeros((3, 40, 60), np.uint8))
    shape = Shape(kind="polygon", label="a", points=((1.0, 2.0), (30.5, 2.0), (30.5, 59.0)), group=3)
    assert shapes_on(image, [shape]) == (shape,)
    assert from_meta(to_meta(shape, None)) == shape


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        (
            Shape(kind="box", label="a", points=((0.0, 0.0), (58.0, 38.0))),
            "fits the transposed image: x and y",
        ),
        (Shape(kind="box", label="a", points=((0.0, 0.0), (400.0, 600.0))), "another size or crop"),
        (Shape(kind="point", label="a", points=((-9.0, 4.0),)), "reaches to .-9, 4. in an image of 40 x 60"),
        (Shape(kind="circle", label="a", points=((1.0, 1.0),)), "unknown kind 'circle'"),
        (Shape(kind="polygon", label="a", points=((1.0, 1.0), (2.0, 2.0))), "2 points, expected 3"),
        (Shape(kind="box", label="a", points=((1.0, 1.0),)), "1 points, expected 2"),
        (Shape(kind="point", label="a", points=((1.0, 1.0, 1.0),)), "3 coordinates a point, the image has 2"),
        (Shape(kind="point", label="a", points=((float("nan"), 1.0),)), "NaN"),
    ],
)
def test_what_does_not_fit_is_refused_and_explained(shape: Shape, reason: str) -> None:
    with pytest.raises(ReadError, match=reason):
        shapes_on(Image(array=np.zeros((3, 40, 60), np.uint8)), [shape])


def test_a_box_may_stick_out_a_little() -> None:
    shape = Shape(kind="box", label="a", points=((-1.0, 0.0), (41.0, 60.5)))
    assert shapes_on(Image(array=np.zeros((3, 40, 60), np.uint8)), [shape]) == (shape,)
