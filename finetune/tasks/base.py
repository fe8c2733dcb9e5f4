"""What a kind of task must say: its networks, its training example, its loss, and how it is scored.

A prediction of a case is whatever the kind makes of it (a label map, probabilities, boxes); the task turns it
into rows of the long table and, for metrics that belong to a whole set (AUC), into an array over cases.

Examples are a pure function of (seed, position), so that all arms of a run see the same data in the same
order and a resumed run continues exactly; loader processes never enter the order.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from ...data.errors import ConfigError
from ...data.normalise import intensity
from ...pretrain.encoders.base import Encoder
from ..config import FinetuneConfig
from ..data import Case, TaskData
from ..metrics import CaseRow
from ..metrics.classification import Metric
from ..planner import Plan

Corruption = Callable[[Case, np.ndarray], np.ndarray]  # case, image [C, *spatial] -> the same shape and dtype
_SMOOTH = {2: "bilinear", 3: "trilinear"}


class Member(NamedTuple):
    """One network of an ensemble, with its own task (plan, data) and the case as that task reads it."""

    task: Task
    network: nn.Module
    case: Case


class Task(ABC):
    """One task record with its data and its plan. `split` maps a case key to train, val, test or unused."""

    kind: ClassVar[str]
    criterion: ClassVar[str]  # name of the validation score; higher is better
    heads: ClassVar[tuple[str, ...]]  # networks that `network` can build; protocols name the one they want
    standalone: ClassVar[bool] = True  # whether a new image is predicted without the training cases
    worst: str  # metric of the long table by which the worst cases are chosen

    def __init__(self, config: FinetuneConfig, data: TaskData, plan: Plan, split: Mapping[str, str]) -> None:
        self.config = config
        self.record = config.task
        self.data = data
        self.plan = plan
        self.corrupt: Corruption | None = None  # robustness: what is done to an image before it is scored
        self.cases: dict[str, list[Case]] = {"train": [], "val": [], "test": [], "unused": []}
        for case in data.cases:
            self.cases[split[case.key]].append(case)

    @classmethod
    def refined(
        cls, plan: Plan, config: FinetuneConfig, data: TaskData, train: Sequence[Case], encoder: Encoder
    ) -> Plan:
        """The plan with what this kind has to plan beside sizes (anchors), from the training cases."""
        return plan

    # Training

    @abstractmethod
    def network(self, encoder: Encoder, head: str) -> nn.Module:
        """Encoder and one of `heads`; the module has the attribute `encoder`."""

    @abstractmethod
    def example(self, position: int) -> dict[str, Tensor]:
        """Training example number `position` (the same in every arm), without a batch axis."""

    @abstractmethod
    def loss(self, network: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Training loss of a batch on the device; augments it there."""

    @abstractmethod
    def validate(self, network: nn.Module, device: torch.device) -> dict[str, float]:
        """Scores on the validation cases; holds `criterion`."""

    # Scoring

    @abstractmethod
    def predictions(
        self, network: nn.Module, cases: Sequence[Case], device: torch.device, *, mirror: bool = False
    ) -> Iterator[Any]:
        """One prediction a case, in order; `mirror` averages over the record's flips where it can."""

    def together(self, members: Sequence[Member], device: torch.device, *, mirror: bool = False) -> Any:
        """What several networks predict of one case: the mean of their predictions."""
        found = [next(iter(m.task.predictions(m.network, [m.case], device, mirror=mirror))) for m in members]
        return np.mean(found, axis=0)

    @abstractmethod
    def rows(self, case: Case, prediction: Any) -> list[CaseRow]:
        """Rows of the long table of one case."""

    @property
    def set_metrics(self) -> Mapping[str, Metric]:
        """Metrics of a whole set by name, `metric(truth, predicted, weights[R, N])`; others are of cases."""
        return {}

    @property
    def structures(self) -> list[str]:
        """Names over which metrics of cases are averaged; empty where there are none."""
        return []

    def parts(self, metric: str) -> Mapping[str, Metric]:
        """What a metric of the whole set is a mean of, by structure: shown below it, not compared."""
        return {}

    def truth(self, cases: Sequence[Case]) -> np.ndarray:
        """What `set_metrics` take as truth, [N, ...] (or objects)."""
        raise NotImplementedError(f"{self.kind} has no metric of a whole set")

    def stacked(self, predictions: Sequence[Any]) -> np.ndarray:
        """What `set_metrics` take as prediction, [N, ...] (or objects)."""
        return np.stack(list(predictions))

    def written(self, case: Case, prediction: Any) -> dict[str, Any]:
        """Columns of predictions.csv beside arm, case and subject; empty: the file is not written."""
        return {}

    def lines(self, case: Case, prediction: Any) -> list[dict[str, Any]]:
        """Rows of predictions.csv: one an image, where a prediction is not several things."""
        return [self.written(case, prediction)]

    def answers(self, case: Case, prediction: Any) -> list[dict[str, Any]]:
        """What is said of a new image, which has no reference: rows for `medloom predict`'s table."""
        return [{}]

    def reader(self, network: nn.Module) -> Callable[[Tensor], Tensor]:
        """From what the network puts out to what is scored, without a change of shape; used by the export.

        Raises:
            ConfigError: a prediction of this kind is more than an array.
        """
        raise ConfigError(f"task {self.record.name}: a {self.kind} network cannot be exported")

    def label_map(self, prediction: Any) -> np.ndarray | None:
        """Mask values of the record on the case's grid; None where a prediction is no label map."""
        return None

    def caption(self, case: Case, prediction: Any) -> dict[str, Any]:
        """`truth` and `prediction` in words, to stand under a picture; empty where the picture shows it."""
        return {}

    def learnt(self) -> dict[str, Any]:
        """What predictions need beside the weights (the scale of a number); it goes into arm.json."""
        return {}

    def recall(self, learnt: Mapping[str, Any]) -> None:  # noqa: B027 - most kinds have nothing to recall
        """Take over what `learnt` gave when the arm was trained."""

    @abstractmethod
    def picture(self, path: Path, case: Case, prediction: Any) -> None:
        """Write a PNG of the case with its reference and its prediction."""

    # Reading

    def image(
        self, case: Case, origin: Sequence[int] | None = None, shape: Sequence[int] | None = None
    ) -> np.ndarray:
        """Image [C, *shape] in native dtype as it is scored, whole or a box that lies inside."""
        if self.corrupt is None:
            return self.data.image(case, origin, shape)
        whole = self.corrupt(case, self.data.image(case))
        if origin is None or shape is None:
            return whole
        return whole[(slice(None), *(slice(o, o + s) for o, s in zip(origin, shape, strict=True)))]

    def resampled(self, case: Case, size: Sequence[int]) -> np.ndarray:
        """The whole image as it is scored, at another size: normalised float32 [channels, *size]."""
        if self.plan.ndim == 2 and self.corrupt is None:
            height, width = case.shape
            pixels = self.data.shards.read_resized(case.ref, (0, 0, height, width), size)
        else:
            pixels = resized(self.image(case), size)
        return self.normalised(case, pixels)

    def batches(self, start: int, steps: int, workers: int) -> Iterator[dict[str, Tensor]]:
        """Batches of steps start .. steps - 1."""
        size = self.plan.batch
        sampler = [list(range(step * size, (step + 1) * size)) for step in range(start, steps)]
        loader = DataLoader(
            _Examples(self),
            batch_sampler=sampler,
            num_workers=workers,
            pin_memory=torch.cuda.is_available() and workers > 0,
            prefetch_factor=2 if workers else None,
        )
        return iter(loader)

    def case_at(self, position: int) -> Case:
        """The training case of a position: epoch after epoch, each in a drawn order."""
        cases = self.cases["train"]
        epoch, index = divmod(position, len(cases))
        return cases[_permutation(self.config.seed, epoch, len(cases))[index]]

    def normalised(self, case: Case, pixels: np.ndarray) -> np.ndarray:
        """[C, *spatial] in native units -> float32 [plan.channels, *spatial], by the rule of pretraining."""
        scaled = intensity(case.meta).apply(pixels)
        if scaled.shape[0] == self.plan.channels:
            return scaled
        if scaled.shape[0] != 1:
            raise ConfigError(
                f"{case.key}: {scaled.shape[0]} channels, the network takes {self.plan.channels}: "
                "give an encoder with that many channels"
            )
        return np.repeat(scaled, self.plan.channels, axis=0)

    def padding(self, case: Case) -> float:
        """What lies outside an image: its darkest value, normalised."""
        rule = intensity(case.meta)
        return float(np.min((rule.low - rule.mean) / rule.std))


