"""Boxes lie inside, keep their limits, cover everything and follow tissue."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from medloom.data.draws import uniform
from medloom.data.stream.crops import channel_choice, pad_to, picture_box, volume_box

UNIT = st.floats(0, 1, exclude_max=True)
AREA, ASPECT = (0.4, 1.0), (0.75, 4 / 3)


@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    size=st.tuples(st.integers(1, 500), st.integers(1, 500)),
    draws=st.tuples(UNIT, UNIT, UNIT, UNIT),
)
def test_picture_boxes_lie_inside_and_keep_the_aspect(shape, size, draws):
    y0, x0, y1, x1 = picture_box(shape, size, draws, area=AREA, aspect=ASPECT)
    assert 0 <= y0 < y1 <= shape[0] and 0 <= x0 < x1 <= shape[1]
    stretch = ((x1 - x0) / size[1]) / ((y1 - y0) / size[0])
    assert ASPECT[0] - 1e-6 <= stretch <= ASPECT[1] + 1e-6


def test_picture_boxes_of_a_square_keep_the_area_and_go_everywhere():
    draws = uniform(0, "crop", range(2000), 4)
    boxes = np.asarray(
        [picture_box((100, 100), (10, 10), d, area=AREA, aspect=ASPECT) for d in draws.tolist()]
    )
    share = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / 1e4
    assert share.min() >= 0.4 and share.max() <= 1
    assert abs(share.mean() - 0.7) < 0.03
    assert boxes[:, :2].min() < 1 and boxes[:, 2:].max() > 99
    whole = picture_box((100, 80), (50, 40), (0.9, 0.3, 0.2, 0.7), area=(1, 1), aspect=(1, 1))
    assert whole == pytest.approx((0, 0, 100, 80))


@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(*[st.integers(1, 200)] * 3),
    size=st.tuples(*[st.integers(1, 96)] * 3),
    snap=st.tuples(*[st.sampled_from([1, 4, 32])] * 3),
    draws=st.tuples(*[UNIT] * 5),
    foreground=UNIT,
)
def test_volume_boxes_lie_inside_and_on_the_grid(shape, size, snap, draws, foreground):
    bricks = np.ones([-(-s // 32) for s in shape], bool)
    origin, extent = volume_box(
        shape, size, draws, occupied=bricks, brick=32, foreground=foreground, snap=snap
    )
    for o, n, s, full, grid in zip(origin, extent, size, shape, snap, strict=True):
        assert n == min(s, full)
        assert 0 <= o <= full - n
        assert o % grid == 0 or o == full - n or full - n < grid


@pytest.mark.parametrize("snap", [1, 32])
@pytest.mark.parametrize("foreground", [0.0, 1.0])
def test_every_voxel_can_be_seen(snap, foreground):
    seen = np.zeros(75, int)
    for draws in uniform(1, "crop", range(400), 5).tolist():
        (o, _, _), _ = volume_box(
            (75, 32, 32), (32, 32, 32), draws, occupied=np.ones((3, 1, 1), bool), brick=32,
            foreground=foreground, snap=[snap] * 3,
        )  # fmt: skip
        seen[o : o + 32] += 1
    assert seen.min() > 0


def test_the_share_of_crops_on_tissue_is_the_configured_one():
    occupied = np.zeros((8, 8, 8), bool)
    occupied[6, 1, 5] = True
    hits = []
    for draws in uniform(2, "crop", range(1000), 5).tolist():
        origin, extent = volume_box(
            (256,) * 3, (32,) * 3, draws, occupied=occupied, brick=32, foreground=0.4, snap=[32] * 3
        )
        hits.append(
            all(
                o < (b + 1) * 32 and o + n > b * 32 for o, n, b in zip(origin, extent, (6, 1, 5), strict=True)
            )
        )
    assert abs(np.mean(hits) - 0.4) < 5 * np.sqrt(0.4 * 0.6 / 1000) + 1e-2


def test_padding_centres_and_stays_in_range():
    image = np.full((2, 3, 4), 7, np.int16)
    padded = pad_to(image, (6, 4), np.asarray([-1e6, 2.6]))
    assert padded.shape == (2, 6, 4) and padded.dtype == np.int16
    assert np.array_equal(padded[:, 1:4], image)
    assert set(padded[0, [0, 4, 5]].ravel()) == {-32768} and set(padded[1, [0, 4, 5]].ravel()) == {3}
    assert pad_to(image, (3, 4), np.zeros(2)) is image


@given(stored=st.integers(2, 9), wanted=st.integers(1, 9), seed=st.integers(0, 99))
def test_channel_choice(stored, wanted, seed):
    draws = uniform(seed, "channels", [0], stored)[0].tolist()
    choice = channel_choice(stored, wanted, draws)
    assert len(choice) == wanted
    assert len(set(choice)) == min(stored, wanted)
    assert set(choice) <= set(range(stored))


def test_each_channel_is_drawn():
    picked = [channel_choice(4, 1, u)[0] for u in uniform(0, "channels", range(200), 4).tolist()]
    assert np.bincount(picked).min() > 25
