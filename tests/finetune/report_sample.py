"""A realistic set of report inputs with synthetic numbers and pictures, written as real runs write them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from medloom.finetune.metrics import CLASSIFICATION, EmptyPolicy
from medloom.finetune.statistics import (
    bootstrap_metric,
    paired_difference,
    paired_metric_difference,
    summarise,
)
from PIL import Image

CLEAN = {
    "status": "clean",
    "statement": "The encoder has not seen phantom_ct_seg.",
    "checks": ["training sources of the encoder: phantom_ct_seg is not among them"],
    "not_checked": ["near duplicates"],
}


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def pretrain_run(folder: Path, *, steps: int = 1200, seed: int = 0) -> Path:
    """metrics.jsonl, encoder.json, env.json, config.yaml and panels of a run."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    rows = []
    for step in range(1, steps + 1, 20):
        done = step / steps
        row: dict[str, Any] = {
            "step": step,
            "samples": 64 * step,
            "time": 0.4 * step,
            "lr": 1e-4,
            "loss": 0.32 + 0.7 * np.exp(-5 * done) + 0.012 * rng.standard_normal(),
            "rankme": 6 + 34 * done**0.6 + rng.standard_normal(),
            "feature_std": 0.2 + 0.5 * done**0.5,
            "samples_per_s": 163.0,
            "data_wait": 0.031,
        }
        if step % 100 == 1:
            for name, gain in (("fundus", 0.25), ("us_breast", 0.14), ("derm", 0.08)):
                row[f"probe/knn_{name}"] = 0.5 + gain * done**0.5 + 0.01 * rng.standard_normal()
            row["probe/rankme"] = 3 * row["rankme"]
        rows.append(row)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = [
        ("phantom_mri-3d", "mri", 72),
        ("phantom_xray-2d", "x-ray", 48),
        ("phantom_fundus-2d", "fundus", 120),
        ("phantom_histology-2d", "histopathology", 144),
    ]
    encoder = {
        "architecture": {"name": "vit", "args": {"depth": 6}},
        "ndim": 2,
        "training": {
            "manifest": "5c1f" * 16,
            "collection": "phantoms",
            "steps": steps,
            "samples": 64 * steps,
            "objective": {"name": "mae"},
            "sources": [
                {"id": i, "dataset": i[:-3], "licence": "Apache-2.0", "count": n, "modalities": {m: n}}
                for i, m, n in sources
            ],
        },
        "held_out": {
            "rules": [
                {"dataset": "phantom_ct_seg", "splits": []},
                {"dataset": "phantom_ultrasound", "splits": ["test"]},
            ],
            "excluded": {"content_hash": 3},
            "checked": ["content_hash"],
            "not_checked": ["near duplicates"],
        },
    }
    write_json(folder / "encoder.json", encoder)
    environment = {
        "python": "3.11.9",
        "system": "Linux x86_64",
        "packages": {"torch": "2.15.0"},
        "git": "0f3c9a1",
    }
    environment["command"] = "medloom pretrain phantom-mae-2d out=/home/somebody/secret/runs/vit"
    write_json(folder / "env.json", environment)
    (folder / "config.yaml").write_text(
        "name: vit\nout: /home/somebody/secret/runs/vit\ndata:\n  crop: [64, 64]\n"
    )
    for step in (1, steps):
        for kind, columns in (("reconstruction", 3), ("features", 2)):
            grid = np.stack([_picture(rng, 160) for _ in range(3 * columns)]).reshape(3, columns, 160, 160)
            panel = np.pad(grid, ((0, 0), (0, 0), (6, 16), (6, 6)), constant_values=24)
            panel = panel.transpose(0, 2, 1, 3).reshape(3 * 182, columns * 172)
            path = folder / "panels" / f"step-{step:07d}-{kind}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(panel).convert("RGB").save(path)
    return folder


