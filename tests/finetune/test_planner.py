"""finetune/planner.py: the plan fits the encoder, the training cases and the memory."""

from __future__ import annotations

import math
from typing import Any

import pytest
from medloom.data.errors import ConfigError
from medloom.finetune.config import FinetuneConfig
from medloom.finetune.planner import Plan, fingerprint, make_plan, shrink
from medloom.finetune.record import TaskRecord
from medloom.pretrain.encoders import build_encoder

VIT3D = {"name": "vit3d", "size": "tiny", "depth": 1, "patch_size": [8, 8, 8]}
VIT = {"name": "vit", "model": "vit_tiny_patch16_224", "img_size": 64, "depth": 1}


def record(kind: str = "segmentation", **values: Any) -> TaskRecord:
    extra: dict[str, Any] = {"structures": {1: "a"}} if kind == "segmentation" else {"classes": ["a", "b"]}
    return TaskRecord(name="t", kind=kind, source={"dataset": "d", "layout": "table"}, **extra, **values)


def config(task: TaskRecord, **values: Any) -> FinetuneConfig:
    return FinetuneConfig(task=task, encoder="e", **values)


def volumes(
    *shapes: tuple[int, int, int], spacing: tuple[float, ...] = (1.0, 1.0, 1.0)
) -> list[dict[str, Any]]:
    return [{"ndim": 3, "shape": [1, *shape], "spacing": list(spacing)} for shape in shapes]


def pictures(*shapes: tuple[int, int, int]) -> list[dict[str, Any]]:
    return [{"ndim": 2, "shape": list(shape), "spacing": None} for shape in shapes]


def test_hippocampus_sized_cases_get_the_patch_that_covers_the_median() -> None:
    task = record()
    metas = volumes((36, 50, 36), (35, 49, 34), (40, 52, 38))
    plan = make_plan(task, config(task), metas, build_encoder(VIT3D))
    assert plan.patch == [40, 56, 40]
    assert plan.spacing == [1.0, 1.0, 1.0]
    assert plan.batch == 4
    assert Plan.from_dict(plan.to_dict()) == plan


def test_patches_are_multiples_and_stay_below_the_cap() -> None:
    for shape in [(512, 512, 300), (20, 512, 512), (7, 9, 300)]:
        patch = shrink(shape, (8, 16, 16), 64**3)
        assert math.prod(patch) <= 64**3
        assert all(side % step == 0 and side >= step for side, step in zip(patch, (8, 16, 16), strict=True))


def test_the_spacing_is_the_median_and_small_differences_are_left_alone() -> None:
    metas = [m for s in (0.7, 0.8, 2.0) for m in volumes((100, 64, 64), spacing=(5.0, s, s))]
    task = record()
    plan = make_plan(task, config(task), metas, build_encoder(VIT3D))
    assert plan.spacing == [5.0, 0.8, 0.8]
    assert plan.target_shape((100, 64, 64), (5.0, 0.82, 0.82)) == (100, 64, 64)
    assert plan.target_shape((100, 64, 64), (5.0, 1.6, 0.8)) == (100, 128, 64)


def test_dimensions_that_differ_are_refused_with_the_mend() -> None:
    task = record()
    with pytest.raises(ConfigError, match="give a 3D encoder"):
        make_plan(task, config(task), volumes((32, 32, 32)), build_encoder(VIT))
    with pytest.raises(ConfigError, match="mixes"):
        fingerprint([*volumes((32, 32, 32)), *pictures((1, 32, 32))], None)


def test_an_encoder_of_both_kinds_is_planned_for_the_images_at_hand() -> None:
    task = record()
    both = build_encoder({"name": "vit_any", "size": "tiny", "depth": 1, "patch_size": [4, 16, 16],
                          "patch_size_2d": [8, 8]})  # fmt: skip
    assert make_plan(task, config(task), volumes((10, 50, 36)), both).patch == [12, 64, 48]
    plan = make_plan(record("classification"), config(task), pictures((1, 60, 40)), both, crop=[56, 40])
    assert plan.ndim == 2 and plan.patch == [56, 40]


