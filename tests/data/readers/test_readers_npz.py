"""data/readers/npz.py: the one image of an .npz, a mask beside it, and what cannot be told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from medloom.data.errors import ReadError
from medloom.data.readers import read, read_label_map, reader_of
from medloom.data.sample import Given

RNG = np.random.default_rng(0)


def test_the_only_array_is_the_image(tmp_path: Path) -> None:
    array = RNG.integers(0, 255, (9, 20, 30)).astype(np.int16)
    np.savez_compressed(tmp_path / "a.npz", anything=array, spacing=np.array([3.0, 1, 1]))
    (image,) = read([tmp_path / "a.npz"], given=Given(axes="DHW", spacing=(3.0, 1.0, 1.0)))
    np.testing.assert_array_equal(image.array[0], array)
    assert (image.spacing, image.facts["format"]) == ((3.0, 1.0, 1.0), "npz")


def test_a_mask_lies_beside_it(tmp_path: Path) -> None:
    array, mask = RNG.random((20, 30)).astype(np.float32), RNG.integers(0, 3, (20, 30))
    np.savez(tmp_path / "a.npz", image=array, label=mask)
    (image,) = read([tmp_path / "a.npz"])
    np.testing.assert_array_equal(image.array[0], array)
    np.testing.assert_array_equal(read_label_map(tmp_path / "a.npz", image), mask)
    np.savez(tmp_path / "b.npz", mask)  # a file of its own for the mask
    np.testing.assert_array_equal(read_label_map(tmp_path / "b.npz", image), mask)


def test_without_a_suffix_its_first_bytes_tell(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", image=np.zeros((5, 6)))
    (tmp_path / "a.npz").rename(tmp_path / "plain")
    assert reader_of(tmp_path / "plain").__name__.endswith("npz")


def test_of_several_images_one_is_named(tmp_path: Path) -> None:
    first, second = RNG.random((2, 20, 30))
    np.savez(tmp_path / "a.npz", first=first, second=second)
    with pytest.raises(ReadError, match=r"2 arrays could be images .*e\.g\. a\.npz::first\.npy"):
        read([tmp_path / "a.npz"])
    (image,) = read([Path(f"{tmp_path}/a.npz::second.npy")])
    np.testing.assert_array_equal(image.array[0], second.astype(np.float32))


def test_a_row_of_stacked_images_is_an_image(tmp_path: Path) -> None:
    array = RNG.integers(0, 255, (5, 20, 30, 3)).astype(np.uint8)
    np.savez_compressed(tmp_path / "a.npz", x=array)
    (image,) = read([Path(f"{tmp_path}/a.npz::x.npy::3.npy")])
    np.testing.assert_array_equal(image.array, array[3].transpose(2, 0, 1))


@pytest.mark.parametrize("content", [{"x": np.arange(3)}, {"x": np.array([[{}]], dtype=object)}, {}])
def test_without_an_image_it_is_refused(tmp_path: Path, content: dict) -> None:
    np.savez(tmp_path / "a.npz", **content)
    with pytest.raises(ReadError, match=r"a\.npz: no array with two axes"):
        read([tmp_path / "a.npz"])


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", image=RNG.random((20, 30)))
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:-300])
    with pytest.raises(ReadError, match="truncated or corrupt zip"):
        read([tmp_path / "a.npz"])
