"""SimCLR, MAE, DINO and LeJEPA of stable-pretraining, with the numbers of its own benchmark scripts.

benchmarks/imagenet10/{simclr-vit-small, mae-vit-base, lejepa_vit_small_quick}.py and
benchmarks/imagenet100/dino-vit-tiny.py of its repository, the ones for transformers nearest in size. Warm-ups
are scaled with the length of the run. Its Lightning module and probes are left out: they only cost time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import stable_pretraining as spt
import torch
from PIL.Image import Image
from stable_pretraining.data import transforms
from stable_pretraining.optim import LARS, LinearWarmupCosineAnnealing
from torch import Tensor, nn

from .base import Rival, Size

JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1, "p": 0.8}


def view(side: int, scale: tuple[float, float], *, blur: float, solarise: float = 0.0) -> transforms.Compose:
    """The view of its SimCLR and DINO scripts."""
    steps = [
        transforms.RGB(), transforms.RandomResizedCrop((side, side), scale=scale),
        transforms.ColorJitter(**JITTER), transforms.RandomGrayscale(p=0.2),
        transforms.PILGaussianBlur(p=blur),
    ]  # fmt: skip
    if solarise:
        steps.append(transforms.RandomSolarize(threshold=0.5, p=solarise))
    steps += [transforms.RandomHorizontalFlip(p=0.5), transforms.ToImage(**spt.data.static.ImageNet)]
    return transforms.Compose(*steps)


class Stable(Rival):
    """What its methods share: a list of transforms, one a view."""

    transforms: list[Any]

    def views(self, picture: Image) -> list[Tensor]:
        return [transform({"image": picture})["image"] for transform in self.transforms]


class SimCLR(Stable):
    """LARS at 0.3 x batch / 256, temperature 0.2, projector 2048-2048-256, batch 256 (here 128)."""

    settings = "its ViT-S script: LARS 0.3 x batch / 256, T 0.2, projector 2048-2048-256; batch 128 for 256"

    def __init__(self, size: Size, steps: int) -> None:
        super().__init__(size, steps)
        hidden, out = size.projector or (2048, 256)
        dims = (hidden, out) if size.projector else (hidden, hidden, out)
        self.model = spt.methods.SimCLR(encoder_name=size.vit(), projector_dims=dims, temperature=0.2)
        self.transforms = [
            view(size.picture, (0.08, 1.0), blur=1.0),
            view(size.picture, (0.08, 1.0), blur=0.1, solarise=0.2),
        ]

    def loss(self, views: Sequence[Tensor], step: int) -> Tensor:
        return self.model(views[0], views[1]).loss

    def optimiser(self, batch: int) -> tuple[torch.optim.Optimizer, Any]:
        optimiser = LARS(
            self.parameters(), lr=0.3 * batch / 256, weight_decay=1e-4, clip_lr=True, eta=0.02,
            exclude_bias_n_norm=True,
        )  # fmt: skip
        return optimiser, LinearWarmupCosineAnnealing(
            optimiser, self.steps, peak_step=max(1, self.steps // 100)
        )

    def released(self) -> nn.Module:
        return self.model.backbone


class MAE(Stable):
    """AdamW at 5e-4, decoder 512 x 8, pixels normalised in each patch, batch 64."""

    settings = "its ViT-B script: AdamW 5e-4, weight decay 0.05, mask 0.75, decoder 512 x 8; batch 64"
    batch = 64

    def __init__(self, size: Size, steps: int) -> None:
        super().__init__(size, steps)
        width, depth, heads = size.decoder or (512, 8, 16)
        self.model = spt.methods.MAE(
            size.vit(), decoder_embed_dim=width, decoder_depth=depth, decoder_num_heads=heads
        )
        self.transforms = [
            transforms.Compose(
                transforms.RGB(),
                transforms.RandomResizedCrop((size.picture, size.picture), scale=(0.2, 1.0)),
                transforms.RandomHorizontalFlip(p=0.5),
                transforms.ToImage(**spt.data.static.ImageNet),
            )
        ]

    def loss(self, views: Sequence[Tensor], step: int) -> Tensor:
        return self.model(views[0]).loss

    def optimiser(self, batch: int) -> tuple[torch.optim.Optimizer, Any]:
        optimiser = torch.optim.AdamW(self.parameters(), lr=5e-4, weight_decay=0.05, betas=(0.9, 0.95))
        return optimiser, LinearWarmupCosineAnnealing(
            optimiser, self.steps, peak_step=max(1, self.steps * 40 // 600), end_lr=5e-5
        )

    def released(self) -> nn.Module:
        return self.model.encoder.vit


class DINO(Stable):
    """AdamW at 5e-3, head with batch norm and 65,536 prototypes, 6 local views, batch 256 (here 128)."""

    settings = (
        "its ViT-tiny script: AdamW 5e-3, head 2048-256-65536, 2 + 6 views, EMA 0.9995; batch 128 for 256"
    )

    def __init__(self, size: Size, steps: int) -> None:
        super().__init__(size, steps)
        hidden, bottleneck, prototypes = size.head or (2048, 256, 65536)
        norm = nn.Identity if size.head else nn.BatchNorm1d
        head = nn.Sequential(
            nn.Linear(size.dim, hidden), norm(hidden), nn.GELU(),
            nn.Linear(hidden, hidden), norm(hidden), nn.GELU(),
            nn.Linear(hidden, bottleneck), spt.backbone.L2Norm(),
            nn.Linear(bottleneck, prototypes, bias=False),
        )  # fmt: skip
        self.backbone = spt.TeacherStudentWrapper(size.vit(), base_ema_coefficient=0.9995)
        self.head = spt.TeacherStudentWrapper(head, base_ema_coefficient=0.9995)
        self.criterion = spt.losses.DINOv1Loss(temperature_student=0.1, center_momentum=0.9)
        large, small = (0.4, 1.0), (0.05, 0.4)
        self.transforms = [
            view(size.picture, large, blur=1.0),
            view(size.picture, large, blur=0.1, solarise=0.2),
            *[view(size.local, small, blur=0.5)] * (6 if size.locals is None else size.locals),
        ]

    def loss(self, views: Sequence[Tensor], step: int) -> Tensor:
        rows = len(views[0])
        large = torch.cat(list(views[:2]))
        with torch.no_grad():
            teacher = self.head.forward_teacher(self.backbone.forward_teacher(large)).view(2, rows, -1)
        student = [self.head.forward_student(self.backbone.forward_student(large)).view(2, rows, -1)]
        if len(views) > 2:
            small = self.head.forward_student(self.backbone.forward_student(torch.cat(list(views[2:]))))
            student.append(small.view(len(views) - 2, rows, -1))
        warm = min(1.0, step / max(1, self.steps * 50 // 400))
        target = self.criterion.softmax_center_teacher(teacher, teacher_temp=0.04 + 0.03 * warm)
        loss = self.criterion(torch.cat(student), target)
        self.criterion.update_center(teacher)
        return loss

    def optimiser(self, batch: int) -> tuple[torch.optim.Optimizer, Any]:
        trained = [p for p in self.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(trained, lr=5e-3, weight_decay=1e-4)
        return optimiser, LinearWarmupCosineAnnealing(
            optimiser, self.steps, peak_step=max(1, self.steps // 100)
        )

    def after_update(self, step: int) -> None:
        for wrapped in (self.backbone, self.head):
            wrapped.update_teacher()
            wrapped.update_ema_coefficient(min(step, self.steps), self.steps)

    def released(self) -> nn.Module:
        return self.backbone.teacher


class LeJEPA(Stable):
    """AdamW at 4e-4, SIGReg weight 0.02 over 1024 directions, 2 + 6 views, drop path 0.1, batch 128."""

    settings = "its ViT-S script: AdamW 4e-4, weight decay 0.05, weight 0.02, 2 + 6 views; batch 128"

    def __init__(self, size: Size, steps: int) -> None:
        super().__init__(size, steps)
        self.model = spt.methods.LeJEPA("vit_tiny_patch16_224", lamb=0.02)
        self.model.backbone = size.vit(drop_path_rate=0.1)  # its constructor takes names of timm only
        self.transforms = [self._view(size.picture, (0.3, 1.0))] * 2
        self.transforms += [self._view(size.local, (0.05, 0.3))] * (6 if size.locals is None else size.locals)

    @staticmethod
    def _view(side: int, scale: tuple[float, float]) -> transforms.Compose:
        return transforms.Compose(
            transforms.RGB(), transforms.RandomResizedCrop((side, side), scale=scale),
            transforms.RandomHorizontalFlip(p=0.5), transforms.ColorJitter(**JITTER),
            transforms.RandomGrayscale(p=0.2),
            transforms.GaussianBlur(kernel_size=23 * side // 224 | 1, sigma=(0.1, 2.0), p=0.5),
            transforms.RandomSolarize(threshold=128, p=0.2), transforms.ToImage(**spt.data.static.ImageNet),
        )  # fmt: skip

    def loss(self, views: Sequence[Tensor], step: int) -> Tensor:
        return self.model(global_views=list(views[:2]), local_views=list(views[2:])).loss

    def optimiser(self, batch: int) -> tuple[torch.optim.Optimizer, Any]:
        optimiser = torch.optim.AdamW(self.parameters(), lr=4e-4, weight_decay=0.05, betas=(0.9, 0.999))
        return optimiser, LinearWarmupCosineAnnealing(
            optimiser, self.steps, peak_step=max(1, self.steps // 10), end_lr=4e-6
        )

    def released(self) -> nn.Module:
        return self.model.backbone
