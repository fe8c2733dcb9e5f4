"""finetune/slices.py: 2D encoders on volumes, slice by slice and inflated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from medloom.data.errors import ConfigError
from medloom.finetune.evaluation import evaluate
from medloom.finetune.run import arms, finetune
from medloom.finetune.slices import Slices, fitted, restored
from medloom.pretrain.encoders import Encoder, build_encoder
from medloom.pretrain.transfer import Report
from safetensors.torch import load_file

VIT = {"name": "vit", "model": "vit_tiny_patch16_224", "img_size": 32, "patch_size": 8, "depth": 3,
       "embed_dim": 24, "num_heads": 2, "in_channels": 1}  # fmt: skip
SECTIONS: dict[str, dict[str, Any]] = {
    "vit": VIT,
    "convnext": {"name": "convnet", "model": "convnext_atto", "in_channels": 1},
    "swin": {"name": "swin", "model": "swin_tiny_patch4_window7_224", "in_channels": 1, "img_size": 32,
             "kwargs": {"embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}},
}  # fmt: skip


def built(name: str) -> Encoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return build_encoder(SECTIONS[name]).eval()


@pytest.mark.parametrize("name", SECTIONS)
def test_equal_slices_give_what_the_picture_gives(name: str) -> None:
    flat = built(name)
    picture = torch.randn(2, 1, 32, 64, generator=torch.Generator().manual_seed(0))
    volume = picture[:, :, None].expand(-1, -1, 5, -1, -1)
    encoder = Slices(flat)
    one, many = flat(picture, pyramid=True), encoder(volume, pyramid=True)
    assert many.grid == (5, *(one.grid or ()))
    torch.testing.assert_close(many.pooled, one.pooled)
    torch.testing.assert_close(many.tokens.unflatten(1, (5, -1))[:, 3], one.tokens)
    assert one.pyramid and many.pyramid
    for flat_map, deep_map in zip(one.pyramid, many.pyramid, strict=True):
        torch.testing.assert_close(deep_map[:, :, 2], flat_map)


def test_the_aggregator_tells_slices_apart_once_it_has_learnt() -> None:
    encoder = Slices(built("vit"))
    volume = torch.randn(1, 1, 4, 32, 32)
    turned = volume.flip(2)
    torch.testing.assert_close(encoder(volume).pooled, encoder(turned).pooled)  # a mean knows no order
    with torch.no_grad():
        for parameter in encoder.added():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    assert not torch.allclose(encoder(volume).pooled, encoder(turned).pooled, atol=1e-3)


@pytest.mark.parametrize("name", ["vit", "convnext"])
def test_the_last_blocks_end_with_the_output(name: str) -> None:
    encoder = Slices(built(name))
    volume = torch.randn(2, 1, 3, 32, 32)
    blocks = encoder.last(volume, 3)
    assert len(blocks) == 3
    output = encoder(volume)
    torch.testing.assert_close(blocks[-1].pooled, output.pooled)
    torch.testing.assert_close(blocks[-1].tokens, output.tokens)


def test_every_parameter_has_its_layer() -> None:
    encoder = Slices(built("vit"))
    listed = [name for group in encoder.layer_groups() for name, _ in group]
    assert sorted(listed) == sorted(name for name, _ in encoder.named_parameters())


def test_inflated_convnext_gives_what_the_picture_gives() -> None:
    flat = built("convnext")
    deep = fitted(flat, Report("a file"), ndim=3, dims="inflate", spacing=[1.0, 1.0, 1.0])
    assert deep.patch_size == (32, 32, 32)
    picture = torch.randn(1, 1, 32, 32)
    volume = picture[:, :, None].expand(-1, -1, 32, -1, -1)
    torch.testing.assert_close(deep.eval()(volume).pooled, flat(picture).pooled, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("spacing", "depth"), [(None, 8), ([1.0, 1.0, 1.0], 8), ([5.0, 1.0, 1.0], 2), ([40.0, 1, 1], 1)]
)
def test_inflated_tokens_are_as_deep_as_wide_in_millimetres(spacing: list[float] | None, depth: int) -> None:
    flat = built("vit")
    deep = fitted(flat, Report("a file"), ndim=3, dims="inflate", spacing=spacing)
    assert deep.patch_size == (depth, 8, 8)
    kernel = deep.get_parameter(deep.stem)
    torch.testing.assert_close(kernel.sum(dim=2), flat.get_parameter(flat.stem))
    ours, theirs = deep.state_dict(), flat.state_dict()
    torch.testing.assert_close(ours["blocks.1.attn.qkv.weight"], theirs["model.blocks.1.attn.qkv.weight"])


def test_random_weights_are_built_in_3d_and_not_inflated() -> None:
    deep = fitted(built("vit"), Report("random:a file"), ndim=3, dims="inflate", seed=4)
    kernel = deep.get_parameter(deep.stem)
    assert not torch.allclose(kernel[:, :, 0], kernel[:, :, 1])


def test_what_has_no_3d_form_is_refused_with_the_mend() -> None:
    with pytest.raises(ConfigError, match=r"swin_tiny.*no 3D form.*dims=slices"):
        fitted(built("swin"), Report("a file"), ndim=3, dims="inflate")


def test_only_a_2d_encoder_on_volumes_is_changed() -> None:
    flat = built("vit")
    assert fitted(flat, Report("a file"), ndim=2, dims="slices") is flat
    assert fitted(flat, Report("a file"), ndim=3, dims=None) is flat
    assert isinstance(restored(flat, 3, "slices"), Slices)
    assert restored(flat, 2, "slices") is flat
    any_kind = build_encoder({"name": "vit_any", "size": "tiny", "depth": 1})
    assert fitted(any_kind, Report("a file"), ndim=3, dims="slices") is any_kind


@pytest.mark.parametrize(("dims", "protocol"), [("slices", "lora"), ("inflate", "linear")])
def test_a_run_with_all_its_arms_is_trained_and_scored(
    dims: str, protocol: str, workshop: Any, volumes: Path, tmp_path: Path
) -> None:
    config = workshop.config(
        volumes, tmp_path / "run", f"protocol={protocol}", f"dims={dims}", "steps=2", "validations=1",
        f"encoder={workshop.root / 'encoder2d'}", "patch=[8,16,16]",
    )  # fmt: skip
    run = finetune(config)
    table = (evaluate(run) / "cases.csv").read_text()
    for arm in arms(config):
        network = load_file(run / arm / "model.safetensors")
        assert any(name.startswith("encoder.flat.") for name in network) is (dims == "slices")
        assert f",{arm}," in table
    assert (run / "pretrained" / "adapters.safetensors").is_file() is (protocol == "lora")
    facts = json.loads((run / "scratch" / "arm.json").read_text())
    assert (facts["protocol"], facts["frozen"]) == ("full", False)
