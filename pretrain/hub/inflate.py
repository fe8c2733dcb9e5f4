"""The 3D network that a 2D one can start: what `--patch-depth` of `medloom weights convert` makes.

The weights are inflated as I3D does (arXiv 1705.07750, section 2): kernels repeat along depth and are
divided by it, so that a volume whose slices are all alike gives what the picture gave. It is a start for
training, not an encoder of volumes: what lies between two slices, no 2D network has ever seen.
"""

from __future__ import annotations

from typing import Any, cast

from ...data.errors import ConfigError
from ..encoders import Encoder


def solid_section(flat: Encoder, patch_depth: int) -> dict[str, Any]:
    """The `encoder` section of the 3D network for a 2D one.

    Args:
        patch_depth: voxels along depth of a patch (of the stem, for a ConvNeXt).

    Raises:
        ConfigError: a network that has no 3D counterpart here, or is 3D already.
    """
    name = str(flat.config.name)
    if flat.ndim != 2 or patch_depth < 1:
        raise ConfigError(
            f"--patch-depth {patch_depth}: makes a 2D network 3D with a depth of at least 1; {name} is "
            f"{flat.ndim}D"
        )
    model = str(getattr(flat.config, "model", ""))
    if name == "vit":
        return _transformer(flat, patch_depth)
    if name == "convnet" and "convnext" in model:
        return {
            "name": "convnext3d", "model": model.split(".")[0], "in_channels": flat.in_channels,
            "depth_strides": [patch_depth, 2, 2, 2], "kwargs": dict(flat.config.kwargs),
        }  # fmt: skip
    raise ConfigError(
        f"--patch-depth: {name} {model} has no 3D counterpart: plain transformers (vit) and ConvNeXt have"
    )


def _transformer(flat: Encoder, patch_depth: int) -> dict[str, Any]:
    """Sizes read off the network, so that defaults of timm's model need not be known."""
    model = cast(Any, flat).model
    block = model.blocks[0]
    if getattr(model, "cls_token", None) is None:
        raise ConfigError(f"--patch-depth: {flat.config.model} has no class token, which vit3d needs")
    scale = getattr(getattr(block, "ls1", None), "gamma", getattr(block, "gamma_1", None))
    registers = 0 if getattr(model, "reg_token", None) is None else int(model.reg_token.shape[1])
    hidden = getattr(block.mlp.fc1, "out_features", 4 * flat.embed_dim)
    return {
        "name": "vit3d", "patch_size": [patch_depth, *flat.patch_size], "in_channels": flat.in_channels,
        "embed_dim": flat.embed_dim, "depth": len(model.blocks), "num_heads": int(block.attn.num_heads),
        "mlp_ratio": hidden / flat.embed_dim, "registers": registers,
        "layer_scale": None if scale is None else 1e-5,
        "positions": "sincos" if getattr(model, "rope", None) is None else "rope",
        "pool": "token" if getattr(model, "global_pool", "token") == "token" else "mean",
    }  # fmt: skip
