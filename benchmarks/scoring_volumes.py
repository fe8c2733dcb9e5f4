"""Score a 3D encoder on held-out volumes: the hippocampus task, which no run was trained on.

- `knn`, `linear`: which structure (anterior, posterior, neither) lies at the middle of a crop of 32 voxels;
  one crop of each for every volume; balanced accuracy, split by subject. How they work: scoring.py.
- `dense`: ridge regression from the tokens of the middle 32 voxels to the shares of the two structures; Dice.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from medloom.data.draws import uniform
from medloom.data.loader.batches import collate
from medloom.data.normalise import intensity
from medloom.data.sample import MODALITIES, Modality
from medloom.finetune.data import Case, TaskData
from medloom.pretrain.encoders import Encoder
from medloom.pretrain.views import to_float
from torch import Tensor

from .scoring import (
    BATCH,
    PARTS,
    Task,
    answer,
    dense_cell,
    describe,
    neighbours,
    open_task,
    patch_tokens,
    regression,
)

TASK = "realdata-hippocampus"
CELLS = ["hippocampus knn", "hippocampus linear", "hippocampus dense"]
SIDE = 32  # voxels
EACH = 1  # crops of a class and volume
STRUCTURES = 2


def score(encoder: Encoder, root: Path, cache: Path) -> dict[str, dict[str, Any]]:
    """Cell -> as `scoring.score`."""
    encoder.eval()
    task = open_task(TASK, root, cache)
    points = {part: list(centres(task, part)) for part in PARTS}
    features = {part: describe(encoder, crops(task.data, chosen)) for part, chosen in points.items()}
    labels = {part: np.array([label for _, _, label in chosen]) for part, chosen in points.items()}
    groups = [case.subject for case, _, _ in points["test"]]
    middle = {part: [(c, np.array(c.shape) // 2, 0) for c in task.cases[part]] for part in PARTS}
    tokens = {part: patch_tokens(encoder, crops(task.data, chosen)) for part, chosen in middle.items()}
    masks = {part: torch.stack([structures(task.data, c) for c in task.cases[part]]) for part in PARTS}
    grid = tuple(SIDE // patch for patch in encoder.patch_of(3))
    return {
        CELLS[0]: answer(labels["test"], neighbours(features, labels), groups),
        CELLS[1]: answer(labels["test"], regression(features, labels), groups),
        CELLS[2]: dense_cell(tokens, masks, grid),
    }


def centres(task: Task, part: str) -> Iterator[tuple[Case, np.ndarray, int]]:
    """(case, voxel, class) of all crops of a split; drawn by the number of the case, always the same."""
    for number, case in enumerate(task.cases[part]):
        mask = task.data.mask(case)
        for label in range(STRUCTURES + 1):
            places = np.argwhere(mask == label)
            if not len(places):
                continue
            drawn = uniform(0, f"benchmark:{part}:{label}", [number], EACH)[0]
            for u in drawn:
                yield case, places[int(u * len(places))], label


def crops(data: TaskData, chosen: list[tuple[Case, np.ndarray, int]]) -> Iterator[Tensor]:
    """Normalised batches [B, 1, 32, 32, 32] around voxels; beyond the volume lies its lowest value."""
    for start in range(0, len(chosen), BATCH):
        samples = [sample(data, case, place) for case, place, _ in chosen[start : start + BATCH]]
        yield to_float(collate(samples), 1)


def sample(data: TaskData, case: Case, place: np.ndarray) -> dict[str, Any]:
    """One crop as the loader would give it."""
    numbers = intensity(case.meta)
    image = cut(data.image(case)[0], place, np.asarray(numbers.low).reshape(-1)[0])[None]
    return {
        "image": image, "low": numbers.low, "high": numbers.high, "mean": numbers.mean, "std": numbers.std,
        "modality": MODALITIES.index(Modality(case.meta["modality"])), "key": case.key, "position": 0,
        "spacing": np.asarray(case.meta["spacing"] or [1.0] * 3, np.float32),
    }  # fmt: skip


def structures(data: TaskData, case: Case) -> Tensor:
    """bool [2, 32, 32, 32]: both structures around the middle of the volume."""
    mask = cut(data.mask(case), np.array(case.shape) // 2, 0)
    return torch.from_numpy(np.stack([mask == label + 1 for label in range(STRUCTURES)]))


def cut(volume: np.ndarray, place: np.ndarray, fill: Any) -> np.ndarray:
    """The 32 voxels a side around `place`."""
    half = SIDE // 2
    padded = np.pad(volume, half, constant_values=np.asarray(fill).astype(volume.dtype))
    return np.ascontiguousarray(padded[tuple(slice(int(p), int(p) + SIDE) for p in place)])
