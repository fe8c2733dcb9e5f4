"""Augmentation for supervised tasks: one geometry for image and label map, intensity for the image alone.

The views of pretraining are used, with their draws keyed by (seed, position): every arm of a run sees the
same augmented images, and a resumed run continues exactly. Outside the image its mirror image is shown, so
that no black wedge becomes a feature. A label map takes the label with most weight around each point, which
keeps borders smoother than nearest neighbour. Positions on the CPU let the drawn share of a batch be all that
is computed; nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..pretrain.views import ViewConfig, random_intensity, random_noise, random_placement
from ..pretrain.views.draw import between, draw, log_between, per_sample, sometimes
from .config import AugmentConfig

STREAM = "finetune"
_BENDABLE = 0.2  # deviation of the structures, in normalised units (CT in HU has about 0.04, MR about 1)
_NOISE = 0.15  # largest sigma, in deviations


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
        positions: int64 [B], best on the CPU.
        flips: spatial axes, from 0, that may be mirrored.
        spacing: mm of the grid; a rotation is then one of the world and not of the voxels.
        foreground: (mean, deviation) of the structures, the unit of the intensity changes.
    """
    geometry = ViewConfig(
        flip=0.5, flip_axes=list(flips), affine=config.affine, degrees=config.rotate,
        scale=list(config.scale), shift=0.0, padding="reflection",
    )  # fmt: skip
    steps = None if spacing is None else torch.tensor(list(spacing)).expand(len(image), -1)
    place = random_placement(image, geometry, seed, positions, spacing=steps, stream=STREAM)
    image = place.image(image)
    if labels is not None:
        labels = place.labels(labels)
    return alter(image, positions, config, seed=seed, foreground=foreground), labels


def alter(
    image: Tensor,
    positions: Tensor,
    config: AugmentConfig,
    *,
    seed: int,
    foreground: Sequence[float] | None = None,
) -> Tensor:
    """Draw and apply brightness, contrast, gamma and noise alone; arguments as of `augment`."""
    image = _intensity(image, seed, positions, config.intensity, foreground)
    return random_noise(
        image, seed, positions, sigma=_NOISE * (foreground[1] if foreground else 1.0),
        probability=config.noise, stream=f"{STREAM}:noise",
    )  # fmt: skip


def _intensity(
    x: Tensor, seed: int, positions: Tensor, probability: float, foreground: Sequence[float] | None
) -> Tensor:
    """Brightness +-0.2, contrast 0.8 to 1.25, gamma 0.7 to 1.5.

    With `foreground`, contrast turns about its mean and brightness counts its deviations: 0.2 of the
    normalised range is a matter of taste in MR but 200 HU in CT, six times what tells lesion from liver.
    Gamma bends the whole range and is left out where the structures fill little of it, as in CT.
    """
    stream = f"{STREAM}:intensity"
    if foreground is None:
        return random_intensity(x, seed, positions, probability=probability, stream=stream)
    mean, deviation = foreground
    if deviation > _BENDABLE:
        x = random_intensity(
            x, seed, positions, brightness=0.0, contrast=(1.0, 1.0), probability=probability, stream=stream
        )
    draws = draw(x, seed, stream, positions, 6)  # column 0 decides for both; 4 and 5 are this change's own

    def window(part: Tensor, contrast: Tensor, brightness: Tensor) -> Tensor:
        return mean + per_sample(contrast, part) * (part - mean) + per_sample(brightness, part)

    return sometimes(
        x, draws.below(probability), window,
        log_between(draws.u[:, 4], (0.8, 1.25)), between(draws.u[:, 5], (-0.2, 0.2)) * deviation,
    )  # fmt: skip
