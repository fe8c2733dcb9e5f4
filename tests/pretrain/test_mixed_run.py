"""One encoder learns from pictures and volumes in one run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from medloom.data.stream.config import ShapeClass
from medloom.pretrain.config import complete
from medloom.pretrain.encoders import build_encoder
from medloom.pretrain.run import pretrain
from medloom.pretrain.weights import load_encoder


def test_vit_any_learns_from_pictures_and_volumes_in_turn(
    tiny_config: Callable[..., Any], tmp_path: Path
) -> None:
    config = tiny_config(tmp_path / "run", "trainer.steps=6", "panels.samples=1")
    config.data.channels = 1
    config.encoder = {"name": "vit_any", "patch_size": [8, 8, 8], "patch_size_2d": [8, 8],
                      "embed_dim": 24, "depth": 1, "num_heads": 2}  # fmt: skip
    config.data.classes = [ShapeClass(ndim=2, crop=[16, 16]), ShapeClass(ndim=3, crop=[16, 16, 16])]
    run = pretrain(complete(config))
    trained, report = load_encoder(run)
    assert not report.missing and trained.axes == (2, 3)
    torch.manual_seed(config.seed)
    first = build_encoder(dict(config.encoder)).state_dict()
    moved = {name for name, value in trained.state_dict().items() if not torch.equal(value, first[name])}
    assert {"patch_embed.proj.weight", "patch_embed_2d.proj.weight"} <= moved
    for size in ((16, 24), (8, 16, 24)):
        assert trained(torch.randn(1, 1, *size)).tokens.shape == (1, 6, 24)
    grey, _ = load_encoder(run, in_channels=3)
    x = torch.randn(1, 1, 16, 16)
    torch.testing.assert_close(grey(x.expand(-1, 3, -1, -1)).pooled, trained(x).pooled)
