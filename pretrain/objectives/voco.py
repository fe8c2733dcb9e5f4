"""VoCo: where in its volume a random crop lies, told by its likeness to a grid of base crops.

Wu, Zhuang and Chen, arXiv 2402.17300, with the term between volumes of arXiv 2410.09890. Anatomy has an
order, so the share of a random crop that lies in each base crop is a label for nothing; base crops of one
volume are pushed apart, lest all look alike. The teacher is a slow copy of the projector alone: one forward
pass of the encoder serves both. Independent benchmarks find it strong for classification and weak for
segmentation (arXiv 2412.17041).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional

from ...data.errors import ConfigError
from ..encoders.base import Encoder
from ..heads import mlp
from ..losses.voco import between_volumes, discrepancy, position, similarity
from ..teacher import Teacher
from ..views import ViewConfig, jittered_boxes, overlap, pick, random_view
from .base import Batch, Facts, Objective, Output


def _view() -> ViewConfig:
    return ViewConfig(flip=0.2, flip_axes=[0, 1, 2], intensity=0.1, brightness=0.1, contrast=[1.0, 1.0],
                      gamma=[1.0, 1.0])  # fmt: skip


class VoCo(Objective):
    """Volume contrast: a grid of base crops, random crops among them."""

    @dataclass(kw_only=True)
    class Config:
        """Fields of the `objective` section; `data.crop` holds the whole grid, here [64, 192, 192]."""

        name: str = "voco"
        size: list[int] = field(default_factory=lambda: [64, 64, 64])  # voxels of every crop (D, H, W)
        grid: list[int] = field(default_factory=lambda: [1, 3, 3])  # base crops along each axis
        crops: int = 4  # random crops of a volume
        regulariser: float = 1.0  # weight of the discrepancy of base crops
        between: float = 1.0  # weight of the agreement about other volumes; 0: the first paper
        momentum: float = 0.9  # of the teacher's projector, constant
        dropout: float = 0.2  # of the student's features, before its projector
        hidden_dim: int = 2048  # of the projector
        out_dim: int = 2048
        view: ViewConfig = field(default_factory=_view)  # of each crop by itself

    facts = Facts(
        title="volume contrast",
        paper="arXiv 2402.17300",
        predicts="how much of a random crop lies in each of a grid of base crops",
        good_for="fine-tuned classification of volumes; weak for segmentation",
        cost="13: nine base crops and four random ones, forward and backward",
    )
    ndims = (3,)

    def __init__(self, config: VoCo.Config, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        if len(config.size) != 3 or len(config.grid) != 3 or min(config.grid) < 1 or config.crops < 1:
            raise ConfigError(
                f"objective.size {config.size}, grid {config.grid}, crops {config.crops}: give three sides, "
                "three numbers of base crops and at least one random crop"
            )
        if config.grid == [1, 1, 1]:
            raise ConfigError("objective.grid is [1, 1, 1]: one base crop tells nothing, e.g. [1, 3, 3]")
        if config.view.size:
            raise ConfigError(
                f"objective.view.size is {config.view.size}: a crop has its own, objective.size"
            )
        if not 0 <= config.momentum <= 1 or not 0 <= config.dropout < 1:
            raise ConfigError(
                f"objective.momentum {config.momentum} and dropout {config.dropout}: both lie from 0 to 1"
            )
        encoder.grid(config.size)
        self.parent = tuple(g * s for g, s in zip(config.grid, config.size, strict=True))
        self.projector = mlp([encoder.embed_dim, config.hidden_dim, config.out_dim])
        self.teacher = Teacher(projector=self.projector)

    def sizes(self, crop: Sequence[int]) -> list[tuple[int, ...]]:
        """See `Objective.sizes`. Raises ConfigError for a crop that the grid does not fit in."""
        if len(crop) != 3 or any(c < p for c, p in zip(crop, self.parent, strict=True)):
            raise ConfigError(
                f"objective voco: the grid {self.config.grid} of {self.config.size} does not fit in a crop "
                f"of {list(crop)}: set data.crop={list(self.parent)}, or a smaller objective.size"
            )
        return [tuple(self.config.size)]

    def step(self, batch: Batch, encoder: Encoder) -> Output:
        """See `Objective.step`. Terms: `position`, `discrepancy`, `between`, before their weights."""
        config = self.config
        crops, share = self.cut(batch)
        pooled = encoder.embed(crops.flatten(0, 1))  # [(n + R) B, E], row k B + b is crop k of volume b
        student = self.projector(functional.dropout(pooled, config.dropout, self.training))
        with torch.no_grad():
            teacher = self.teacher.get_submodule("projector")(pooled.detach())
        bases, randoms = self._parted(student, len(crops))
        slow_bases, slow_randoms = self._parted(teacher, len(crops))
        told = (similarity(randoms, slow_bases) + similarity(slow_randoms, bases)) / 2
        terms = {"position": position(told, share), "discrepancy": discrepancy(bases)}
        loss = terms["position"] + config.regulariser * terms["discrepancy"]
        if config.between:
            terms["between"] = between_volumes(randoms, slow_randoms, slow_bases)
            loss = loss + config.between * terms["between"]
        middle = self.bases // 2
        features = pooled.view(len(crops), -1, pooled.shape[-1])[middle].detach()
        return Output(loss, {name: term.detach() for name, term in terms.items()}, features)

    @property
    def bases(self) -> int:
        """Base crops of a volume."""
        return self.config.grid[0] * self.config.grid[1] * self.config.grid[2]

    def cut(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Crops [n + R, B, C, *size], base crops first, and shares [B, R, n] of random ones in base ones."""
        config, size = self.config, tuple(self.config.size)
        self.sizes(batch.image.shape[2:])
        keys = {"seed": batch.seed, "positions": batch.keys}
        region = batch.image
        if tuple(region.shape[2:]) != self.parent:
            place = jittered_boxes(region, size=self.parent, stream="voco:grid", **keys)
            region = pick(region, place, self.parent)
        parts = []
        for cell in product(*(range(g) for g in config.grid)):
            at = tuple(slice(c * s, (c + 1) * s) for c, s in zip(cell, size, strict=True))
            parts.append(region[(slice(None), slice(None), *at)])
        boxes = [
            jittered_boxes(region, size=size, stream=f"voco:crop:{k}", **keys) for k in range(config.crops)
        ]
        parts += [pick(region, box, size) for box in boxes]
        share = overlap(torch.stack(boxes, dim=1).unsqueeze(2), self._base_boxes(region.device))
        seen = [
            random_view(
                part, config.view, spacing=batch.spacing, modality=batch.modality, limits=batch.limits,
                stream=f"voco:view:{k}", **keys,
            )
            for k, part in enumerate(parts)
        ]  # fmt: skip
        return torch.stack(seen), share

    def _base_boxes(self, device: torch.device) -> Tensor:
        """[n, 3, 2] edges of the base crops in voxels of the grid."""
        sides = self.config.size
        along = [torch.arange(g, device=device) * s for g, s in zip(self.config.grid, sides, strict=True)]
        low = torch.cartesian_prod(*along).float()
        high = torch.stack([low[:, axis] + side for axis, side in enumerate(sides)], dim=1)
        return torch.stack([low, high], dim=2)

    def _parted(self, rows: Tensor, crops: int) -> tuple[Tensor, Tensor]:
        """[(n + R) B, D] -> base crops [B, n, D] and random crops [B, R, D]."""
        by_volume = rows.view(crops, -1, rows.shape[-1]).transpose(0, 1)
        return by_volume[:, : self.bases], by_volume[:, self.bases :]

    def after_update(self, step: int, steps: int, encoder: Encoder) -> None:
        """Move the teacher's projector."""
        self.teacher.update(self.config.momentum, projector=self.projector)

    def panel(self, batch: Batch, encoder: Encoder) -> dict[str, Tensor]:
        """The volume, its middle base crop and the first random ones."""
        crops, _ = self.cut(batch)
        pictures = {"input": batch.image, f"base {self.bases // 2}": crops[self.bases // 2]}
        return pictures | {f"crop {k}": crop for k, crop in enumerate(crops[self.bases :][:2])}
