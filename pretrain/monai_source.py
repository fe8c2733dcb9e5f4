"""Encoders of MONAI: `monai:NAME@FILE`, the encoder of a trained SwinUNETR or SegResNet.

FILE holds the state of MONAI's whole network as its trainers and bundles save it, or of the Swin transformer
alone as its self-supervised tutorials do; nothing in it is unpickled. Sizes are read off the tensors and
decoders are left out. What tensors do not tell has MONAI's defaults: the order in which SwinUNETR merges
(`merging`), and 8 groups in SegResNet.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..data.errors import CheckpointError, nearest
from .state_file import read_state, tensors_in

NETWORKS = ("SwinUNETR", "SegResNet")
_WRAPPERS = ("state_dict", "model", "network", "model_state_dict")  # where trainers put the tensors
_RENAMED = {
    ".mlp.fc1.": ".mlp.linear1.",
    ".mlp.fc2.": ".mlp.linear2.",
}  # the self-supervised tutorial's names


def read_monai(name: str, *, weights: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(encoder section, tensors by artefact name) of `NAME[@FILE]`.

    Raises:
        CheckpointError: an unknown network, no file where weights are wanted, or a file of something else.
    """
    network, _, file = name.partition("@")
    if network not in NETWORKS:
        raise CheckpointError(f"monai:{name}: unknown network {network!r}{nearest(network, NETWORKS)}")
    swin = network == "SwinUNETR"
    if not file:
        if weights:
            raise CheckpointError(
                f"monai:{name}: MONAI ships no weights with it: give monai:{network}@FILE, or "
                f"random:monai:{network}"
            )
        return {"name": "swin3d" if swin else "segresnet"}, {}
    tensors = _tensors(Path(file).expanduser(), "swinViT." if swin else "")
    stem = "swinViT.patch_embed.proj.weight" if swin else "convInit.conv.weight"
    if stem not in tensors:
        raise CheckpointError(f"{file}: holds no {stem}: not the state of a {network}")
    section = _swin(tensors) if swin else _segresnet(tensors)
    prefixes = ("swinViT.",) if swin else ("convInit.", "down_layers.")
    kept = {key: tensor for key, tensor in tensors.items() if key.startswith(prefixes)}
    return section, kept if weights else {}


def _tensors(path: Path, prefix: str) -> dict[str, Tensor]:
    """All tensors of a file under MONAI's names, those of a Swin transformer alone below `prefix`."""
    named = tensors_in(read_state(path), _WRAPPERS, str(path))
    if prefix and "patch_embed.proj.weight" in named:
        named = {prefix + key: tensor for key, tensor in named.items() if _of_swin(key)}
    for old, new in _RENAMED.items():
        named = {key.replace(old, new): tensor for key, tensor in named.items()}
    return named


def _of_swin(key: str) -> bool:
    """Whether a name belongs to the transformer and not to a head of its self-supervised training."""
    return re.match(r"(patch_embed|layers\d)\b", key) is not None


def _swin(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    stem = tensors["swinViT.patch_embed.proj.weight"]
    depths: dict[int, int] = {}
    heads: dict[int, int] = {}
    window = 7
    for key, tensor in tensors.items():
        found = re.match(r"swinViT\.layers(\d)\.0\.blocks\.(\d+)\.attn\.relative_position_bias_table", key)
        if found:
            stage, block = int(found[1]), int(found[2])
            depths[stage] = max(depths.get(stage, 0), block + 1)
            heads[stage] = tensor.shape[1]
            window = (round(tensor.shape[0] ** (1 / 3)) + 1) // 2  # (2 w - 1)³ rows
    return {
        "name": "swin3d", "in_channels": stem.shape[1], "feature_size": stem.shape[0],
        "patch_size": list(stem.shape[2:]), "depths": [depths[stage] for stage in sorted(depths)],
        "num_heads": [heads[stage] for stage in sorted(heads)], "window": [window] * 3,
    }  # fmt: skip


def _segresnet(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    stem = tensors["convInit.conv.weight"]
    blocks: dict[int, set[int]] = {}
    for key in tensors:
        found = re.match(r"down_layers\.(\d+)\.(\d+)\.conv1\.", key)
        if found:
            blocks.setdefault(int(found[1]), set()).add(int(found[2]))
    return {
        "name": "segresnet", "ndim": stem.ndim - 2, "in_channels": stem.shape[1], "filters": stem.shape[0],
        "blocks": [len(blocks[stage]) for stage in sorted(blocks)], "groups": math.gcd(8, stem.shape[0]),
    }  # fmt: skip
