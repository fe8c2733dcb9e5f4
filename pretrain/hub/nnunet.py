"""An encoder for nnU-Net: the checkpoint with an adaptation plan that nnssl writes, for ResEnc and Primus.

nnU-Net's fine-tuning (`nnUNetv2_preprocess_like_nnssl`, `nnUNetv2_train_pretrained`) reads three things of a
checkpoint, with `weights_only=True`: `network_weights`; `nnssl_adaptation_plan`, which says how the new
network is built, on which patch, and below which names stem and encoder lie; and `citations`. The keys are
those of nnssl's `AdaptationPlan.serialize` (github.com/MIC-DKFZ/nnssl, adaptation_planning), read off its
source; the names of the tensors are nnU-Net's already. What medloom knows better than the plan can say: no
volume was resampled (`noresample`, spacing null), and intensities were normalised as `input` of encoder.json
says, while nnU-Net will z-score them; instance norm behind the first convolution takes most of that out.

`checkpoint_final.pth`, `adaptation_plan.json` and `config.json` are the names that nnU-Net asks a repository
of the hub for.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...data.atomic import replacing, write_json
from ...data.errors import ConfigError
from ..contract import crops_of
from ..encoders import Encoder
from ..encoders.resenc import ResEnc, by_axis

CHECKPOINT, PLAN, MARKER = "checkpoint_final.pth", "adaptation_plan.json", "config.json"
CONFIGURATION = "noresample"  # nnssl's name of training in the volumes' own spacing
USUAL_PATCH = 160  # voxels a side, nnssl's recommendation where there is no contract

_LOCATED = {  # where nnU-Net's networks have stem and encoder
    "resenc": {
        "key_to_encoder": "encoder.stages",
        "key_to_stem": "encoder.stem",
        "keys_to_in_proj": ["encoder.stem.convs.0.conv", "encoder.stem.convs.0.all_modules.0"],
        "key_to_lpe": None,
    },
    "primus": {
        "key_to_encoder": "eva",
        "key_to_stem": "down_projection",
        "keys_to_in_proj": ["down_projection.proj"],
        "key_to_lpe": "eva.pos_embed",
    },
}


def write_nnunet(
    folder: Path, encoder: Encoder, tensors: Mapping[str, Tensor], contract: Mapping[str, Any]
) -> Path:
    """Write checkpoint, plan and marker; returns the checkpoint.

    Args:
        tensors: by artefact name.
        contract: `input` of encoder.json.

    Raises:
        ConfigError: a network that nnU-Net's fine-tuning cannot build.
    """
    plan = adaptation_plan(encoder, contract)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / CHECKPOINT) as temporary:
        torch.save({"network_weights": dict(tensors), "nnssl_adaptation_plan": plan}, temporary)
    write_json(folder / PLAN, plan)
    write_json(folder / MARKER, {"library": "nnunet", "arch_class_name": _name(plan)})
    return folder / CHECKPOINT


def adaptation_plan(encoder: Encoder, contract: Mapping[str, Any]) -> dict[str, Any]:
    """`AdaptationPlan.serialize()` of nnssl for this encoder, plain JSON values.

    Raises:
        ConfigError: see `write_nnunet`.
    """
    family = str(encoder.config.name)
    if family not in _LOCATED or encoder.ndim != 3:
        raise ConfigError(
            f"--to nnunet: nnU-Net fine-tunes 3D resenc and primus, this is a {encoder.ndim}D {family}: use "
            "--to artefact"
        )
    crop = _crop(encoder, contract)
    usual = [max(p, USUAL_PATCH // p * p) for p in encoder.patch_size]
    return {
        "architecture_plans": _resenc(encoder) if isinstance(encoder, ResEnc) else _primus(encoder),
        "pretrain_plan": _pretrain_plan(contract, crop),
        "pretrain_num_input_channels": encoder.in_channels,
        "recommended_downstream_patchsize": crop or usual,
        **_LOCATED[family],
    }


def _name(plan: Mapping[str, Any]) -> str:
    return str(plan["architecture_plans"]["arch_class_name"])


def _crop(encoder: Encoder, contract: Mapping[str, Any]) -> list[int] | None:
    """Voxels (D, H, W) of a training crop; a table of positions belongs to its own."""
    stored = getattr(encoder.config, "img_size", None)
    found = [int(n) for n in stored or next((crop for crop in crops_of(contract) if len(crop) == 3), [])]
    return found or None


def _resenc(encoder: ResEnc) -> dict[str, Any]:
    """nnssl's preset where it is one, else the arguments of ResidualEncoderUNet."""
    config: ResEnc.Config = encoder.config
    stages = len(config.features)
    arguments: dict[str, Any] = {
        "n_stages": stages,
        "features_per_stage": list(config.features),
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": by_axis(config.kernels, stages, 3, "kernels"),
        "strides": by_axis(config.strides, stages, 3, "strides"),
        "n_blocks_per_stage": list(config.blocks),
        "n_conv_per_stage_decoder": [1] * (stages - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.modules.activation.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    preset = ResEnc.Config()
    same = [
        by_axis(getattr(config, key), stages, 3, key) == by_axis(getattr(preset, key), 6, 3, key)
        for key in ("kernels", "strides")
    ]
    if config.features == preset.features and config.blocks == preset.blocks and all(same):
        return {"arch_class_name": "ResEncL", "arch_kwargs": None, "arch_kwargs_requiring_import": None}
    return {
        "arch_class_name": "ResidualEncoderUNet",
        "arch_kwargs": arguments,
        "arch_kwargs_requiring_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def _primus(encoder: Encoder) -> dict[str, Any]:
    """One of the four sizes: nnU-Net builds no other Primus by name."""
    config: Any = encoder.config
    other = [
        key
        for key, usual in (("embed_dim", None), ("depth", None), ("num_heads", None), ("registers", 0),
                           ("patch_size", [8, 8, 8]), ("layer_scale", 0.1))
        if getattr(config, key) != usual
    ]  # fmt: skip
    if other:
        raise ConfigError(
            f"--to nnunet: nnU-Net builds Primus in its sizes only, and encoder.{other[0]} is "
            f"{getattr(config, other[0])}: use --to artefact"
        )
    return {
        "arch_class_name": f"Primus{config.size}",
        "arch_kwargs": None,
        "arch_kwargs_requiring_import": None,
    }


def _pretrain_plan(contract: Mapping[str, Any], crop: list[int] | None) -> dict[str, Any]:
    """nnssl's `Plan`: how the data of pretraining were prepared, in its words."""
    seen = [m["spacing_mm"]["p50"] for m in _by_count(contract) if "spacing_mm" in m]
    resample = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    return {
        "dataset_name": "medloom",
        "plans_name": "medloomPlans",
        "original_median_spacing_after_transp": [float(mm) for mm in (seen[0] if seen else (1, 1, 1))],
        "image_reader_writer": "SimpleITKIO",  # slice first, as here
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {
            CONFIGURATION: {
                "data_identifier": f"medloomPlans_{CONFIGURATION}",
                "preprocessor_name": "DefaultPreprocessor",
                "spacing_style": CONFIGURATION,
                "normalization_schemes": ["ZScoreNormalization"],
                "use_mask_for_norm": [False],
                "resampling_fn_data": "resample_data_or_seg_to_shape",
                "resampling_fn_data_kwargs": resample,
                "resampling_fn_mask": "resample_data_or_seg_to_shape",
                "resampling_fn_mask_kwargs": {**resample, "order": 1},
                "spacing": None,
                "patch_size": crop,
            }
        },
        "experiment_planner_used": "medloom",
    }


def _by_count(contract: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Modalities, the one with most images first."""
    modalities: Mapping[str, Any] = contract.get("modalities") or {}
    return sorted(modalities.values(), key=lambda facts: -int(facts.get("images") or 0))
