"""Parameter groups: who decays, who learns how fast, and that nobody is forgotten."""

from __future__ import annotations

import pytest
import torch
from medloom.data.errors import ConfigError
from medloom.pretrain.encoders import build_encoder
from medloom.pretrain.optim import adamw, optimiser, param_groups, scaled_lr

CONFIGS = {
    "vit": {"name": "vit", "model": "vit_tiny_patch16_224", "depth": 3, "embed_dim": 48, "num_heads": 3},
    "registers": {"name": "vit", "model": "vit_small_patch14_reg4_dinov2", "depth": 3, "embed_dim": 48,
                  "num_heads": 3, "img_size": 56},
    "convnet": {"name": "convnet", "model": "convnext_atto"},
    "resnet": {"name": "convnet", "model": "resnet18"},
    "vit3d": {"name": "vit3d", "size": "tiny", "depth": 3, "embed_dim": 48, "registers": 2},
}  # fmt: skip


@pytest.mark.parametrize("key", CONFIGS)
def test_every_parameter_is_in_one_group(key: str) -> None:
    encoder = build_encoder(CONFIGS[key])
    head = torch.nn.Linear(4, 2)
    for layer_decay in (1.0, 0.75):
        groups = param_groups(encoder, head.named_parameters(), weight_decay=0.05, layer_decay=layer_decay)
        listed = [id(p) for group in groups for p in group["params"]]
        expected = [id(p) for module in (encoder, head) for p in module.parameters()]
        assert sorted(listed) == sorted(expected)


@pytest.mark.parametrize("key", CONFIGS)
def test_norms_biases_tokens_and_positions_do_not_decay(key: str) -> None:
    encoder = build_encoder(CONFIGS[key])
    plain = {
        id(p) for g in param_groups(encoder, weight_decay=0.05) if g["weight_decay"] == 0 for p in g["params"]
    }
    for path, module in encoder.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            is_kernel = (
                isinstance(module, torch.nn.Linear | torch.nn.Conv2d | torch.nn.Conv3d) and name == "weight"
            )
            assert (id(parameter) not in plain) == is_kernel, f"{path}.{name}"


def test_rates_fall_with_the_distance_from_the_output() -> None:
    encoder = build_encoder(CONFIGS["vit"])
    head = torch.nn.Linear(48, 2)
    groups = param_groups(encoder, head.named_parameters(), weight_decay=0.05, layer_decay=0.5)
    scale = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
    model = encoder.get_submodule("model")
    blocks = [scale[id(p)] for i in range(3) for p in [model.get_parameter(f"blocks.{i}.attn.qkv.weight")]]
    assert blocks == [0.5**4, 0.5**3, 0.5**2]
    assert scale[id(model.get_parameter("pos_embed"))] == 0.5**5
    assert scale[id(model.get_parameter("norm.weight"))] == 0.5
    assert scale[id(head.weight)] == 1.0
    optimizer = adamw(groups, lr=0.1, betas=[0.9, 0.95])
    assert {g["lr"] for g in optimizer.param_groups} == {0.1 * s for s in set(scale.values())}


def test_frozen_parameters_are_left_out() -> None:
    encoder = build_encoder(CONFIGS["vit3d"])
    encoder.get_parameter("cls_token").requires_grad_(False)
    listed = {id(p) for g in param_groups(encoder, weight_decay=0.1) for p in g["params"]}
    assert id(encoder.get_parameter("cls_token")) not in listed


def test_without_layer_decay_two_groups_are_enough() -> None:
    groups = param_groups(build_encoder(CONFIGS["convnet"]), weight_decay=0.05)
    assert [(g["name"], g["weight_decay"]) for g in groups] == [("decay", 0.05), ("plain", 0.0)]


def test_an_encoder_that_forgets_a_parameter_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = build_encoder(CONFIGS["vit3d"])
    groups = encoder.layer_groups()
    monkeypatch.setattr(encoder, "layer_groups", lambda: groups[1:])
    with pytest.raises(ValueError, match="cls_token"):
        param_groups(encoder, weight_decay=0.05)


def test_one_step_moves_the_weights_and_decays_the_kernels_only() -> None:
    layer = torch.nn.Linear(3, 3)
    encoder = build_encoder(CONFIGS["vit3d"])
    optimizer = adamw(
        param_groups(encoder, layer.named_parameters(), weight_decay=0.5), lr=0.1, betas=[0.9, 0.9]
    )
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    layer.weight.grad, layer.bias.grad = torch.zeros(3, 3), torch.zeros(3)
    optimizer.step()
    assert torch.allclose(layer.weight, weight * (1 - 0.1 * 0.5))
    assert torch.equal(layer.bias, bias)


def test_the_rate_arithmetic_is_linear_and_said() -> None:
    lr, line = scaled_lr(1.5e-4, 1024)
    assert lr == pytest.approx(6e-4)
    assert line == "lr = base_lr × batch / 256 = 0.00015 × 1024 / 256 = 0.0006"


@pytest.mark.parametrize("layer_decay", [0.0, 1.5])
def test_a_wrong_layer_decay_is_refused(layer_decay: float) -> None:
    with pytest.raises(ConfigError, match="layer_decay"):
        param_groups(build_encoder(CONFIGS["vit3d"]), weight_decay=0.05, layer_decay=layer_decay)


def test_the_rate_grows_with_the_batch_as_the_rule_says() -> None:
    assert scaled_lr(1e-3, 1024, "linear")[0] == pytest.approx(4e-3)
    lr, said = scaled_lr(1e-3, 1024, "sqrt")
    assert (
        lr == pytest.approx(2e-3) and said == "lr = base_lr × √(batch / 256) = 0.001 × √(1024 / 256) = 0.002"
    )
    assert scaled_lr(1e-3, 1024, "none")[0] == 1e-3
    with pytest.raises(ConfigError, match="did you mean linear"):
        scaled_lr(1e-3, 1024, "linea")


def test_the_stem_alone_is_slowed_down() -> None:
    encoder = build_encoder(CONFIGS["vit3d"])
    head = torch.nn.Linear(48, 2)
    groups = param_groups(encoder, head.named_parameters(), weight_decay=0.05, stem_scale=0.2)
    scale = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
    assert scale[id(encoder.get_parameter("patch_embed.proj.weight"))] == 0.2
    others = {scale[id(p)] for n, p in encoder.named_parameters() if n.startswith(("blocks", "norm"))}
    assert others == {1.0} and scale[id(head.weight)] == 1.0
    assert len(groups) == 4 and {g["name"] for g in groups if g["weight_decay"]} == {
        "decay",
        "encoder.0.decay",
    }


def test_sgd_takes_the_same_groups() -> None:
    encoder = build_encoder(CONFIGS["convnet"])
    groups = param_groups(encoder, weight_decay=3e-5)
    chosen = optimiser("sgd", groups, lr=0.1, betas=[0.9, 0.95], momentum=0.99)
    assert isinstance(chosen, torch.optim.SGD)
    assert all(g["nesterov"] and g["momentum"] == 0.99 and g["lr"] == 0.1 for g in chosen.param_groups)
    with pytest.raises(ConfigError, match="did you mean adamw"):
        optimiser("adam", groups, lr=0.1, betas=[0.9, 0.95], momentum=0.9)
