"""A pretrained encoder of nnU-Net's networks: `load(folder)`, then `pooled, tokens = model(images)`.

Needs dynamic-network-architectures, torch and safetensors, and encoder.json with encoder.safetensors in the
folder. Images are float [B, C, D, H, W] ([B, C, H, W] for a 2D network) with sides that are multiples of the
patch, normalised as the model card says; Primus takes the size that it was trained with. `pooled` is [B, E],
`tokens` [B, N, E], row-major over (D, H, W). Names of the tensors are those of ResidualEncoderUNet and
Primus, which take them too: `load_state_dict(..., strict=False)`. Written by medloom (Apache-2.0), whose
encoders resenc and primus it computes.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn


class ResEnc(nn.Module):
    """The residual encoder of nnU-Net."""

    def __init__(self, arguments: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        super().__init__()
        from dynamic_network_architectures.building_blocks.residual_encoders import ResidualEncoder

        ndim = arguments["ndim"]
        convolution: Any = nn.Conv3d if ndim == 3 else nn.Conv2d
        norm: Any = nn.InstanceNorm3d if ndim == 3 else nn.InstanceNorm2d
        self.encoder = ResidualEncoder(
            input_channels=arguments["in_channels"], n_stages=len(arguments["features"]),
            features_per_stage=arguments["features"], conv_op=convolution, conv_bias=True,
            kernel_sizes=by_axis(arguments["kernels"], ndim), strides=by_axis(arguments["strides"], ndim),
            n_blocks_per_stage=arguments["blocks"], norm_op=norm,
            norm_op_kwargs={"eps": 1e-5, "affine": True}, nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True}, return_skips=True,
        )  # fmt: skip
        self.load_state_dict(tensors)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.encoder(x)[-1].flatten(2).transpose(1, 2)
        return tokens.mean(1), tokens


class Primus(nn.Module):
    """Patch embedding, Eva blocks and register tokens of Primus."""

    def __init__(self, arguments: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        super().__init__()
        from dynamic_network_architectures.building_blocks.eva import Eva
        from dynamic_network_architectures.building_blocks.patch_encode_decode import PatchEmbed

        dim, channels, *patch = tensors["down_projection.proj.weight"].shape
        size, count = arguments["img_size"], arguments["registers"]
        heads = arguments["num_heads"] or {"S": 6, "B": 12, "M": 12, "L": 16}[arguments["size"]]
        self.size = tuple(size)
        self.down_projection = PatchEmbed(tuple(patch), channels, dim)
        self.eva = Eva(
            embed_dim=dim, depth=1 + max(int(n.split(".")[2]) for n in tensors if "eva.blocks." in n),
            num_heads=heads, ref_feat_shape=tuple(s // p for s, p in zip(size, patch, strict=True)),
            num_reg_tokens=count, init_values=arguments["layer_scale"], scale_attn_inner=True,
        )  # fmt: skip
        self.register_tokens = nn.Parameter(torch.zeros(1, count, dim)) if count else None
        self.load_state_dict(tensors)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if tuple(x.shape[2:]) != self.size:
            raise ValueError(f"images of {tuple(x.shape[2:])}: the positions belong to {self.size}")
        tokens = self.down_projection(x).flatten(2).transpose(1, 2)
        count = 0
        if self.register_tokens is not None:
            count = self.register_tokens.shape[1]
            tokens = torch.cat([self.register_tokens.expand(len(x), -1, -1), tokens], 1)
        tokens = self.eva(tokens)[0][:, count:]
        return tokens.mean(1), tokens


def by_axis(values: list, ndim: int) -> Any:
    """A list of numbers for each stage, from numbers or such lists."""
    return [[value] * ndim if isinstance(value, int) else list(value) for value in values]


def load(folder: str = ".") -> ResEnc | Primus:
    """The encoder in a folder, ready for inference."""
    record = json.loads((Path(folder) / "encoder.json").read_text())
    kind = ResEnc if record["architecture"]["name"] == "resenc" else Primus
    return kind(record["architecture"]["args"], load_file(Path(folder) / record["file"])).eval()
