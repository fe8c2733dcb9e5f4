"""Views on the device: normalisation, flips, affine maps, intensity, noise and blur, batched, in 2D and 3D.

Every random view has a deterministic twin. The random one only draws parameters, keyed by (seed, position,
stream), and calls the twin; nothing depends on the rank, the batch or the number of draws made before. A
sample that a draw spares comes back bit for bit.

The choice: after loading, on the device, in float32. One 96^3 affine costs a CPU core 37 ms, nine to twenty
times the loading of the crop. The price: a sampling grid of 4 n bytes a voxel (n = 2 or 3) while it runs.

Legend: x is [B, C, H, W] or [B, C, D, H, W], n its number of spatial axes; parameters are [B, ...] on the
device of x.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.draws import normal_torch, uniform_torch


@dataclass(kw_only=True)
class ViewConfig:
    """Augmentation of one view; the defaults are MAE's: left-right flips and nothing else."""

    flip: float = 0.5  # probability of a flip, for each axis of flip_axes by itself
    flip_axes: list[int] = field(default_factory=lambda: [-1])  # spatial axes; -1 is left-right
    affine: float = 0.0  # probability of a rotation, scaling and shift
    degrees: float = 15.0  # rotation about every axis, uniform in +- degrees, in millimetres' space
    scale: list[float] = field(default_factory=lambda: [0.9, 1.1])  # zoom, log-uniform
    shift: float = 0.05  # translation, uniform in +- this share of the side
    intensity: float = 0.0  # probability of a change of brightness, contrast and gamma
    brightness: float = 0.2  # added, uniform in +- this many units of the normalised image
    contrast: list[float] = field(default_factory=lambda: [0.8, 1.25])  # factor about the mean, log-uniform
    gamma: list[float] = field(default_factory=lambda: [0.7, 1.5])  # exponent on [min, max], log-uniform
    noise: float = 0.0  # probability of Gaussian noise
    noise_sigma: float = 0.1  # largest sigma, in units of the normalised image
    blur: float = 0.0  # probability of a Gaussian blur
    blur_sigma: float = 1.5  # largest sigma, in pixels


def to_float(batch: Mapping[str, Any], channels: int) -> Tensor:
    """Normalise a batch as it left the loader: (clip(image, low, high) - mean) / std.

    Args:
        batch: `image` [B, C, ...] in any integer or float dtype; `low`, `high`, `mean`, `std` [B, C].
        channels: of the result; a grey image is repeated.

    Returns:
        float32 [B, channels, ...].

    Raises:
        ValueError: the image has neither one nor `channels` channels.
    """
    image: Tensor = batch["image"]
    if image.shape[1] not in (1, channels):
        raise ValueError(f"the image has {image.shape[1]} channels, the encoder sees {channels}")
    shape = (*batch["low"].shape, *[1] * (image.ndim - 2))
    low, high, mean, std = (
        batch[name].to(torch.float32).view(shape) for name in ("low", "high", "mean", "std")
    )
    x = image.to(torch.float32)
    x = (torch.minimum(torch.maximum(x, low), high) - mean) / std
    if x.shape[1] != channels:
        x = x.expand(-1, channels, *[-1] * (x.ndim - 2)).contiguous()
    return x


def random_view(
    x: Tensor,
    config: ViewConfig,
    seed: int,
    positions: Tensor,
    *,
    spacing: Tensor | None = None,
    stream: str = "view",
) -> Tensor:
    """All random views of `config`, in the order flip, affine, intensity, blur, noise. Same shape as x.

    Args:
        positions: int64 [B], in the global order.
        spacing: [B, n] millimetres; None: isotropic.
        stream: name of the view, e.g. "view:1"; two views of one sample need two names.
    """
    key = (seed, positions)
    if config.flip:
        x = random_flip(x, *key, probability=config.flip, axes=config.flip_axes, stream=f"{stream}:flip")
    if config.affine:
        x = random_affine(
            x, *key, degrees=config.degrees, scale=config.scale, shift=config.shift, spacing=spacing,
            probability=config.affine, stream=f"{stream}:affine",
        )  # fmt: skip
    if config.intensity:
        x = random_intensity(
            x, *key, brightness=config.brightness, contrast=config.contrast, gamma=config.gamma,
            probability=config.intensity, stream=f"{stream}:intensity",
        )  # fmt: skip
    if config.blur:
        x = random_blur(x, *key, sigma=config.blur_sigma, probability=config.blur, stream=f"{stream}:blur")
    if config.noise:
        x = random_noise(
            x, *key, sigma=config.noise_sigma, probability=config.noise, stream=f"{stream}:noise"
        )
    return x


def flip(x: Tensor, which: Tensor) -> Tensor:
    """Mirror sample b along spatial axis a where `which` [B, n] is true. Exact."""
    for axis in range(which.shape[1]):
        x = torch.where(_as(which[:, axis], x), x.flip(axis + 2), x)
    return x


