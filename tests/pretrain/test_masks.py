"""Masks are pure functions of (seed, position), hide the right number, whole blocks, and tissue first."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from medloom.data.errors import ConfigError
from medloom.pretrain.masks import fitting_block, hide, split, visible_tokens

POSITIONS = torch.tensor([0, 7, 123456789012, 3])
MANY = torch.arange(4000)


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.6, 0.75, 0.9])
def test_visible_and_hidden_tokens_split_the_grid(ratio: float) -> None:
    hidden = hide(0, POSITIONS, (8, 8), ratio)
    assert torch.equal(hidden.sum(1), torch.full((4,), round(64 * ratio)))
    mask = split(hidden, visible_tokens((8, 8), ratio))
    assert mask.masked.shape == (4, round(64 * ratio))
    tokens = torch.cat([mask.keep, mask.masked], dim=1)
    assert torch.equal(tokens.sort(dim=1).values, torch.arange(64).expand(4, -1))
    assert torch.equal(torch.zeros(4, 64, dtype=torch.bool).scatter(1, mask.masked, True), hidden)
    assert bool((mask.keep.diff(dim=1) > 0).all()), "in grid order: a mask of 0 is the plain forward"


def test_a_sample_gets_its_mask_whatever_the_batch() -> None:
    tissue = torch.rand(4, 64, generator=torch.Generator().manual_seed(0)) < 0.4
    for ratio in (0.75, [0.1, 0.9]):
        whole = hide(5, POSITIONS, (8, 8), ratio, tissue=tissue)
        alone = hide(5, POSITIONS[2:3], (8, 8), ratio, tissue=tissue[2:3])
        assert torch.equal(whole[2:3], alone)


def test_seed_position_and_stream_change_the_mask() -> None:
    base = hide(0, POSITIONS, (8, 8), 0.75)
    assert len({tuple(row) for row in base.tolist()}) == 4
    assert not torch.equal(base, hide(1, POSITIONS, (8, 8), 0.75))
    assert not torch.equal(base, hide(0, POSITIONS, (8, 8), 0.75, stream="other"))


def test_every_token_is_hidden_equally_often() -> None:
    hidden = hide(0, MANY, (4, 4), 0.75).double().mean(0)
    assert float((hidden - 0.75).abs().max()) < 5 * (0.75 * 0.25 / 4000) ** 0.5


@pytest.mark.parametrize("ratio", [0.5, [0.2, 0.8]])
@pytest.mark.parametrize(
    ("grid", "block"), [((8, 12), (2, 4)), ((4, 6, 8), (2, 3, 2)), ((4, 4, 4), (1, 1, 1))]
)
def test_blocks_are_hidden_as_wholes(
    grid: tuple[int, ...], block: tuple[int, ...], ratio: float | list[float]
) -> None:
    hidden = hide(0, POSITIONS, grid, ratio, block)
    pool = torch.nn.functional.avg_pool2d if len(grid) == 2 else torch.nn.functional.avg_pool3d
    units = pool(hidden.reshape(4, *grid).double()[:, None], block)
    assert set(units.unique().tolist()) == {0.0, 1.0}
    if ratio == 0.5:
        assert torch.equal(units.flatten(1).mean(1), torch.full((4,), 0.5, dtype=torch.float64))
        assert visible_tokens(grid, 0.5, block) == math.prod(grid) // 2


def test_a_range_of_ratios_is_drawn_for_each_sample() -> None:
    share = hide(0, MANY, (8, 8), [0.2, 0.8]).double().mean(1)
    assert float(share.min()) >= 0.2 - 1 / 128 and float(share.max()) <= 0.8 + 1 / 128
    assert float(share.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(share.std()) == pytest.approx(0.6 / 12**0.5, rel=0.05)
    extreme = hide(0, MANY, (2, 2), [0.01, 0.99]).sum(1)
    assert int(extreme.min()) == 1 and int(extreme.max()) == 3, "one hidden and one visible in any case"


@settings(max_examples=40, deadline=None)
@given(st.floats(0.0, 1.0), st.floats(0.1, 0.9), st.floats(0.0, 1.0), st.integers(0, 2**40))
def test_a_mask_goes_to_the_tissue_and_leaves_some(
    filled: float, ratio: float, least: float, position: int
) -> None:
    positions = torch.arange(16) + position
    tissue = torch.rand(16, 64, generator=torch.Generator().manual_seed(position)) < filled
    hidden = hide(0, positions, (8, 8), ratio, tissue=tissue, least=least)
    number, found = round(64 * ratio), tissue.sum(1)
    assert torch.equal(hidden.sum(1), torch.full((16,), number)), "the number of hidden tokens is fixed"
    inside = (hidden & tissue).sum(1)
    reserve = ((64 - number) / 64 * found / 2).ceil().clamp(max=64 - number)
    assert bool((found - inside >= reserve).all()), "half of what a blind mask would leave"
    assert bool((inside >= torch.minimum(found - reserve, torch.tensor(least * number))).all())


def test_blind_masks_of_a_slice_of_air_are_mostly_air_and_others_are_not() -> None:
    tissue = torch.zeros(4000, 64, dtype=torch.bool)
    tissue[:, :20] = True
    blind = hide(0, MANY, (8, 8), 0.5)
    aware = hide(0, MANY, (8, 8), 0.5, tissue=tissue, least=0.45)
    assert float((blind & tissue).sum() / blind.sum()) == pytest.approx(20 / 64, abs=0.01)
    assert float(((aware & tissue).sum(1) / 32).min()) >= 14 / 32
    often = aware.double().mean(0)
    assert float(often[:20].max() - often[:20].min()) < 0.05, "no place of the tissue is preferred"


def test_tissue_counts_in_whole_mask_units() -> None:
    tissue = torch.zeros(1, 64, dtype=torch.bool)
    tissue[0, 0] = tissue[0, 63] = True  # two corners: two units of 2 x 2
    for position in range(50):
        hidden = hide(0, torch.tensor([position]), (8, 8), 0.5, 2, tissue=tissue, least=1.0)
        assert int((hidden & tissue).sum()) == 1, "one of the two units stays visible"


@pytest.mark.parametrize(("grid", "ratio"), [((8, 8), 1.0), ((8, 8), -0.1), ((2, 2), 0.9), ((2, 4), 0.01)])
def test_impossible_ratios_are_refused(grid: tuple[int, ...], ratio: float) -> None:
    with pytest.raises(ConfigError, match="mask_ratio"):
        hide(0, POSITIONS, grid, ratio)


@pytest.mark.parametrize("ratio", [[0.5, 0.2], [0.0, 0.5], [0.5, 1.0], [0.5]])
def test_impossible_ranges_are_refused(ratio: list[float]) -> None:
    with pytest.raises(ConfigError, match="mask_ratio"):
        hide(0, POSITIONS, (8, 8), ratio)


def test_a_block_that_does_not_divide_the_grid_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"\[4, 4\].*\[6, 6\]"):
        hide(0, POSITIONS, (6, 6), 0.5, (4, 4))


@pytest.mark.parametrize(
    ("grid", "patch", "block"),
    [
        ((14, 14), (16, 16), [2, 2]),  # 32 pixels, as published
        ((16, 16), (14, 14), [2, 2]),
        ((7, 7), (32, 32), [1, 1]),
        ((9, 9), (16, 16), [1, 1]),  # 2 does not divide 9
        ((4, 4), (8, 8), [2, 2]),  # 4 would be the whole picture
        ((2, 28, 28), (16, 8, 8), [1, 4, 4]),
    ],
)
def test_a_mask_unit_fits_the_grid(grid: tuple[int, ...], patch: tuple[int, ...], block: list[int]) -> None:
    assert fitting_block(grid, patch, 32) == block
