"""2D encoders on volumes: slice by slice with a light aggregator, or inflated to a 3D network.

`slices` runs the 2D encoder on every slice along the first axis; a token is then one slice deep. What is
added is a depthwise convolution over three slices and an attention that pools slices, both zero at first, so
that frozen features are the mean over slices and fine-tuning starts from them. A segmentation decoder mixes
depth by its own 3D convolutions. The price is the arithmetic of as many images as there are slices.

`inflate` repeats the kernels along depth and divides by it (I3D, arXiv 1705.07750, section 2), for a plain
transformer (-> vit3d) and ConvNeXt (-> convnext3d): a volume of equal slices gives what the picture gave, up
to positions, which are computed in 3D. Tokens are as deep as wide in millimetres where the patch has a power
of two for it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..data.config import to_dict
from ..data.errors import CheckpointError, ConfigError
from ..pretrain.encoders import Encoder, Features, Hide, build_encoder
from ..pretrain.encoders.convnet import ConvNet
from ..pretrain.encoders.vit import ViT
from ..pretrain.transfer import Report, adapt, fill

logger = logging.getLogger(__name__)


class Slices(Encoder):
    """A 2D encoder over the slices of volumes [B, C, D, H, W]; its patch is (1, h, w)."""

    ndim = 3

    def __init__(self, flat: Encoder) -> None:
        super().__init__(flat.config)
        self.flat = flat
        self.embed_dim, self.in_channels = flat.embed_dim, flat.in_channels
        self.patch_size = (1, *flat.patch_of(2))
        self.stem = f"flat.{flat.stem}"
        self.mix = nn.Conv1d(flat.embed_dim, flat.embed_dim, 3, padding=1, groups=flat.embed_dim, bias=False)
        self.score = nn.Linear(flat.embed_dim, 1, bias=False)
        nn.init.zeros_(self.mix.weight)
        nn.init.zeros_(self.score.weight)

    def forward(
        self, x: Tensor, keep: Tensor | None = None, pyramid: bool = False, hide: Hide | None = None
    ) -> Features:
        """See `Encoder.forward`; levels of `pyramid` are as deep as the volume."""
        self.check(x, keep, pyramid, hide)
        return self._joined(self.flat(x.transpose(1, 2).flatten(0, 1), pyramid=pyramid), len(x))

    def last(self, x: Tensor, count: int) -> list[Features]:
        """See `Encoder.last`."""
        self.check(x)
        return [self._joined(one, len(x)) for one in self.flat.last(x.transpose(1, 2).flatten(0, 1), count)]

    def _joined(self, found: Features, batch: int) -> Features:
        """Features of slices [B * D, ...] -> of volumes; blocks of other widths than E are averaged."""
        pooled = found.pooled.unflatten(0, (batch, -1))  # [B, D, E]
        tokens = found.tokens.unflatten(0, (batch, -1))  # [B, D, N, E]
        depth = pooled.shape[1]
        if pooled.shape[-1] == self.embed_dim:
            pooled, tokens = pooled + self._mixed(pooled[:, :, None])[:, :, 0], tokens + self._mixed(tokens)
            share = torch.softmax(self.score(pooled), dim=1)
            pooled = (share * pooled).sum(dim=1)
        else:
            pooled = pooled.mean(dim=1)
        maps = found.pyramid and [m.unflatten(0, (batch, -1)).transpose(1, 2) for m in found.pyramid]
        return Features(pooled, tokens.flatten(1, 2), (depth, *(found.grid or ())), maps)

    def _mixed(self, x: Tensor) -> Tensor:
        """What neighbouring slices add: [B, D, N, E] -> the same shape."""
        batch, depth, count, width = x.shape
        columns = x.permute(0, 2, 3, 1).reshape(batch * count, width, depth)
        return self.mix(columns).reshape(batch, count, width, depth).permute(0, 3, 1, 2)

    def added(self) -> list[nn.Parameter]:
        """The aggregator."""
        return [*self.mix.parameters(), *self.score.parameters()]

    def layer_groups(self) -> list[list[tuple[str, nn.Parameter]]]:
        """Those of the 2D encoder, and the aggregator behind its last."""
        groups = [[(f"flat.{name}", p) for name, p in group] for group in self.flat.layer_groups()]
        own = [(name, p) for name, p in self.named_parameters() if not name.startswith("flat.")]
        return [*groups, own]


def fitted(
    encoder: Encoder,
    report: Report,
    *,
    ndim: int,
    dims: str | None,
    spacing: Sequence[float] | None = None,
    seed: int = 0,
) -> Encoder:
    """An encoder as `load_encoder` gave it, for images of `ndim` axes.

    Args:
        report: of the loading; of `random:` weights the 3D network is built anew and not inflated.
        dims: how a 2D encoder meets volumes; None: it stays as it is, and the planner refuses it.
        spacing: mm of the volumes, for the depth of inflated tokens.

    Raises:
        ConfigError: an encoder that has no 3D form.
    """
    if dims is None or ndim != 3 or 3 in encoder.axes:
        return encoder
    if dims == "slices":
        return Slices(encoder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        deep = build_encoder(_inflated(encoder, spacing))
    if report.source.startswith("random:"):
        return deep
    tensors = {key.removeprefix(encoder.inner): value for key, value in encoder.state_dict().items()}
    done = adapt(encoder, deep, tensors)
    try:
        found = fill(deep, tensors, report.source, True, report.record, new_tokens=True)
    except CheckpointError as error:
        raise ConfigError(f"dims=inflate: {error}; or choose dims=slices") from error
    logger.info("%s, inflated: %s", found, "; ".join(done))
    return deep


def restored(encoder: Encoder, ndim: int, dims: str | None) -> Encoder:
    """The encoder of a finished arm, built from the section in arm.json, for images of `ndim` axes."""
    return Slices(encoder) if dims == "slices" and ndim == 3 and 3 not in encoder.axes else encoder


def _inflated(encoder: Encoder, spacing: Sequence[float] | None) -> dict[str, Any]:
    """The section of the 3D network that takes this 2D encoder's weights."""
    side = encoder.patch_of(2)[0]
    depth = _token_depth(side, spacing)
    if isinstance(encoder, ViT):
        return {"name": "vit3d", **_transformer(encoder), "patch_size": [depth, side, side]}
    if isinstance(encoder, ConvNet) and "convnext" in encoder.config.model:
        section = {"name": "convnext3d", "model": encoder.config.model, "in_channels": encoder.in_channels}
        strides = [1, 1, 1, 1]
        for stage in (3, 2, 1):
            strides[stage] = 2 if depth // math.prod(strides) >= 2 else 1
        strides[0] = depth // math.prod(strides)
        return {**section, "depth_strides": strides, "kwargs": dict(encoder.config.kwargs)}
    raise ConfigError(
        f"dims=inflate: encoder {to_dict(encoder.config).get('model', encoder.config.name)} has no 3D form "
        "(a plain transformer and ConvNeXt have): choose dims=slices"
    )


