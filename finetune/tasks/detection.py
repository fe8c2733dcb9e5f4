"""Detection: boxes of objects, by RetinaNet on the encoder's pyramid, in pictures and in volumes.

A picture is squashed whole to `image_size` where the task gives one; otherwise images are seen in crops on
the grid of the plan (median spacing), a share of them around a drawn box, and predicted by windows. Boxes of
the prediction are in pixels of the case's own grid. The plan holds the anchors, so that a finished run
predicts without its training data.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ...data.draws import uniform
from ...data.errors import CollectionError
from ...data.normalise import intensity
from ...pretrain.decoders import pyramid_levels
from ...pretrain.encoders.base import Encoder
from ..config import FinetuneConfig
from ..data import Case, TaskData
from ..detection.anchors import Anchors, plan_anchors
from ..detection.augment import augment_boxes
from ..detection.boxes import Boxes
from ..detection.windows import Maps, whole_maps
from ..metrics import CaseRow
from ..metrics.classification import Metric
from ..metrics.detection import DetectionMetrics, image_precision
from ..planner import Plan
from .base import Task, native_box, resized

if TYPE_CHECKING:
    from ..detection.network import BoxNetwork  # imports MONAI

_LOOKED_AT = 40  # training cases whose intensities inside boxes are looked at
_IOU = {2: [round(0.5 + 0.05 * i, 2) for i in range(10)], 3: [round(0.1 + 0.05 * i, 2) for i in range(9)]}


class Detection(Task):
    """See the module docstring."""

    kind = "detection"
    criterion = "map"
    heads = ("full", "linear")
    worst = "image_ap50"

    @classmethod
    def refined(
        cls, plan: Plan, config: FinetuneConfig, data: TaskData, train: Sequence[Case], encoder: Encoder
    ) -> Plan:
        """The plan with anchors, and with the intensities inside the boxes, of the training cases."""
        on_grid = [
            data.boxes[case.key].scaled(case.shape, plan.target_shape(case.shape, case.spacing)).sides
            for case in train
        ]
        sides = np.concatenate(on_grid) if on_grid else np.zeros((0, plan.ndim))
        if not len(sides):
            raise CollectionError(f"task {config.task.name}: no training case has a box: change the split")
        labels = np.concatenate([data.boxes[case.key].labels for case in train])
        own = [level.stride for level in pyramid_levels(encoder, plan.ndim)]
        size = config.detection
        anchors = plan_anchors(sides, labels, own, plan.patch, levels=size.levels, shapes=size.anchors)
        foreground = None if plan.ndim == 2 else list(_inside(data, train))
        return dataclasses.replace(plan, anchors=anchors._asdict(), foreground=foreground)

    @cached_property
    def anchors(self) -> Anchors:
        """As planned."""
        assert self.plan.anchors is not None
        return Anchors(**self.plan.anchors)

    @cached_property
    def measured(self) -> DetectionMetrics:
        """The metrics of the record's names and thresholds."""
        return DetectionMetrics(self.record.names, self.record.iou or _IOU[self.plan.ndim])

    def network(self, encoder: Encoder, head: str) -> nn.Module:
        """The same network for both heads: `linear` leaves the encoder frozen below it."""
        from ..detection.network import BoxNetwork

        return BoxNetwork(
            encoder, len(self.record.names), ndim=self.plan.ndim, anchors=self.anchors,
            patch=self.plan.patch, config=self.config.detection,
        )  # fmt: skip

    # Training

    def example(self, position: int) -> dict[str, Tensor]:
        """image [C, *patch], boxes [M, 2 * axes], labels [M] (-1: no box), position."""
        case = self.case_at(position)
        target = self.plan.target_shape(case.shape, case.spacing)
        boxes = self.data.boxes[case.key].scaled(case.shape, target)
        image, origin = self._view(case, boxes, target, position)
        table = np.zeros((self._most, 2 * self.plan.ndim), dtype=np.float32)
        labels = np.full(self._most, -1, dtype=np.int64)
        table[: len(boxes)] = boxes.corners - np.tile(origin, 2)
        labels[: len(boxes)] = boxes.labels
        return {
            "image": torch.from_numpy(image),
            "boxes": torch.from_numpy(table),
            "labels": torch.from_numpy(labels),
            "position": torch.tensor(position),
        }

    @cached_property
    def _most(self) -> int:
        """Boxes of the training case that has most."""
        return max(len(self.data.boxes[case.key]) for case in self.cases["train"])

    def _view(
        self, case: Case, boxes: Boxes, target: Sequence[int], position: int
    ) -> tuple[np.ndarray, list[int]]:
        """A crop of the case on the target grid, and its first voxel there."""
        if self.plan.resize:
            return self.whole(case), [0] * self.plan.ndim
        u = uniform(self.config.seed, "finetune.crop", [position], 2 + self.plan.ndim)[0]
        chosen = None
        if len(boxes) and u[0] < self.config.foreground:
            chosen = boxes.corners[int(u[1] * len(boxes))]
        origin = []
        for axis, (side, size) in enumerate(zip(target, self.plan.patch, strict=True)):
            low, high = 0, max(0, side - size)
            if chosen is not None:  # starts from which the whole box, or its middle, is seen
                a, b = chosen[axis], chosen[axis + self.plan.ndim]
                if b - a > size:
                    a = b = (a + b) / 2
                low = min(max(low, math.ceil(b - size)), high)
                high = max(low, min(high, math.floor(a)))
            origin.append(low + math.floor(u[2 + axis] * (high - low + 1)))
        return self._crop(case, origin, target), origin

    def _crop(self, case: Case, origin: Sequence[int], target: Sequence[int]) -> np.ndarray:
        """Read, resample and pad (at the far end) one crop: float32 [C, *patch]."""
        extent = [min(size, side - o) for size, side, o in zip(self.plan.patch, target, origin, strict=True)]
        start, shape = native_box(case, target, origin, [o + e for o, e in zip(origin, extent, strict=True)])
        image = self.normalised(case, resized(self.data.image(case, start, shape), extent))
        gaps = [(0, size - e) for size, e in zip(self.plan.patch, extent, strict=True)]
        return np.ascontiguousarray(np.pad(image, [(0, 0), *gaps], constant_values=self.padding(case)))

    def loss(self, network: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Augment images and boxes; see `BoxNetwork.loss`."""
        image, targets = augment_boxes(
            batch["image"], batch["boxes"], batch["labels"], batch["position"], self.config.augment,
            seed=self.config.seed, flips=self.record.flips, foreground=self.plan.foreground,
        )  # fmt: skip
        return cast("BoxNetwork", network).loss(image, targets)

    def validate(self, network: nn.Module, device: torch.device) -> dict[str, float]:
        """mAP and AP50 of the validation cases."""
        cases = self.cases["val"]
        predicted = self.stacked(list(self.predictions(network, cases, device)))
        truth, metrics = self.truth(cases), self.set_metrics
        found = {name: float(np.asarray(metrics[name](truth, predicted))) for name in ("map", "ap50")}
        return {name: value if math.isfinite(value) else 0.0 for name, value in found.items()}

    # Scoring

    def whole(self, case: Case) -> np.ndarray:
        """The image on the grid of the plan: float32 [C, *target]."""
        return self.resampled(case, self.plan.target_shape(case.shape, case.spacing))

    def predictions(
        self, network: nn.Module, cases: Sequence[Case], device: torch.device, *, mirror: bool = False
    ) -> Iterator[Boxes]:
        """Boxes of each case in its own pixels, best first; `mirror` averages maps over the flips."""
        boxes = cast("BoxNetwork", network)
        training = network.training
        network.eval()
        flips = [(), *((axis,) for axis in self.record.flips)] if mirror else [()]

        def predict(images: Tensor) -> Maps:
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                return boxes.mirrored(images, flips)

        try:
            for case in cases:
                image = self.whole(case)
                maps, shape = whole_maps(
                    predict, image, self.plan.patch, self.anchors.strides, batch=self.plan.batch,
                    device=device, fill=self.padding(case),
                )  # fmt: skip
                yield self._on_case(case, image.shape[1:], *boxes.selected(maps, shape))
        finally:
            network.train(training)

    def _on_case(
        self, case: Case, grid: Sequence[int], corners: Tensor, labels: Tensor, scores: Tensor
    ) -> Boxes:
        """Boxes on the network's grid -> in the case's pixels, cut to the image."""
        table = corners.double().numpy() * np.tile(np.asarray(case.shape) / np.asarray(grid), 2)
        table = np.clip(table, 0, np.tile(np.asarray(case.shape, float), 2))
        found = Boxes(table, labels.numpy().astype(np.int64), scores.double().numpy())
        kept = (found.sides > 0).all(axis=1)
        assert found.scores is not None
        return Boxes(table[kept], found.labels[kept], found.scores[kept])

    @property
    def set_metrics(self) -> Mapping[str, Metric]:
        return self.measured.metrics

    def parts(self, metric: str) -> Mapping[str, Metric]:
        return self.measured.parts(metric)

    def truth(self, cases: Sequence[Case]) -> np.ndarray:
        """Reference boxes, an array of objects [N]."""
        return self.stacked([self.data.boxes[case.key] for case in cases])

    def stacked(self, predictions: Sequence[Boxes]) -> np.ndarray:
        result = np.empty(len(predictions), dtype=object)
        result[:] = list(predictions)
        return result

    def rows(self, case: Case, prediction: Boxes) -> list[CaseRow]:
        """AP50 of the classes that the image holds."""
        found = image_precision(self.data.boxes[case.key], prediction, self.record.names)
        return [CaseRow(name, "image_ap50", value, "ok") for name, value in found.items()]

    def lines(self, case: Case, prediction: Boxes) -> list[dict[str, Any]]:
        """A line a box."""
        return self.answers(case, prediction)

    def answers(self, case: Case, prediction: Boxes) -> list[dict[str, Any]]:
        """Class, score, and edges in pixels of the image: y0, x0, y1, x1, in volumes also z0 and z1."""
        axes = "zyx"[-self.plan.ndim :]
        columns = [f"{axis}{end}" for end in (0, 1) for axis in axes]
        assert prediction.scores is not None
        return [
            {"class": self.record.names[label], "score": round(float(score), 6),
             **{name: round(float(value), 3) for name, value in zip(columns, corners, strict=True)}}
            for corners, label, score in zip(
                prediction.corners, prediction.labels, prediction.scores, strict=True
            )
        ]  # fmt: skip

    def picture(self, path: Path, case: Case, prediction: Boxes) -> None:
        """Reference boxes and as many of the best predicted ones (one at least)."""
        from ..overlays import box_overlay

        reference = self.data.boxes[case.key]
        count = max(1, len(reference))
        box_overlay(path, case, self.image(case), reference.corners, prediction.corners[:count])


def _inside(data: TaskData, train: Sequence[Case]) -> tuple[float, float]:
    """Mean and deviation of the normalised intensity in the boxes, each box alike; 40 cases at most."""
    values: list[np.ndarray] = []
    cases = [case for case in train if len(data.boxes[case.key])]
    for case in cases[:: max(1, len(cases) // _LOOKED_AT)][:_LOOKED_AT]:
        axes = len(case.shape)
        for corners in data.boxes[case.key].corners[:4]:
            low = [min(int(a), n - 1) for a, n in zip(corners[:axes], case.shape, strict=True)]
            high = [max(a + 1, math.ceil(b)) for a, b in zip(low, corners[axes:], strict=True)]
            extent = [min(b, n) - a for a, b, n in zip(low, high, case.shape, strict=True)]
            found = intensity(case.meta).apply(data.image(case, low, extent)).ravel()
            values.append(found[np.linspace(0, len(found) - 1, min(500, len(found)), dtype=int)])
    pooled = np.concatenate(values)
    return float(pooled.mean()), max(float(pooled.std()), 1e-3)
