"""Each kind of image gets the rule of the table, and the result is finite and in range."""

import numpy as np
import pytest
from medloom.data.ingest.preprocess import describe
from medloom.data.normalise import IMAGENET_MEAN, IMAGENET_STD, intensity, kind

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 4000, (1, 64, 64)).astype(np.uint16)
COLOUR = RNG.integers(0, 256, (3, 40, 48)).astype(np.uint8)
HU = RNG.integers(-1024, 1500, (1, 16, 32, 32)).astype(np.int16)
MR = np.concatenate([np.zeros((1, 8, 32, 32)), RNG.normal(900, 50, (1, 8, 32, 32))], axis=1).astype(np.uint16)


def meta(image: np.ndarray, modality: str = "other") -> dict:
    return {
        "key": "k",
        "ndim": image.ndim - 1,
        "dtype": str(image.dtype),
        "modality": modality,
        "stats": describe(image, modality),
    }


@pytest.mark.parametrize(
    ("image", "modality", "expected"),
    [
        (HU, "ct", "hu"),
        (HU[:, 0], "ct", "hu"),
        ((HU + 1024).astype(np.uint16), "ct", "volume"),
        ((HU / 1500).astype(np.float32), "ct", "volume"),
        (MR, "mri", "volume"),
        (np.concatenate([MR] * 4), "mri", "volume"),
        (GREY, "x-ray", "picture"),
        (COLOUR, "fundus", "colour"),
        (np.repeat(COLOUR[:1], 3, axis=0), "x-ray", "picture"),
        (COLOUR.astype(np.uint16), "microscopy", "picture"),
    ],
)
def test_kind_and_range(image, modality, expected):
    assert kind(meta(image, modality)) == expected
    found = intensity(meta(image, modality))
    for values in (found.low, found.high, found.mean, found.std):
        assert values.shape == (image.shape[0],) and values.dtype == np.float32
    x = found.apply(image)
    assert x.dtype == np.float32 and np.isfinite(x).all()
    assert -32 <= x.min() < x.max() <= 32


def test_hounsfield_units_keep_their_meaning():
    found = intensity(meta(HU, "ct"))
    tissue = np.array([-3000, -1000, 0, 500, 1000, 3000], np.int16).reshape(1, 1, 1, -1)
    assert found.apply(tissue).ravel().tolist() == [-1, -1, 0, 0.5, 1, 1]


def test_foreground_of_a_volume_is_standardised_and_clipped():
    found = intensity(meta(MR, "mri"))
    inside = found.apply(MR)[MR > 300]
    assert abs(inside.mean()) < 0.02 and abs(inside.std() - 1) < 0.03
    high = np.array([[[[60000]]]], np.uint16)
    assert found.apply(high).item() == pytest.approx((found.high[0] - found.mean[0]) / found.std[0])


def test_picture_spans_minus_two_to_two():
    x = intensity(meta(GREY)).apply(GREY)
    assert x.min() == -2 and x.max() == 2


def test_colour_is_imagenet():
    found = intensity(meta(COLOUR, "fundus"))
    assert found.mean.tolist() == pytest.approx(IMAGENET_MEAN) and found.std.tolist() == pytest.approx(
        IMAGENET_STD
    )
    assert found.low.tolist() == [0, 0, 0] and found.high.tolist() == [255, 255, 255]


@pytest.mark.parametrize("value", [0, 7])
def test_a_constant_image_becomes_zero(value):
    for image in (np.full((1, 8, 8), value, np.uint16), np.full((2, 8, 8, 8), value, np.int16)):
        assert np.array_equal(intensity(meta(image)).apply(image), np.zeros(image.shape))


def test_a_sparse_or_constant_foreground_stays_in_range():
    sparse = np.zeros((1, 30, 30, 30), np.int16)
    sparse[0, :3, :3, :3] = 900 + np.arange(27).reshape(3, 3, 3)  # 0.1 % of the voxels
    binary = np.zeros((1, 20, 20, 20), np.int16)
    binary[0, :10] = 1000
    for image in (sparse, binary):
        x = intensity(meta(image, "mri")).apply(image)
        assert x.min() < x.max() and np.abs(x).max() <= 32


def test_channels_repeat_one_and_refuse_the_rest():
    assert intensity(meta(GREY), 3).low.shape == (3,)
    assert intensity(meta(COLOUR), 3).low.shape == (3,)
    with pytest.raises(ValueError, match="3 channels are stored, 2"):
        intensity(meta(COLOUR), 2)
    two = intensity(meta(COLOUR)).take([2, 0])
    assert two.mean.tolist() == pytest.approx([IMAGENET_MEAN[2], IMAGENET_MEAN[0]])
