"""data/layouts/outlines.py: run lengths and masks become outlines that draw the same pixels again."""

from __future__ import annotations

import numpy as np
import pytest
from medloom.data.annotations.rasterise import label_map
from medloom.data.errors import CollectionError
from medloom.data.layouts.outlines import decode_runs, outlines
from medloom.data.sample import Shape
from scipy import ndimage

RNG = np.random.default_rng(0)


def drawn(mask: np.ndarray) -> np.ndarray:
    shapes = [Shape(kind="polygon", label="a", points=points, group=1) for points in outlines(mask)]
    return label_map(shapes, mask.shape, {"a": 1}).astype(bool)


@pytest.mark.parametrize("density", [0.05, 0.3, 0.5, 0.7, 0.95])
def test_any_mask_is_drawn_again_exactly(density: float) -> None:
    for _ in range(40):
        mask = RNG.random(RNG.integers(1, 22, 2)) < density
        np.testing.assert_array_equal(drawn(mask), mask)


def test_a_smooth_mask_with_holes_and_islands_in_them() -> None:
    mask = ndimage.gaussian_filter(RNG.random((120, 90)), 3) > 0.5
    rings = np.add.outer(np.abs(np.arange(41) - 20), np.abs(np.arange(41) - 20)) // 5 % 2 == 0
    for one in (mask, rings):
        np.testing.assert_array_equal(drawn(one), one)


def test_a_pixel_is_four_corners_between_the_pixels() -> None:
    mask = np.zeros((5, 6), bool)
    mask[2, 3] = True
    (points,) = outlines(mask, offset=(10, 20))
    assert set(points) == {(12.0, 23.0), (12.0, 24.0), (13.0, 24.0), (13.0, 23.0)}


def test_straight_edges_have_no_corners_on_the_way() -> None:
    mask = np.zeros((30, 40), bool)
    mask[5:25, 5:35] = True
    mask[10:12, 10:30] = False
    assert [len(points) for points in outlines(mask)] == [4, 4]
    assert outlines(np.zeros((4, 4), bool)) == []


# Made by pycocotools 2.0 from the mask below.
PACKED = "?43MO010O013004M00"
MASK = np.zeros((7, 9), bool)
MASK[1:5, 2:7] = True
MASK[2:4, 3:5] = False
MASK[6, 8] = MASK[5, 7] = True


def test_pycocotools_text_is_unpacked() -> None:
    np.testing.assert_array_equal(decode_runs(PACKED, (7, 9)), MASK)
    np.testing.assert_array_equal(decode_runs(PACKED.encode(), (7, 9)), MASK)


def test_run_lengths_as_a_list() -> None:
    flat = MASK.T.ravel()
    starts = np.flatnonzero(np.diff(np.r_[False, flat, not flat[-1]].astype(int)))
    counts = np.diff(np.r_[0, starts]).tolist()
    np.testing.assert_array_equal(decode_runs(counts, (7, 9)), MASK)
    np.testing.assert_array_equal(decode_runs([0, 63], (7, 9)), np.ones((7, 9), bool))


@pytest.mark.parametrize(
    ("counts", "size"),
    [
        (PACKED, (7, 8)),
        ([5, -1, 59], (7, 9)),
        ([63.0], (7, 9)),
        ("", (7, 9)),
        ("../../../../../../../../../etc/passwd", (8, 9)),  # unpacks to a run beyond 64 bits
        ([10**12], (10**6, 10**6)),
        ([], (0, 0)),
    ],
)
def test_run_lengths_that_do_not_fit_are_refused(counts: object, size: tuple[int, int]) -> None:
    with pytest.raises(CollectionError, match="run lengths"):
        decode_runs(counts, size)  # type: ignore[arg-type]