def native_box(
    case: Case, target: Sequence[int], low: Sequence[int], high: Sequence[int]
) -> tuple[list[int], list[int]]:
    """(first voxel, extent) in the case's own grid of what a box [low, high) of its `target` grid shows."""
    ratio = [n / t for n, t in zip(case.shape, target, strict=True)]
    start = [min(math.floor(a * r), n - 1) for a, r, n in zip(low, ratio, case.shape, strict=True)]
    stop = [
        max(s + 1, min(math.ceil(b * r), n))
        for s, b, r, n in zip(start, high, ratio, case.shape, strict=True)
    ]
    return start, [b - a for a, b in zip(start, stop, strict=True)]


class _Examples(Dataset):
    def __init__(self, task: Task) -> None:
        self.task = task

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        return self.task.example(position)

    def __len__(self) -> int:
        return 2**62  # positions have no end; the batch sampler decides


def resized(x: np.ndarray, size: Sequence[int], *, smooth: bool = True) -> np.ndarray:
    """[C, *spatial] at another size: linear (antialiased in 2D), or nearest for label maps."""
    if tuple(x.shape[1:]) == tuple(size):
        return x
    tensor = torch.from_numpy(x.astype(np.float32))[None]  # a copy: what is kept decoded is read-only
    if not smooth:
        return (
            functional.interpolate(tensor, size=tuple(size), mode="nearest-exact")[0].numpy().astype(x.dtype)
        )
    options: dict[str, Any] = {"antialias": True} if x.ndim == 3 else {}
    return functional.interpolate(
        tensor, size=tuple(size), mode=_SMOOTH[x.ndim - 1], align_corners=False, **options
    )[0].numpy()


@lru_cache(maxsize=8)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, count]).permutation(count)
