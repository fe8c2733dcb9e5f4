"""A pretrained 3D ConvNeXt in plain PyTorch: `load(folder)`, then `pooled, tokens = model(images)`.

Needs torch and safetensors, and encoder.json with encoder.safetensors in the folder. Images are float
[B, C, D, H, W] with sides that are multiples of the patch, normalised as the model card says. `pooled` is
[B, E], `tokens` [B, N, E], row-major over (D, H, W). Written by medloom (Apache-2.0), whose encoder
convnext3d it computes; layers and names are those of timm's ConvNeXt, kernels have a depth.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional


class Norm(nn.LayerNorm):
    """Layer norm over the channels of [B, C, D, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Response(nn.Module):
    """Global response norm of ConvNeXt V2 on [B, D, H, W, C]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        size = torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True)
        size = size / (size.mean(dim=-1, keepdim=True) + 1e-6)
        return x + self.weight * (x * size) + self.bias


class Block(nn.Module):
    """Depthwise convolution whose depth is padded by its border slices; norm, MLP, scale, residual."""

    def __init__(self, tensors: dict[str, Tensor], name: str) -> None:
        super().__init__()
        dim, _, *sides = tensors[f"{name}.conv_dw.weight"].shape
        kernel = (sides[0], sides[1], sides[2])
        hidden = tensors[f"{name}.mlp.fc1.weight"].shape[0]
        self.deep = (kernel[0] - 1) // 2
        padding = (0, (kernel[1] - 1) // 2, (kernel[2] - 1) // 2)
        bias = f"{name}.conv_dw.bias" in tensors
        self.conv_dw = nn.Conv3d(dim, dim, kernel, padding=padding, groups=dim, bias=bias)
        self.norm = nn.LayerNorm(dim, 1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, hidden), "fc2": nn.Linear(hidden, dim)})
        if f"{name}.mlp.grn.weight" in tensors:
            self.mlp["grn"] = Response(hidden)
        self.gamma = nn.Parameter(torch.ones(dim)) if f"{name}.gamma" in tensors else None

    def forward(self, x: Tensor) -> Tensor:
        y = functional.pad(x, (0, 0, 0, 0, self.deep, self.deep), mode="replicate") if self.deep else x
        y = functional.gelu(self.mlp["fc1"](self.norm(self.conv_dw(y).movedim(1, -1))))
        y = self.mlp["fc2"](self.mlp["grn"](y) if "grn" in self.mlp else y)
        return x + (y if self.gamma is None else y * self.gamma).movedim(-1, 1)


class Encoder(nn.Module):
    """The network around these tensors, whose shapes say how it is built."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.stem = nn.Sequential(strided(tensors, "stem.0"), norm(tensors, "stem.1"))
        self.stages = nn.ModuleList()
        for index in range(4):
            name = f"stages.{index}"
            blocks = {key.split(".")[3] for key in tensors if key.startswith(f"{name}.blocks.")}
            stage = nn.ModuleDict({"downsample": nn.Sequential(), "blocks": nn.Sequential()})
            if f"{name}.downsample.0.weight" in tensors:
                reduce = strided(tensors, f"{name}.downsample.1")
                stage["downsample"] = nn.Sequential(norm(tensors, f"{name}.downsample.0"), reduce)
            stage["blocks"] = nn.Sequential(
                *(Block(tensors, f"{name}.blocks.{number}") for number in range(len(blocks)))
            )
            self.stages.append(stage)
        last = tensors.get("head.norm.weight")
        self.head = nn.ModuleDict(
            {"norm": nn.Identity() if last is None else nn.LayerNorm(last.shape[0], 1e-6)}
        )
        self.load_state_dict(tensors)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        for stage in self.stages:
            parts: Any = stage
            x = parts["blocks"](parts["downsample"](x))
        return self.head["norm"](x.mean((2, 3, 4))), x.flatten(2).transpose(1, 2)


def strided(tensors: dict[str, Tensor], name: str) -> nn.Conv3d:
    """A convolution whose stride is its kernel."""
    out, channels, *sides = tensors[f"{name}.weight"].shape
    kernel = (sides[0], sides[1], sides[2])
    return nn.Conv3d(channels, out, kernel, kernel, bias=f"{name}.bias" in tensors)


def norm(tensors: dict[str, Tensor], name: str) -> Norm:
    return Norm(tensors[f"{name}.weight"].shape[0], 1e-6)


def load(folder: str = ".") -> Encoder:
    """The encoder in a folder, ready for inference."""
    record = json.loads((Path(folder) / "encoder.json").read_text())
    return Encoder(load_file(Path(folder) / record["file"])).eval()