def test_a_patch_that_is_no_multiple_is_refused_with_the_nearest() -> None:
    task = record(patch=[30, 32, 32])
    with pytest.raises(ConfigError, match=r"patch=\[32, 32, 32\]"):
        make_plan(task, config(task), volumes((48, 48, 48)), build_encoder(VIT3D))


def test_memory_lowers_the_batch_then_the_patch_and_refuses_what_cannot_fit() -> None:
    task, encoder = record(), build_encoder(VIT3D)
    metas = volumes((64, 64, 64))
    roomy = make_plan(task, config(task, memory_gib=8.0), metas, encoder)
    tight = make_plan(task, config(task, memory_gib=0.05), metas, encoder)
    assert roomy.batch == 4
    assert roomy.patch == [64, 64, 64]
    assert tight.batch < 4 or math.prod(tight.patch) < 64**3
    assert tight.activation_gib <= 0.05
    with pytest.raises(ConfigError, match="GiB"):
        make_plan(task, config(task, memory_gib=0.01, patch=[64, 64, 64]), metas, encoder)


def test_classification_takes_the_training_crop_of_the_encoder_unless_told_otherwise() -> None:
    task, encoder = record("classification"), build_encoder(VIT)
    metas = pictures((1, 300, 200), (3, 300, 220))
    plan = make_plan(task, config(task), metas, encoder, crop=[64, 64])
    assert plan.resize == [64, 64]
    assert plan.channels == 3
    plan = make_plan(task, config(task, image_size=100), metas, encoder, crop=[64, 64])
    assert plan.resize == [112, 112]


def test_several_numbers_of_channels_are_refused() -> None:
    with pytest.raises(ConfigError, match="channels"):
        fingerprint(pictures((3, 32, 32), (4, 32, 32)), None)
    assert fingerprint(pictures((1, 32, 32), (3, 32, 32)), None).channels == 3


def contract(low: list[float], high: list[float]) -> dict[str, Any]:
    return {"modalities": {"ct": {"spacing_mm": {"p5": low, "p50": low, "p95": high}}}}


def test_the_spacing_stays_near_that_of_the_encoders_training() -> None:
    metas = [{**meta, "modality": "ct"} for meta in volumes((100, 64, 64), spacing=(5.0, 0.2, 0.8))]
    task, encoder = record(), build_encoder(VIT3D)
    trained = contract([0.9, 0.7, 0.7], [2.0, 1.5, 1.5])
    plan = make_plan(task, config(task), metas, encoder, contract=trained)
    assert plan.spacing == [4.0, 0.35, 0.8]
    assert plan.fingerprint.spacing == [5.0, 0.2, 0.8]
    assert plan.fingerprint.shape == [125, 37, 64]
    assert "trained near it" in plan.notes[0]
    own = record(spacing=[5.0, 0.2, 0.8])
    assert make_plan(own, config(own), metas, encoder, contract=trained).spacing == [5.0, 0.2, 0.8]
    other = [{**meta, "modality": "mri"} for meta in metas]
    assert make_plan(task, config(task), other, encoder, contract=trained).spacing == [5.0, 0.2, 0.8]


def test_the_plan_is_told_in_a_few_lines() -> None:
    task = record()
    metas = volumes((36, 50, 36), (35, 49, 34), (40, 52, 38), spacing=(2.0, 1.0, 1.0))
    plan = make_plan(task, config(task, batch_size=3), metas, build_encoder(VIT3D))
    text = "\n".join(plan.describe([8, 8, 8]))
    assert "3 training cases, median 36 × 50 × 36 at 2 × 1 × 1 mm" in text
    assert "patch 40 × 56 × 40 (multiples of 8 × 8 × 8), 100 % of the median case" in text
    assert "batch 3" in text
