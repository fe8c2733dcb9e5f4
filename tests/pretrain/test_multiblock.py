"""Blocks of I-JEPA and iBOT: fixed shapes, the stated shares, apart, the same in any batch."""

from __future__ import annotations

import math

import pytest
import torch
from medloom.data.errors import ConfigError
from medloom.pretrain.multiblock import _filled, ibot_mask, multi_block

GRIDS = [(14, 14), (8, 12), (6, 6, 6), (4, 12, 12)]
POSITIONS = torch.arange(64) * 977


@pytest.mark.parametrize("grid", GRIDS)
def test_a_context_never_meets_its_targets(grid: tuple[int, ...]) -> None:
    n = math.prod(grid)
    blocks = multi_block(0, POSITIONS, grid)
    assert blocks.context.shape == (64, round(0.35 * n)) and blocks.targets.shape[:2] == (64, 4)
    context = torch.zeros(64, n).scatter_add(1, blocks.context, torch.ones(blocks.context.shape))
    targets = torch.zeros(64, n).scatter(1, blocks.targets.flatten(1), 1.0)
    assert float(context.max()) == 1.0, "a token twice"
    assert not bool((context * targets).any())
    assert bool((blocks.context.diff(dim=1) > 0).all()) and bool((blocks.targets.diff(dim=2) > 0).all())


@pytest.mark.parametrize("grid", GRIDS)
def test_targets_are_compact_and_of_the_stated_share(grid: tuple[int, ...]) -> None:
    """Each target fills a box of its own bounding sides but for the last rows that were cut off."""
    n = math.prod(grid)
    targets = multi_block(1, POSITIONS, grid).targets
    assert 0.13 * n <= targets.shape[2] <= 0.2 * n
    at = torch.stack([c.flatten() for c in torch.meshgrid(*[torch.arange(g) for g in grid], indexing="ij")])
    where = at[:, targets]  # [axes, B, T, M]
    sides = where.amax(-1) - where.amin(-1) + 1
    box = sides.prod(dim=0)
    assert bool((box <= 0.2 * n + max(n // g for g in grid)).all())
    assert bool((targets.shape[2] / box > 0.8).all())
    assert len({tuple(s) for s in sides.flatten(1).T.tolist()}) > 1, "one shape for all"


def test_targets_reach_every_token_and_are_apart() -> None:
    targets = multi_block(0, torch.arange(2000), (8, 8)).targets
    assert targets.unique().numel() == 64
    assert float((targets[:, 0] == targets[:, 1]).all(-1).double().mean()) < 0.2


def test_a_context_is_cut_from_every_side_alike() -> None:
    """The published collator cuts the last rows: the bottom of a radiograph would never be context."""
    context = multi_block(0, torch.arange(2000), (8, 8)).context
    often = torch.bincount(context.flatten(), minlength=64).reshape(8, 8).double()
    assert float(often[:4].sum() / often[4:].sum()) == pytest.approx(1.0, abs=0.1)
    assert float(often[:, :4].sum() / often[:, 4:].sum()) == pytest.approx(1.0, abs=0.1)


def test_blocks_of_a_sample_do_not_know_the_batch() -> None:
    whole, alone = multi_block(3, POSITIONS, (8, 8)), multi_block(3, POSITIONS[5:6], (8, 8))
    assert torch.equal(whole.context[5:6], alone.context)
    assert torch.equal(whole.targets[5:6], alone.targets)
    other = multi_block(3, POSITIONS, (8, 8), stream="other")
    assert not torch.equal(other.targets, whole.targets)


def test_a_context_that_cannot_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"grid of 4×4.*objective\.context"):
        multi_block(0, POSITIONS, (4, 4), context=0.9)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("blocks", [True, False])
def test_ibot_hides_a_share_of_some_images(grid: tuple[int, ...], blocks: bool) -> None:
    n = math.prod(grid)
    mask = ibot_mask(0, torch.arange(3000), grid, blocks=blocks).mask
    share = mask.double().mean(dim=1)
    masked = share > 0
    assert float(masked.double().mean()) == pytest.approx(0.5, abs=0.05)
    assert float(share[masked].min()) >= 0.1 - 0.5 / n and float(share.max()) <= 0.5 + 0.5 / n
    assert float(share[masked].mean()) == pytest.approx(0.3, abs=0.02)


def test_ibot_blocks_are_more_compact_than_single_tokens() -> None:
    def border(mask: torch.Tensor) -> float:
        square = mask.reshape(-1, 14, 14)
        changes = (square[:, 1:] != square[:, :-1]).sum() + (square[:, :, 1:] != square[:, :, :-1]).sum()
        return float(changes / mask.sum())

    drawn = [ibot_mask(0, torch.arange(500), (14, 14), probability=1.0, blocks=b).mask for b in (True, False)]
    assert border(drawn[0]) < 0.4 * border(drawn[1])


def test_the_list_of_hidden_tokens_is_the_mask() -> None:
    hidden = ibot_mask(0, POSITIONS, (8, 8))
    assert torch.equal(hidden.index, hidden.mask.flatten().nonzero().flatten())
    weights = torch.zeros(64 * 64).index_add(0, hidden.index, hidden.weight).reshape(64, 64)
    assert torch.equal(weights > 0, hidden.mask)
    assert torch.allclose(weights.sum(1), hidden.mask.any(1).float())


def test_a_list_of_fixed_length_sums_to_the_same() -> None:
    """On a GPU the list is filled up; both lists sum any function of the tokens to the same."""
    packed = ibot_mask(0, POSITIONS, (8, 8))
    index = _filled(packed.mask, 32)
    assert index.shape == (64 * 32,) and index.unique().numel() == 64 * 32
    share = (packed.mask / packed.mask.sum(dim=1, keepdim=True).clamp_min(1)).flatten()
    values = torch.randn(64 * 64)
    filled = float((values[index] * share[index]).sum())
    assert filled == pytest.approx(float((values[packed.index] * packed.weight).sum()), abs=1e-4)


def test_a_batch_without_masked_images_has_one_token_of_weight_zero() -> None:
    hidden = ibot_mask(0, POSITIONS, (8, 8), probability=0.0)
    assert not bool(hidden.mask.any())
    assert hidden.index.tolist() == [0] and hidden.weight.tolist() == [0.0]


@pytest.mark.parametrize("ratio", [(0.5, 0.1), (0.0, 0.001), (0.1, 1.0)])
def test_impossible_ibot_ratios_are_refused(ratio: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="mask ratios"):
        ibot_mask(0, POSITIONS, (8, 8), ratio=ratio)
