"""pretrain/monai_source.py: MONAI's networks become encoders with the features that MONAI gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from medloom.data.errors import CheckpointError
from medloom.pretrain.weights import load_encoder
from safetensors.torch import save_file


@pytest.fixture(scope="module")
def swin() -> Any:
    from monai.networks.nets.swin_unetr import SwinUNETR

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SwinUNETR(in_channels=2, out_channels=3, feature_size=12, depths=(1, 2, 1, 1),
                         num_heads=(1, 2, 3, 6)).eval()  # fmt: skip


@pytest.fixture(scope="module")
def segresnet() -> Any:
    from monai.networks.nets.segresnet import SegResNet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SegResNet(init_filters=8, in_channels=1, out_channels=2, blocks_down=(1, 2, 2)).eval()


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_swinunetr_gives_monai_s_features(swin: Any, wrapped: bool, tmp_path: Path) -> None:
    state = swin.state_dict()
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}} if wrapped else state,
               tmp_path / "model.pt")  # fmt: skip
    encoder, report = load_encoder(f"monai:SwinUNETR@{tmp_path / 'model.pt'}")
    assert not report.missing and not report.unexpected
    assert encoder.config.depths == [1, 2, 1, 1]
    image = torch.randn(1, 2, 32, 64, 32)
    expected = swin.swinViT(image, True)
    found = encoder.eval()(image, pyramid=True).pyramid
    assert found is not None
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_transformer_alone_under_the_tutorial_s_names(swin: Any, tmp_path: Path) -> None:
    names = {"linear1": "fc1", "linear2": "fc2"}
    state = {f"module.{k}": v for k, v in swin.swinViT.state_dict().items()}
    for ours, theirs in names.items():
        state = {k.replace(ours, theirs): v for k, v in state.items()}
    state["module.rotation_head.weight"] = torch.zeros(4, 4)
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "ssl.pt")
    encoder, report = load_encoder(f"monai:SwinUNETR@{tmp_path / 'ssl.pt'}")
    assert not report.missing
    own = swin.swinViT.state_dict()
    assert all(torch.equal(own[k.removeprefix("swinViT.")], v) for k, v in encoder.state_dict().items())


def test_a_segresnet_gives_monai_s_features(segresnet: Any, tmp_path: Path) -> None:
    save_file(segresnet.state_dict(), tmp_path / "model.safetensors")
    encoder, report = load_encoder(f"monai:SegResNet@{tmp_path / 'model.safetensors'}")
    assert not report.missing
    image = torch.randn(1, 1, 16, 16, 32)
    expected, _ = segresnet.encode(image)
    torch.testing.assert_close(encoder.eval()(image, pyramid=True).pyramid[-1], expected)  # type: ignore[index]


def test_channels_are_adapted_and_random_weights_have_the_file_s_shape(swin: Any, tmp_path: Path) -> None:
    torch.save(swin.state_dict(), tmp_path / "model.pt")
    name = f"monai:SwinUNETR@{tmp_path / 'model.pt'}"
    encoder, _ = load_encoder(name, in_channels=1)
    weight = "swinViT.patch_embed.proj.weight"
    torch.testing.assert_close(encoder.get_parameter(weight), swin.state_dict()[weight].sum(1, keepdim=True))
    fresh, report = load_encoder(f"random:{name}")
    assert fresh.config.feature_size == 12 and not report.loaded
    assert load_encoder("random:monai:SegResNet")[0].config.name == "segresnet"


@pytest.mark.parametrize(("name", "message"), [
    ("monai:SwinUnet", "SwinUNETR"), ("monai:SegResNet", "random:monai:SegResNet"),
    ("monai:SegResNet@nowhere.pt", "no such file"),
])  # fmt: skip
def test_what_cannot_be_read_says_so(name: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_encoder(name)


def test_another_network_s_file_is_refused(segresnet: Any, tmp_path: Path) -> None:
    torch.save(segresnet.state_dict(), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="not the state of a SwinUNETR"):
        load_encoder(f"monai:SwinUNETR@{tmp_path / 'model.pt'}")
