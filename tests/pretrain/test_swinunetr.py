"""The SwinUNETR pretext: turns, painted boxes, three losses on one network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from medloom.data.errors import ConfigError
from medloom.pretrain.encoders import Encoder, build_encoder
from medloom.pretrain.objectives import OBJECTIVES, Batch
from medloom.pretrain.objectives.swinunetr import SwinUNETRPretext
from medloom.pretrain.views.blocks import random_blocks
from medloom.pretrain.views.turns import quarter_turns, random_quarter_turns

from .overfit import blobs, overfit

ENCODERS: dict[str, dict[str, Any]] = {
    "vit3d": {"name": "vit3d", "patch_size": [8, 8, 8], "depth": 2, "embed_dim": 48, "num_heads": 3},
}
SMALL: dict[str, Any] = {"decoder_width": 8, "contrast_dim": 32}


def make(key: str = "vit3d", **config: Any) -> tuple[SwinUNETRPretext, Encoder, Batch]:
    torch.manual_seed(0)
    encoder = build_encoder(ENCODERS[key])
    objective = SwinUNETRPretext(SwinUNETRPretext.Config(**{**SMALL, **config}), encoder)
    return objective, encoder, Batch(image=blobs(4, [16, 32, 32]), position=torch.arange(4), seed=3)


def test_quarter_turns_are_exact() -> None:
    x = torch.randn(4, 2, 3, 5, 5)
    turned = quarter_turns(x, torch.arange(4))
    for k in range(4):
        assert torch.equal(turned[k], torch.rot90(x[k], k, (-2, -1)))
    with pytest.raises(ValueError, match="5×6"):
        quarter_turns(torch.zeros(1, 1, 5, 6), torch.zeros(1))
    many = torch.zeros(400, 1, 2, 2)
    turns = random_quarter_turns(many, 0, torch.arange(400))[1]
    assert torch.equal(turns, random_quarter_turns(many, 0, torch.arange(400))[1])
    assert turns.bincount(minlength=4).min() > 70  # all four as likely: 100 each, 4.3 deviations of 8.7 below


@pytest.mark.parametrize("spatial", [(40, 40), (24, 32, 32)])
@pytest.mark.parametrize("share", [0.1, 0.3])
def test_boxes_cover_about_their_share(spatial: tuple[int, ...], share: float) -> None:
    x = torch.zeros(64, 1, *spatial)
    mask = random_blocks(x, 0, torch.arange(64), share=share)
    assert mask.dtype == torch.bool and mask.shape == x.shape
    covered = mask.double().flatten(1).mean(1)
    # Boxes that overlap count twice, so that 1 - exp(-share) is covered, and one box more than needed.
    expected = 1 - torch.exp(torch.tensor(-share - 0.15 ** len(spatial) / 2))
    assert float(covered.mean()) == pytest.approx(float(expected), abs=0.03)
    assert float(covered.min()) > 0.3 * share and float(covered.max()) < share + 0.0625
    split = torch.cat([random_blocks(x[:1], 0, torch.tensor([k]), share=share) for k in range(4)])
    assert torch.equal(split, mask[:4])


def test_one_box_is_a_box() -> None:
    """With a share that one box always reaches, each mask is one solid box with sides in the range."""
    mask = random_blocks(torch.zeros(20, 1, 64, 64), 0, torch.arange(20), share=0.01, side=(0.2, 0.4))
    for each in mask[:, 0]:
        rows, columns = each.any(1), each.any(0)
        assert torch.equal(each, rows[:, None] & columns)
        for line in (rows, columns):
            filled = line.nonzero().flatten()
            assert 0.2 * 64 - 1 <= len(filled) <= 0.4 * 64 + 1
            assert torch.equal(filled, torch.arange(int(filled[0]), int(filled[-1]) + 1))


def test_corruption_paints_over_and_leaves_the_rest() -> None:
    objective, _, batch = make()
    corrupted, clean, turns = objective.corrupt(batch)
    assert corrupted.shape == clean.shape == (8, 1, 16, 32, 32) and turns.shape == (8,)
    for row in range(8):
        assert torch.equal(clean[row], torch.rot90(batch.image[row % 4], int(turns[row]), (-2, -1)))
    share = (corrupted != clean).double().flatten(1).mean(1)
    # 1 - exp(-0.3) by noise, the same by another volume
    assert (share > 0.25).all() and (share < 0.65).all()
    half = objective.corrupt(Batch(image=batch.image, position=batch.position, seed=3))
    assert torch.equal(half[0], corrupted)
    untouched = make(noise_share=0.0, swap_share=0.0)[0].corrupt(batch)
    assert torch.equal(untouched[0], untouched[1])


def test_swapped_boxes_show_the_next_volume() -> None:
    objective, _, batch = make(noise_share=0.0)
    corrupted, clean, _ = objective.corrupt(batch)
    for copy in range(2):
        own = clean[copy * 4 : copy * 4 + 4]
        seen = corrupted[copy * 4 : copy * 4 + 4]
        assert ((seen == own) | (seen == own.roll(1, 0))).all() and not torch.equal(seen, own)


@pytest.mark.parametrize("key", ENCODERS)
def test_a_step_trains_everything(key: str) -> None:
    objective, encoder, batch = make(key)
    output = objective.step(batch, encoder)
    terms = output.terms
    expected = terms["rotation"] + terms["contrast"] + terms["reconstruction"]
    torch.testing.assert_close(output.loss.detach(), expected)
    assert float(terms["rotation_accuracy"]) in [k / 8 for k in range(9)]
    assert output.views is not None and output.views.shape == (2, 4, encoder.embed_dim)
    output.loss.backward()
    for module in (encoder, objective):
        for name, p in module.named_parameters():
            assert p.grad is not None and p.grad.isfinite().all(), name


def test_the_panel_shows_what_is_restored() -> None:
    objective, encoder, batch = make()
    panel = objective.panel(batch, encoder)
    assert list(panel) == ["input", "turned", "corrupted", "reconstruction"]
    assert all(x.shape == batch.image.shape for x in panel.values())


def test_what_does_not_fit_is_refused() -> None:
    assert OBJECTIVES["swinunetr"] is SwinUNETRPretext
    objective, encoder, batch = make()
    assert objective.sizes([16, 32, 32]) == [(16, 32, 32)]
    with pytest.raises(ConfigError, match=r"data\.crop=\[16, 24, 24\]"):
        objective.sizes([16, 32, 24])
    batch.image = batch.image[..., :24]
    with pytest.raises(ConfigError, match="not square"):
        objective.step(batch, encoder)
    flat = build_encoder({"name": "vit", "model": "vit_tiny_patch16_224", "depth": 1})
    with pytest.raises(ConfigError, match="3D"):
        SwinUNETRPretext(SwinUNETRPretext.Config(), flat)
    with pytest.raises(ConfigError, match="block_side"):
        make(block_side=[0.3, 0.2])


def test_thirty_two_volumes_are_learnt_by_heart() -> None:
    objective, encoder, _ = make()
    first, last, _ = overfit(objective, encoder, [8, 16, 16], steps=60)
    assert last < 0.7 * first
