"""Segmentation: crops for training, sliding windows for whole cases, Dice and cross-entropy.

A crop is cut on the grid of the plan (median spacing, or a fixed size in 2D) and only the box under it is
read and resampled; a third of the crops is centred on a structure. Whole cases are predicted by MONAI's
sliding window (overlap 0.5, Gaussian weight) in slabs of the first axis, so that memory is bounded by the
plan's budget and not by the size of a case; probabilities, not labels, are resampled back to the case's own
grid.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...data.draws import uniform
from ...data.errors import CollectionError
from ...data.normalise import intensity
from ...pretrain.encoders.base import Encoder
from ..augment import augment
from ..data import Case, TaskData
from ..heads import LinearSegmenter, Segmenter
from ..metrics import CaseRow, segmentation_case
from .base import Task, resized

_FINGERPRINT = 40  # training cases whose intensities are looked at


class Segmentation(Task):
    """See the module docstring."""

    kind = "segmentation"
    criterion = "dice"
    heads = ("full", "linear")

    def network(self, encoder: Encoder, head: str) -> nn.Module:
        """One linear layer on the tokens, or the convolutional decoder."""
        if head == "linear":
            return LinearSegmenter(encoder, self.record.outputs)
        size = self.config.head
        return Segmenter(
            encoder,
            self.record.outputs,
            width=size.width,
            most=size.most,
            foreground=self.plan.foreground,
            ndim=self.plan.ndim,
        )

    def example(self, position: int) -> dict[str, Tensor]:
        """image [C, *patch], labels [*patch], position."""
        case = self.case_at(position)
        origin = self._origin(case, position)
        image, labels = self._crop(case, origin)
        return {
            "image": torch.from_numpy(image),
            "labels": torch.from_numpy(labels.astype(np.int64)),
            "position": torch.tensor(position),
        }

    def target_shape(self, case: Case) -> tuple[int, ...]:
        """Spatial shape of the case on the grid of the plan."""
        return self.plan.target_shape(case.shape, case.spacing)

    def _origin(self, case: Case, position: int) -> list[int]:
        """First voxel of the crop on the target grid; may be negative where the case is smaller."""
        u = uniform(self.config.seed, "finetune.crop", [position], 4 + 2 * self.plan.ndim)[0]
        target = self.target_shape(case)
        places = self.data.locations.get(case.key, {})
        centre: np.ndarray | None = None
        if places and u[0] < self.config.foreground:
            chosen = places[sorted(places)[int(u[1] * len(places))]]
            voxel = chosen[int(u[2] * len(chosen))]
            centre = (voxel + 0.5) * np.array(target) / np.array(case.shape)
        origin = []
        for axis, (side, size) in enumerate(zip(target, self.plan.patch, strict=True)):
            low, high = min(0, side - size), max(0, side - size)
            if centre is None:
                start = low + math.floor(u[4 + axis] * (high - low + 1))
            else:  # the voxel lies somewhere in the middle half of the crop
                shift = (0.25 + 0.5 * u[4 + axis]) * size
                start = min(max(math.floor(centre[axis] - shift), low), high)
            origin.append(int(start))
        return origin

    def _crop(self, case: Case, origin: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Read, resample and pad one crop: float32 [C, *patch], uint8 [*patch]."""
        target, size = self.target_shape(case), self.plan.patch
        inner = [(max(0, o), min(t, o + s)) for o, t, s in zip(origin, target, size, strict=True)]
        ratio = [n / t for n, t in zip(case.shape, target, strict=True)]
        start = [min(math.floor(a * r), n - 1) for (a, _), r, n in zip(inner, ratio, case.shape, strict=True)]
        stop = [
            max(s + 1, min(math.ceil(b * r), n))
            for (_, b), r, n, s in zip(inner, ratio, case.shape, start, strict=True)
        ]
        extent = [b - a for a, b in zip(start, stop, strict=True)]
        shape = [b - a for a, b in inner]
        image = self.normalised(case, resized(self.data.image(case, start, extent), shape))
        labels = resized(self.data.mask(case, start, extent)[None], shape, smooth=False)[0]
        if shape != list(size):
            pad = [(a - o, o + s - b) for o, s, (a, b) in zip(origin, size, inner, strict=True)]
            image = np.pad(image, [(0, 0), *pad], constant_values=self.padding(case))
            labels = np.pad(labels, pad)
        return np.ascontiguousarray(image), np.ascontiguousarray(labels)

    def loss(self, network: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Cross-entropy and soft Dice of the structures, over the whole batch (V-Net, arXiv 1606.04797)."""
        from monai.losses.dice import DiceCELoss

        image, labels = augment(
            batch["image"], batch["labels"], batch["position"], self.config.augment,
            seed=self.config.seed, flips=self.record.flips, spacing=self.plan.spacing,
            foreground=self.plan.foreground,
        )  # fmt: skip
        assert labels is not None
        # Over the batch: a crop without a structure would otherwise have a Dice of zero in any case.
        criterion = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
        return criterion(network(image).float(), labels[:, None])

    def validate(self, network: nn.Module, device: torch.device) -> dict[str, float]:
        """Mean Dice over structures and cases; pairs in which both are empty are left out."""
        values: dict[int, list[float]] = {output: [] for output in range(1, self.record.outputs)}
        cases = self.cases["val"]
        for case, predicted in zip(cases, self.predictions(network, cases, device), strict=True):
            reference = self.data.mask(case)
            for output, found in values.items():
                a, b = predicted == output, reference == output
                total = int(a.sum()) + int(b.sum())
                if total:
                    found.append(2 * int((a & b).sum()) / total)
        names = self.record.names
        means = {f"dice/{names[output]}": float(np.mean(found)) for output, found in values.items() if found}
        return {"dice": float(np.mean(list(means.values()))) if means else 0.0, **means}

    @property
    def worst(self) -> str:  # type: ignore[override]
        return self.record.metrics[0]

    @property
    def structures(self) -> list[str]:
        return self.record.names[1:]

    def predictions(
        self, network: nn.Module, cases: Sequence[Case], device: torch.device, *, mirror: bool = False
    ) -> Iterator[np.ndarray]:
        """`predict` of each case."""
        for case in cases:
            yield self.predict(network, case, device, mirror=mirror)

    def rows(self, case: Case, prediction: np.ndarray) -> list[CaseRow]:
        """Every metric of every structure."""
        return segmentation_case(
            prediction, self.data.mask(case), case.spacing, dict(enumerate(self.structures, start=1)),
            self.record.nsd_tolerance_mm, metrics=self.record.metrics,
        )  # fmt: skip

    def answers(self, case: Case, prediction: np.ndarray) -> list[dict[str, Any]]:
        """The size of each structure: millilitres in volumes, square millimetres or pixels in pictures."""
        counts = np.bincount(prediction.ravel(), minlength=self.record.outputs)
        unit, size = "pixels" if self.plan.ndim == 2 else "voxels", 1.0
        if case.spacing is not None:
            unit, size = ("mm2", 1.0) if self.plan.ndim == 2 else ("ml", 1e-3)
            size *= math.prod(case.spacing)
        sizes = enumerate(self.structures, start=1)
        return [{f"{name} {unit}": round(float(counts[output] * size), 6) for output, name in sizes}]

    def label_map(self, prediction: np.ndarray) -> np.ndarray:
        """Mask values of the record [*spatial], in the smallest unsigned integers that hold them."""
        values = np.array([0, *sorted(self.record.structures)])
        return values.astype(np.min_scalar_type(int(values.max())))[prediction]

    def picture(self, path: Path, case: Case, prediction: np.ndarray) -> None:
        """Both outlines on the image."""
        from ..overlays import segmentation_overlay

        segmentation_overlay(path, case, self.image(case), self.data.mask(case), prediction)

    def predict(
        self, network: nn.Module, case: Case, device: torch.device, *, mirror: bool = False
    ) -> np.ndarray:
        """Label map [*case.shape], uint8 output indices; `mirror` averages over the record's flips."""
        result = np.empty(case.shape, dtype=np.uint8)
        depth = case.shape[0]
        rows = self._slab_rows(case)
        ratio = depth / self.target_shape(case)[0]
        # Windows see half a patch beyond the slab, as they would inside the whole case.
        margin = math.ceil(self.plan.patch[0] / 2 * ratio) if rows < depth else 0
        training = network.training
        network.eval()
        try:
            for start in range(0, depth, rows):
                stop = min(depth, start + rows)
                low, high = max(0, start - margin), min(depth, stop + margin)
                probabilities = self._probabilities(network, case, low, high, device, mirror)
                labels = probabilities.argmax(axis=0).astype(np.uint8)
                result[start:stop] = labels[start - low : stop - low]
        finally:
            network.train(training)
        return result

    def _probabilities(
        self, network: nn.Module, case: Case, low: int, high: int, device: torch.device, mirror: bool
    ) -> np.ndarray:
        """Probabilities [K, high - low, ...] on the case's own grid, rows low .. high of the first axis."""
        from monai.inferers.utils import sliding_window_inference

        origin = [low, *[0] * (self.plan.ndim - 1)]
        shape = [high - low, *case.shape[1:]]
        target = list(self.target_shape(case))
        target[0] = max(1, round(target[0] * (high - low) / case.shape[0]))
        image = self.normalised(case, resized(self.image(case, origin, shape), target))
        short = [max(0, size - side) for size, side in zip(self.plan.patch, target, strict=True)]
        pad = [(gap // 2, gap - gap // 2) for gap in short]
        image = np.pad(image, [(0, 0), *pad], constant_values=self.padding(case))
        flips = [(), *((axis + 2,) for axis in self.record.flips)] if mirror else [()]

        def window(x: Tensor) -> Tensor:
            total = torch.zeros((), device=x.device)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                for axes in flips:
                    logits = network(x.flip(axes)).float() if axes else network(x).float()
                    probability = torch.softmax(logits, dim=1)
                    total = total + (probability.flip(axes) if axes else probability)
            return total / len(flips)

        with torch.no_grad():
            found = sliding_window_inference(
                torch.from_numpy(image)[None], roi_size=self.plan.patch, sw_batch_size=self.plan.batch,
                predictor=window, overlap=0.5, mode="gaussian", sw_device=device, device="cpu",
            )  # fmt: skip
        assert isinstance(found, Tensor)
        inner = (slice(None), *(slice(a, a + side) for (a, _), side in zip(pad, target, strict=True)))
        return resized(found[0].numpy()[inner], shape)

    def _slab_rows(self, case: Case) -> int:
        """Rows of the first axis that are predicted at once, so that the stitched maps fit the budget."""
        target = self.target_shape(case)
        row = max(math.prod(case.shape[1:]), math.prod(target[1:]) * target[0] / case.shape[0])
        # Float32 maps: K stitched, K resampled, weights, and the image before and after normalisation.
        each = row * 4 * (2 * self.record.outputs + 1 + 3 * self.plan.channels)
        return max(self.plan.patch[0], int(self.plan.budget_gib * 2**30 / each))


def foreground_statistics(data: TaskData, cases: Sequence[Case]) -> tuple[float, float]:
    """Mean and deviation of the normalised intensity in the structures, each structure of a case alike.

    Looks at 40 cases at most, evenly chosen, at the voxels that the survey of the masks remembered.
    """
    values: list[np.ndarray] = []
    for case in list(cases)[:: max(1, len(cases) // _FINGERPRINT)][:_FINGERPRINT]:
        places = data.locations.get(case.key, {})
        if not places:
            continue
        image = intensity(case.meta).apply(data.image(case))
        values += [image[(slice(None), *found.T)].ravel() for found in places.values()]
    if not values:
        raise CollectionError("no training case shows a structure: check the masks, or the split")
    pooled = np.concatenate(values)
    return float(pooled.mean()), max(float(pooled.std()), 1e-3)
