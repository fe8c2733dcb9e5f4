"""Models Genesis: restore an image after its grey scale, its texture and parts of it were spoilt.

Zhou et al., arXiv 1908.06912 and 2004.07882. The spoilt image is what corruptions.py makes of it: a monotone
non-linear intensity (0.9), locally shuffled pixels (0.5), painted over inside or outside (0.9, of which
outside 0.8). A U-Net restores every pixel (mean squared error). Within 0.6 Dice of MAE in the OpenMind
benchmark (arXiv 2412.17041), and the encoder sees whole images, so that no mask has to be thought of. A plain
transformer gets one linear layer instead of the U-Net (decoders.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...data.errors import ConfigError
from ..corruptions import limits_of, random_bezier, random_paint, random_shuffle
from ..decoders import PixelDecoder
from ..encoders.base import Encoder
from ..views import ViewConfig, random_view
from .base import Batch, Facts, Objective, Output

PROBABILITIES = ("intensity", "shuffle", "paint", "inpaint")


class Genesis(Objective):
    """Restoration around any encoder with a pyramid."""

    @dataclass(kw_only=True)
    class Config:
        """Fields of the `objective` section; probabilities are per image."""

        name: str = "genesis"
        intensity: float = 0.9  # probability of a non-linear intensity; half of the curves invert
        shuffle: float = 0.5  # probability of locally shuffled pixels, windows up to a tenth of the side
        paint: float = 0.9  # probability of painting ...
        inpaint: float = 0.2  # ... and, where painted, of painting inside boxes rather than outside
        decoder_width: int = 32  # channels at full resolution, doubled at each coarser one
        decoder_most: int = 256  # largest number of channels
        view: ViewConfig = field(default_factory=ViewConfig)  # mirrored left and right

        def __post_init__(self) -> None:
            for name in PROBABILITIES:
                if not 0 <= getattr(self, name) <= 1:
                    raise ConfigError(
                        f"objective.{name} is {getattr(self, name)}: it is a probability, 0 to 1"
                    )

    facts = Facts(
        title="Models Genesis",
        paper="arXiv 1908.06912",
        predicts="the image from a spoilt one: intensity, shuffled pixels, painted parts",
        good_for="fine-tuning U-Nets for segmentation, decoder included; a simple baseline close to MAE",
        cost="2.0 with a U-Net, 1.1 with a transformer",
    )

    def __init__(self, config: Genesis.Config, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        self.decoders = nn.ModuleDict(
            {
                str(axes): PixelDecoder(
                    encoder, encoder.in_channels, config.decoder_width, config.decoder_most, ndim=axes
                )
                for axes in encoder.axes
            }
        )

    def step(self, batch: Batch, encoder: Encoder) -> Output:
        """See `Objective.step`. Term: `reconstruction`, the loss itself."""
        image = random_view(
            batch.image, self.config.view, batch.seed, batch.keys, spacing=batch.spacing,
            modality=batch.modality, limits=batch.limits, stream="genesis",
        )  # fmt: skip
        restored, pooled = self.restore(self.spoilt(image, batch), encoder)
        loss = functional.mse_loss(restored.float(), image)
        others = (d for axes, d in self.decoders.items() if axes != str(image.ndim - 2))
        # Gradients of zero: distributed training takes a parameter without one for an error.
        unused = pooled.float().sum() + sum(p.sum() for d in others for p in d.parameters())
        total = loss + 0.0 * unused
        return Output(total, {"reconstruction": loss.detach()}, pooled.detach())

    def spoilt(self, image: Tensor, batch: Batch) -> Tensor:
        """What the encoder sees of the images, keyed by (seed, position)."""
        c = self.config
        limits = limits_of(image, batch.limits)
        keys = {"seed": batch.seed, "positions": batch.keys}
        x = random_shuffle(image, probability=c.shuffle, stream="genesis:shuffle", **keys)
        x = random_bezier(x, limits=limits, probability=c.intensity, stream="genesis:intensity", **keys)
        return random_paint(
            x, limits=limits, probability=c.paint, inner=c.inpaint, stream="genesis:paint", **keys
        )

    def restore(self, image: Tensor, encoder: Encoder) -> tuple[Tensor, Tensor]:
        """([B, C, *spatial], pooled [B, E])."""
        features = encoder(image, pyramid=True)
        return self.decoders[str(image.ndim - 2)](features), features.pooled

    @torch.no_grad()
    def panel(self, batch: Batch, encoder: Encoder) -> dict[str, Tensor]:
        """`input`, `spoilt` and `reconstruction`."""
        spoilt = self.spoilt(batch.image, batch)
        return {
            "input": batch.image,
            "spoilt": spoilt,
            "reconstruction": self.restore(spoilt, encoder)[0].float(),
        }
