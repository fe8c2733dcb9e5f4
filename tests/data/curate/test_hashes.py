"""Hashes are the signs of a cosine transform, of crops and of turned pictures."""

from __future__ import annotations

import numpy as np
import pytest
from medloom.data.curate import hashes
from medloom.data.curate.thumbs import means_of, thumb_of, weights
from scipy.fft import dctn


def bits(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.bitwise_count(one ^ other)


def of(thumbs: np.ndarray) -> np.ndarray:
    return hashes.hashes(hashes.coefficients(thumbs, cropped=False)[0])


@pytest.mark.parametrize(("shape", "order"), [((5, 64, 64), 8), ((5, 32, 32, 32), 4)])
def test_coefficients_are_those_of_scipy(shape, order):
    thumbs = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
    values = thumbs.astype(float) - thumbs.mean(axis=tuple(range(1, len(shape))), keepdims=True)
    axes = tuple(range(1, len(shape)))
    expected = dctn(values, axes=axes)[(slice(None), *(slice(order),) * len(axes))]
    found = hashes.coefficients(thumbs, cropped=False)[0]
    expected = expected / (2 * shape[1]) ** len(axes)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.9999
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


def test_a_crop_is_found_among_the_crops_and_not_without(image):
    windows = hashes.crops(2)
    far, near = [], []
    for seed in range(30):
        array = image(seed)[None]
        height, width = array.shape[1:]
        top, left = (round(height * 0.05), 0) if seed % 2 else (0, round(width * 0.05))
        part = array[:, top : top + round(height * 0.95), left : left + round(width * 0.95)]
        every = [hashes.hashes(c)[0] for c in hashes.coefficients(thumb_of(array)[None])]
        distances = bits(np.array(every), of(thumb_of(part)[None])[0])
        near.append(int(distances.min()))
        far.append(int(distances[0]))
        window = windows[int(distances.argmin())]
        assert window[0] == ((hashes.CROP, 1.0) if seed % 2 else (0.0, 1 - hashes.CROP))
    assert max(near) <= 8
    assert np.median(far) > np.median(near) + 2


@pytest.mark.parametrize(("ndim", "side"), [(2, 64), (3, 32)])
def test_turned_coefficients_are_those_of_turned_thumbnails(ndim, side):
    thumbs = np.random.default_rng(1).integers(0, 255, (20, *(side,) * ndim)).astype(np.uint8)
    values = hashes.coefficients(thumbs, cropped=False)[0]
    ways = hashes.turns(ndim)
    assert len(ways) == 8
    assert ways[0].words == "as it is"
    for way in ways:
        expected = of(np.ascontiguousarray(way(thumbs)))
        assert np.array_equal(hashes.hashes(hashes.turned(values, way)), expected), way
    assert sum(way.words == "mirrored" for way in ways) == 4


def test_intensity_and_size_hardly_move_a_hash(image):
    from PIL import Image as Pillow

    for seed in range(20):
        array = image(seed)
        small = np.asarray(Pillow.fromarray(array).resize((97, 83), Pillow.Resampling.BILINEAR))
        darker = (array * 0.4 + 30).astype(np.int16)
        reference = of(thumb_of(array[None])[None])
        assert bits(of(thumb_of(small[None])[None]), reference)[0] <= 4
        assert bits(of(thumb_of(darker[None])[None]), reference)[0] <= 2


def test_thumbnails_are_means_of_equal_parts():
    array = np.random.default_rng(2).normal(size=(1, 128, 192)).astype(np.float32)
    expected = array[0].reshape(64, 2, 64, 3).mean(axis=(1, 3))
    assert np.allclose(means_of(array), expected, atol=1e-5)
    volume = np.random.default_rng(2).normal(size=(1, 64, 32, 96)).astype(np.float32)
    expected = volume[0].reshape(32, 2, 32, 1, 32, 3).mean(axis=(1, 3, 5))
    assert np.allclose(means_of(volume), expected, atol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 5, 31, 32, 33, 100])
def test_weights_keep_a_constant(length):
    assert np.allclose(weights(length, 32) @ np.ones(length), 1, atol=1e-5)


def test_one_value_has_an_even_thumbnail():
    assert thumb_of(np.full((1, 20, 30), 7, np.int16)).std() == 0
