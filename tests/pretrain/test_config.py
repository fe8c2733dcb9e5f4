"""pretrain/config.py: rules between fields, each with its mend."""

from __future__ import annotations

from pathlib import Path

import pytest
from medloom.data.config import polymorphic, to_dict
from medloom.data.errors import ConfigError
from medloom.pretrain.config import (
    PretrainConfig,
    complete,
    differences,
    load_config,
    per_rank_batch,
)
from medloom.pretrain.encoders import build_encoder
from medloom.pretrain.fault_tolerance.bad_steps import BadSteps
from medloom.pretrain.fault_tolerance.guard import Guard
from medloom.pretrain.module import PretrainModule
from medloom.pretrain.objectives import OBJECTIVES


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optim.base_lrr=1", ["optim.base_lrr", "base_lr"]),
        ("objective.mask_ration=0.5", ["objective", "mask_ration", "mask_ratio"]),
        ("objective.name=maee", ["objective.name", "maee", "mae"]),
        ("encoder.name=vitt", ["encoder.name", "vit"]),
        ("encoder.dept=3", ["encoder", "dept", "depth"]),
        ("trainer.steps=0", ["trainer.steps", "0"]),
        ("optim.warmup_fraction=1.5", ["optim.warmup_fraction", "1.5"]),
        ("optim.betas=[0.9]", ["optim.betas", "2"]),
        ("tracking.wandb=onlin", ["tracking.wandb", "online"]),
        ("encoder.in_channels=1", ["encoder.in_channels 1", "3"]),
        ("data.crop=[64]", ["data.crop"]),
    ],
)
def test_mistakes_are_one_line_with_a_mend(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("phantom-mae-2d", [override])
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_run_that_began_with_other_weights_is_continued_by_the_same_command() -> None:
    config = load_config("phantom-mae-2d", ["resume=true", "init_from=runs/x"])
    assert config.resume and config.init_from == "runs/x"
    begun = to_dict(load_config("phantom-mae-2d"))
    assert differences(begun, to_dict(config)) == ["init_from: None -> 'runs/x'"]


def test_unknown_recipe_lists_near_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean phantom-mae-2d"):
        load_config("phantom-mae-2")
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "mine.yaml")


def test_sections_are_filled_and_completing_twice_changes_nothing() -> None:
    config = load_config("phantom-mae-2d", ["seed=7"])
    assert config.data.seed == 7
    assert config.encoder["in_channels"] == 3
    assert config.objective["mask_ratio"] == 0.75
    again = to_dict(complete(config))
    assert again == to_dict(config)
    default = complete(PretrainConfig())
    assert default.encoder["name"] == "vit"
    default.data.ndim, default.data.crop, default.encoder = 3, [32, 32, 32], {}
    assert complete(default).encoder["name"] == "vit3d"
    assert default.encoder["in_channels"] == 1


def test_own_seed_of_the_data_is_kept() -> None:
    assert load_config("phantom-mae-2d", ["seed=7", "data.seed=3"]).data.seed == 3


def test_global_batch_is_divided_or_refused_with_the_numbers() -> None:
    config = load_config("phantom-mae-2d", ["data.batch_size=60", "trainer.accumulate=2"])
    assert per_rank_batch(config, 3) == [10]
    with pytest.raises(
        ConfigError, match=r"60 does not divide by 4 ranks × 2 micro-batches = 8: use 56 or 64"
    ):
        per_rank_batch(config, 4)
    with pytest.raises(ConfigError, match="use 128"):
        per_rank_batch(config, 64)


def test_a_fused_update_is_refused_where_it_would_hide_the_loss_scale() -> None:
    with pytest.raises(ConfigError, match=r"use optim\.fused=auto, or trainer\.precision=bf16-mixed"):
        load_config("phantom-mae-2d", ["trainer.precision=16-mixed", "optim.fused=true"])
    config = load_config("phantom-mae-2d", ["trainer.precision=16-mixed"])
    fused = {}
    for precision in ("16-mixed", "bf16-mixed"):
        config.trainer.precision = precision
        encoder = build_encoder(config.encoder)
        kind, section = polymorphic(config.objective, OBJECTIVES, "objective")
        guard = Guard(config.trainer, BadSteps(Path()))
        module = PretrainModule(config, encoder, kind(section, encoder), guard)
        fused[precision] = module.configure_optimizers().defaults["fused"]
    assert fused == {"16-mixed": False, "bf16-mixed": True}


def test_only_what_changes_the_computation_is_a_difference() -> None:
    saved = to_dict(load_config("phantom-mae-2d"))
    free = ["out=elsewhere", "data.workers=0", "trainer.devices=2", "resume=true", "probe.every_steps=7"]
    moved = load_config("phantom-mae-2d", free)
    assert differences(saved, to_dict(moved)) == []
    other = load_config(
        "phantom-mae-2d", ["optim.base_lr=1.0", "data.batch_size=32", "objective.mask_ratio=0.6"]
    )
    keys = [line.split(":")[0] for line in differences(saved, to_dict(other))]
    assert keys == ["data.batch_size", "objective.mask_ratio", "optim.base_lr"]
