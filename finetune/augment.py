"""Augmentation for supervised tasks: one geometry for image and label map, intensity for the image alone.

The views of pretraining are used, with their draws keyed by (seed, position): every arm of a run sees the
same augmented images, and a resumed run continues exactly. Outside the image its mirror image is shown, so
that no black wedge becomes a feature. A label map is resampled as one map per structure and the largest
wins, which keeps borders smoother than nearest neighbour; the price is that many channels. Only the drawn
share of a batch is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ..data.draws import uniform_torch
from ..pretrain import views
from .config import AugmentConfig

_STREAM = "finetune"
_BENDABLE = 0.2  # deviation of the structures, in normalised units (CT in HU has about 0.04, MR about 1)


def augment(
    image: Tensor,
    labels: Tensor | None,
    positions: Tensor,
    config: AugmentConfig,
    *,
    seed: int,
    flips: Sequence[int] = (),
    spacing: Sequence[float] | None = None,
    foreground: Sequence[float] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Draw and apply flips, an affine, brightness, contrast, gamma and noise.

    Args:
        image: [B, C, *spatial] float, normalised.
        labels: int64 [B, *spatial], or None.
        positions: int64 [B].
        flips: spatial axes, from 0, that may be mirrored.
        spacing: mm of the grid; a rotation is then one of the world and not of the voxels.
        foreground: (mean, deviation) of the structures, the unit of the intensity changes.
    """
    ndim = image.ndim - 2
    chosen = uniform_torch(seed, f"{_STREAM}:which", positions, 3 + ndim, image.device)
    allowed = torch.tensor([axis in flips for axis in range(ndim)], device=image.device)
    mirrored = (chosen[:, 3:] < 0.5) & allowed
    image = views.flip(image, mirrored)
    if labels is not None:
        labels = views.flip(labels[:, None], mirrored)[:, 0]
    turned = chosen[:, 0] < config.affine
    if bool(turned.any()):
        matrix = _matrices(positions[turned], config, seed, image, spacing)
        image = _some(image, turned, lambda x: views.affine(x, matrix, padding="reflection"))
        if labels is not None:
            labels = _some(labels, turned, lambda x: _resample_labels(x, matrix))
    changed = chosen[:, 1] < config.intensity
    image = _some(image, changed, lambda x: _intensity(x, seed, positions[changed], foreground))
    noisy = chosen[:, 2] < config.noise
    sigma = 0.15 * (foreground[1] if foreground else 1.0)
    return _some(image, noisy, lambda x: views.random_noise(x, seed, positions[noisy], sigma=sigma)), labels


def _intensity(x: Tensor, seed: int, positions: Tensor, foreground: Sequence[float] | None) -> Tensor:
    """Brightness +-0.2, contrast 0.8 to 1.25, gamma 0.7 to 1.5.

    With `foreground`, contrast turns about its mean and brightness counts its deviations: 0.2 of the
    normalised range is a matter of taste in MR but 200 HU in CT, six times what tells lesion from liver.
    Gamma bends the whole range and is left out where the structures fill little of it, as in CT.
    """
    if foreground is None:
        return views.random_intensity(x, seed, positions)
    mean, deviation = foreground
    if deviation > _BENDABLE:
        x = views.random_intensity(x, seed, positions, brightness=0.0, contrast=(1.0, 1.0))
    draws = uniform_torch(seed, f"{_STREAM}:window", positions, 2, x.device).to(torch.float32)
    shape = (-1, *[1] * (x.ndim - 1))
    contrast = torch.exp(math.log(1.25) * (2 * draws[:, 0] - 1)).view(shape)
    return mean + contrast * (x - mean) + (0.4 * draws[:, 1] - 0.2).view(shape) * deviation


def _matrices(
    positions: Tensor, config: AugmentConfig, seed: int, image: Tensor, spacing: Sequence[float] | None
) -> Tensor:
    """Affine matrices [B, n, n + 1] of these positions: angles uniform, zoom log-uniform, no shift."""
    n = image.ndim - 2
    draws = uniform_torch(seed, f"{_STREAM}:affine", positions, 4, image.device).to(torch.float32)
    angles = (2 * draws[:, : 1 if n == 2 else 3] - 1) * math.radians(config.rotate)
    low, high = (math.log(limit) for limit in config.scale)
    zoom = torch.exp(low + (high - low) * draws[:, 3])
    steps = None
    if spacing is not None:
        steps = torch.tensor(list(spacing), device=image.device).expand(len(draws), -1)
    return views.affine_matrix(angles, zoom, torch.zeros(len(draws), n, device=image.device), steps)


def _resample_labels(labels: Tensor, matrix: Tensor) -> Tensor:
    one_hot = functional.one_hot(labels).movedim(-1, 1).to(torch.float32)
    return views.affine(one_hot, matrix, padding="reflection").argmax(dim=1)


def _some(x: Tensor, chosen: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """`x` with `change` applied to the chosen samples."""
    if not bool(chosen.any()):
        return x
    result = x.clone()
    result[chosen] = change(x[chosen])
    return result
