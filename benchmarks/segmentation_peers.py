"""MONAI's DynUNet and SegResNet, trained as in MONAI's tutorials. See segmentation.py for what is changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def trained(name: str, task: Any, steps: int, seed: int) -> tuple[nn.Module, Any, int]:
    """Train a peer on the task: the network as it was best on validation, how it predicts, that step."""
    from monai.utils.misc import set_determinism

    set_determinism(seed)
    family, _, other = name.partition("-")
    network, loss = BUILDERS[family](task.record.outputs)
    optimiser, schedule = _optimiser(family, other, network, steps)
    examples = _examples(family, task)
    best, kept, step_kept = -1.0, {}, 0
    checks = {-(-steps * part // task.config.validations) for part in range(1, task.config.validations + 1)}
    for step in range(1, steps + 1):
        network.train()
        batch = [next(examples) for _ in range(task.plan.batch)]
        image, labels = (torch.stack([example[key] for example in batch]) for key in ("image", "label"))
        optimiser.zero_grad(set_to_none=True)
        loss(network(image), labels).backward()
        optimiser.step()
        schedule.step()
        if step in checks:
            found = _validation(network, task)
            if found > best:
                best, step_kept = found, step
                kept = {key: value.detach().clone() for key, value in network.state_dict().items()}
    network.load_state_dict(kept)
    return network, lambda cases: _predictions(network, task, cases), step_kept


def dynunet(outputs: int) -> tuple[nn.Module, Any]:
    """modules/dynunet_pipeline: strides found for 40×56×40, one more output for deep supervision."""
    from monai.losses.dice import DiceCELoss
    from monai.networks.nets.dynunet import DynUNet

    criterion = DiceCELoss(to_onehot_y=True, softmax=True)
    network = DynUNet(
        3, 1, outputs, kernel_size=[3] * 4, strides=[1, 2, 2, 2], upsample_kernel_size=[2, 2, 2],
        filters=[16, 32, 64, 128], norm_name="instance", deep_supervision=True, deep_supr_num=1,
    )  # fmt: skip

    def loss(found: Tensor, labels: Tensor) -> Tensor:
        heads = found.unbind(1)  # each at full resolution, halved in weight from one to the next
        parts: list[Tensor] = [0.5**level * criterion(head, labels) for level, head in enumerate(heads)]
        return torch.stack(parts).sum()

    return network, loss


def segresnet(outputs: int) -> tuple[nn.Module, Any]:
    """3d_segmentation/brats_segmentation_3d, with a softmax, because these structures do not overlap."""
    from monai.losses.dice import DiceLoss
    from monai.networks.nets.segresnet import SegResNet

    network = SegResNet(3, 16, 1, outputs, dropout_prob=0.2, blocks_down=(1, 2, 2, 4), blocks_up=(1, 1, 1))
    return network, DiceLoss(smooth_nr=0, smooth_dr=1e-5, squared_pred=True, to_onehot_y=True, softmax=True)


BUILDERS = {"dynunet": dynunet, "segresnet": segresnet}


def _optimiser(family: str, other: str, network: nn.Module, steps: int) -> tuple[Any, Any]:
    """SGD with Nesterov momentum and a polynomial (DynUNet), Adam and a cosine (SegResNet), or AdamW."""
    from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

    if other == "adamw":
        optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-5)
        return optimiser, CosineAnnealingLR(optimiser, steps)
    if family == "dynunet":
        optimiser = torch.optim.SGD(
            network.parameters(), lr=1e-2, momentum=0.99, weight_decay=3e-5, nesterov=True
        )
        return optimiser, LambdaLR(optimiser, lambda step: (1 - min(step, steps - 1) / steps) ** 0.9)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-4, weight_decay=1e-5)
    return optimiser, CosineAnnealingLR(optimiser, steps)


def _examples(family: str, task: Any) -> Iterator[dict[str, Tensor]]:
    """Augmented patches without end: epochs over the training cases, each in another order."""
    import monai.transforms as mt

    keys, size = ["image", "label"], task.plan.patch
    flips = [mt.RandFlipd(keys, spatial_axis=axis, prob=0.5) for axis in task.record.flips]
    if family == "dynunet":
        middle = [
            mt.SpatialPadd(keys, spatial_size=size),
            mt.RandCropByPosNegLabeld(keys, "label", size, pos=1, neg=1, num_samples=1),
            mt.RandZoomd(keys, min_zoom=0.9, max_zoom=1.2, mode=("trilinear", "nearest"),
                         align_corners=(True, None), prob=0.15),
            mt.RandGaussianNoised("image", std=0.01, prob=0.15),
            mt.RandGaussianSmoothd("image", (0.5, 1.15), (0.5, 1.15), (0.5, 1.15), prob=0.15),
            mt.RandScaleIntensityd("image", factors=0.3, prob=0.15),
        ]  # fmt: skip
        transform = mt.Compose([*middle, *flips])
    else:
        crop = [mt.SpatialPadd(keys, spatial_size=size), mt.RandSpatialCropd(keys, size, random_size=False)]
        intensity = [
            mt.RandScaleIntensityd("image", 0.1, prob=1.0),
            mt.RandShiftIntensityd("image", 0.1, prob=1.0),
        ]
        transform = mt.Compose([*crop, *flips, *intensity])
    cases = task.cases["train"]
    while True:
        for index in torch.randperm(len(cases)).tolist():
            case = cases[index]
            labels = torch.from_numpy(task.data.mask(case)[None].astype(np.float32))
            found: Any = transform({"image": _normalised(task, case), "label": labels})
            found = found[0] if isinstance(found, list) else found
            yield {key: torch.as_tensor(found[key]) for key in keys}


def _normalised(task: Any, case: Any) -> Tensor:
    """Mean 0 and deviation 1 of what is not zero, as both tutorials do for MR."""
    from monai.transforms import NormalizeIntensity

    image = torch.from_numpy(task.data.image(case).astype(np.float32))
    return torch.as_tensor(NormalizeIntensity(nonzero=True, channel_wise=True)(image))


def _predictions(network: nn.Module, task: Any, cases: Sequence[Any]) -> Iterator[np.ndarray]:
    from monai.inferers.utils import sliding_window_inference

    network.eval()
    with torch.no_grad():
        for case in cases:
            found = sliding_window_inference(
                _normalised(task, case)[None], task.plan.patch, 4, network, overlap=0.5, mode="gaussian"
            )
            assert isinstance(found, Tensor)
            yield found[0].argmax(0).numpy().astype(np.uint8)


def _validation(network: nn.Module, task: Any) -> float:
    """Mean Dice over structures and validation cases."""
    from medloom.finetune.metrics import segmentation_case

    names, cases = dict(enumerate(task.structures, start=1)), task.cases["val"]
    values = [
        row.value
        for case, found in zip(cases, _predictions(network, task, cases), strict=True)
        for row in segmentation_case(found, task.data.mask(case), case.spacing, names, 1.0, metrics=["dice"])
    ]
    return float(np.nanmean(values))
