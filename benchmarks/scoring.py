"""Score an encoder on held-out pictures: neighbours, a linear probe, a dense probe. One code for all.

Six cells, two data sets for each probe, always on the declared test split, which no contender was trained on
(medloom holds its subjects out of the shards, and the rivals read the same shards):

- `knn`: 10 nearest of the training and validation cases by cosine, on the pooled vector beside the mean patch
  token, each of length one; balanced accuracy.
- `linear`: logistic regression on the same two vectors, standardised, classes weighted alike; C chosen by
  balanced accuracy on validation, then by log loss; balanced accuracy.
- `dense`: ridge regression from each patch token (at twice the training resolution) to the share of the
  structure in its patch; penalty and threshold chosen on validation; enlarged to pixels; mean Dice of the
  test pictures that hold the structure.

What differs between contenders is only how bytes become the input of the network: the contract that each was
trained with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from medloom.data.loader.batches import collate
from medloom.data.stream.config import StreamConfig
from medloom.finetune.config import load_config
from medloom.finetune.data import Case, TaskData, prepare
from medloom.finetune.splits import make_split
from medloom.pretrain.encoders import Encoder
from medloom.pretrain.probes import knn_predict, load
from medloom.pretrain.views import to_float
from torch import Tensor
from torch.nn import functional

Normalise = Callable[[dict[str, Any]], Tensor]
CLASSES, MASKS = ("realdata-derm", "realdata-busi"), ("realdata-polyps", "realdata-nuclei")
CELLS = [f"{task.removeprefix('realdata-')} {probe}" for probe in ("knn", "linear") for task in CLASSES]
CELLS += [f"{task.removeprefix('realdata-')} dense" for task in MASKS]
NEIGHBOURS = 10
STRENGTHS = tuple(10.0**power for power in range(-5, 3))  # C of the logistic regression
PENALTIES = tuple(10.0**power for power in range(-1, 6))  # of the ridge regression
THRESHOLDS = tuple(round(0.1 + 0.05 * i, 2) for i in range(17))
PARTS = ("train", "val", "test")
BATCH = 32


@dataclass(slots=True)
class Task:
    """The cases of a task by split, read once."""

    name: str
    data: TaskData
    cases: dict[str, list[Case]]


def ours(batch: dict[str, Any]) -> Tensor:
    """medloom's contract: clip and standardise by what the shards know of a picture."""
    return to_float(batch, 3)


def imagenet(batch: dict[str, Any]) -> Tensor:
    """The rivals' contract: bytes / 255, ImageNet's mean and deviation; grey repeated."""
    image: Tensor = batch["image"].to(torch.float32) / 255
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    return (image.expand(-1, 3, -1, -1) - mean) / std


def open_task(name: str, root: Path, cache: Path) -> Task:
    """Read a shipped task of the real collection; builds its shards on the first call."""
    config = load_config(name, ["encoder=none", f"root={root}"])
    data = prepare(config.task, root=root, cache=cache)
    split = make_split(data.items(), config.task.split, data.rank)
    cases = {part: [case for case in data.cases if split[case.key] == part] for part in PARTS}
    return Task(name.removeprefix("realdata-"), data, cases)


def score(
    encoder: Encoder, normalise: Normalise, root: Path, cache: Path, side: int = 64
) -> dict[str, dict[str, Any]]:
    """Cell -> {"score", "metric", and for intervals "groups" and "truth"/"predicted" or "values"}."""
    encoder.eval()
    found: dict[str, dict[str, Any]] = {}
    for name in CLASSES:
        task = open_task(name, root, cache)
        found.update(classification(task, encoder, normalise, side))
    for name in MASKS:
        task = open_task(name, root, cache)
        found[f"{task.name} dense"] = dense(task, encoder, normalise, 2 * side)
    return {cell: found[cell] for cell in CELLS}


