"""Encoders for nnU-Net and onnxruntime, read in a Python without medloom; what cannot be made is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from medloom.data.errors import ConfigError
from medloom.pretrain.encoders import build_encoder
from medloom.pretrain.hub.convert import convert
from medloom.pretrain.hub.nnunet import CHECKPOINT, PLAN, adaptation_plan
from medloom.pretrain.weights import save_encoder

from .small import SMALL_ENCODERS
from .without_medloom import alone

CONTRACT = {
    "rule": 1,
    "crop": [32, 32, 32],
    "channels": 1,
    "modalities": {
        "ct": {"images": 3, "spacing_mm": {"p5": [1, 1, 1], "p50": [5.0, 0.7, 0.7], "p95": [9, 1, 1]}},
        "mr": {"images": 2, "spacing_mm": {"p5": [1, 1, 1], "p50": [1.0, 1.0, 1.0], "p95": [2, 1, 1]}},
    },
}
RESENC = {"name": "resenc", **SMALL_ENCODERS["resenc"]}

# What nnU-Net does with such a checkpoint (PretrainedTrainer): the network of the plan, then stem and encoder
# each loaded strictly below the names that the network and the plan say.
NNUNET = """
import json, pydoc, torch
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

checkpoint = torch.load("out/checkpoint_final.pth", weights_only=True)
plan = checkpoint["nnssl_adaptation_plan"]
assert plan == json.load(open("out/adaptation_plan.json"))
said = plan["architecture_plans"]
assert said["arch_class_name"] == "ResidualEncoderUNet"
kwargs = dict(said["arch_kwargs"])
for key in said["arch_kwargs_requiring_import"]:
    if kwargs[key] is not None:
        kwargs[key] = pydoc.locate(kwargs[key])
network = ResidualEncoderUNet(
    input_channels=CHANNELS, num_classes=3, deep_supervision=False, **kwargs
)
weights = checkpoint["network_weights"]
if CHANNELS > plan["pretrain_num_input_channels"]:
    first = plan["keys_to_in_proj"][0] + ".weight"
    more = weights[first].repeat(1, CHANNELS, 1, 1, 1) / CHANNELS
    weights = {**weights, **{key + ".weight": more for key in plan["keys_to_in_proj"]}}
for theirs, ours in ((network.key_to_stem, plan["key_to_stem"]),
                     (network.key_to_encoder, plan["key_to_encoder"])):
    part = {k.removeprefix(ours + "."): v for k, v in weights.items() if k.startswith(ours)}
    network.get_submodule(theirs).load_state_dict(part)
x = torch.load("x.pt").expand(-1, CHANNELS, -1, -1, -1)
with torch.no_grad():
    found = network.eval().encoder(x)[-1]
    assert network(x).shape == (1, 3, 32, 32, 32)
