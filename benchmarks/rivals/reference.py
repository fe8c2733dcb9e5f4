"""SimCLR, MAE and DINO written from the papers around a timm transformer: what one writes without a library.

Straightforward on purpose, as the papers' own code is: one forward a view, losses as the formulas stand.
Transforms are torchvision's, one picture at a time.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import v2

from .base import Rival, Size

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def view(
    side: int, scale: tuple[float, float], *, jitter: float = 0.0, blur: float = 0.0, solarise: float = 0.0
) -> v2.Compose:
    """A torchvision view: crop, flip, colours, blur, solarisation."""
    steps: list[Any] = [v2.RandomResizedCrop((side, side), scale=scale), v2.RandomHorizontalFlip()]
    if jitter:
        colours = v2.ColorJitter(0.8 * jitter, 0.8 * jitter, 0.8 * jitter, 0.2 * jitter)
        steps += [v2.RandomApply([colours], 0.8), v2.RandomGrayscale(0.2)]
    if blur:
        steps.append(v2.RandomApply([v2.GaussianBlur(side // 10 | 1, (0.1, 2.0))], blur))
    if solarise:
        steps.append(v2.RandomSolarize(128, solarise))
    return v2.Compose([*steps, v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])


class Reference(Rival):
    """AdamW with a linear warm-up of a tenth and a cosine."""

    transforms: list[Any]
    rate, decay = 5e-4, 0.05
    settings = "AdamW 5e-4 x batch / 256, weight decay 0.05, warm-up of a tenth, cosine"

    def views(self, picture: Image) -> list[Tensor]:
        return [transform(picture) for transform in self.transforms]

    def optimiser(self, batch: int) -> tuple[torch.optim.Optimizer, Any]:
        trained = [p for p in self.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(trained, lr=self.rate * batch / 256, weight_decay=self.decay)
        warm = max(1, self.steps // 10)

        def share(step: int) -> float:
            if step < warm:
                return (step + 1) / warm
            return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self.steps - warm)))

        return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, share)


class SimCLR(Reference):
    """NT-Xent of arXiv 2002.05709, equation 1, temperature 0.1."""

    def __init__(self, size: Size, steps: int) -> None:
        super().__init__(size, steps)
        hidden, out = size.projector or (2048, 128)
        self.backbone = size.vit()
        self.head = nn.Sequential(
            nn.Linear(size.dim, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, out)
        )
        self.transforms = [view(size.picture, (0.08, 1.0), jitter=1.0, blur=0.5)] * 2

    def loss(self, views: Sequence[Tensor], step: int) -> Tensor:
        z = functional.normalize(torch.cat([self.head(self.backbone(x)) for x in views]), dim=1)
        rows = len(z)
        logits = (z @ z.T / 0.1).masked_fill(torch.eye(rows, dtype=torch.bool, device=z.device), -torch.inf)
        partner = torch.arange(rows, device=z.device).roll(rows // 2)
        return functional.cross_entropy(logits, partner)

    def released(self) -> nn.Module:
        return self.backbone


class MAE(Reference):
    """arXiv 2111.06377: visible tokens through the encoder, blocks of timm as decoder, normalised pixels."""

    rate = 1.5e-4
    settings = "AdamW 1.5e-4 x batch / 256, weight decay 0.05, mask 0.75, decoder 512 x 8 (paper)"

    def __init__(self, size: Size, steps: int) -> None:
        super().__init__(size, steps)
        from timm.models.vision_transformer import Block

        width, depth, heads = size.decoder or (512, 8, 16)
        self.vit = size.vit()
        count = (size.picture // size.patch) ** 2
        self.embed = nn.Linear(size.dim, width)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 1 + count, width) * 0.02)
        self.blocks = nn.Sequential(*[Block(width, heads, qkv_bias=True) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.predict = nn.Linear(width, size.patch**2 * 3)
        self.transforms = [view(size.picture, (0.2, 1.0))]

    def loss(self, views: Sequence[Tensor], step: int) -> Tensor:
        x = views[0]
        tokens = self.vit._pos_embed(self.vit.patch_embed(x))
        cls, patches = tokens[:, :1], tokens[:, 1:]
        rows, count, dim = patches.shape
        order = torch.rand(rows, count, device=x.device).argsort(dim=1)
        restore = order.argsort(dim=1)
        kept = order[:, : count // 4]
        visible = torch.gather(patches, 1, kept.unsqueeze(-1).expand(-1, -1, dim))
        encoded = self.embed(self.vit.norm(self.vit.blocks(torch.cat([cls, visible], dim=1))))
        width = encoded.shape[-1]
        filled = torch.cat([encoded[:, 1:], self.token.expand(rows, count - kept.shape[1], -1)], dim=1)
        filled = torch.gather(filled, 1, restore.unsqueeze(-1).expand(-1, -1, width))
        decoded = self.blocks(torch.cat([encoded[:, :1], filled], dim=1) + self.positions)
        predicted = self.predict(self.norm(decoded))[:, 1:]
        target = functional.unfold(x, self.size.patch, stride=self.size.patch).transpose(1, 2)
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
        hidden = (restore >= kept.shape[1]).float()
        return ((predicted - target).square().mean(-1) * hidden).sum() / hidden.sum()

    def released(self) -> nn.Module:
        return self.vit


class DINO(Reference):
    """arXiv 2104.14294, algorithm 1, with multi-crop and a centre."""

    settings = "AdamW 5e-4 x batch / 256, head 2048-256-65536, 2 + 8 views, momentum 0.996 to 1 (paper)"

    def __init__(self, size: Size, steps: int) -> None:
        super().__init__(size, steps)
        hidden, bottleneck, prototypes = size.head or (2048, 256, 65536)
        self.student = size.vit()
        self.student_head = Head(size.dim, hidden, bottleneck, prototypes)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.teacher_head = copy.deepcopy(self.student_head).requires_grad_(False)
        self.register_buffer("centre", torch.zeros(1, prototypes))
        local = view(size.local, (0.05, 0.4), jitter=0.5, blur=0.5)
        self.transforms = [
            view(size.picture, (0.4, 1.0), jitter=0.5, blur=1.0),
            view(size.picture, (0.4, 1.0), jitter=0.5, blur=0.1, solarise=0.2),
            *[local] * (8 if size.locals is None else size.locals),
        ]

    def loss(self, views: Sequence[Tensor], step: int) -> Tensor:
        with torch.no_grad():
            taught = [self.teacher_head(self.teacher(x)) for x in views[:2]]
            targets = [((t - self.centre) / 0.04).softmax(dim=-1) for t in taught]
            self.centre.mul_(0.9).add_(0.1 * torch.cat(taught).mean(0, keepdim=True))
        found = [(self.student_head(self.student(x)) / 0.1).log_softmax(dim=-1) for x in views]
        terms = [
            -(target * logs).sum(-1).mean()
            for i, target in enumerate(targets)
            for j, logs in enumerate(found)
            if i != j
        ]
        return torch.stack(terms).mean()

    @torch.no_grad()
    def after_update(self, step: int) -> None:
        momentum = 1 - 0.004 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.steps)))
        pairs = ((self.student, self.teacher), (self.student_head, self.teacher_head))
        for student, teacher in pairs:
            for p, q in zip(student.parameters(), teacher.parameters(), strict=True):
                q.mul_(momentum).add_(p, alpha=1 - momentum)

    def released(self) -> nn.Module:
        return self.teacher


class Head(nn.Module):
    """DINO's projection head: three layers, a normalised bottleneck, weight-normed prototypes."""

    def __init__(self, dim: int, hidden: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )  # fmt: skip
        self.last = nn.utils.parametrizations.weight_norm(nn.Linear(bottleneck, prototypes, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(functional.normalize(self.mlp(x), dim=-1))
