"""Every shipped pretraining recipe loads, says hardware and hours, fits its crop, and steps when reduced."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from medloom.data.config import CONFIGS, polymorphic, read_yaml
from medloom.data.errors import ConfigError
from medloom.pretrain.config import load_config, per_rank_batch, recipe_layers
from medloom.pretrain.encoders import build_encoder
from medloom.pretrain.objectives import OBJECTIVES, Batch
from medloom.pretrain.optim import optimiser, param_groups

ALL = sorted(CONFIGS.glob("pretrain/*.yaml"))
SIZES = ("tiny", "base", "large")

# What makes the network of a recipe small without touching its patches: sections by family.
_FEW = {"depth": 1, "embed_dim": 48, "num_heads": 3}
REDUCED: dict[str, dict[str, Any]] = {
    "vit": _FEW,
    "vit3d": _FEW,
    "convnet": {"model": "convnext_atto"},
    "segresnet": {"filters": 8, "groups": 4, "blocks": [1, 1, 1, 1]},
    "resenc": {"features": [4, 4, 8, 8, 8, 8], "blocks": [1, 1, 1, 1, 1, 1]},
    "swin3d": {"feature_size": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2]},
}
# Objectives with heads that cost more than the network; what is drawn and compared stays.
_FEW_PROTOTYPES = {"prototypes": 64, "head_hidden": 16, "head_bottleneck": 8}
CHEAP: dict[str, dict[str, Any]] = {
    "dino": _FEW_PROTOTYPES, "dinov2": _FEW_PROTOTYPES,
    "voco": {"hidden_dim": 16, "out_dim": 16, "size": [32, 32, 32], "crops": 1},
    "genesis": {"decoder_width": 8, "decoder_most": 8}, "spark": {"decoder_width": 8, "decoder_most": 8},
    "swinunetr": {"decoder_width": 8}, "supervised": {"classes": {"one": ["a", "b"]}},
    **{name: {"decoder_dim": 48, "decoder_depth": 1, "decoder_heads": 3} for name in ("mae", "mdae")},
    "ijepa": {"predictor_dim": 48, "predictor_depth": 1, "predictor_heads": 3},
}  # fmt: skip

# Crops at which convolutions over volumes take seconds; that the whole crop fits is asked without computing.
CROPS = {
    ("resenc", "spark"): [64, 64, 64], ("resenc", "genesis"): [64, 64, 64],
    ("swin3d", "swinunetr"): [64, 64, 64], ("swin3d", "voco"): [32, 96, 96],
}  # fmt: skip


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_method_has_a_recipe_of_every_size(name: str) -> None:
    wanted = {f"{size}-{name}-{ndim}d" for size in SIZES for ndim in OBJECTIVES[name].ndims}
    assert wanted <= {path.stem for path in ALL}


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_a_recipe_opens_with_hardware_time_and_expectation(path: Path) -> None:
    lines = path.read_text().splitlines()
    head = " ".join(line.removeprefix("# ") for line in lines[:6] if line.startswith("#"))
    assert "Hardware:" in head
    assert re.search(r"Time: about [\d.]+ (minute|hour)s?[^.]*(measured|predicted)", head), head
    assert "Expect:" in head


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_a_recipe_is_complete_and_steps_at_reduced_size(path: Path) -> None:
    config = load_config(path.stem)
    assert config.name == path.stem
    world = config.trainer.num_nodes * max(
        1, int(config.trainer.devices if config.trainer.num_nodes > 1 else 1)
    )
    micro = per_rank_batch(config, world)[0]
    family, method = config.encoder["name"], config.objective["name"]
    torch.manual_seed(0)
    encoder = build_encoder(config.encoder | {"pretrained": False} if "pretrained" in config.encoder
                            else config.encoder) if path.stem.startswith("tiny") else None  # fmt: skip
    if encoder is None:
        encoder = build_encoder({**config.encoder, **REDUCED[family]})
    encoder.recompute = config.trainer.recompute
    kind, section = polymorphic({**config.objective, **CHEAP.get(method, {})}, OBJECTIVES, "objective")
    objective = kind(section, encoder)
    assert micro >= objective.least_batch
    assert encoder.axes == (config.data.ndim,) and encoder.in_channels == config.data.in_channels
    whole = {**CHEAP.get(method, {}), **({"size": config.objective["size"]} if method == "voco" else {})}
    full = kind(polymorphic({**config.objective, **whole}, OBJECTIVES, "objective")[1], encoder)
    assert all(math.prod(encoder.grid(size)) >= 4 for size in full.sizes(config.data.crop))
    crop = CROPS.get((family, method), config.data.crop)
    groups = param_groups(
        encoder, objective.named_parameters(), weight_decay=config.optim.weight_decay,
        layer_decay=config.optim.layer_decay, stem_scale=config.optim.stem_scale,
    )  # fmt: skip
    chosen = optimiser(config.optim.name, groups, lr=1e-4, betas=config.optim.betas, momentum=0.9)
    batch = batch_for(crop, encoder.in_channels, max(2, objective.least_batch))
    output = objective.step(batch, encoder)
    output.loss.backward()
    objective.before_update(0, 10, encoder)
    chosen.step()
    objective.after_update(0, 10, encoder)
    assert torch.isfinite(output.loss)


def batch_for(crop: list[int], channels: int, count: int) -> Batch:
    """Smooth images of the size that the recipe loads."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(count, channels, *[max(2, side // 8) for side in crop], generator=generator)
    mode = "bilinear" if len(crop) == 2 else "trilinear"
    image = torch.nn.functional.interpolate(coarse, size=tuple(crop), mode=mode)
    positions = torch.arange(count)
    return Batch(
        image=image, position=positions, host_position=positions, seed=0, step=0, steps=10,
        modality=torch.zeros(count, dtype=torch.int64), spacing=torch.ones(count, len(crop)),
        label=positions % 2, mask=(image[:, 0] > 0).long(),
    )  # fmt: skip


def test_a_recipe_says_only_what_differs_from_its_size(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text("encoder: {name: vit, depth: 3}\ndata: {batch_size: 4}\n")
    (tmp_path / "more.yaml").write_text("data: {batch_size: 8, workers: 1}\nobjective: {mask_ratio: 0.5}\n")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("extends: [small.yaml, more.yaml]\ndata: {workers: 0}\nobjective: {name: mae}\n")
    config = load_config(recipe)
    assert config.encoder["depth"] == 3 and config.data.batch_size == 8 and config.data.workers == 0
    assert config.objective["name"] == "mae" and config.objective["mask_ratio"] == 0.5
    recipe.write_text("extends: small.yaml\nencoder: {name: convnet}\n")
    assert load_config(recipe).encoder["name"] == "convnet"  # no depth is left of the other family
    recipe.write_text("extends: smal\n")
    with pytest.raises(ConfigError, match="no shipped pretrain/sizes of that name"):
        load_config(recipe)
    (tmp_path / "small.yaml").write_text("extends: more.yaml\n")
    recipe.write_text("extends: small.yaml\n")
    with pytest.raises(ConfigError, match=r"small\.yaml: a file that recipes extend extends no other"):
        load_config(recipe)


def test_every_size_is_used() -> None:
    used = {base for path in ALL for base in bases(path)}
    assert used == {path.stem for path in CONFIGS.glob("pretrain/sizes/*.yaml")}
    assert all(len(recipe_layers(path)) == 1 + len(bases(path)) for path in ALL)


def bases(path: Path) -> list[str]:
    """What a recipe extends."""
    found = read_yaml(path).get("extends", [])
    return [found] if isinstance(found, str) else found
