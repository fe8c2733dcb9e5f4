"""Supervised pretraining: the classes or the label maps that travel in the shards. The line to compare with.

Each dataset is a head of its own (`data.labels_shared` joins them): one output layer for all classes, and a
softmax over those of the sample's dataset only, as in universal models of partially labelled data
(MultiTalent, arXiv 2303.14444, with a softmax in place of its sigmoids, since structures of one label map
exclude each other). Classes are read from the pooled vector and the mean of the tokens; label maps from a
light decoder (`PixelDecoder`), by cross entropy and Dice. What is unlabelled is seen and counts for nothing.

Labels of test samples, and of those that probes validate on, are withheld by the loader
(data/stream/validation.py): probe scores are those of unseen labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ...data.errors import ConfigError, nearest
from ..decoders import PixelDecoder
from ..encoders.base import Encoder
from ..losses.supervised import cross_entropy, dice_loss, head_logits
from ..views import ViewConfig, random_appearance, random_placement
from .base import Batch, Facts, Objective, Output

TARGETS = ("classes", "masks")


class Supervised(Objective):
    """Classes or label maps, on any encoder."""

    @dataclass(kw_only=True)
    class Config:
        """Fields of the `objective` section."""

        name: str = "supervised"
        target: str = "classes"  # classes (data.labels) | masks (data.masks)
        # Head -> its classes, in the order of their numbers; for masks each begins with the background.
        # Empty: what the shards hold, written here when the run starts.
        classes: dict[str, list[str]] = field(default_factory=dict)
        dice_weight: float = 1.0  # of the Dice loss beside the cross entropy, with masks
        decoder_width: int = 16  # channels at full resolution, with masks; a multiple of 8
        view: ViewConfig = field(
            default_factory=lambda: ViewConfig(
                affine=0.5, scale=[0.8, 1.25], intensity=0.5, blur=0.1, lowres=0.2, noise=0.2
            )
        )

    facts = Facts(
        title="supervised, several datasets",
        paper="arXiv 2303.14444",
        predicts="classes, or label maps, from the image; a head for each dataset",
        good_for="the upper line to compare with, where labels are many; tasks near the labels",
        cost="1 with classes, 1.3 with masks",
    )

    heads: Tensor
    background: Tensor

    def __init__(self, config: Supervised.Config, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        if config.target not in TARGETS:
            raise ConfigError(f"objective.target is {config.target!r}{nearest(config.target, TARGETS)}")
        if not config.classes:
            key = {"classes": "data.labels=class (the key of the labels)", "masks": "data.masks=true"}
            raise ConfigError(
                f"objective supervised learns {config.target}, but none are read: set {key[config.target]}"
            )
        numbers = [head for head, names in enumerate(config.classes.values()) for _ in names]
        first = [place == 0 for names in config.classes.values() for place in range(len(names))]
        self.register_buffer("heads", torch.tensor(numbers), persistent=False)
        self.register_buffer("background", torch.tensor(first), persistent=False)
        self.classifier: nn.Module | None = None
        self.decoders = nn.ModuleDict()
        if config.target == "classes":
            wide = 2 * encoder.embed_dim
            self.classifier = nn.Sequential(nn.LayerNorm(wide), nn.Linear(wide, len(numbers)))
        else:
            for ndim in encoder.axes:
                self.decoders[str(ndim)] = PixelDecoder(
                    encoder, len(numbers), width=config.decoder_width, ndim=ndim
                )

    def sizes(self, crop: Sequence[int]) -> list[tuple[int, ...]]:
        """See `Objective.sizes`."""
        return [tuple(self.config.view.size or crop)]

    def step(self, batch: Batch, encoder: Encoder) -> Output:
        """See `Objective.step`. Terms: `cross_entropy`; with classes `accuracy`, with masks `dice_loss`."""
        image, mask = self.view(batch)
        return self.classes(batch, image, encoder) if mask is None else self.masks(image, mask, encoder)

    def classes(self, batch: Batch, image: Tensor, encoder: Encoder) -> Output:
        """The loss of the classes of images [B, C, *spatial]."""
        if batch.label is None or self.classifier is None:
            raise ConfigError("objective.target classes needs labels: set data.labels to their key")
        features = encoder(image)
        summary = torch.cat([features.pooled, features.tokens.mean(dim=1)], dim=1)
        logits = head_logits(self.classifier(summary), batch.label, self.heads)
        loss = cross_entropy(logits, batch.label)
        known = batch.label >= 0
        right = (logits.argmax(dim=1) == batch.label).sum() / known.sum().clamp_min(1)
        terms = {"cross_entropy": loss.detach(), "accuracy": right.detach()}
        return Output(loss, terms, features.pooled.detach())

    def masks(self, image: Tensor, mask: Tensor, encoder: Encoder) -> Output:
        """The loss of label maps [B, *spatial] on images [B, C, *spatial]."""
        features = encoder(image, pyramid=True)
        logits = head_logits(self.decoders[str(image.ndim - 2)](features), mask, self.heads)
        entropy, dice = cross_entropy(logits, mask), dice_loss(logits, mask, self.background)
        # Of what this batch does not use, gradients are zero instead of none.
        others = [d for axes, d in self.decoders.items() if axes != str(image.ndim - 2)]
        unused = sum((p.sum() for d in others for p in d.parameters()), features.pooled.float().sum())
        loss = entropy + self.config.dice_weight * dice + 0.0 * unused
        terms = {"cross_entropy": entropy.detach(), "dice_loss": dice.detach()}
        return Output(loss, terms, features.pooled.detach())

    def view(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """The augmented images, and with masks their label maps, moved alike."""
        config, image, mask = self.config.view, batch.image, None
        place = random_placement(
            image, config, batch.seed, batch.keys, spacing=batch.spacing, stream="supervised"
        )
        if self.config.target == "masks":
            if batch.mask is None:
                raise ConfigError("objective.target masks needs label maps: set data.masks=true")
            # Beyond the image, zeros vote: they are to mean unknown.
            mask = place.labels(batch.mask + 1) - 1
        image = random_appearance(
            place.image(image), config, batch.seed, batch.keys, modality=batch.modality, limits=batch.limits,
            stream="supervised",
        )  # fmt: skip
        return image, mask