def random_flip(
    x: Tensor,
    seed: int,
    positions: Tensor,
    *,
    probability: float = 0.5,
    axes: Sequence[int] = (-1,),
    stream: str = "flip",
) -> Tensor:
    """`flip` along each of `axes` (spatial, 0 or -n is the first) with this probability."""
    n = x.ndim - 2
    draws = uniform_torch(seed, stream, positions, n, x.device)
    allowed = torch.zeros(n, dtype=torch.bool)
    allowed[[axis % n for axis in axes]] = True
    return flip(x, (draws < probability) & allowed.to(x.device))


def affine_matrix(angles: Tensor, scale: Tensor, shift: Tensor, spacing: Tensor | None = None) -> Tensor:
    """Matrices for `affine`: from an output voxel to the input voxel it shows, both counted from the centre.

    Rotation happens in millimetres, so that thick slices do not shear the anatomy.

    Args:
        angles: radians; [B, 1] in 2D, [B, 3] in 3D about the axes d, h, w, applied in the order w, h, d.
        scale: [B] zoom; 2 makes things twice as large.
        shift: [B, n] voxels by which the content moves.
        spacing: [B, n] millimetres, or None for isotropic.

    Returns:
        [B, n, n + 1]; exactly the identity for angles 0, scale 1 and shift 0.
    """
    n = shift.shape[1]
    rotation = _plane_rotation(angles[:, 0], n, (n - 2, n - 1))
    if n == 3:
        rotation = (
            rotation @ _plane_rotation(angles[:, 1], n, (0, 2)) @ _plane_rotation(angles[:, 2], n, (0, 1))
        )
    matrix = rotation / scale[:, None, None]
    if spacing is not None:
        matrix = matrix * (spacing[:, None, :] / spacing[:, :, None])
    offset = -(matrix @ shift[:, :, None])
    return torch.cat([matrix, offset], dim=2)


def affine(
    x: Tensor, matrix: Tensor, *, size: Sequence[int] | None = None, padding: str = "border"
) -> Tensor:
    """Resample: out(o) = x(matrix @ [o, 1]), linear, coordinates in voxels counted from the centres.

    The convention is that of `scipy.ndimage.affine_transform`, but for the origin.

    Args:
        matrix: [B, n, n + 1], see `affine_matrix`.
        size: spatial shape of the result; None: that of x.
        padding: beyond the image: "border", "reflection" or "zeros" (0 is about the mean of the image).

    Returns:
        [B, C, *size]; samples whose matrix is the identity come back bit for bit.
    """
    spatial = x.shape[2:]
    size = tuple(size) if size is not None else tuple(spatial)
    n = len(spatial)
    matrix = matrix.to(torch.float32)
    axes = [torch.arange(s, device=x.device, dtype=torch.float32) - (s - 1) / 2 for s in size]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(1, -1, n)
    grid = grid @ matrix[:, :, :n].transpose(1, 2) + matrix[:, None, :, n]
    extent = torch.tensor(spatial, device=x.device, dtype=torch.float32)
    grid = (grid * (2 / extent)).flip(-1).reshape(x.shape[0], *size, n)  # grid_sample wants (x, y, z)
    out = F.grid_sample(x, grid, mode="bilinear", padding_mode=padding, align_corners=False)
    if size == tuple(spatial):
        same = (matrix == torch.eye(n, n + 1, device=x.device)).flatten(1).all(dim=1)
        out = torch.where(_as(same, x), x, out)
    return out


def random_affine(
    x: Tensor,
    seed: int,
    positions: Tensor,
    *,
    degrees: float = 15.0,
    scale: Sequence[float] = (0.9, 1.1),
    shift: float = 0.05,
    spacing: Tensor | None = None,
    probability: float = 1.0,
    padding: str = "border",
    stream: str = "affine",
) -> Tensor:
    """`affine` with drawn angles (+- degrees), zoom (log-uniform) and shift (+- share of the side)."""
    n = x.ndim - 2
    turns = 1 if n == 2 else 3
    draws = uniform_torch(seed, stream, positions, 2 + turns + n, x.device).to(torch.float32)
    on = (draws[:, 0] < probability).to(torch.float32)
    zoom = torch.exp(on * _log_range(draws[:, 1], scale))
    angles = on[:, None] * (2 * draws[:, 2 : 2 + turns] - 1) * math.radians(degrees)
    sides = torch.tensor(x.shape[2:], device=x.device, dtype=torch.float32)
    moves = on[:, None] * (2 * draws[:, 2 + turns :] - 1) * shift * sides
    spacing = None if spacing is None else spacing.to(device=x.device, dtype=torch.float32)
    return affine(x, affine_matrix(angles, zoom, moves, spacing), padding=padding)