def segmentation(folder: Path, *, gain: float = 0.06, patients: int = 24, seed: int = 1, **more: Any) -> Path:
    """summary.json, cases.csv and overlays of a segmentation of two structures."""
    rng = np.random.default_rng(seed)
    structures, metrics = ("organ", "lesion"), ("dice", "nsd", "hd95")
    hardness = rng.beta(6, 2, patients)
    rows, table = [], {}
    for arm in ("pretrained", "scratch"):
        for structure, level in (("organ", 0.2), ("lesion", 0.0)):
            for metric in metrics:
                value = np.clip(hardness + level + gain * (arm == "pretrained"), 0, 0.99)
                value = np.clip(value + 0.03 * rng.standard_normal(patients), 0, 0.995)
                value = value if metric != "hd95" else 22 * (1 - value) + 1
                status = np.full(patients, "ok", dtype=object)
                if structure == "lesion":
                    status[0], status[1] = "excluded", "replaced"
                    value[0], value[1] = np.nan, (0.0 if metric != "hd95" else 83.1)
                table[arm, metric, structure] = (value, list(status))
                for i in range(patients):
                    rows.append(
                        (
                            "phantom_ct_lesion",
                            "segmentation",
                            "full",
                            arm,
                            0,
                            key("phantom_ct_seg", i),
                            f"{i:016x}",
                            structure,
                            metric,
                            value[i],
                            status[i],
                        )
                    )
    subjects = [f"{i:016x}" for i in range(patients)]
    arms: dict[str, list[dict[str, Any]]] = {"pretrained": [], "scratch": []}
    comparisons = []
    for structure in (*structures, "mean"):
        for metric in metrics:
            values = {}
            for arm in arms:
                parts = [table[arm, metric, s] for s in (structures if structure == "mean" else (structure,))]
                values[arm] = np.array([_mean(part) for part in zip(*(p for p, _ in parts), strict=True)])
                status = parts[-1][1] if structure != "mean" else ["ok"] * patients
                found = summarise(values[arm], status, subjects, 2000)
                arms[arm].append(
                    {
                        "metric": metric,
                        "structure": structure,
                        "mean": found.mean,
                        "low": found.low,
                        "high": found.high,
                        "n": found.n,
                        "excluded": found.excluded,
                        "replaced": found.replaced,
                    }
                )
            gap = paired_difference(values["pretrained"], values["scratch"], subjects, 2000)
            comparisons.append(
                {
                    "metric": metric,
                    "structure": structure,
                    "a": "pretrained",
                    "b": "scratch",
                    "difference": gap.difference,
                    "low": gap.low,
                    "high": gap.high,
                    "p": gap.p,
                }
            )
    worst = []
    for arm in arms:
        for i in np.argsort(hardness)[:2]:
            name = f"overlays/{arm}-{i}.png"
            save(folder / name, _overlay(rng))
            worst.append(
                {
                    "arm": arm,
                    "case": key("phantom_ct_seg", int(i)),
                    "metric": "dice",
                    "structure": "lesion",
                    "value": float(np.nan_to_num(table[arm, "dice", "lesion"][0][i])),
                    "image": name,
                }
            )
    summary = {
        "task": "phantom_ct_lesion",
        "kind": "segmentation",
        "protocol": "full",
        "arms": arms,
        "comparisons": comparisons,
        "worst": worst,
        "leakage": CLEAN,
        "empty_policy": EmptyPolicy().describe(),
        "nsd_tolerance_mm": 2.0,
        "nsd_tolerance_verified": False,
        "environment": {"python": "3.11.9", "devices": ["cpu, 2 threads"]},
        **more,
    }
    write_json(folder / "summary.json", summary)
    write_cases(folder, rows)
    return folder


