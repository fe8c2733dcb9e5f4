"""Every shipped pretraining recipe loads, names hardware and hours, and its network fits its crop."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from medloom.data.config import CONFIGS, polymorphic
from medloom.pretrain.config import load_config, per_rank_batch
from medloom.pretrain.encoders import build_encoder
from medloom.pretrain.objectives import OBJECTIVES

ALL = sorted(CONFIGS.glob("pretrain/*.yaml"))


def test_there_are_recipes() -> None:
    assert {"phantom-mae-2d", "phantom-mae-3d", "base-mae-2d", "base-mae-3d"} <= {path.stem for path in ALL}


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_a_recipe_opens_with_hardware_time_and_expectation(path: Path) -> None:
    head = " ".join(line for line in path.read_text().splitlines()[:5] if line.startswith("#"))
    assert "Hardware:" in head
    assert re.search(r"Time: [^.]*(measured|predicted)", head), head
    assert "Expect:" in head


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_a_recipe_is_complete_and_its_network_fits_its_crop(path: Path) -> None:
    config = load_config(path.stem)
    assert config.name == path.stem
    assert [n * config.trainer.accumulate for n in per_rank_batch(config, 1)] == [config.data.batch_size]
    with torch.device("meta"):  # no memory, no time: only shapes
        encoder = build_encoder({**config.encoder, "pretrained": False} if "pretrained" in config.encoder
                                else config.encoder)  # fmt: skip
        kind, section = polymorphic(config.objective, OBJECTIVES, "objective")
        objective = kind(section, encoder)
    assert encoder.ndim == config.data.ndim
    assert encoder.in_channels == config.data.in_channels
    grid = encoder.grid(config.data.crop)
    assert all(side >= 2 for side in grid)
    assert sum(p.numel() for p in objective.parameters()) < sum(p.numel() for p in encoder.parameters())
