"""Segmentation: crops for training, sliding windows for whole cases, Dice and cross-entropy.

A crop is cut on the grid of the plan (median spacing, or a fixed size in 2D) and only the box under it is
read and resampled; a third of the crops is centred on a structure. Whole cases are predicted by sliding
windows (overlap 0.5, Gaussian weight) as a stream of rows, so that memory is bounded by a window's rows and
not by the depth of a case; probabilities, not labels, are resampled back to the case's own grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ...data.draws import uniform
from ...data.errors import CollectionError
from ...data.normalise import intensity
from ...pretrain.encoders.base import Encoder
from ..augment import augment
from ..data import Case, TaskData
from ..decoders import LinearSegmenter, Segmenter, decoder, deep_loss
from ..metrics import CaseRow, segmentation_case
from ..windows import interpolate_rows, resized_rows, rows_between, sliding_rows
from .base import Member, Task, native_box, resized

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
        return decoder(
            encoder,
            self.record.outputs,
            self.config.head,
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
        start, extent = native_box(case, target, *zip(*inner, strict=True))
        shape = [b - a for a, b in inner]
        image = self.normalised(case, resized(self.data.image(case, start, extent), shape))
        labels = resized(self.data.mask(case, start, extent)[None], shape, smooth=False)[0]
        if shape != list(size):
            pad = [(a - o, o + s - b) for o, s, (a, b) in zip(origin, size, inner, strict=True)]
            image = np.pad(image, [(0, 0), *pad], constant_values=self.padding(case))
            labels = np.pad(labels, pad)
        return np.ascontiguousarray(image), np.ascontiguousarray(labels)

    def loss(self, network: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Cross-entropy and soft Dice of the structures, over the whole batch (V-Net, arXiv 1606.04797).

        With deep supervision, of the coarser outputs too.
        """
        from monai.losses.dice import DiceCELoss

        image, labels = augment(
            batch["image"], batch["labels"], batch["position"], self.config.augment,
            seed=self.config.seed, flips=self.record.flips, spacing=self.plan.spacing,
            foreground=self.plan.foreground,
        )  # fmt: skip
        assert labels is not None
        # Over the batch: a crop without a structure would otherwise have a Dice of zero in any case.
        criterion = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
        assert isinstance(network, Segmenter | LinearSegmenter)
        return deep_loss(criterion, network.scales(image), labels[:, None])

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

    def reader(self, network: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda logits: torch.softmax(logits, dim=1)

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
        return _most_likely(self.probabilities(network, case, device, mirror=mirror), case.shape)

    def together(
        self, members: Sequence[Member], device: torch.device, *, mirror: bool = False
    ) -> np.ndarray:
        """Label map from the mean of the members' probabilities, each on its own plan's grid, row by row."""
        streams: list[Iterator[np.ndarray]] = []
        for task, network, case in members:
            assert isinstance(task, Segmentation)
            streams.append(_row_by_row(task.probabilities(network, case, device, mirror=mirror)))
        means = (np.mean(rows, axis=0) for rows in zip(*streams, strict=True))
        return _most_likely(means, members[0].case.shape)

    def probabilities(
        self, network: nn.Module, case: Case, device: torch.device, *, mirror: bool = False
    ) -> Iterator[np.ndarray]:
        """Yield rows [K, n, *rest] of the case's own grid, from the first to the last.

        Memory is bounded by the rows of one window, whatever the case's depth (windows.py); a picture is
        resampled as a whole, because that wants a filter.
        """
        target, patch = self.target_shape(case), self.plan.patch
        short = [max(0, size - side) for size, side in zip(patch, target, strict=True)]
        before = [gap // 2 for gap in short]
        padded = [side + gap for side, gap in zip(target, short, strict=True)]
        training = network.training
        network.eval()
        try:
            blocks = sliding_rows(
                self._reader(case, target, before, padded), padded, patch,
                self._window(network, device, mirror), batch=self.plan.batch, device=device,
            )  # fmt: skip
            inside = _without_padding(blocks, before, target)
            if self.plan.ndim == 2:
                yield resized(np.concatenate(list(inside), axis=1), case.shape)
            else:
                flat = (_in_plane(block, case.shape[1:]) for block in inside)
                yield from resized_rows(flat, target[0], case.shape[0])
        finally:
            network.train(training)

    def _window(self, network: nn.Module, device: torch.device, mirror: bool) -> Callable[[Tensor], Tensor]:
        """Probabilities of a batch of windows, averaged over all mirror images that the record allows."""
        axes = [axis + 2 for axis in self.record.flips] if mirror else []
        flips = [chosen for count in range(len(axes) + 1) for chosen in combinations(axes, count)]

        def window(x: Tensor) -> Tensor:
            total = torch.zeros((), device=x.device)
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                for chosen in flips:
                    probability = torch.softmax(network(x.flip(chosen) if chosen else x).float(), dim=1)
                    total = total + (probability.flip(chosen) if chosen else probability)
            return total / len(flips)

        return window

    def _reader(
        self, case: Case, target: Sequence[int], before: Sequence[int], padded: Sequence[int]
    ) -> Callable[[int, int], np.ndarray]:
        """Rows start .. stop of the case on the padded grid of the plan, normalised [C, n, *rest]."""
        whole = None
        if self.plan.ndim == 2 or self.corrupt is not None:  # a corruption is one of the whole image
            whole = self.image(case)
        if self.plan.ndim == 2:
            assert whole is not None
            whole = resized(whole, target)
        rest = [(gap, full - gap - side)
                for gap, full, side in zip(before[1:], padded[1:], target[1:], strict=True)]  # fmt: skip

        def rows(start: int, stop: int) -> np.ndarray:
            if self.plan.ndim == 2:
                assert whole is not None
                return whole[:, start:stop]
            low, high = rows_between(case.shape[0], target[0], start, stop)
            if whole is None:
                found = self.image(case, [low, 0, 0], [high - low, *case.shape[1:]])
            else:
                found = whole[:, low:high]
            return interpolate_rows(_in_plane(found, target[1:]), low, case.shape[0], target[0], start, stop)

        def read(start: int, stop: int) -> np.ndarray:
            first, last = max(0, start - before[0]), min(target[0], stop - before[0])
            ends = (max(0, before[0] - start), max(0, stop - before[0] - target[0]))
            image = self.normalised(case, rows(first, max(first, last)))
            return np.pad(image, [(0, 0), ends, *rest], constant_values=self.padding(case))

        return read


def _in_plane(block: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """[K, n, H, W] with each of the n planes at another size, linear; with `resized_rows` it is trilinear."""
    if block.shape[2:] == tuple(size):
        return block
    planes = torch.from_numpy(block.astype(np.float32)).transpose(0, 1)
    found = functional.interpolate(planes, size=tuple(size), mode="bilinear", align_corners=False)
    return found.transpose(0, 1).numpy()


def _without_padding(
    blocks: Iterator[np.ndarray], before: Sequence[int], target: Sequence[int]
) -> Iterator[np.ndarray]:
    """The rows and columns of a padded stream that belong to the case."""
    inner = tuple(slice(gap, gap + side) for gap, side in zip(before[1:], target[1:], strict=True))
    row = -before[0]
    for block in blocks:
        start, stop = max(0, -row), min(block.shape[1], target[0] - row)
        row += block.shape[1]
        if start < stop:
            yield block[(slice(None), slice(start, stop), *inner)]


def _row_by_row(blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    for block in blocks:
        for index in range(block.shape[1]):
            yield block[:, index : index + 1]


def _most_likely(blocks: Iterable[np.ndarray], shape: Sequence[int]) -> np.ndarray:
    """Label map [*shape], uint8, of probabilities [K, n, *rest] in ascending rows."""
    result, row = np.empty(shape, dtype=np.uint8), 0
    for block in blocks:
        result[row : row + block.shape[1]] = block.argmax(axis=0)
        row += block.shape[1]
    return result


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
