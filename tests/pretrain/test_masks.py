"""Masks are pure functions of (seed, position), hide the right number, and hide whole blocks."""

from __future__ import annotations

import pytest
import torch
from medloom.data.errors import ConfigError
from medloom.pretrain.masks import block_keep, random_keep

POSITIONS = torch.tensor([0, 7, 123456789012, 3])


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.6, 0.75, 0.9])
def test_keep_and_masked_split_the_tokens(ratio: float) -> None:
    mask = random_keep(0, POSITIONS, 64, ratio)
    assert mask.masked.shape == (4, round(64 * ratio))
    both = torch.cat([mask.keep, mask.masked], dim=1).sort(dim=1).values
    assert torch.equal(both, torch.arange(64).expand(4, -1))


def test_restore_undoes_the_split() -> None:
    mask = random_keep(0, POSITIONS, 49, 0.75)
    tokens = torch.cat([mask.keep, mask.masked], dim=1)
    assert torch.equal(tokens.gather(1, mask.restore), torch.arange(49).expand(4, -1))
    assert torch.equal(mask.hidden().sum(1), torch.full((4,), 37))
    hidden = torch.zeros(4, 49, dtype=torch.bool).scatter(1, mask.masked, True)
    assert torch.equal(mask.hidden(), hidden)


def test_a_mask_of_zero_keeps_the_grid_order() -> None:
    mask = random_keep(3, POSITIONS, 20, 0.0)
    assert torch.equal(mask.keep, torch.arange(20).expand(4, -1))
    assert not mask.hidden().any()


def test_a_sample_gets_its_mask_whatever_the_batch() -> None:
    whole = random_keep(5, POSITIONS, 64, 0.75)
    alone = random_keep(5, POSITIONS[2:3], 64, 0.75)
    assert torch.equal(whole.keep[2:3], alone.keep)
    assert torch.equal(random_keep(5, POSITIONS.flip(0), 64, 0.75).keep, whole.keep.flip(0))


def test_seed_position_and_stream_change_the_mask() -> None:
    base = random_keep(0, POSITIONS, 64, 0.75).keep
    assert len({tuple(row) for row in base.tolist()}) == 4
    assert not torch.equal(base, random_keep(1, POSITIONS, 64, 0.75).keep)
    assert not torch.equal(base, random_keep(0, POSITIONS, 64, 0.75, stream="other").keep)


def test_every_token_is_hidden_equally_often() -> None:
    hidden = random_keep(0, torch.arange(4000), 16, 0.75).hidden().double().mean(0)
    assert float((hidden - 0.75).abs().max()) < 5 * (0.75 * 0.25 / 4000) ** 0.5


@pytest.mark.parametrize(
    ("grid", "block"), [((8, 12), (2, 4)), ((4, 6, 8), (2, 3, 2)), ((4, 4, 4), (1, 1, 1))]
)
def test_blocks_are_hidden_as_wholes(grid: tuple[int, ...], block: tuple[int, ...]) -> None:
    mask = block_keep(0, POSITIONS, grid, 0.5, block)
    hidden = mask.hidden().reshape(4, *grid).double()[:, None]
    pool = torch.nn.functional.avg_pool2d if len(grid) == 2 else torch.nn.functional.avg_pool3d
    units = pool(hidden, block)
    assert set(units.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(units.flatten(1).mean(1), torch.full((4,), 0.5, dtype=torch.float64))
    n = hidden[0].numel()
    assert mask.keep.shape[1] + mask.masked.shape[1] == n
    both = torch.cat([mask.keep, mask.masked], 1)
    assert torch.equal(both.gather(1, mask.restore), torch.arange(n).expand(4, -1))


def test_single_blocks_are_the_random_mask() -> None:
    assert torch.equal(
        block_keep(2, POSITIONS, (4, 4, 4), 0.75, (1, 1, 1)).keep, random_keep(2, POSITIONS, 64, 0.75).keep
    )


@pytest.mark.parametrize(("n", "ratio"), [(64, 1.0), (64, -0.1), (4, 0.9), (8, 0.01)])
def test_impossible_ratios_are_refused(n: int, ratio: float) -> None:
    with pytest.raises(ConfigError, match="mask_ratio"):
        random_keep(0, POSITIONS, n, ratio)


def test_a_block_that_does_not_divide_the_grid_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"\[4, 4\].*\[6, 6\]"):
        block_keep(0, POSITIONS, (6, 6), 0.5, (4, 4))
