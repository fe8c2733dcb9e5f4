"""Encoders of others: names and shapes as published find their places, and features are those upstream."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from medloom.data.errors import CheckpointError
from medloom.pretrain.encoders import build_encoder
from medloom.pretrain.sources import read_source
from medloom.pretrain.state_file import tensors_in
from medloom.pretrain.transfer import fill
from medloom.pretrain.weights import load_encoder
from medloom.pretrain.zoo.mapping import mapped
from medloom.pretrain.zoo.record import ZooRecord, load_record, names, records, split_name
from safetensors.torch import load_file
from torch import Tensor, nn

from . import zoo_upstream as up

OWN = [record.name for record in records() if not record.download.timm]
TIMM = [record.name for record in records() if record.download.timm]


def needs(name: str) -> None:
    """Skip where the package of the upstream class is missing."""
    if load_record(name).encoder.get("name") in ("resenc", "primus"):
        pytest.importorskip("dynamic_network_architectures", reason="extra nnunet")
    if load_record(name).upstream.startswith("transformers"):
        pytest.importorskip("transformers", reason="the upstream class")


@pytest.mark.parametrize("name", OWN)
def test_every_published_name_and_shape_has_a_place(name: str) -> None:
    needs(name)
    record = load_record(name)
    with up.Hollow():
        state = up.BUILDERS[name]()
        encoder = build_encoder(record.encoder)
    found = mapped(record, tensors_in(state, [], name))
    places = {key.removeprefix(encoder.inner): tuple(t.shape) for key, t in encoder.state_dict().items()}
    assert {key: tuple(t.shape) for key, t in found.items()} == places
    assert list(encoder.grid(_fitting(encoder, record.input["crop"])))


@pytest.mark.parametrize("name", TIMM)
def test_a_timm_file_has_the_names_of_its_network(name: str) -> None:
    record = load_record(name)
    with up.Hollow():
        state = timm.create_model(str(record.download.timm)).state_dict()
        section, _, said = read_source(f"zoo:{name}", weights=False)
        encoder = build_encoder({**section, "pretrained": False})
    found = mapped(record, dict(state))
    assert set(found) == {key.removeprefix(encoder.inner) for key in encoder.state_dict()}
    assert encoder.in_channels == said["input"]["channels"]


def _fitting(encoder: Any, crop: list[int]) -> list[int]:
    """The smallest size above the crop that the encoder takes, as the planner makes it."""
    return [-(-side // patch) * patch for side, patch in zip(crop, encoder.patch_size, strict=True)]


# --- features

_BERT = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96}
_OURS = {"embed_dim": 48, "depth": 2, "num_heads": 3}


def small(name: str, **section: Any) -> ZooRecord:
    """The record with a small network."""
    record = load_record(name)
    return dataclasses.replace(record, encoder={**record.encoder, **section})


def loaded(record: ZooRecord, state: dict[str, Tensor]) -> Any:
    """Our encoder with an upstream state, strictly."""
    torch.manual_seed(1)
    encoder = build_encoder(record.encoder)
    fill(encoder, mapped(record, tensors_in(state, [], record.name)), record.name, True, {})
    return encoder.eval()


def shaken(model: nn.Module) -> nn.Module:
    """Weights none of which is at its first zero or one, running statistics too."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(0.5 * torch.rand(buffer.shape, generator=generator))
    return model.eval()


