"""Outlines -> pixels: the centre rule against brute force, partitions, holes, parts, planes of volumes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from medloom.data.annotations.rasterise import label_map, polygon_mask
from medloom.data.errors import ReadError
from medloom.data.sample import Shape


def crossing_number(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Centre by centre: how often a ray to the right meets an edge (the textbook's loop)."""
    result = np.zeros(size, bool)
    for row, column in np.ndindex(size):
        y, x, inside = row + 0.5, column + 0.5, False
        for (y0, x0), (y1, x1) in zip(points, np.roll(points, -1, axis=0), strict=True):
            if (y0 <= y) != (y1 <= y):
                if y0 > y1:
                    y0, x0, y1, x1 = y1, x1, y0, x0
                inside ^= x < x0 + (y - y0) * ((x1 - x0) / (y1 - y0))
        result[row, column] = inside
    return result


corner = st.tuples(st.integers(-8, 48), st.integers(-8, 64)).map(lambda p: (p[0] / 4, p[1] / 4))


@settings(max_examples=200, deadline=None)
@given(st.lists(corner, min_size=3, max_size=9))
def test_the_centre_rule_against_the_crossing_number(points: list[tuple[float, float]]) -> None:
    """Quarter-pixel corners: centres often lie on edges and corners; polygons may cross themselves."""
    found = polygon_mask(points, (11, 14))
    # A centre that is exactly on a crossing belongs to its right side: x < crossing fails there as it should.
    expected = crossing_number(np.asarray(points), (11, 14))
    np.testing.assert_array_equal(found, expected)


@settings(max_examples=100, deadline=None)
@given(st.lists(corner, min_size=3, max_size=9))
def test_the_direction_and_the_first_corner_do_not_matter(points: list[tuple[float, float]]) -> None:
    found = polygon_mask(points, (11, 14))
    np.testing.assert_array_equal(found, polygon_mask(points[::-1], (11, 14)))
    np.testing.assert_array_equal(found, polygon_mask(points[2:] + points[:2], (11, 14)))


@settings(max_examples=100, deadline=None)
@given(st.tuples(st.floats(0.1, 19.9), st.floats(0.1, 29.9)), st.integers(3, 12))
def test_a_partition_covers_every_pixel_once(middle: tuple[float, float], parts: int) -> None:
    """A fan of triangles around any point of a rectangle: no gap, no overlap."""
    border = [(20 * t, 0.0) for t in np.linspace(0, 1, parts)] + [
        (20.0, 30 * t) for t in np.linspace(0, 1, parts)
    ]
    border += [(20 * (1 - t), 30.0) for t in np.linspace(0, 1, parts)]
    border += [(0.0, 30 * (1 - t)) for t in np.linspace(0, 1, parts)]
    count = np.zeros((20, 30), int)
    for a, b in itertools.pairwise(border):
        count += polygon_mask([a, b, middle], (20, 30))
    assert (count == 1).all()


def test_areas_are_right_on_average() -> None:
    generator = np.random.default_rng(0)
    drawn = true = 0.0
    for _ in range(100):
        angles = np.sort(generator.random(12)) * 2 * np.pi
        points = 64 + generator.uniform(10, 60) * np.stack([np.sin(angles), np.cos(angles)], 1)
        y, x = points.T
        true += abs((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2
        drawn += polygon_mask(points, (128, 128)).sum()
    assert drawn == pytest.approx(true, rel=1e-3)


def square(low: float, high: float, label: str = "a", **more) -> Shape:
    points = ((low, low), (low, high), (high, high), (high, low))
    return Shape(kind="polygon", label=label, points=points, **more)


def test_a_hole_is_cut_and_an_island_in_it_is_added() -> None:
    ring = [square(2, 18, group=1), square(5, 15, group=1), square(8, 12, group=1)]
    found = label_map(ring, (20, 20), {"a": 3})
    assert found.dtype == np.uint8 and set(np.unique(found)) == {0, 3}
    assert (found == 3).sum() == 16**2 - 10**2 + 4**2
    assert found[3, 3] == 3 and found[6, 6] == 0 and found[10, 10] == 3


def test_parts_of_one_object_and_overlapping_objects_are_united() -> None:
    parts = [square(0, 6, group=1), square(4, 10, group=1), square(12, 15, group=1)]
    assert (label_map(parts, (20, 20), {"a": 1}) > 0).sum() == 36 + 36 - 4 + 9
    nested = [square(0, 10), square(2, 4)]  # two objects, not an object with a hole
    assert (label_map(nested, (20, 20), {"a": 1}) > 0).sum() == 100


def test_what_comes_later_covers_what_came_before() -> None:
    found = label_map([square(0, 10), square(5, 9, "b"), square(0, 2, "b")], (12, 12), {"a": 1, "b": 300})
    assert found.dtype == np.uint16
    assert (found == 300).sum() == 16 + 4 and (found == 1).sum() == 100 - 20


def test_boxes_and_landmarks_are_not_drawn() -> None:
    others = [Shape(kind="point", label="a", points=((3.0, 3.0),)),
              Shape(kind="box", label="a", points=((0.0, 0.0), (5.0, 5.0)))]  # fmt: skip
    assert not label_map(others, (8, 8), {"a": 1}).any()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_outline_in_a_volume_fills_its_slice(axis: int) -> None:
    flat = np.array([(1, 1), (1, 5), (4, 5), (4, 1)], float)
    points = tuple(tuple(float(v) for v in p) for p in np.insert(flat, axis, 2.5, axis=1))
    found = label_map([Shape(kind="polygon", label="a", points=points)], (7, 7, 7), {"a": 1})
    assert found.sum() == 12 and np.take(found, 2, axis).sum() == 12
    inner = np.argwhere(np.take(found, 2, axis))
    assert inner.min(0).tolist() == [1, 1] and inner.max(0).tolist() == [3, 4]


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ReadError, match="polygon 'polip': no such name in mask_classes; did you mean polyp"):
        label_map([square(0, 4, "polip")], (8, 8), {"polyp": 1})
    oblique = Shape(kind="polygon", label="a", points=((0.0, 1.0, 2.0), (3.0, 4.0, 1.0), (5.0, 2.0, 6.0)))
    with pytest.raises(ReadError, match="lies in no slice"):
        label_map([oblique], (8, 8, 8), {"a": 1})
