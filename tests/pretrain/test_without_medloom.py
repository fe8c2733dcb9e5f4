"""Released encoders in a Python that has no medloom: timm, a hub, MONAI, plain PyTorch; the same features."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from medloom.pretrain.artefact import MODELING, read_record
from medloom.pretrain.encoders import Encoder, build_encoder
from medloom.pretrain.release.card import card, write_card
from medloom.pretrain.release.standalone import FILES, modeling
from medloom.pretrain.weights import save_encoder

from .hub_server import serve_hub
from .small import SMALL_ENCODERS
from .without_medloom import alone

# name -> (section, spatial sizes), of which each family has at least one
CUBE = (32, 32, 32)
CASES: dict[str, tuple[dict[str, Any], tuple[tuple[int, ...], ...]]] = {
    "vit3d": ({}, (CUBE, (16, 24, 40))),
    "vit3d-rope": ({"name": "vit3d", "positions": "rope", "registers": 2, "pool": "mean"}, (CUBE,)),
    "vit3d-both": ({"name": "vit3d", "positions": "both", "layer_scale": 0.5, "mlp_ratio": 2.0}, (CUBE,)),
    "vit3d_learnt": ({"registers": 3}, (CUBE, (16, 24, 40))),
    "vit3d_learnt-mean": (
        {"name": "vit3d_learnt", "class_token": False, "pool": "mean", "norm_eps": 1e-5},
        ((16, 24, 40),),
    ),
    "vit_any": ({"in_channels": 2}, (CUBE, (24, 16))),
    "convnext3d": ({}, ((16, 64, 64),)),
    "convnext3d-v2": (
        {"name": "convnext3d", "model": "convnextv2_atto", "in_channels": 3, "kernel_depth": 5},
        ((16, 64, 64),),
    ),
    "resnet3d": ({}, ((64, 64, 64),)),
    "resnet3d-dilated": (
        {"name": "resnet3d", "dilated": True, "shortcut": "A", "rescale": [2.0, 0.5, 0.0, 1.0]},
        (CUBE,),
    ),
    "resnet3d-bottleneck": ({"name": "resnet3d", "depth": 50, "ndim": 2, "stem_stride": 1}, ((64, 64),)),
    "segresnet": ({}, (CUBE,)),
    "segresnet-batch": (
        {"name": "segresnet", "norm": "batch", "ndim": 2, "rescale": [3.0, 1.0]},
        ((32, 48),),
    ),
    "swin3d": ({}, (CUBE,)),
    "swin3d-v2": ({"name": "swin3d", "residual": True, "downsample": "mergingv2"}, (CUBE,)),
    "resenc": ({}, (CUBE, (16, 24, 40))),
    "resenc-2d": ({"name": "resenc", "ndim": 2, "strides": [1, 2, [2, 1], 2]}, ((32, 48),)),
    "primus": ({}, (CUBE,)),
    "primus-registers": ({"name": "primus", "registers": 2, "layer_scale": None}, (CUBE,)),
}


def make(key: str) -> Encoder:
    """A small encoder with nothing left at zero, and statistics of batch norm that are not 0 and 1."""
    section, _ = CASES[key]
    family = section.get("name", key)
    torch.manual_seed(0)
    encoder = build_encoder({"name": family, **SMALL_ENCODERS[family], **section})
    with torch.no_grad():
        for name, tensor in encoder.state_dict().items():
            if tensor.is_floating_point():
                tensor.add_(0.05 * torch.randn_like(tensor).abs() + (0.02 if "norm" in name else 0.0))
    return encoder.eval()


def image(encoder: Encoder, size: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(2, encoder.in_channels, *size, generator=torch.Generator().manual_seed(1))


def test_every_family_that_timm_does_not_build_has_a_module() -> None:
    assert {section.get("name", key) for key, (section, _) in CASES.items()} == set(FILES)
    for family in SMALL_ENCODERS:
        encoder = build_encoder({"name": family, **SMALL_ENCODERS[family]})
        assert (encoder.timm_config() is None) == (modeling(encoder) is not None), family


@pytest.mark.parametrize("key", list(CASES))
@torch.no_grad()
def test_modeling_computes_the_same(key: str, tmp_path: Path) -> None:
    encoder = make(key)
    save_encoder(tmp_path, encoder, {})
    spec = importlib.util.spec_from_file_location("modeling", tmp_path / MODELING)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.load(str(tmp_path))
    for size in CASES[key][1]:
        x = image(encoder, size)
        found, (pooled, tokens) = encoder(x), model(x)
        assert found.pooled.std() > 1e-3, "features that are all alike prove nothing"
        torch.testing.assert_close(pooled, found.pooled, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(tokens, found.tokens, rtol=1e-5, atol=1e-5)


def test_a_network_that_the_module_does_not_know_gets_none(tmp_path: Path) -> None:
    (tmp_path / MODELING).write_text("of another encoder")
    kwargs = {**SMALL_ENCODERS["convnext3d"]["kwargs"], "norm_eps": 1e-3}
    save_encoder(
        tmp_path, build_encoder({"name": "convnext3d", "model": "convnext_atto", "kwargs": kwargs}), {}
    )
    assert not (tmp_path / MODELING).exists()
    assert "from modeling" not in card(read_record(tmp_path / "encoder.json"))


PLAIN = """
import sys, torch
sys.path.insert(0, ".")
from modeling import load
model = load(".")
assert not {"timm", "monai"} & set(sys.modules), "it says that it needs torch and safetensors only"
x = torch.load("x.pt")
with torch.no_grad():
    pooled, tokens = model(x)
