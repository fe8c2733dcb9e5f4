"""What spoils images for restoration: monotone curves, permutations inside windows, painted boxes; keyed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from medloom.pretrain.corruptions import (
    bezier,
    limits_of,
    paint,
    random_bezier,
    random_paint,
    random_shuffle,
    shuffle,
)
from medloom.pretrain.views import Limits
from torch import Tensor

from tests.pretrain.no_sync import NoSync

POSITIONS = torch.arange(6) * 31
SHAPES = [(6, 2, 20, 24), (6, 1, 6, 20, 24)]
UNIT = Limits(torch.zeros(6, 1), torch.ones(6, 1))
RANDOM: dict[str, Callable[..., Tensor]] = {
    "bezier": lambda x, seed, at, p: random_bezier(x, seed, at, limits=limits_of(x, None), probability=p),
    "shuffle": lambda x, seed, at, p: random_shuffle(x, seed, at, probability=p, most=0.3),
    "paint": lambda x, seed, at, p: random_paint(x, seed, at, limits=limits_of(x, None), probability=p),
}


def image(shape: tuple[int, ...]) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 4 - 1


def curve(points: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The Bezier curve of Models Genesis, equation 1, from 20,000 points in float64."""
    t = np.linspace(0, 1, 20_000)
    x = 3 * points[0] * t * (1 - t) ** 2 + 3 * points[1] * t**2 * (1 - t) + t**3
    y = 3 * points[2] * t * (1 - t) ** 2 + 3 * points[3] * t**2 * (1 - t) + t**3
    return np.interp(at, x, y)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=4, max_size=4), st.booleans())
def test_a_curve_is_the_monotone_bezier_curve(points: list[float], falling: bool) -> None:
    x = torch.linspace(-1, 3, 500).reshape(1, 1, 20, 25)
    black, white = torch.tensor([[-1.0]]), torch.tensor([[3.0]])
    found = bezier(x, black, white, torch.tensor([points]), torch.tensor([falling]))
    expected = curve(np.array(points), (x.numpy().ravel() + 1) / 4)
    # A table of 256 values is coarse where the curve is all but vertical: compare where it is not.
    steep = np.abs(np.gradient(expected, 1 / 499)) > 8
    unit = (found.numpy().ravel() + 1) / 4
    unit = 1 - unit if falling else unit
    assert np.abs(unit - expected)[~steep].max() < 0.02
    assert (np.diff(unit) >= -1e-6).all()
    assert unit[0] == pytest.approx(0, abs=1e-6) and unit[-1] == pytest.approx(1, abs=1e-6)


def test_a_straight_curve_changes_nothing_and_a_falling_one_inverts() -> None:
    x = image((2, 1, 8, 9))
    limits = limits_of(x, None)
    straight = torch.tensor([[1 / 3, 2 / 3, 1 / 3, 2 / 3]] * 2)
    same = bezier(x, *limits, straight, torch.tensor([False, True]))
    assert torch.allclose(same[0], x[0], atol=1e-4)
    assert torch.allclose(same[1], limits.black[1] + limits.white[1] - x[1], atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shuffle_stays_inside_its_windows(shape: tuple[int, ...]) -> None:
    n = len(shape) - 2
    x = torch.arange(float(np.prod(shape))).reshape(shape)
    side = torch.tensor([[2, 3, 4][:n]] * 6)
    offset = torch.tensor([[1, 0, 3][:n]] * 6)
    order = torch.rand(6, int(np.prod(shape[2:])), generator=torch.Generator().manual_seed(0))
    y = shuffle(x, side, offset, order)
    assert float((x != y).double().mean()) > 0.7
    moved = (y - x)[:, 0]
    assert torch.equal(moved, (y - x)[:, -1]), "all channels move alike"
    window = torch.zeros(shape[2:], dtype=torch.int64)
    for axis, extent in enumerate(shape[2:]):
        at = (torch.arange(extent) + offset[0, axis]) // side[0, axis]
        window = window * 100 + at.reshape([-1 if a == axis else 1 for a in range(n)])
    for number in window.unique():
        inside = window == number
        assert torch.equal(x[0, 0][inside].sort().values, y[0, 0][inside].sort().values)


@pytest.mark.parametrize("inner", [1.0, 0.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_painting_leaves_the_rest_alone(shape: tuple[int, ...], inner: float) -> None:
    x = torch.full((200, *shape[1:]), 7.0)
    limits = Limits(torch.full((200, 1), -2.0), torch.full((200, 1), 2.0))
    y = random_paint(x, 0, torch.arange(200), limits=limits, probability=1.0, inner=inner)
    hole = (y != 7.0)[:, 0]
    painted = y[:, 0][hole]
    assert float(painted.min()) >= -2 and float(painted.max()) <= 2
    assert float(painted.mean()) == pytest.approx(0, abs=0.02)
    assert float(painted.std()) == pytest.approx(4 / 12**0.5, abs=0.02), "uniform between black and white"
    share = hole.flatten(1).double().mean(1)
    n = len(shape) - 2
    # One box of 1/6 to 1/3 at least, five at most; outside of one box of 3/7 to 4/7, or of five.
    bounds = (1 / 7**n, 5 / 3**n) if inner else (0.0, 1 - (2 / 5) ** n)
    assert bounds[0] < float(share.min()) and float(share.max()) < bounds[1]


def test_paint_is_noise_in_the_hole() -> None:
    hole = torch.zeros(6, 1, 4, 4, dtype=torch.bool)
    hole[:, :, :2] = True
    x = image((6, 1, 4, 4))
    y = paint(x, hole, UNIT.black - 1, UNIT.white, torch.full((6, 1, 4, 4), 0.25))
    assert torch.equal(y[:, :, 2:], x[:, :, 2:])
    assert torch.equal(y[:, :, :2], torch.full((6, 1, 2, 4), -0.5))


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("shape", SHAPES)
def test_draws_are_keyed_by_position(name: str, shape: tuple[int, ...]) -> None:
    spoil, x = RANDOM[name], image(shape)
    whole = spoil(x, 3, POSITIONS, 1.0)
    assert torch.allclose(whole[2:4], spoil(x[2:4], 3, POSITIONS[2:4], 1.0), atol=1e-6)
    assert not torch.equal(whole, spoil(x, 4, POSITIONS, 1.0))
    same = spoil(x, 3, POSITIONS, 0.0)
    assert torch.equal(same, x)
    some = spoil(x, 3, POSITIONS, 0.5)
    touched = (some != x).flatten(1).any(1)
    assert torch.equal(some[~touched], x[~touched]) and torch.allclose(some[touched], whole[touched])


@pytest.mark.parametrize("name", RANDOM)
def test_nothing_waits_for_the_device(name: str) -> None:
    x = image(SHAPES[1])
    with NoSync():
        RANDOM[name](x, 3, POSITIONS, 0.5)