def classification(
    folder: Path, *, gain: float = 0.2, patients: int = 40, seed: int = 5, **more: Any
) -> Path:
    """summary.json and cases.csv of a two-class task with three arms."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, patients)
    signal = (2 * truth - 1) + 1.4 * rng.standard_normal(patients)
    scores, rows = {}, []
    for arm, extra in (("pretrained", gain), ("random", -0.4), ("scratch", 0.0)):
        logit = (1 + extra) * signal + (0.5 - extra) * rng.standard_normal(patients)
        scores[arm] = 1 / (1 + np.exp(-logit))
        for i in range(patients):
            sure = scores[arm][i] if truth[i] else 1 - scores[arm][i]
            for metric, value in (("correct", float(sure > 0.5)), ("probability", sure)):
                rows.append(
                    (
                        "phantom_ultrasound",
                        "classification",
                        "linear",
                        arm,
                        0,
                        key("phantom_ultrasound", i),
                        f"{i:016x}",
                        "",
                        metric,
                        value,
                        "ok",
                    )
                )
    subjects = np.arange(patients)
    arms: dict[str, list[dict[str, Any]]] = {}
    comparisons = []
    for metric in ("auc", "accuracy", "brier"):
        for arm, score in scores.items():
            found = bootstrap_metric(CLASSIFICATION[metric], truth, score, subjects, 2000)
            arms.setdefault(arm, []).append(
                {
                    "metric": metric,
                    "structure": "",
                    "mean": found.mean,
                    "low": found.low,
                    "high": found.high,
                    "n": patients,
                }
            )
        for arm in ("random", "scratch"):
            gap = paired_metric_difference(
                CLASSIFICATION[metric], truth, scores["pretrained"], scores[arm], subjects, 2000
            )
            comparisons.append(
                {
                    "metric": metric,
                    "structure": "",
                    "a": "pretrained",
                    "b": arm,
                    "difference": gap.difference,
                    "low": gap.low,
                    "high": gap.high,
                    "p": gap.p,
                }
            )
    save(folder / "overlays/pretrained-3.png", np.repeat(_picture(rng, 200)[..., None], 3, axis=2))
    summary = {
        "task": "phantom_ultrasound",
        "kind": "classification",
        "protocol": "linear",
        "arms": arms,
        "comparisons": comparisons,
        "classes": ["cyst", "solid"],
        "leakage": {
            "status": "unknown",
            "statement": "The encoder was started from timm weights, whose own "
            "training data are not part of its record.",
            "checks": [],
            "not_checked": [],
        },
        "worst": [
            {
                "arm": "pretrained",
                "case": key("phantom_ultrasound", 3),
                "metric": "probability",
                "structure": "",
                "value": 0.08,
                "truth": "solid",
                "prediction": "cyst",
                "image": "overlays/pretrained-3.png",
            }
        ],
        "environment": {"python": "3.11.9"},
        **more,
    }
    write_json(folder / "summary.json", summary)
    write_cases(folder, rows)
    return folder


def write_cases(folder: Path, rows: list[tuple[Any, ...]]) -> None:
    columns = [
        "task",
        "kind",
        "protocol",
        "arm",
        "seed",
        "case",
        "subject",
        "structure",
        "metric",
        "value",
        "status",
    ]
    with (folder / "cases.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def key(dataset: str, number: int) -> str:
    return f"{dataset}-{number * 2654435761 % 2**64:016x}"


def save(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


def _mean(values: tuple[float, ...]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")


def _picture(rng: np.random.Generator, size: int) -> np.ndarray:
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    image = 0.3 * ((x / 0.85) ** 2 + (y / 0.7) ** 2 < 1)
    for _ in range(6):
        cx, cy, r = rng.uniform(-0.5, 0.5), rng.uniform(-0.4, 0.4), rng.uniform(0.08, 0.3)
        image = image + rng.uniform(-0.2, 0.4) * ((x - cx) ** 2 + (y - cy) ** 2 < r**2)
    return (np.clip(image + 0.04 * rng.standard_normal(x.shape), 0, 1) * 255).astype(np.uint8)


def _overlay(rng: np.random.Generator) -> np.ndarray:
    picture = np.repeat(_picture(rng, 240)[..., None], 3, axis=2)
    y, x = np.mgrid[-1:1:240j, -1:1:240j]
    for shift, colour in ((0.0, (64, 200, 96)), (0.07, (235, 64, 200))):
        ring = np.abs(np.hypot(x - 0.1 - shift, y + 0.1) - 0.3) < 0.012
        picture[ring] = colour
    return picture