torch.save({"pooled": pooled, "tokens": tokens}, "found.pt")
"""


@pytest.mark.parametrize("key", ["vit3d-both", "convnext3d"])
@torch.no_grad()
def test_plain_pytorch(key: str, tmp_path: Path) -> None:
    encoder = make(key)
    save_encoder(tmp_path, encoder, {})
    x = image(encoder, CASES[key][1][0])
    torch.save(x, tmp_path / "x.pt")
    alone(PLAIN, tmp_path)
    found, expected = torch.load(tmp_path / "found.pt"), encoder(x)
    torch.testing.assert_close(found["pooled"], expected.pooled, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["tokens"], expected.tokens, rtol=1e-5, atol=1e-5)


TIMM = """
import timm, torch
x = torch.load("x.pt")
found = {}
for family in ("vit", "swin", "convnet"):
    for place in (f"local-dir:{family}", f"hf-hub:org/{family}"):
        model = timm.create_model(place, pretrained=True).eval()
        with torch.no_grad():
            found[place] = model(x)
torch.save(found, "found.pt")
"""


@torch.no_grad()
def test_timm_from_a_folder_and_from_a_hub(tmp_path: Path) -> None:
    encoders = {}
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    torch.save(x, tmp_path / "x.pt")
    with serve_hub() as hub:
        for family in ("vit", "swin", "convnet"):
            torch.manual_seed(0)
            section = {"name": family, **SMALL_ENCODERS[family], "in_channels": 3}
            encoders[family] = build_encoder(section).eval()
            save_encoder(tmp_path / family, encoders[family], {})
            hub.add(f"org/{family}", tmp_path / family)
        alone(TIMM, tmp_path, hub.environment(tmp_path / "cache"))
        assert hub.gets("encoder.safetensors") or hub.gets("/cdn/"), "the hub was not asked"
    found = torch.load(tmp_path / "found.pt")
    for family, encoder in encoders.items():
        expected = encoder(x).pooled
        for place in (f"local-dir:{family}", f"hf-hub:org/{family}"):
            torch.testing.assert_close(found[place], expected, rtol=1e-5, atol=1e-5)


MONAI = """
import torch
from monai.networks.nets import SegResNet, SwinUNETR
from safetensors.torch import load_file

def fill(network, file):
    wrong = network.load_state_dict(load_file(file), strict=False)
    assert not wrong.unexpected_keys, wrong.unexpected_keys
    return network.eval(), wrong.missing_keys

swin, missing = fill(
    SwinUNETR(in_channels=1, out_channels=2, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 2)),
    "swin3d/encoder.safetensors",
)
assert not [name for name in missing if name.startswith("swinViT.")], missing
segresnet, missing = fill(
    SegResNet(init_filters=8, blocks_down=(1, 1, 1), blocks_up=(1, 1)), "segresnet/encoder.safetensors"
)
assert not [name for name in missing if name.startswith(("convInit", "down_layers"))], missing
x = torch.load("x.pt")
with torch.no_grad():
    maps = {"swin3d": swin.swinViT(x, True)[-1], "segresnet": segresnet.encode(x)[0]}
torch.save({name: found.flatten(2).mean(2) for name, found in maps.items()}, "found.pt")
"""


@torch.no_grad()
def test_whole_networks_of_monai_take_the_weights(tmp_path: Path) -> None:
    sections = {
        "swin3d": {"feature_size": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2]},
        "segresnet": {"filters": 8, "blocks": [1, 1, 1]},
    }
    x = torch.randn(1, 1, *CUBE, generator=torch.Generator().manual_seed(1))
    torch.save(x, tmp_path / "x.pt")
    expected = {}
    for name, section in sections.items():
        torch.manual_seed(0)
        encoder = build_encoder({"name": name, **section}).eval()
        save_encoder(tmp_path / name, encoder, {})
        expected[name] = encoder(x).pooled
    alone(MONAI, tmp_path)
    found = torch.load(tmp_path / "found.pt")
    for name, pooled in expected.items():
        torch.testing.assert_close(found[name], pooled, rtol=1e-4, atol=1e-5)


def test_the_card_shows_how(tmp_path: Path) -> None:
    save_encoder(tmp_path, make("vit3d"), {})
    write_card(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert 'model = load(".")\npooled, tokens = model(images)' in text