def _transformer(encoder: ViT) -> dict[str, Any]:
    """Sizes of timm's transformer as fields of `ViT3D.Config`."""
    model = cast(Any, encoder.model)
    block = model.blocks[0]
    rotary = getattr(model, "rope", None) is not None
    hidden = getattr(block.mlp, "fc1", None)
    return {
        "in_channels": encoder.in_channels, "embed_dim": encoder.embed_dim, "depth": len(model.blocks),
        "num_heads": int(block.attn.num_heads), "positions": "rope" if rotary else "sincos",
        "mlp_ratio": hidden.out_features / encoder.embed_dim if hidden is not None else 4.0,
        "pool": "token" if model.global_pool == "token" else "mean",
        "registers": max(0, encoder.prefix - 1),
        "layer_scale": 1e-5 if _has_layer_scale(block) else None,
    }  # fmt: skip


def _has_layer_scale(block: Any) -> bool:
    return hasattr(getattr(block, "ls1", None), "gamma") or getattr(block, "gamma_1", None) is not None


def _token_depth(side: int, spacing: Sequence[float] | None) -> int:
    """Voxels along depth of a token `side` wide: the half, quarter, ... of it that is nearest in mm."""
    if not spacing or len(spacing) != 3:
        return side
    wanted = side * min(spacing[1:]) / spacing[0]
    choices = [side // 2**power for power in range(12) if side % 2**power == 0]
    return min(choices, key=lambda depth: abs(math.log(depth / wanted)))
