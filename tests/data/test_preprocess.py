"""Intensity statistics, foreground, box and bricks, against NumPy and scikit-free references."""

from __future__ import annotations

import json

import numpy as np
import pytest
from medloom.data.errors import ReadError
from medloom.data.ingest.preprocess import describe, unpack_bricks


def test_percentiles_and_moments_are_exact_for_integers():
    generator = np.random.default_rng(0)
    image = generator.normal(100, 300, (2, 40, 50, 60)).astype(np.int16)
    stats = describe(image, "ct")
    for channel in range(2):
        values = image[channel].ravel()
        for name, found in stats["percentiles"].items():
            assert found[channel] == np.percentile(values, float(name), method="inverted_cdf")
        inside = values[values > -500]
        assert stats["mean"][channel] == pytest.approx(inside.mean(), rel=1e-5)
        assert stats["std"][channel] == pytest.approx(inside.std(), rel=1e-5)
        assert (stats["min"][channel], stats["max"][channel]) == (values.min(), values.max())
    assert stats["foreground"]["rule"] == "hu"


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.int32, np.uint32, np.float32])
def test_every_dtype_gives_the_same_figures(dtype):
    image = np.random.default_rng(1).integers(0, 100, (1, 30, 40)).astype(dtype)
    reference = describe(image.astype(np.uint8), "x-ray")
    assert describe(image, "x-ray") == reference


def test_box_bricks_and_fraction_of_a_block():
    image = np.full((1, 70, 100, 64), -1000, np.int16)
    image[0, 33:60, 40:90, 0:20] = 50
    stats = describe(image, "ct")
    foreground = stats["foreground"]
    assert foreground["box"] == [[33, 40, 0], [60, 90, 20]]
    assert foreground["fraction"] == pytest.approx(27 * 50 * 20 / image.size, rel=1e-6)
    bricks = unpack_bricks(stats)
    assert bricks.shape == (3, 4, 2)
    expected = np.zeros((3, 4, 2), bool)
    expected[1, 1:3, 0] = True
    np.testing.assert_array_equal(bricks, expected)


def test_bricks_at_the_edge_are_measured_by_their_own_size():
    image = np.full((1, 33, 32, 32), -1000, np.int16)
    image[0, 32, :8] = 0  # a quarter of the last brick, which is one slice thick
    assert unpack_bricks(describe(image, "ct")).ravel().tolist() == [False, True]


def test_otsu_splits_two_populations_as_the_definition_says():
    generator = np.random.default_rng(2)
    image = np.where(generator.random((1, 200, 200)) < 0.3, generator.normal(180, 8, (1, 200, 200)), 40)
    image = image.clip(0, 255).astype(np.uint8)
    stats = describe(image, "x-ray")
    threshold = stats["foreground"]["threshold"][0]
    values = image.ravel().astype(float)

    def between(t):
        low, high = values[values <= t], values[values > t]
        return len(low) * len(high) * (low.mean() - high.mean()) ** 2 if len(low) and len(high) else 0

    assert between(threshold) == pytest.approx(max(between(t) for t in range(256)), rel=0.01)
    assert stats["foreground"]["fraction"] == pytest.approx(0.3, abs=0.02)


def test_an_image_without_air_is_foreground_as_a_whole():
    """Grey and white matter of a hippocampus crop are one foreground; air is no part of it."""
    generator = np.random.default_rng(5)
    shape = (1, 40, 40, 40)
    grey, white = generator.normal(450, 90, shape), generator.normal(750, 60, shape)
    tissue = np.where(generator.random(shape) < 0.5, grey, white).clip(0, 1000).astype(np.float32)
    stats = describe(tissue, "mri")
    assert stats["foreground"]["fraction"] == 1.0
    assert stats["mean"][0] == pytest.approx(tissue.mean(), rel=1e-3)
    assert unpack_bricks(stats).all()
    air = generator.random(shape) < 0.5
    around = describe(np.where(air, generator.normal(30, 10, shape), tissue).astype(np.float32), "mri")
    assert around["foreground"]["fraction"] == pytest.approx(0.5, abs=0.03)


def test_colour_pictures_and_pictures_of_a_ct_have_their_own_rules():
    colour = np.random.default_rng(3).integers(0, 255, (3, 50, 60), np.uint8)
    stats = describe(colour, "fundus")
    assert stats["foreground"] == {
        "rule": "all", "threshold": None, "fraction": 1.0, "box": [[0, 0], [50, 60]],
    }  # fmt: skip
    assert unpack_bricks(stats).all()
    assert describe(colour[:1], "ct")["foreground"]["rule"] == "otsu"  # 8 bit is not Hounsfield units


@pytest.mark.parametrize("value", [0, 7, 255])
def test_constant_images_are_all_foreground(value):
    stats = describe(np.full((1, 20, 20), value, np.uint8), None)
    assert stats["foreground"]["fraction"] == 1.0
    assert stats["mean"] == [value]
    assert stats["std"] == [0.0]


def test_a_ct_of_nothing_but_air_has_no_foreground_and_a_whole_box():
    stats = describe(np.full((1, 40, 40, 40), -1000, np.int16), "ct")
    assert stats["foreground"]["fraction"] == 0.0
    assert stats["foreground"]["box"] == [[0, 0, 0], [40, 40, 40]]
    assert unpack_bricks(stats).all()


def test_stats_are_json_without_nan():
    image = np.random.default_rng(4).normal(size=(2, 33, 20, 31)).astype(np.float32)
    stats = describe(image, "mri")
    assert json.loads(json.dumps(stats, allow_nan=False)) == stats


def test_empty_and_infinite_images_are_refused():
    with pytest.raises(ReadError, match="no voxel"):
        describe(np.zeros((1, 0, 5), np.uint8), None)
    with pytest.raises(ReadError, match="infinity"):
        describe(np.full((1, 5, 5), np.inf, np.float32), None)
