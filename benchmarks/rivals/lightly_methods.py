"""SimCLR, MAE, DINO and DINOv2 as lightly's examples set them up, on the common transformer.

Numbers: the examples of lightly 1.6; where one has none (a warm-up, say), there is none here. Two things
differ for all contenders alike: the network, and views of 64 and 32 pixels instead of 224 and 96.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from lightly.loss import DINOLoss, IBOTPatchLoss, KoLeoLoss, NTXentLoss
from lightly.models import utils
from lightly.models.modules import (
    DINOProjectionHead,
    DINOv2ProjectionHead,
    MAEDecoderTIMM,
    MaskedVisionTransformerTIMM,
    SimCLRProjectionHead,
)
from lightly.transforms import DINOTransform, MAETransform, SimCLRTransform
from lightly.utils.scheduler import CosineWarmupScheduler, cosine_schedule, linear_warmup_schedule
from PIL.Image import Image
from torch import Tensor, nn

from .base import Rival, Size


class SimCLR(Rival):
    """SGD at 0.06, temperature 0.5, head 512 -> 128, batch 256 (here 128)."""

    settings = "lightly's example: SGD 0.06, T 0.5, SimCLRTransform; batch 128 for 256"
    temperature = 0.5

    def __init__(self, size: Size, steps: int) -> None:
        super().__init__(size, steps)
        self.backbone = size.vit()
        self.head = SimCLRProjectionHead(size.dim, *(size.projector or (512, 128)))
        self.criterion = NTXentLoss(temperature=self.temperature)
        # "With small images the blur is left out", says the example for 32 pixels.
        self.transform = SimCLRTransform(input_size=size.picture, gaussian_blur=0.0)

    def views(self, picture: Image) -> list[Tensor]:
        return self.transform(picture)

    def loss(self, views: Sequence[Tensor], step: int) -> Tensor:
        first, second = (self.head(self.backbone(view)) for view in views)
        return self.criterion(first, second)

    def optimiser(self, batch: int) -> tuple[torch.optim.Optimizer, Any]:
        return torch.optim.SGD(self.parameters(), lr=0.06), None

    def released(self) -> nn.Module:
        return self.backbone


class SimCLRAdamW(SimCLR):
    """The same with what lightly's ViT benchmarks train with, as SGD suits a ResNet better than a ViT."""

    settings = "as lightly/simclr with AdamW 5e-4 x batch / 256, weight decay 0.05, cosine, T 0.1"
    temperature = 0.1

    def optimiser(self, batch: int) -> tuple[torch.optim.Optimizer, Any]:
        optimiser = torch.optim.AdamW(self.parameters(), lr=5e-4 * batch / 256, weight_decay=0.05)
        return optimiser, CosineWarmupScheduler(optimiser, max(1, self.steps // 10), self.steps)


class MAE(Rival):
    """AdamW at 1.5e-4, mask 0.75, raw pixels, decoder 512 wide with one block (eight would cost far more)."""

    settings = "lightly's example: AdamW 1.5e-4, mask 0.75, decoder 512 x 1, raw pixels; batch 128 for 256"
    ratio = 0.75

    def __init__(self, size: Size, steps: int) -> None:
        super().__init__(size, steps)
        width, depth, heads = size.decoder or (512, 1, 16)
        self.backbone = MaskedVisionTransformerTIMM(vit=size.vit())
        self.decoder = MAEDecoderTIMM(
            num_patches=(size.picture // size.patch) ** 2, patch_size=size.patch, embed_dim=size.dim,
            decoder_embed_dim=width, decoder_depth=depth, decoder_num_heads=heads,
        )  # fmt: skip
        self.criterion = nn.MSELoss()
        self.transform = MAETransform(input_size=size.picture)

    def views(self, picture: Image) -> list[Tensor]:
        return self.transform(picture)

    def loss(self, views: Sequence[Tensor], step: int) -> Tensor:
        images = views[0]
        length = self.backbone.sequence_length
        keep, hidden = utils.random_token_mask(
            size=(len(images), length), mask_ratio=self.ratio, device=images.device
        )
        embedded = self.decoder.embed(self.backbone.encode(images=images, idx_keep=keep))
        tokens = utils.repeat_token(self.decoder.mask_token, (len(images), length))
        tokens = utils.set_at_index(tokens, keep, embedded.type_as(tokens))
        predicted = self.decoder.predict(utils.get_at_index(self.decoder.decode(tokens), hidden))
        target = utils.get_at_index(utils.patchify(images, self.size.patch), hidden - 1)
        return self.criterion(predicted, target)

    def optimiser(self, batch: int) -> tuple[torch.optim.Optimizer, Any]:
        return torch.optim.AdamW(self.parameters(), lr=1.5e-4), None

    def released(self) -> nn.Module:
        return self.backbone.vit


class DINO(Rival):
    """Adam at 1e-3, head 512 -> 64 -> 2048, 6 local views, momentum 0.996 -> 1, batch 64."""

    settings = "lightly's example: Adam 1e-3, head 512-64-2048, 2 + 6 views, momentum 0.996 to 1; batch 64"
    batch = 64

    def __init__(self, size: Size, steps: int) -> None:
        super().__init__(size, steps)
        head = size.head or (512, 64, 2048)
        self.student = size.vit()
        self.student_head = DINOProjectionHead(size.dim, *head, freeze_last_layer=1)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.teacher_head = DINOProjectionHead(size.dim, *head).requires_grad_(False)
        self.criterion = DINOLoss(output_dim=head[2], warmup_teacher_temp_epochs=5)
        self.transform = DINOTransform(
            global_crop_size=size.picture, local_crop_size=size.local,
            n_local_views=6 if size.locals is None else size.locals,
        )  # fmt: skip
        self.epoch_steps = max(1, steps // 10)  # the example runs ten epochs

    def views(self, picture: Image) -> list[Tensor]:
        return self.transform(picture)

    def loss(self, views: Sequence[Tensor], step: int) -> Tensor:
        momentum = cosine_schedule(step, max(self.steps, step + 1), 0.996, 1)
        utils.update_momentum(self.student, self.teacher, m=momentum)
        utils.update_momentum(self.student_head, self.teacher_head, m=momentum)
        with torch.no_grad():
            teacher = [self.teacher_head(self.teacher(view)) for view in views[:2]]
        student = [self.student_head(self.student(view)) for view in views]
        return self.criterion(teacher, student, epoch=step // self.epoch_steps)

    def optimiser(self, batch: int) -> tuple[torch.optim.Optimizer, Any]:
        trained = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.Adam(trained, lr=1e-3), None

    def before_update(self, step: int, optimiser: torch.optim.Optimizer) -> None:
        self.student_head.cancel_last_layer_gradients(step // self.epoch_steps)

    def released(self) -> nn.Module:
        return self.teacher


class DINOv2(Rival):
    """AdamW at 1e-3, head of 65,536 prototypes shared by DINO and iBOT, 8 local views, batch 64."""

    settings = "lightly's example: AdamW 1e-3, one head 2048-256-65536, 2 + 8 views, momentum 0.992 to 1"
    batch = 64

    def __init__(self, size: Size, steps: int) -> None:
        super().__init__(size, steps)
        hidden, bottleneck, prototypes = size.head or (2048, 256, 65536)
        self.teacher = MaskedVisionTransformerTIMM(
            vit=size.vit(init_values=1e-5), antialias=False, pos_embed_initialization="skip"
        ).requires_grad_(False)
        self.student = copy.deepcopy(self.teacher).requires_grad_(True)
        utils.update_drop_path_rate(self.student.vit, drop_path_rate=0.1, mode="uniform")
        head = {"hidden_dim": hidden, "bottleneck_dim": bottleneck, "output_dim": prototypes}
        self.teacher_head = DINOv2ProjectionHead(size.dim, **head).requires_grad_(False)
        self.student_head = DINOv2ProjectionHead(size.dim, **head)
        self.dino = DINOLoss(output_dim=prototypes)
        self.ibot = IBOTPatchLoss(output_dim=prototypes)
        self.koleo = KoLeoLoss()
        self.transform = DINOTransform(
            global_crop_size=size.picture, global_crop_scale=(0.32, 1.0), local_crop_size=size.local,
            local_crop_scale=(0.05, 0.32), n_local_views=8 if size.locals is None else size.locals,
        )  # fmt: skip

    def views(self, picture: Image) -> list[Tensor]:
        return self.transform(picture)

    def loss(self, views: Sequence[Tensor], step: int) -> Tensor:
        large = torch.cat(list(views[:2]))
        side = self.size.picture // self.size.patch
        blocks = utils.random_block_mask(size=(len(large), side, side), device=large.device)
        mask = torch.cat([blocks.new_zeros(len(large), 1), blocks.flatten(1)], dim=1)
        with torch.no_grad():
            seen = self.teacher.encode(large)
            teacher_pooled = self.teacher_head(seen[:, 0])
            teacher_tokens = self.teacher_head(seen[mask])
        found = self.student.encode(large, mask=mask)
        pooled = [self.student_head(found[:, 0])]
        if len(views) > 2:
            pooled.append(self.student_head(self.student(torch.cat(list(views[2:])))))
        warm = linear_warmup_schedule(step, max(1, int(0.6 * self.steps)), 0.04, 0.07)
        loss = self.dino(teacher_pooled.chunk(2), torch.cat(pooled).chunk(len(views)), teacher_temp=warm)
        loss = loss + self.ibot(
            teacher_tokens, self.student_head(found[mask]), mask=blocks, teacher_temp=warm
        )
        return loss + 0.1 * sum(self.koleo(part) for part in found[:, 0].chunk(2))

    def optimiser(self, batch: int) -> tuple[torch.optim.Optimizer, Any]:
        trained = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.AdamW(trained, lr=1e-3), None

    def before_update(self, step: int, optimiser: torch.optim.Optimizer) -> None:
        decay = cosine_schedule(step, max(self.steps, step + 1), 0.04, 0.4)
        for group in optimiser.param_groups:
            group["weight_decay"] = decay

    def after_update(self, step: int) -> None:
        momentum = cosine_schedule(step, max(self.steps, step + 1), 0.992, 1.0)
        utils.update_momentum(self.student, self.teacher, m=momentum)
        utils.update_momentum(self.student_head, self.teacher_head, m=momentum)

    def released(self) -> nn.Module:
        return self.teacher.vit