@pytest.mark.parametrize("kind", ["dinov2", "vit", "clip"])
def test_names_of_transformers_are_those_of_its_files(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    sizes = _BERT if kind != "dinov2" else {k: v for k, v in _BERT.items() if k != "intermediate_size"}
    model: Any = getattr(up, kind)(**sizes)
    model.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == set(up.published(model, kind))


@torch.no_grad()
def test_dinov2_of_transformers_gives_the_same_features() -> None:
    pytest.importorskip("transformers")
    sizes = {key: value for key, value in _BERT.items() if key != "intermediate_size"}
    model = shaken(up.dinov2(image_size=56, patch_size=14, **sizes))
    ours = loaded(small("rad-dino", **_OURS, img_size=56), up.published(model, "dinov2"))
    x = torch.randn(2, 3, 56, 56)
    expected, found = model(x).last_hidden_state, ours(x)
    torch.testing.assert_close(found.pooled, expected[:, 0], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(found.tokens, expected[:, 1:], atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_vit_of_transformers_gives_the_same_features() -> None:
    pytest.importorskip("transformers")
    model = shaken(up.vit(image_size=32, patch_size=16, **_BERT))
    record = small("phikon", **_OURS, img_size=32, kwargs={"mlp_ratio": 2.0})
    found = loaded(record, up.published(model, "vit"))(x := torch.randn(2, 3, 32, 32))
    expected = model(x).last_hidden_state
    # The epsilon of its layer norms is 1e-12, timm's is 1e-6, and the variance of a small network is small.
    torch.testing.assert_close(found.pooled, expected[:, 0], atol=3e-4, rtol=1e-3)
    torch.testing.assert_close(found.tokens, expected[:, 1:], atol=3e-4, rtol=1e-3)


@torch.no_grad()
def test_clip_of_transformers_gives_the_same_features() -> None:
    pytest.importorskip("transformers")
    model: Any = shaken(up.clip(image_size=64, patch_size=32, **_BERT))
    record = small("plip", **_OURS, img_size=64, kwargs={"mlp_ratio": 2.0})
    found = loaded(record, up.published(model, "clip"))(x := torch.randn(2, 3, 64, 64))
    expected = model.vision_model(pixel_values=x).pooler_output
    torch.testing.assert_close(found.pooled, expected, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_what_was_fed_xyz_gives_on_zyx_the_same_features() -> None:
    model = shaken(
        up.monai_vit(img_size=(32, 48, 64), hidden_size=48, mlp_dim=192, num_layers=2, num_heads=3)
    )
    record = small("brainiac", **_OURS, img_size=[64, 48, 32])
    ours = loaded(record, {f"backbone.{k}": v for k, v in model.state_dict().items()})
    x = torch.randn(2, 1, 32, 48, 64)
    found = ours(x.permute(0, 1, 4, 3, 2))
    expected = model(x)[0].reshape(2, 2, 3, 4, 48).permute(0, 3, 2, 1, 4).reshape(2, 24, 48)
    torch.testing.assert_close(found.tokens, expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(found.pooled, expected.mean(1), atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_a_chunked_dino_keeps_the_order_of_its_blocks_and_its_table() -> None:
    state = up.three_dino(dim=48, depth=4, heads=3, cells=8)
    record = small("3dino", embed_dim=48, depth=4, num_heads=3, img_size=[32, 32, 32])
    ours = loaded(record, state)
    for number in range(4):
        assert torch.equal(ours.blocks[number].attn.qkv.weight,
                           state[f"backbone.blocks.{number}.{number}.attn.qkv.weight"])  # fmt: skip
    x = torch.randn(1, 1, 32, 32, 32)
    patches = nn.functional.conv3d(x, state["backbone.patch_embed.proj.weight"],
                                   state["backbone.patch_embed.proj.bias"], stride=16)  # fmt: skip
    table = state["backbone.pos_embed"]
    tokens = patches.flatten(2).transpose(1, 2) + table[:, 1:]
    tokens = tokens.reshape(1, 2, 2, 2, 48).permute(0, 3, 2, 1, 4).reshape(1, 8, 48)
    expected = torch.cat([state["backbone.cls_token"] + table[:, :1], tokens], dim=1)
    for block in ours.blocks:
        expected = block(expected)
    found = ours(x.permute(0, 1, 4, 3, 2))
    torch.testing.assert_close(found.pooled, ours.norm(expected)[:, 0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["voco-b", "swinunetr-ssl"])
@torch.no_grad()
def test_a_swinunetr_gives_the_same_features_in_its_own_range(name: str) -> None:
    model: Any = shaken(up.swin_unetr(feature_size=12, num_heads=(1, 2, 3, 6), use_v2=name == "voco-b"))
    state = dict(model.state_dict())
    record = small(name, feature_size=12, num_heads=[1, 2, 3, 6])
    ours = loaded(record, up.pretext_names(state) if name == "swinunetr-ssl" else state)
    units = torch.empty(1, 1, 64, 64, 64).uniform_(-1200, 1200, generator=torch.Generator().manual_seed(0))
    low, high = (-175, 250) if name == "voco-b" else (-1000, 1000)
    theirs = ((units - low) / (high - low)).clamp(0, 1)
    expected = model.swinViT(theirs, True)[-1]
    found = ours(units.clamp(-1000, 1000) / 1000).tokens.transpose(1, 2).reshape(expected.shape)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_segresnet_ds_gives_the_same_features_in_its_own_range() -> None:
    model: Any = shaken(up.ct_fm(init_filters=8, blocks_down=(1, 2, 2)))
    ours = loaded(small("ct-fm", filters=8, blocks=[1, 2, 2]), dict(model.state_dict()))
    units = torch.empty(2, 1, 16, 24, 16).uniform_(-1000, 1000)
    expected = model((units + 1024) / 3072)
    found = ours(units / 1000, pyramid=True).pyramid
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "depth"), [("medicalnet-resnet10", 10), ("medicalnet-resnet18", 18), ("fmcib", 50)]
)
@torch.no_grad()
def test_a_resnet_of_monai_gives_the_same_features(name: str, depth: int) -> None:
    wide = name == "fmcib"
    short = "A" if depth == 18 else "B"
    model: Any = shaken(up.monai_resnet(depth, shortcut_type=short, bias_downsample=wide, widen_factor=0.25))
    ours = loaded(small(name, width=0.25, dilated=False, rescale=None), dict(model.state_dict()))
    x = torch.randn(1, 1, 32, 64, 32)
    torch.testing.assert_close(ours(x).pooled, model(x), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["medicalnet-resnet10", "medicalnet-resnet18"])
@torch.no_grad()
def test_medicalnet_s_own_dilated_stages(name: str) -> None:
    record = small(name, width=0.25)
    ours: Any = shaken(build_encoder(record.encoder))
    x = torch.randn(1, 1, 32, 32, 32)
    y = ours.maxpool(ours.act(ours.bn1(ours.conv1(x))))
    for stage, stride, dilation in ((1, 1, 1), (2, 2, 1), (3, 1, 2), (4, 1, 4)):
        for number, block in enumerate(getattr(ours, f"layer{stage}")):
            y = _medicalnet_block(block, y, stride if number == 0 else 1, dilation, record.encoder)
    torch.testing.assert_close(ours(x).tokens, y.flatten(2).transpose(1, 2), atol=1e-4, rtol=1e-3)
    assert ours(x).grid == (4, 4, 4)


def _medicalnet_block(block: Any, x: Tensor, stride: int, dilation: int, section: dict[str, Any]) -> Tensor:
    """A basic block as MedicalNet's code computes it."""
    conv = nn.functional.conv3d
    y = conv(x, block.conv1.weight, stride=stride, padding=dilation, dilation=dilation)
    y = conv(block.bn1(y).relu(), block.conv2.weight, padding=dilation, dilation=dilation)
    y = block.bn2(y)
    if section.get("shortcut") == "A" and y.shape[1] != x.shape[1]:
        x = nn.functional.avg_pool3d(x, 1, stride=stride)
        x = torch.cat([x, x.new_zeros(len(x), y.shape[1] - x.shape[1], *x.shape[2:])], dim=1)
    elif y.shape[1] != x.shape[1]:
        x = block.downsample[1](conv(x, block.downsample[0].weight, stride=stride))
    return (x + y).relu()


@torch.no_grad()
def test_nnssl_s_networks_give_the_same_features() -> None:
    pytest.importorskip("dynamic_network_architectures", reason="extra nnunet")
    model: Any = shaken(up.resenc_unet(features=[8, 16, 16], blocks=[1, 2, 1]))
    record = small("openmind-resencl-mae", features=[8, 16, 16], blocks=[1, 2, 1], strides=[1, 2, 2],
                   kernels=[3, 3, 3])  # fmt: skip
    ours = loaded(record, dict(model.state_dict()))
    x = torch.randn(1, 1, 16, 16, 24)
    for one, other in zip(ours(x, pyramid=True).pyramid, model.encoder(x), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    model = shaken(up.primus(embed_dim=48, eva_depth=2, eva_numheads=2, input_shape=(16, 16, 24)))
    record = small("openmind-primusm-mae", embed_dim=48, depth=2, num_heads=2, img_size=[16, 16, 24])
    ours = loaded(record, dict(model.state_dict()))
    tokens = model.down_projection(x).flatten(2).transpose(1, 2)
    torch.testing.assert_close(ours(x).tokens, model.eva(tokens)[0], atol=1e-5, rtol=1e-4)


# --- records and names


def test_records_are_whole_and_say_what_was_checked() -> None:
    known = _ids()
    for record in records():
        assert record.title and record.paper and record.licence and record.upstream, record.name
        assert set(record.trained_on) <= known, record.name
        assert record.input["channels"] == record.encoder.get("in_channels", record.input["channels"])
        if not record.download.timm:
            assert (record.checked != "unchecked") <= (record.name in up.BUILDERS), record.name


def _ids() -> set[str]:
    table = Path(__file__).resolve().parents[2] / "data" / "catalog" / "tables" / "datasets.csv"
    with table.open(newline="") as file:
        return {row["id"] for row in csv.DictReader(file)}


def test_no_two_records_fetch_one_file() -> None:
    places = [dataclasses.astuple(record.download)[:6] for record in records()]
    assert len(set(places)) == len(places)


def test_names_with_and_without_prefix_and_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert split_name("rad-dino") == split_name("zoo:rad-dino") == ("rad-dino", None)
    assert split_name("rad-dino@a/b.pth") == ("rad-dino", Path("a/b.pth"))
    assert split_name("runs/mae") is None and split_name("timm:resnet18") is None
    monkeypatch.chdir(tmp_path)
    Path("ct-fm").mkdir()
    assert split_name("ct-fm") is None, "a folder of that name is meant"
    assert split_name("zoo:ct-fm") is not None
    registry = tmp_path / "own.yaml"
    registry.write_text("rad-dino: {title: ours, train: medloom pretrain x}\n")
    monkeypatch.setenv("MEDLOOM_WEIGHTS", str(registry))
    assert split_name("rad-dino") is None, "a registry of a house goes before"


def test_an_unknown_name_gets_near_ones() -> None:
    with pytest.raises(CheckpointError, match="rad-dino"):
        load_encoder("zoo:raddino")
    with pytest.raises(CheckpointError, match="did you mean zoo:rad-dino"):
        load_encoder("rad-dno")


def test_the_registry_has_no_name_of_the_zoo() -> None:
    from medloom.pretrain.hub.registry import registry

    assert not set(registry()) & set(names())