def batches(task: Task, part: str, normalise: Normalise, side: int) -> Iterable[Tensor]:
    """Whole pictures of one split, squashed to `side` pixels: [B, 3, side, side]."""
    stream = replace(StreamConfig(), ndim=2, crop=[side, side])
    cases = task.cases[part]
    for start in range(0, len(cases), BATCH):
        samples = [load(task.data.shards, case.ref, stream) for case in cases[start : start + BATCH]]
        yield normalise(collate(samples))


@torch.no_grad()
def describe(encoder: Encoder, images: Iterable[Tensor]) -> Tensor:
    """float32 [N, 2E]: pooled vector and mean patch token."""
    rows = []
    for image in images:
        features = encoder(image)
        rows.append(torch.cat([features.pooled, features.tokens.mean(dim=1)], dim=1).float())
    return torch.cat(rows)


def classification(
    task: Task, encoder: Encoder, normalise: Normalise, side: int
) -> dict[str, dict[str, Any]]:
    """The kNN and the linear cell of a task with classes."""
    features = {part: describe(encoder, batches(task, part, normalise, side)) for part in PARTS}
    labels = {part: np.array([case.label for case in task.cases[part]]) for part in PARTS}
    groups = [case.subject for case in task.cases["test"]]
    return {
        f"{task.name} knn": answer(labels["test"], neighbours(features, labels), groups),
        f"{task.name} linear": answer(labels["test"], regression(features, labels), groups),
    }


def answer(truth: np.ndarray, predicted: np.ndarray, groups: Sequence[str]) -> dict[str, Any]:
    """A cell of balanced accuracy with what its interval is computed from."""
    names = {name: number for number, name in enumerate(dict.fromkeys(groups))}
    return {
        "metric": "balanced accuracy", "score": balanced(truth, predicted), "truth": truth.tolist(),
        "predicted": predicted.tolist(), "groups": [names[group] for group in groups],
    }  # fmt: skip


