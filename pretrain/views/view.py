"""One random view of each image: geometry once, then the scanner, then the picture, in a fixed order.

The order follows the physics: bias field and grey scale are the object's, stain and colour the laboratory's,
sharpness and resolution the detector's, noise comes after all of them; solarising and erasing are no physics
and come last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...data.sample import MODALITIES
from .bias import random_bias_field
from .blur import random_blur, random_sharpen
from .colour import random_colour, random_grayscale, random_solarise
from .config import ViewConfig
from .draw import require_float32
from .erase import random_erase
from .intensity import random_intensity
from .lowres import random_low_resolution
from .noise import random_noise, random_rician
from .normalise import Limits
from .placement import random_placement
from .stain import random_stain


def random_view(
    x: Tensor,
    config: ViewConfig,
    seed: int,
    positions: Tensor,
    *,
    spacing: Tensor | None = None,
    modality: Tensor | None = None,
    limits: Limits | None = None,
    stream: str = "view",
) -> Tensor:
    """All random views of `config`: geometry (one resampling), then `random_appearance`.

    Args:
        x: [B, C, *spatial] float32, normalised.
        positions: int64 [B], in the global order. On the CPU, whatever the device of x, only drawn samples
            are computed; on a GPU all are.
        spacing: [B, n] millimetres; None: isotropic.
        modality: int64 [B], codes of `data.sample.MODALITIES`; None: of the modality that each transform is
            for.
        limits: black and white of x, see `limits`; only colours need them.
        stream: name of the view, e.g. "view:1"; two views of one sample need two names.

    Returns:
        [B, C, *size], size that of `config`, or of x.

    Raises:
        TypeError: x is not float32.
        ValueError: a colour transform without limits, or the view is larger than the image.
    """
    require_float32(x)
    if config.flip or config.affine or config.size:
        x = random_placement(x, config, seed, positions, spacing=spacing, stream=stream).image(x)
    return random_appearance(x, config, seed, positions, modality=modality, limits=limits, stream=stream)


def random_appearance(
    x: Tensor,
    config: ViewConfig,
    seed: int,
    positions: Tensor,
    *,
    modality: Tensor | None = None,
    limits: Limits | None = None,
    stream: str = "view",
) -> Tensor:
    """`random_view` without its geometry; the arguments are the same."""
    drawn = _Drawn(config, seed, positions, modality, limits, stream)
    x = _object(x, config, drawn)
    x = _colours(x, config, drawn)
    x = _detector(x, config, drawn)
    if config.solarise:
        x = random_solarise(x, threshold=config.solarise_threshold, **drawn.coloured("solarise"))
    if config.erase:
        x = random_erase(
            x, area=config.erase_area, aspect=config.erase_aspect, count=config.erase_count,
            **drawn("erase"),
        )  # fmt: skip
    return x


@dataclass(frozen=True, slots=True)
class _Drawn:
    """What all transforms of one view are told."""

    config: ViewConfig
    seed: int
    positions: Tensor
    modality: Tensor | None
    limits: Limits | None
    stream: str

    @property
    def black(self) -> Tensor | None:
        """[B], the value of no signal, where it is known."""
        return None if self.limits is None else self.limits.black.mean(dim=1).to(torch.float32)

    def __call__(self, name: str) -> dict[str, Any]:
        """Arguments of the transform whose probability has this name."""
        return {
            "seed": self.seed,
            "positions": self.positions,
            "probability": getattr(self.config, name),
            "stream": f"{self.stream}:{name}",
            "only": self._only(name),
        }

    def coloured(self, name: str) -> dict[str, Any]:
        """The same for a transform that works between black and white."""
        if self.limits is None:
            raise ValueError(f"view.{name} works between black and white: give `limits`, see views.limits")
        return self(name) | {"limits": self.limits}

    def _only(self, name: str) -> Tensor | None:
        """bool [B]: samples that the transform is for; None: all."""
        wanted = self.config.only(name)
        if self.modality is None or not wanted:
            return None
        allowed = torch.zeros_like(self.modality, dtype=torch.bool)
        for word in wanted:
            allowed = allowed | (self.modality == MODALITIES.index(word))
        return allowed


def _object(x: Tensor, c: ViewConfig, drawn: _Drawn) -> Tensor:
    """What the scanner makes of the object's grey scale."""
    if c.bias:
        x = random_bias_field(
            x, strength=c.bias_strength, order=c.bias_order, black=drawn.black, **drawn("bias")
        )
    if c.intensity:
        x = random_intensity(
            x, brightness=c.brightness, contrast=c.contrast, gamma=c.gamma, **drawn("intensity")
        )
    return x


def _colours(x: Tensor, c: ViewConfig, drawn: _Drawn) -> Tensor:
    """Stain, light and camera."""
    if c.stain:
        x = random_stain(x, sigma=c.stain_sigma, **drawn.coloured("stain"))
    if c.colour:
        x = random_colour(
            x, brightness=c.colour_brightness, contrast=c.colour_contrast, saturation=c.colour_saturation,
            hue=c.colour_hue, **drawn.coloured("colour"),
        )  # fmt: skip
    if c.grayscale:
        x = random_grayscale(x, **drawn.coloured("grayscale"))
    return x


def _detector(x: Tensor, c: ViewConfig, drawn: _Drawn) -> Tensor:
    """Sharpness, resolution and noise."""
    if c.sharpen:
        x = random_sharpen(x, amount=c.sharpen_amount, **drawn("sharpen"))
    if c.blur:
        x = random_blur(x, sigma=(c.blur_least, c.blur_sigma), **drawn("blur"))
    if c.lowres:
        x = random_low_resolution(x, factor=c.lowres_factor, axes=c.lowres_axes, **drawn("lowres"))
    if c.noise:
        x = random_noise(x, sigma=c.noise_sigma, **drawn("noise"))
    if c.rician:
        x = random_rician(x, sigma=c.noise_sigma, black=drawn.black, **drawn("rician"))
    return x
