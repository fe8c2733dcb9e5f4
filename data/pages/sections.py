"""What the view of a dataset shows beyond its row: facts of the Decathlon and of MedMNIST, published scores.

A section is {title, note, basis, rows: [[name, value]], table: {head, rows}}; a value is text, a number, a
list, {url, text} or {code}. Scores that are recalled carry that basis, which the page marks.
"""

from __future__ import annotations

from typing import Any

from ..catalog import Catalog
from ..catalog.records import Dataset, MedMnistSet, MsdTask

Section = dict[str, Any]

_MSD_SCORES = {
    "nnunet_2018_phase1_dsc": "nnU-Net, phase 1, Dice",
    "nnunet_leaderboard_dsc": "nnU-Net, leaderboard, Dice",
    "nnunet_leaderboard_nsd": "nnU-Net, leaderboard, NSD", "swin_unetr_dsc": "Swin UNETR, Dice",
    "swin_unetr_nsd": "Swin UNETR, NSD",
}  # fmt: skip


def sections(catalog: Catalog, dataset: Dataset) -> list[Section]:
    """Sections of one dataset, in order; most have none."""
    found: list[Section] = []
    if dataset.id in catalog.msd:
        found += _msd(catalog.msd[dataset.id])
    if dataset.id in catalog.medmnist:
        found += _medmnist(catalog.medmnist[dataset.id])
    return found


def _msd(task: MsdTask) -> list[Section]:
    facts = [
        ["Task", f"{task.task_id} {task.name}"],
        ["Channels", ", ".join(task.channels.values())],
        ["Labels", _numbered(task.labels)],
        ["Cases", f"{task.n_train} training, {task.n_test} test; {task.n_note}"],
        ["Median", f"{_times(task.median_spacing_mm)} mm, {_times(task.median_shape)} voxels (x, y, z)"],
        ["Archive", [{"url": task.url_aws}, {"code": f"md5 {task.archive_md5}"}]],
        ["From", task.institution],
        ["NSD tolerance", f"{task.nsd_tolerance_mm:g} mm ({task.nsd_tolerance_status})"],
    ]
    structures = [name for value, name in task.labels.items() if value]
    rows = [
        [title, *[f"{score:.2f}" for score in task.scores[name]]]
        for name, title in _MSD_SCORES.items() if len(task.scores.get(name, ())) == len(structures)
    ]  # fmt: skip
    scores = {
        "title": "Published scores",
        "note": f"In percent. From {task.results_source}. Status: {task.results_status}.",
        "basis": "recalled" if task.results_status.startswith("recalled") else "read",
        "table": {"head": ["Method", *structures], "rows": rows},
    }
    return [{"title": "In the Decathlon", "rows": facts}, *([scores] if rows else [])]


def _medmnist(item: MedMnistSet) -> list[Section]:
    archives = [{"url": item.url[size], "text": f"{size} px"} for size in item.sizes]
    facts = [
        ["Task", item.task],
        ["Labels", _numbered(item.labels)],
        ["Split", f"{item.n_train:,} train, {item.n_val:,} validation, {item.n_test:,} test"],
        ["Channels", item.n_channels],
        ["Archives", archives],
        ["Made from", item.source_dataset],
    ]
    rows = []
    for name in dict.fromkeys(key.rpartition("_")[0] for key in item.scores):
        values = [item.scores.get(f"{name}_{what}") for what in ("auc", "acc")]
        rows.append([_method(name), *["" if value is None else f"{value:.3f}" for value in values]])
    scores = {
        "title": "Published scores", "note": f"Test split. From {item.results_source}.", "basis": "read",
        "table": {"head": ["Method", "AUC", "Accuracy"], "rows": rows},
    }  # fmt: skip
    return [{"title": "In MedMNIST", "rows": facts}, *([scores] if rows else [])]


def _method(name: str) -> str:
    """`resnet_18_224` -> `ResNet-18, 224 px`; `resnet_50_acs` -> `ResNet-50, ACS`."""
    known = {
        "auto_sklearn": "auto-sklearn",
        "autokeras": "AutoKeras",
        "google_automl_vision": "Google AutoML Vision",
    }
    if name in known:
        return known[name]
    family, depth, rest = name.split("_")
    tail = {"25d": "2.5D", "3d": "3D", "acs": "ACS"}.get(rest, f"{rest} px")
    return f"{family.replace('resnet', 'ResNet')}-{depth}, {tail}"


def _numbered(labels: dict[int, str]) -> str:
    return ", ".join(f"{value} {name}" for value, name in labels.items())


def _times(values: tuple[float, ...]) -> str:
    return " × ".join(f"{value:g}" for value in values)
