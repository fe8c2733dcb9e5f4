"""Panels: what is drawn is what is there, in 2D and 3D."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from medloom.pretrain.encoders import build_encoder
from medloom.pretrain.encoders.base import Features
from medloom.pretrain.objectives import Batch
from medloom.pretrain.objectives.mae import MAE
from medloom.pretrain.panels import HEAD, TILE, draw_panels, slices, token_colours, varied, windowed
from PIL import Image

FLAT = {"name": "vit", "model": "vit_tiny_patch16_224", "img_size": 16, "patch_size": 8, "embed_dim": 24,
        "depth": 1, "num_heads": 2}  # fmt: skip
SOLID = {"name": "vit3d", "patch_size": [8, 8, 8], "embed_dim": 24, "depth": 1, "num_heads": 2}


@pytest.mark.parametrize(("section", "shape"), [(FLAT, (3, 3, 16, 16)), (SOLID, (3, 1, 16, 16, 16))])
def test_both_panels_are_written_and_modes_are_kept(section: dict, shape: tuple, tmp_path: Path) -> None:
    encoder = build_encoder(section)
    objective = MAE(MAE.Config(decoder_dim=12, decoder_depth=1, decoder_heads=2), encoder)
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    batch = Batch(image=image, position=torch.arange(3), seed=0, modality=torch.tensor([0, 3, 5]))
    scale = torch.ones(3, 1)
    found = draw_panels(tmp_path, 70, batch, encoder, objective, mean=scale, std=scale)
    assert set(found) == {"panels/reconstruction", "panels/features"}
    for name, columns in (("reconstruction", 3), ("features", 2)):
        picture = np.asarray(Image.open(tmp_path / f"step-0000070-{name}.png"))
        assert picture.shape[1] // TILE == columns
        assert picture[HEAD : HEAD + TILE].std() > 10
    assert encoder.training
    assert objective.training


def test_two_groups_of_tokens_get_two_colours() -> None:
    class Halves(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> Features:
            tokens = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0)) * 0.01
            tokens[:, :2, 0] += 5.0
            return Features(pooled=tokens[:, 0], tokens=tokens, grid=(2, 2))

    colours = token_colours(torch.zeros(2, 1, 4, 4), Halves())  # pyright: ignore[reportArgumentType]
    assert colours is not None
    top, bottom = colours[:, 0, :, 0].astype(int), colours[:, 1, :, 0].astype(int)
    assert abs(top.mean() - bottom.mean()) > 200


def test_the_middle_slice_in_the_units_of_the_file() -> None:
    volume = torch.arange(2 * 4, dtype=torch.float32).reshape(2, 1, 4, 1, 1).expand(2, 1, 4, 3, 3)
    shown = slices(volume, torch.tensor([[10.0], [20.0]]), torch.tensor([[2.0], [1.0]]))
    assert shown.shape == (2, 3, 3, 3)
    assert shown[0, 0, 0].tolist() == [14.0] * 3
    assert shown[1, 0, 0].tolist() == [26.0] * 3
    corner = torch.zeros(1, 1, 2, 3, 4)
    corner[..., -1, -1] = 1  # in front, on the patient's right
    assert np.argwhere(slices(corner, torch.zeros(1, 1), torch.ones(1, 1))[0, ..., 0]).tolist() == [[0, 0]]


def test_the_window_is_that_of_the_input() -> None:
    first = np.linspace(0, 100, 300).reshape(1, 10, 10, 3)
    shown = windowed({"input": first, "other": first + 1000})
    assert shown["input"].min() == 0
    assert (shown["other"] == 255).all()


def test_modalities_come_first() -> None:
    items = [{"modality": code} for code in (4, 4, 4, 7, 4, 9)]
    assert varied(items, 3) == [0, 3, 5]
    assert varied(items, 4) == [0, 1, 3, 5]
    assert varied(items, 9) == list(range(6))
