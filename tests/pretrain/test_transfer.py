"""Continued pretraining: weights of one network start another, and the report says what was done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from medloom.data.errors import CheckpointError
from medloom.pretrain.encoders import Encoder, build_encoder
from medloom.pretrain.encoders.positions import sincos
from medloom.pretrain.transfer import inflate
from medloom.pretrain.weights import load_encoder, load_into, save_encoder

SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 3}
FLAT: dict[str, Any] = {"name": "vit", "model": "vit_tiny_patch16_224", "img_size": 64, **SMALL}


def saved(folder: Path, config: dict[str, Any], seed: int = 0) -> tuple[Path, Encoder]:
    torch.manual_seed(seed)
    encoder = build_encoder(config).eval()
    save_encoder(folder, encoder, {})
    return folder, encoder


@torch.no_grad()
def test_a_2d_transformer_starts_a_3d_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    flat = build_encoder(FLAT).eval()
    positions = torch.zeros(1, 17, 48)
    positions[0, 1:] = sincos((1, 4, 4), 48)  # what the 3D encoder computes for one layer of patches
    flat.get_parameter("model.pos_embed").copy_(positions)
    save_encoder(tmp_path / "flat", flat, {})
    solid = build_encoder({"name": "vit3d", "patch_size": [4, 16, 16], **SMALL}).eval()
    report = load_into(solid, tmp_path / "flat")
    assert not report.missing and not report.unexpected
    said = str(report)
    assert "1 kernels repeated along depth" in said and "3 -> 1 channels" in said
    assert "pos_embed: left out, positions are computed" in said
    x = torch.randn(2, 1, 64, 64)
    volume = x.unsqueeze(2).expand(-1, -1, 4, -1, -1)  # all slices alike
    expected = flat(x.expand(-1, 3, -1, -1))
    torch.testing.assert_close(solid(volume).tokens, expected.tokens, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(solid(volume).pooled, expected.pooled, rtol=1e-4, atol=1e-4)


def test_register_tokens_that_the_source_lacks_are_new(tmp_path: Path) -> None:
    folder, _ = saved(tmp_path / "plain", {"name": "vit3d", "patch_size": [8, 8, 8], **SMALL})
    more = build_encoder({"name": "vit3d", "patch_size": [8, 8, 8], "registers": 2, **SMALL})
    before = more.get_parameter("reg_token").clone()
    report = load_into(more, folder)
    assert report.missing == ["reg_token"] and "1 missing (reg_token)" in str(report)
    assert torch.equal(more.get_parameter("reg_token"), before)
    with pytest.raises(CheckpointError, match=r"set encoder\.registers"):
        load_into(build_encoder({"name": "vit3d", "patch_size": [8, 8, 8], **SMALL}),
                  saved(tmp_path / "more", more_config())[0])  # fmt: skip


def more_config() -> dict[str, Any]:
    return {"name": "vit3d", "patch_size": [8, 8, 8], "registers": 2, **SMALL}


@torch.no_grad()
def test_a_smaller_patch_is_resampled(tmp_path: Path) -> None:
    folder, coarse = saved(tmp_path / "coarse", {**FLAT, "in_channels": 1})
    fine = build_encoder({**FLAT, "in_channels": 1, "patch_size": 8, "img_size": 32}).eval()
    report = load_into(fine, folder)
    assert "patch of [16, 16] -> [8, 8] pixels" in str(report) and not report.missing
    x = torch.nn.functional.interpolate(torch.randn(1, 1, 4, 4), size=(64, 64), mode="bilinear")
    small = torch.nn.functional.interpolate(x, size=(32, 32), mode="bilinear", antialias=True)
    a, b = coarse(x).tokens.flatten(), fine(small).tokens.flatten()
    assert float(torch.corrcoef(torch.stack([a, b]))[0, 1]) > 0.9


def test_kernels_repeat_along_depth_and_keep_their_sum() -> None:
    weight = torch.randn(4, 3, 5, 5)
    solid = inflate(weight, 4)
    assert solid.shape == (4, 3, 4, 5, 5)
    torch.testing.assert_close(solid.sum(2), weight)


def test_a_folder_in_timm_s_format_is_read(tmp_path: Path) -> None:
    folder, encoder = saved(tmp_path / "run", FLAT)
    (folder / "encoder.json").unlink()
    (folder / "encoder.safetensors").rename(folder / "model.safetensors")
    loaded, report = load_encoder(folder)
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(loaded.eval()(x).pooled, encoder(x).pooled) and not report.missing
    fresh = load_encoder(f"random:{folder}")[0]  # the baseline of the same network has its arguments too
    assert {k: v.shape for k, v in fresh.state_dict().items()} == {
        k: v.shape for k, v in loaded.state_dict().items()
    }
    (folder / "config.json").write_text(json.dumps({"pretrained_cfg": {}}))
    with pytest.raises(CheckpointError, match=r"config\.json: no description of a timm model"):
        load_encoder(folder)