torch.save(found, "found.pt")
"""


@pytest.mark.parametrize("channels", [1, 2])
@torch.no_grad()
def test_nnunet_starts_from_it(channels: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(RESENC).eval()
    for parameter in encoder.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    save_encoder(tmp_path / "artefact", encoder, {"input": CONTRACT})
    convert(str(tmp_path / "artefact"), "nnunet", tmp_path / "out")
    x = torch.randn(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.save(x, tmp_path / "x.pt")
    alone(NNUNET.replace("CHANNELS", str(channels)), tmp_path)
    found = torch.load(tmp_path / "found.pt").flatten(2).transpose(1, 2)
    torch.testing.assert_close(found, encoder(x).tokens, rtol=1e-4, atol=1e-4)


def test_the_plan_has_the_keys_that_nnssl_writes() -> None:
    plan = adaptation_plan(build_encoder(RESENC), CONTRACT)
    assert list(plan) == [
        "architecture_plans", "pretrain_plan", "pretrain_num_input_channels",
        "recommended_downstream_patchsize", "key_to_encoder", "key_to_stem", "keys_to_in_proj", "key_to_lpe",
    ]  # fmt: skip
    (configuration,) = plan["pretrain_plan"]["configurations"].values()
    assert configuration["patch_size"] == plan["recommended_downstream_patchsize"] == [32, 32, 32]
    assert configuration["spacing"] is None and configuration["spacing_style"] == "noresample"
    assert plan["pretrain_plan"]["original_median_spacing_after_transp"] == [5.0, 0.7, 0.7]
    without = adaptation_plan(build_encoder(RESENC), {})
    assert without["recommended_downstream_patchsize"] == [160, 160, 160]
    assert json.loads(json.dumps(plan)) == plan


def test_presets_are_named() -> None:
    with torch.device("meta"):
        large = build_encoder({"name": "resenc"})
        primus = build_encoder({"name": "primus", "size": "S"})
    assert adaptation_plan(large, {})["architecture_plans"] == {
        "arch_class_name": "ResEncL", "arch_kwargs": None, "arch_kwargs_requiring_import": None,
    }  # fmt: skip
    plan = adaptation_plan(primus, {"crop": [64, 64, 64]})
    assert plan["architecture_plans"]["arch_class_name"] == "PrimusS"
    assert plan["recommended_downstream_patchsize"] == [96, 96, 96], "the grid of its table of positions"
    assert plan["key_to_lpe"] in primus.state_dict()
    assert f"{plan['keys_to_in_proj'][0]}.weight" in primus.state_dict()


@pytest.mark.parametrize(
    ("section", "form", "options", "message"),
    [
        ({"name": "vit3d", **SMALL_ENCODERS["vit3d"]}, "nnunet", {}, "fine-tunes 3D resenc and primus"),
        ({**RESENC, "ndim": 2}, "nnunet", {}, "a 2D resenc"),
        ({"name": "primus", **SMALL_ENCODERS["primus"]}, "nnunet", {}, r"encoder\.embed_dim is 48"),
        (RESENC, "nnunet", {"size": [32, 32, 32]}, "--size: sets the input of --to onnx"),
        (RESENC, "onnx", {"size": [32, 32, 33]}, "not a multiple of the patch"),
    ],
)
def test_what_cannot_be_made_is_refused(
    section: dict[str, Any], form: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    save_encoder(tmp_path / "from", build_encoder(section), {})
    with pytest.raises(ConfigError, match=message):
        convert(str(tmp_path / "from"), form, tmp_path / "out", **options)
    assert not (tmp_path / "out" / CHECKPOINT).exists() and not (tmp_path / "out" / PLAN).exists()


ONNX = """
import json, sys
import numpy as np
import onnxruntime
assert "torch" not in sys.modules
for name in ("vit", "convnet", "vit3d", "resenc"):
    session = onnxruntime.InferenceSession(f"{name}/model.onnx", providers=["CPUExecutionProvider"])
    said = json.load(open(f"{name}/preprocessing.json"))
    (given,), outputs = session.get_inputs(), [one.name for one in session.get_outputs()]
    assert given.name == said["input"]["name"] and outputs == list(said["outputs"])
    x = np.load(f"{name}.npy")
    assert list(x.shape[2:]) == said["input"]["sides"] and said["input"]["free"][0] == "B"
    pooled, tokens = session.run(None, {given.name: x})
    np.savez(f"{name}.npz", pooled=pooled, tokens=tokens)
"""
SIZES = {"vit": (32, 48), "convnet": (64, 64), "vit3d": (16, 16, 24), "resenc": (32, 32, 32)}


@torch.no_grad()
def test_onnxruntime_computes_the_same(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="pip install 'medloom[export]'")
    pytest.importorskip("onnxscript", reason="pip install 'medloom[export]'")
    encoders = {}
    for name, size in SIZES.items():
        torch.manual_seed(0)
        encoders[name] = build_encoder({"name": name, **SMALL_ENCODERS[name]}).eval()
        save_encoder(tmp_path / f"{name}-artefact", encoders[name], {})
        convert(str(tmp_path / f"{name}-artefact"), "onnx", tmp_path / name, size=size)
        x = np.random.default_rng(1).normal(size=(3, encoders[name].in_channels, *size))
        np.save(tmp_path / f"{name}.npy", x.astype(np.float32))
    alone(ONNX, tmp_path)
    for name, encoder in encoders.items():
        found = np.load(tmp_path / f"{name}.npz")
        expected = encoder(torch.from_numpy(np.load(tmp_path / f"{name}.npy")))
        np.testing.assert_allclose(found["pooled"], expected.pooled, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found["tokens"], expected.tokens, rtol=1e-4, atol=1e-4)