def balanced(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Mean recall over the classes of `truth`."""
    return float(np.mean([(predicted[truth == label] == label).mean() for label in np.unique(truth)]))


def neighbours(features: dict[str, Tensor], labels: dict[str, np.ndarray]) -> np.ndarray:
    """Classes of the test cases by their neighbours among train and val."""
    halves = {part: values.chunk(2, dim=1) for part, values in features.items()}
    unit = {
        part: torch.cat([functional.normalize(half, dim=1) for half in pair], dim=1)
        for part, pair in halves.items()
    }
    known = torch.from_numpy(np.concatenate([labels["train"], labels["val"]]))
    kept = torch.cat([unit["train"], unit["val"]])
    return knn_predict(kept, known, unit["test"], k=NEIGHBOURS, classes=int(known.max()) + 1).numpy()


def regression(features: dict[str, Tensor], labels: dict[str, np.ndarray]) -> np.ndarray:
    """Classes of the test cases by logistic regression, C chosen on val."""
    from sklearn.linear_model import LogisticRegression

    mean, std = features["train"].mean(dim=0), features["train"].std(dim=0).clamp_min(1e-6)
    x = {part: ((values - mean) / std).numpy() for part, values in features.items()}
    best: tuple[tuple[float, float], np.ndarray] | None = None
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=1000, class_weight="balanced")
        model.fit(x["train"], labels["train"])
        chances = model.predict_proba(x["val"])
        right = np.searchsorted(model.classes_, labels["val"])
        loss = -np.log(np.clip(chances[np.arange(len(right)), right], 1e-9, 1)).mean()
        order = (round(balanced(labels["val"], model.predict(x["val"])), 6), -float(loss))
        if best is None or order > best[0]:
            best = (order, model.predict(x["test"]))
    assert best is not None
    return best[1]


def dense(task: Task, encoder: Encoder, normalise: Normalise, side: int) -> dict[str, Any]:
    """The dense cell of a task with one structure."""
    tokens = {part: patch_tokens(encoder, batches(task, part, normalise, side)) for part in PARTS}
    masks = {
        part: torch.stack([mask_of(task.data, case, side) for case in task.cases[part]]) for part in PARTS
    }
    return dense_cell(tokens, masks, (side // encoder.patch_size[0], side // encoder.patch_size[1]))


def dense_cell(tokens: dict[str, Tensor], masks: dict[str, Tensor], grid: Sequence[int]) -> dict[str, Any]:
    """Dice of structures drawn from tokens by ridge regression.

    Args:
        tokens: part -> float32 [N, patches, E].
        masks: part -> bool [N, S, *space] of S structures.
        grid: patches along each axis.
    """
    shrink = functional.adaptive_avg_pool2d if len(grid) == 2 else functional.adaptive_avg_pool3d
    shares = shrink(masks["train"].float(), tuple(grid)).flatten(2).transpose(1, 2).flatten(0, 1).double()
    mean, std = tokens["train"].mean(dim=(0, 1)), tokens["train"].std(dim=(0, 1)).clamp_min(1e-6)
    x = {part: ((values - mean) / std).double() for part, values in tokens.items()}
    fits = ridge(x["train"].flatten(0, 1), shares)
    best: list[tuple[float, np.ndarray] | None] = [None] * shares.shape[1]
    for weight, bias in fits:
        maps = {
            part: enlarge(x[part] @ weight + bias, grid, masks[part].shape[2:]) for part in ("val", "test")
        }
        for structure in range(len(best)):
            for threshold in THRESHOLDS:
                val, test = (dice(maps[part][:, structure] > threshold, masks[part][:, structure])
                             for part in ("val", "test"))  # fmt: skip
                reached = float(np.nanmean(val))
                if best[structure] is None or reached > best[structure][0]:  # type: ignore[index]
                    best[structure] = (reached, test)
    values = np.nanmean(np.stack([found[1] for found in best if found is not None]), axis=0)
    return {
        "metric": "Dice", "score": float(np.nanmean(values)),
        "values": [None if np.isnan(value) else round(float(value), 6) for value in values],
        "groups": list(range(len(values))),
    }  # fmt: skip


@torch.no_grad()
def patch_tokens(encoder: Encoder, images: Iterable[Tensor]) -> Tensor:
    """float32 [N, patches, E]."""
    return torch.cat([encoder(image).tokens.float() for image in images])


def mask_of(data: TaskData, case: Case, side: int) -> Tensor:
    """bool [1, side, side]: where the structure is, nearest neighbour."""
    mask = torch.from_numpy((np.asarray(data.mask(case)) > 0).astype(np.float32))
    return functional.interpolate(mask[None, None], size=(side, side), mode="nearest-exact")[0] > 0


def ridge(x: Tensor, y: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    """Weight [E, S] and bias [S] for each penalty: x float64 [N, E] standardised, y float64 [N, S]."""
    bias = y.mean(dim=0)
    values, vectors = torch.linalg.eigh(x.T @ x)
    projected = vectors.T @ (x.T @ (y - bias))
    for penalty in PENALTIES:
        yield vectors @ (projected / (values.clamp_min(0) + penalty).unsqueeze(1)), bias


def enlarge(shares: Tensor, grid: Sequence[int], space: Sequence[int]) -> Tensor:
    """[N, patches, S] -> [N, S, *space], linear."""
    maps = shares.transpose(1, 2).reshape(len(shares), -1, *grid).float()
    mode = "bilinear" if len(grid) == 2 else "trilinear"
    return functional.interpolate(maps, size=tuple(space), mode=mode, align_corners=False)


def dice(predicted: Tensor, truth: Tensor) -> np.ndarray:
    """Dice of each picture [N]; nan where the truth is empty."""
    both = (predicted & truth).flatten(1).sum(1).double()
    sizes = predicted.flatten(1).sum(1).double() + truth.flatten(1).sum(1).double()
    present = truth.flatten(1).any(1)
    return torch.where(present, 2 * both / sizes.clamp_min(1), torch.nan).numpy()
