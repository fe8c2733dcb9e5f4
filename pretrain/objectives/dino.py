"""DINO: a student agrees with its own slow average about views of one image, small views with large ones.

Caron et al., arXiv 2104.14294. The teacher sees the large ("global") crops only, the student all of them;
crops of one size share a forward pass. The targets are kept from collapse by a running centre or by
Sinkhorn-Knopp over the batch of all ranks. What is saved, probed and shown is the teacher.

It needs pooled features alone and so runs with convolutional encoders too. With a transformer `dinov2` adds
the loss on hidden tokens, which dense tasks gain from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...data.errors import ConfigError, nearest
from ..encoders.base import Encoder
from ..heads import DINOHead
from ..losses.dino import Centre, dino_loss, entropy_share
from ..losses.koleo import kde_loss, koleo_loss
from ..losses.sinkhorn import sinkhorn_knopp
from ..schedules import cosine, linear
from ..teacher import Teacher
from ..views import CropConfig, Crops
from . import crops as views
from .base import Batch, Facts, Objective, Output

CENTRINGS = ("centre", "sinkhorn")


class DINO(Objective):
    """Self-distillation on pooled features around any encoder."""

    @dataclass(kw_only=True)
    class Config:
        """Fields of the `objective` section."""

        name: str = "dino"
        # Crops named "global" are the teacher's, all others the student's alone; those whose size has as many
        # sides as the images are used. Empty: preset dinov2 (2 of 224, 8 of 96), in 3D dinov2-3d (96, 48).
        crops: list[CropConfig] = field(default_factory=list)
        prototypes: int = 65536
        head_hidden: int = 2048
        head_bottleneck: int = 256
        head_layers: int = 3  # before the prototypes
        student_temperature: float = 0.1
        teacher_temperature: list[float] = field(default_factory=lambda: [0.04, 0.04])  # linear, at first ...
        temperature_warmup: float = 0.3  # ... over this share of the steps
        # sinkhorn (3 iterations over all ranks) | centre (the paper's running mean, which in small runs stays
        # at uniform targets for long)
        centring: str = "sinkhorn"
        centre_momentum: float = 0.9
        momentum: list[float] = field(default_factory=lambda: [0.996, 1.0])  # of the teacher, cosine
        freeze_prototypes: float = 0.01  # share of the steps in which the last layer stays still
        koleo_weight: float = 0.0  # on the pooled features of each global crop
        kde_weight: float = 0.0  # the same, bounded: in the place of KoLeo where that is unstable, 0.05

    facts = Facts(
        title="self-distillation with no labels",
        paper="arXiv 2104.14294",
        predicts="the teacher's prototypes of a large view from other views",
        good_for="frozen features, kNN and retrieval, with transformers and convolutional networks alike",
        cost="4 with 2 large and 8 small views: 2 + 8 × 0.18 of the student, 2 forward passes of the teacher",
    )
    least_batch = 2

    def __init__(self, config: DINO.Config, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        check_config(config)
        self.crops = views.crops_for(config.crops, encoder, {2: "dinov2", 3: "dinov2-3d"})
        for crops in self.crops.values():
            check_crops(crops)
            crops.sort(key=lambda crop: crop.name != "global")
        for name, head in self.new_heads(encoder).items():
            self.add_module(name, head)
        self.teacher = Teacher(encoder=encoder, **self.heads())
        self.centre = Centre(config.prototypes, config.centre_momentum) if self.centred else None

    @property
    def centred(self) -> bool:
        """Whether running centres keep the targets from collapse."""
        return self.config.centring == "centre"

    def new_heads(self, encoder: Encoder) -> dict[str, DINOHead]:
        """The heads by name: one for pooled features."""
        c: DINO.Config = self.config
        head = DINOHead(encoder.embed_dim, c.prototypes, c.head_hidden, c.head_bottleneck, c.head_layers)
        return {"head": head}

    def heads(self) -> dict[str, DINOHead]:
        """The student's heads by name; the teacher's have the same names."""
        return {name: module for name, module in self.named_children() if isinstance(module, DINOHead)}

    def sizes(self, crop: Sequence[int]) -> list[tuple[int, ...]]:
        """See `Objective.sizes`."""
        return views.sizes_of(self.crops, crop)

    def step(self, batch: Batch, encoder: Encoder) -> Output:
        """See `Objective.step`. Terms: `dino`, `koleo`, `kde`, and the entropies of the teacher's targets."""
        groups = views.make(batch, self.crops)
        with torch.no_grad():
            teacher: Tensor = self.averaged("encoder").embed(self.seen(groups))
        pooled = views.pooled(groups, encoder, batch).flatten(0, 1)
        loss, terms = self.agree(pooled, teacher, batch)
        return self.output(loss, terms, teacher, len(batch.image))

    def averaged(self, name: str) -> Any:
        """The teacher's module of that name."""
        return getattr(self.teacher, name)

    def seen(self, groups: Sequence[Crops]) -> Tensor:
        """What the teacher sees: the global crops [G · B, C, *size], which come first."""
        first = groups[0]
        count = sum(name.startswith("global:") for name in first.names)
        return first.image[: count * (len(first.image) // len(first.names))]

    def agree(self, student: Tensor, teacher: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and terms of the pooled features of student [V · B, E] and teacher [G · B, E]."""
        c: DINO.Config = self.config
        images, seen = len(batch.image), len(teacher) // len(batch.image)
        with torch.no_grad():
            targets = self.assign(self.averaged("head")(teacher), batch, self.centre)
        logits = self.heads()["head"](student).unflatten(0, (-1, images))
        loss = dino_loss(logits, targets.unflatten(0, (-1, images)), c.student_temperature)
        terms = {
            "dino": loss.detach(),
            "teacher_entropy": entropy_share(targets),
            "marginal_entropy": entropy_share(targets.mean(dim=0)),
        }
        spread = {"koleo": (c.koleo_weight, koleo_loss), "kde": (c.kde_weight, kde_loss)}
        for name, (weight, function) in spread.items():
            if weight:
                value = torch.stack([function(x) for x in student[: seen * images].split(images)]).sum()
                loss, terms[name] = loss + weight * value, value.detach() / seen
        return loss, terms

    def assign(
        self, logits: Tensor, batch: Batch, centre: Centre | None, valid: Tensor | None = None
    ) -> Tensor:
        """The teacher's targets [R, K] from its logits; rows that are not `valid` do not count."""
        c: DINO.Config = self.config
        temperature = linear(
            batch.step, round(c.temperature_warmup * batch.steps), c.teacher_temperature[0],
            c.teacher_temperature[1],
        )  # fmt: skip
        if centre is None:
            return sinkhorn_knopp(logits, temperature, valid=valid)
        if self.training:
            centre.observe(logits, valid)
        return centre(logits, temperature)

    def output(self, loss: Tensor, terms: dict[str, Tensor], teacher: Tensor, images: int) -> Output:
        """The teacher's features of the global crops are what the diagnostics look at."""
        seen = teacher.detach().unflatten(0, (-1, images))
        return Output(loss, terms, seen[0], views=seen if len(seen) > 1 else None)

    def before_update(self, step: int, steps: int, encoder: Encoder) -> None:
        """Hold the prototypes still at first: targets that move with what is to predict them run away."""
        if step < round(self.config.freeze_prototypes * steps):
            for head in self.heads().values():
                head.prototypes.grad = None

    def after_update(self, step: int, steps: int, encoder: Encoder) -> None:
        """Move teacher and centres."""
        momentum = cosine(step, steps, *self.config.momentum)
        self.teacher.update(momentum, encoder=encoder, **self.heads())
        for module in self.children():
            if isinstance(module, Centre):
                module.update()

    def panel(self, batch: Batch, encoder: Encoder) -> dict[str, Tensor]:
        """The first crops of each size beside the images."""
        return views.pictures(batch, self.crops)

    def released(self, encoder: Encoder) -> Encoder:
        """The teacher's encoder."""
        return self.averaged("encoder")


def check_crops(crops: Sequence[CropConfig]) -> None:
    """Refuse crops without two views, or without global ones of one size and share. Raises ConfigError."""
    large = [crop for crop in crops if crop.name == "global"]
    if len({tuple(crop.size) for crop in large}) != 1:
        sizes = ", ".join("×".join(map(str, crop.size)) or "the image" for crop in large) or "none"
        raise ConfigError(f"objective.crops: crops named global have one size, these have {sizes}")
    if len({crop.visible for crop in large}) != 1:
        shares = ", ".join(f"{crop.visible:g}" for crop in large)
        raise ConfigError(f"objective.crops: crops named global have one visible, these have {shares}")
    if sum(crop.count for crop in crops) < 2:
        raise ConfigError("objective.crops: one view has nothing to agree with, set count=2")


def check_config(config: Any) -> None:
    """Refuse numbers that cannot work, before anything is built. Raises ConfigError."""
    if config.centring not in CENTRINGS:
        raise ConfigError(
            f"objective.centring is {config.centring!r}: write {' or '.join(CENTRINGS)}"
            f"{nearest(config.centring, CENTRINGS)}"
        )
    for key, low, high in (("momentum", 0, 1), ("teacher_temperature", 0, None)):
        pair = getattr(config, key)
        wrong = len(pair) != 2 or any(v < low or (high is not None and v > high) for v in pair)
        if wrong or (key == "teacher_temperature" and 0 in pair):
            raise ConfigError(f"objective.{key} is {list(pair)}: write two numbers, at first and in the end")
    if config.student_temperature <= 0 or config.prototypes < 2:
        raise ConfigError(
            f"objective.student_temperature {config.student_temperature} and prototypes {config.prototypes}: "
            "the temperature is above 0, and there are at least 2 prototypes"
        )
