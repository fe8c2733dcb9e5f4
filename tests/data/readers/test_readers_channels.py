"""data/readers/channels.py: a file a channel becomes one image, or a refusal that says what differs."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from medloom.data.errors import ReadError
from medloom.data.readers import read
from medloom.data.sample import Given
from PIL import Image as Pillow

RNG = np.random.default_rng(3)
AFFINE = np.array([[-1.0, 0, 0, 5], [0, 0, 2, -7], [0, 1.5, 0, 3], [0, 0, 0, 1]])


def volume(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def numbers(shape: tuple[int, ...] = (4, 5, 6), dtype: type = np.int16) -> np.ndarray:
    return RNG.integers(0, 200, shape).astype(dtype)


def test_channels_are_stacked_in_the_order_of_their_names(tmp_path: Path) -> None:
    paths = [volume(tmp_path / f"c_{name}.nii.gz", numbers()) for name in ("t2", "t1", "flair")]
    (image,) = read(paths, given=Given(channels=("t2", "t1", "flair")))
    assert image.array.shape[0] == 3 and image.array.dtype == np.int16
    assert image.facts["channels"] == ["t2", "t1", "flair"]
    for channel, path in enumerate(paths):
        (alone,) = read([path])
        np.testing.assert_array_equal(image.array[channel], alone.array[0])
        assert alone.affine is not None and image.affine is not None
        np.testing.assert_array_equal(image.affine, alone.affine)


def test_a_channel_stored_in_another_order_of_axes_lands_on_the_same_grid(tmp_path: Path) -> None:
    array = numbers()
    flipped = AFFINE.copy()
    flipped[:, 3] = AFFINE @ [array.shape[0] - 1, 0, 0, 1]
    flipped[:3, 0] *= -1
    paths = [volume(tmp_path / "a.nii.gz", array), volume(tmp_path / "b.nii.gz", array[::-1], flipped)]
    (image,) = read(paths, given=Given(channels=("a", "b")))
    np.testing.assert_array_equal(image.array[0], image.array[1])


def test_the_dtype_holds_all_channels(tmp_path: Path) -> None:
    signed, unsigned = numbers() - 100, np.full((4, 5, 6), 60000, np.uint16)
    paths = [volume(tmp_path / "a.nii", signed), volume(tmp_path / "b.nii", unsigned)]
    (image,) = read(paths, given=Given(channels=("a", "b")))
    assert image.array.dtype == np.int32
    assert image.array[0].min() == signed.min() and image.array[1].max() == 60000


def test_pictures_can_be_channels_too(tmp_path: Path) -> None:
    paths = [tmp_path / "a_0000.png", tmp_path / "a_0001.png"]
    grey = [numbers((5, 7), np.uint8) for _ in paths]
    for path, array in zip(paths, grey, strict=True):
        Pillow.fromarray(array).save(path)
    (image,) = read(paths, given=Given(channels=("dapi", "gfp")))
    np.testing.assert_array_equal(image.array, np.stack(grey))
    assert image.jpeg is None


def test_frames_are_stacked_frame_by_frame(tmp_path: Path) -> None:
    paths = [volume(tmp_path / f"{name}.nii", numbers((4, 5, 6, 3))) for name in "ab"]
    images = read(paths, given=Given(channels=("a", "b")), fourth_axis="frames")
    assert [image.array.shape[0] for image in images] == [2, 2, 2]
    with pytest.raises(ReadError, match=r"a\.nii: 3 channels, expected one a file"):
        read(paths, given=Given(channels=("a", "b")))


def test_another_shape_is_refused_with_both(tmp_path: Path) -> None:
    paths = [volume(tmp_path / "a.nii", numbers()), volume(tmp_path / "b.nii", numbers((4, 5, 7)))]
    with pytest.raises(ReadError, match=r"b\.nii: shape .* but a\.nii has .*; resample"):
        read(paths, given=Given(channels=("a", "b")))


@pytest.mark.parametrize(("shift", "fits"), [(0.05, True), (0.5, False)])
def test_a_grid_may_be_off_by_a_tenth_of_a_voxel(tmp_path: Path, shift: float, fits: bool) -> None:
    moved = AFFINE.copy()
    moved[0, 3] += shift
    paths = [volume(tmp_path / "a.nii", numbers()), volume(tmp_path / "b.nii", numbers(), moved)]
    given = Given(channels=("a", "b"))
    if fits:
        assert read(paths, given=given)[0].array.shape[0] == 2
    else:
        with pytest.raises(ReadError, match=r"b\.nii: its affine .* 0\.5 mm .* at most 0\.1 mm; register"):
            read(paths, given=given)


def test_frames_and_files_must_be_as_many_as_said(tmp_path: Path) -> None:
    paths = [volume(tmp_path / "a.nii", numbers((4, 5, 6, 2))), volume(tmp_path / "b.nii", numbers())]
    with pytest.raises(ReadError, match=r"a\.nii: its channels have \[2, 1\] frames"):
        read(paths, given=Given(channels=("a", "b")), fourth_axis="frames")
    with pytest.raises(ReadError, match="2 files for the channels a, b, c"):
        read(paths, given=Given(channels=("a", "b", "c")))