def intensity(x: Tensor, brightness: Tensor, contrast: Tensor, gamma: Tensor) -> Tensor:
    """Change the grey scale of each sample and channel, keeping what 0, 1 and 1 leave alone bit for bit.

    u = (x - min) / (max - min); x = min + (max - min) u^gamma; x = mean + contrast (x - mean) + brightness.

    Args:
        brightness, contrast, gamma: [B], one for all channels, so that grey stays grey.
    """
    axes = tuple(range(2, x.ndim))
    low, high = x.amin(axes, keepdim=True), x.amax(axes, keepdim=True)
    span = (high - low).clamp_min(torch.finfo(torch.float32).tiny)
    curved = low + span * ((x - low) / span).clamp(0, 1) ** _as(gamma, x)
    out = torch.where(_as(gamma == 1, x), x, curved)
    mean = out.mean(axes, keepdim=True)
    stretched = mean + _as(contrast, x) * (out - mean)
    return torch.where(_as(contrast == 1, x), out, stretched) + _as(brightness, x)


def random_intensity(
    x: Tensor,
    seed: int,
    positions: Tensor,
    *,
    brightness: float = 0.2,
    contrast: Sequence[float] = (0.8, 1.25),
    gamma: Sequence[float] = (0.7, 1.5),
    probability: float = 1.0,
    stream: str = "intensity",
) -> Tensor:
    """`intensity`, brightness uniform in +- `brightness`, contrast and gamma log-uniform in their ranges."""
    draws = uniform_torch(seed, stream, positions, 4, x.device).to(torch.float32)
    on = (draws[:, 0] < probability).to(torch.float32)
    return intensity(
        x,
        on * (2 * draws[:, 1] - 1) * brightness,
        torch.exp(on * _log_range(draws[:, 2], contrast)),
        torch.exp(on * _log_range(draws[:, 3], gamma)),
    )


def noise(x: Tensor, sigma: Tensor, field: Tensor) -> Tensor:
    """Add sigma [B] times a standard normal field [B, 1, ...], one for all channels: grey stays grey."""
    return x + _as(sigma, x) * field


def random_noise(
    x: Tensor,
    seed: int,
    positions: Tensor,
    *,
    sigma: float = 0.1,
    probability: float = 1.0,
    stream: str = "noise",
) -> Tensor:
    """`noise` with sigma uniform in [0, `sigma`]."""
    draws = uniform_torch(seed, stream, positions, 2, x.device).to(torch.float32)
    sigmas = torch.where(draws[:, 0] < probability, draws[:, 1] * sigma, 0.0)
    flat = normal_torch(seed, f"{stream}:field", positions, math.prod(x.shape[2:]), x.device)
    return noise(x, sigmas, flat.view(x.shape[0], 1, *x.shape[2:]))


def blur(x: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Gaussian blur, separable, sampled kernel cut at `radius` pixels, edges repeated.

    Args:
        sigma: [B] pixels, the same along every axis; 0 leaves the sample alone bit for bit.
        radius: at least 3 times the largest sigma, or the kernel is visibly cut.
    """
    at = torch.arange(-radius, radius + 1, device=x.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (at / sigma[:, None].clamp_min(1e-3)) ** 2)  # [B, 2 radius + 1]; a delta for 0
    kernel = kernel / kernel.sum(dim=1, keepdim=True)
    for axis in range(2, x.ndim):
        last = x.shape[axis] - 1
        index = torch.arange(-radius, last + radius + 1, device=x.device).clamp(0, last)
        padded = x.index_select(axis, index)
        x = sum(
            (_as(kernel[:, k], x) * padded.narrow(axis, k, last + 1) for k in range(2 * radius + 1)),
            start=torch.zeros((), device=x.device),
        )
    return x


def random_blur(
    x: Tensor,
    seed: int,
    positions: Tensor,
    *,
    sigma: float = 1.5,
    probability: float = 1.0,
    stream: str = "blur",
) -> Tensor:
    """`blur` with sigma uniform in [0, `sigma`] pixels."""
    draws = uniform_torch(seed, stream, positions, 2, x.device).to(torch.float32)
    sigmas = torch.where(draws[:, 0] < probability, draws[:, 1] * sigma, 0.0)
    return blur(x, sigmas, radius=max(1, math.ceil(3 * sigma)))


def _plane_rotation(angle: Tensor, n: int, plane: tuple[int, int]) -> Tensor:
    """[B, n, n] rotation by `angle` [B] in the plane of two axes, identity elsewhere."""
    a, b = plane
    matrix = torch.eye(n, device=angle.device, dtype=angle.dtype).repeat(len(angle), 1, 1)
    matrix[:, a, a] = matrix[:, b, b] = torch.cos(angle)
    matrix[:, a, b] = torch.sin(angle)
    matrix[:, b, a] = -torch.sin(angle)
    return matrix


def _log_range(draw: Tensor, limits: Sequence[float]) -> Tensor:
    """Logarithm of a log-uniform number in [low, high] from a uniform draw."""
    low, high = math.log(limits[0]), math.log(limits[1])
    return low + (high - low) * draw


def _as(parameter: Tensor, x: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, ...], to multiply with x."""
    return parameter.view(-1, *[1] * (x.ndim - 1))
