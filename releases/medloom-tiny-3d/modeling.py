"""A pretrained 3D vision transformer in plain PyTorch: `load(folder)`, then `pooled, tokens = model(images)`.

Needs torch and safetensors, and encoder.json with encoder.safetensors in the folder. Images are float
[B, C, D, H, W] with sides that are multiples of the patch, normalised as the model card says ([B, C, H, W]
where the network takes pictures too). `pooled` is [B, E], `tokens` [B, N, E], row-major over (D, H, W).
Written by medloom (Apache-2.0), whose encoders vit3d, vit3d_learnt and vit_any it computes.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

HEADS = {"tiny": 3, "small": 6, "base": 12, "large": 16}


class Scale(nn.Module):
    """A learnt factor for each channel."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm attention and MLP; `rope` turns queries and keys by sines and cosines [N, d]."""

    def __init__(self, dim: int, heads: int, hidden: int, scaled: bool, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps), nn.LayerNorm(dim, eps)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(dim, 3 * dim), "proj": nn.Linear(dim, dim)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, hidden), "fc2": nn.Linear(hidden, dim)})
        self.ls1 = Scale(dim) if scaled else nn.Identity()
        self.ls2 = Scale(dim) if scaled else nn.Identity()

    def forward(self, x: Tensor, rope: Tensor | None) -> Tensor:
        parts = self.attn["qkv"](self.norm1(x)).unflatten(2, (3, self.heads, -1))
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        if rope is not None:
            q, k = turned(q, rope), turned(k, rope)
        y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.ls1(self.attn["proj"](y))
        return x + self.ls2(self.mlp["fc2"](functional.gelu(self.mlp["fc1"](self.norm2(x)))))


class Encoder(nn.Module):
    """The network that `encoder.json` describes, around these tensors."""

    def __init__(self, arguments: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.arguments = arguments
        dim = tensors["norm.weight"].shape[0]
        heads = arguments["num_heads"] or HEADS[arguments["size"]]
        hidden, scaled = tensors["blocks.0.mlp.fc1.weight"].shape[0], "blocks.0.ls1.gamma" in tensors
        depth = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
        eps = float(arguments.get("norm_eps", 1e-6))
        self.heads, self.learnt = heads, "pos_embed" in tensors
        for name in ("patch_embed", "patch_embed_2d"):
            if f"{name}.proj.weight" in tensors:
                out, channels, *patch = tensors[f"{name}.proj.weight"].shape
                kind: Any = nn.Conv3d if len(patch) == 3 else nn.Conv2d
                setattr(self, name, nn.ModuleDict({"proj": kind(channels, out, patch, patch)}))
        for name in ("cls_token", "reg_token", "pos_embed"):
            held = nn.Parameter(torch.zeros_like(tensors[name])) if name in tensors else None
            self.register_parameter(name, held)
        self.blocks = nn.ModuleList(Block(dim, heads, hidden, scaled, eps) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps)
        self.load_state_dict(tensors)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        embed: Any = self.patch_embed if x.ndim == 5 else self.patch_embed_2d
        cells = embed["proj"](x)
        grid = (1,) * (5 - x.ndim) + tuple(cells.shape[2:])  # a picture is a volume of depth 1
        tokens = cells.flatten(2).transpose(1, 2)
        held: Any = (self.cls_token, self.reg_token)
        first: list[Tensor] = [token for token in held if token is not None]
        prefix = int(sum(token.shape[1] for token in first))
        rope = None
        if self.learnt:
            tokens, first = self._learnt(tokens, grid, first)
        else:
            kind = self.arguments["positions"]
            if kind != "rope":
                tokens = tokens + sincos(grid, tokens.shape[2]).to(tokens)
            if kind != "sincos":
                rope = rotations(grid, tokens.shape[2] // self.heads, self.arguments["rope_base"], prefix)
                rope = rope.to(tokens.device)
        tokens = torch.cat([*(token.expand(len(x), -1, -1) for token in first), tokens], 1)
        blocks: Any = self.blocks
        for block in blocks:
            tokens = block(tokens, rope)
        tokens = self.norm(tokens)
        patches = tokens[:, prefix:]
        return tokens[:, 0] if self.arguments["pool"] == "token" else patches.mean(1), patches

    def _learnt(self, tokens: Tensor, grid: tuple[int, ...], first: list) -> tuple[Tensor, list]:
        """The table of positions belongs to the grid of `img_size`; for others it is resampled."""
        old = [s // p for s, p in zip(self.arguments["img_size"], self.arguments["patch_size"], strict=True)]
        own = 0 if self.cls_token is None else 1
        stored: Any = self.pos_embed
        head, table = stored[:, :own], stored[:, own:]
        if tuple(old) != grid:
            table = table.transpose(1, 2).unflatten(2, old)
            table = functional.interpolate(table, size=grid, mode="trilinear").flatten(2).transpose(1, 2)
        return tokens + table, ([first[0] + head, *first[1:]] if own else first)


def angles(grid: tuple[int, ...], count: int, base: float) -> list[Tensor]:
    """index · base^(-i/count) along each axis, [N, count] each."""
    frequency = torch.pow(base, -torch.arange(count, dtype=torch.float32) / count)
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in grid), indexing="ij")
    return [axis.reshape(-1, 1) * frequency for axis in axes]


def sincos(grid: tuple[int, ...], dim: int) -> Tensor:
    """Sines and cosines of each axis, filled up with zeros: [N, dim]."""
    parts = [part for a in angles(grid, dim // 6, 10000.0) for part in (a.sin(), a.cos())]
    return functional.pad(torch.cat(parts, 1), (0, dim - 6 * (dim // 6)))


def rotations(grid: tuple[int, ...], dim: int, base: float, prefix: int) -> Tensor:
    """Sines, then cosines, of the angles of a head [prefix + N, dim]; the prefix is turned by nothing."""
    table = torch.cat(angles(grid, dim // 6, base), 1)
    table = functional.pad(table, (0, dim // 2 - table.shape[1], prefix, 0))
    return torch.cat([table.sin(), table.cos()], 1)


def turned(x: Tensor, table: Tensor) -> Tensor:
    """Channels i and i + d/2 are the coordinates of a pair."""
    (sine, cosine), (first, second) = table.chunk(2, -1), x.float().chunk(2, -1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1).to(x)


def load(folder: str = ".") -> Encoder:
    """The encoder in a folder, ready for inference."""
    record = json.loads((Path(folder) / "encoder.json").read_text())
    tensors = load_file(Path(folder) / record["file"])
    return Encoder(record["architecture"]["args"], tensors).eval()
