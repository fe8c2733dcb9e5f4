"""What a report reads: files of evaluations and pretraining runs, as typed values, and what is missing.

A report is made from files alone, so that it can be made again, elsewhere and later. Nothing here fails on
a missing or damaged file: each one becomes a line under "What is missing", and the rest of the page stands.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

MOST_PIXELS = 1400  # longest side of an embedded picture


@dataclass(slots=True)
class Score:
    """Mean of one arm on one structure and metric."""

    metric: str
    structure: str
    mean: float
    low: float
    high: float
    n: int
    excluded: int = 0
    replaced: int = 0


@dataclass(slots=True)
class Comparison:
    """Paired difference a - b on one structure and metric, as the evaluation wrote it."""

    metric: str
    structure: str
    a: str
    b: str
    difference: float
    low: float
    high: float
    p: float


@dataclass(slots=True)
class Evaluation:
    """One evaluated fine-tuning run."""

    task: str
    kind: str
    protocol: str
    arms: dict[str, list[Score]] = field(default_factory=dict)
    comparisons: list[Comparison] = field(default_factory=list)
    cases: list[dict[str, str]] = field(default_factory=list)
    leakage: dict[str, Any] = field(default_factory=dict)
    worst: list[dict[str, Any]] = field(default_factory=list)  # value, arm, case, structure, metric, picture
    summary: dict[str, Any] = field(default_factory=dict)
    draws: dict[str, np.ndarray] = field(default_factory=dict)  # `arm|metric` -> bootstrap draws [R]
    tuning: dict[str, Any] = field(default_factory=dict)  # tuning.json of a searched run
    robustness: dict[str, Any] = field(default_factory=dict)  # robustness.json, and its sheet as `picture`

    def score(self, arm: str, metric: str, structure: str) -> Score | None:
        """The score of an arm, if the evaluation has it."""
        found = (s for s in self.arms.get(arm, []) if (s.metric, s.structure) == (metric, structure))
        return next(found, None)


@dataclass(slots=True)
class PretrainRun:
    """One pretraining run."""

    name: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    encoder: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    config: str = ""
    panels: list[tuple[str, int, str]] = field(default_factory=list)  # kind, step, data URI


@dataclass(slots=True)
class Inputs:
    """Everything that a page shows."""

    evaluations: list[Evaluation]
    runs: list[PretrainRun]
    missing: list[str]


def read_inputs(evaluations: list[Path], runs: list[Path]) -> Inputs:
    """Read all files that exist."""
    missing: list[str] = []
    read = [_evaluation(Path(path), missing) for path in evaluations]
    inputs = Inputs([e for e in read if e is not None], [_run(Path(p), missing) for p in runs], missing)
    if not evaluations:
        missing.append("No evaluation was given, so there are no scores: run `medloom evaluate`.")
    if not runs:
        missing.append("No pretraining run was given, so there are no training curves and no collection.")
    return inputs


def finite(value: Any) -> float:
    """A number of a JSON or CSV file; nan for null, text and infinities."""
    try:
        result = float(value)
    except (TypeError, ValueError):
        return math.nan
    return result if math.isfinite(result) else math.nan


def picture(path: Path) -> str | None:
    """A picture as a data URI, re-encoded: no metadata, longest side at most 1400. None when unreadable."""
    from PIL import Image

    try:
        with Image.open(path) as source:
            image = source.convert("RGB")
    except (OSError, ValueError):
        return None
    image.thumbnail((MOST_PIXELS, MOST_PIXELS))
    lossless, small = io.BytesIO(), io.BytesIO()
    image.save(lossless, "PNG")
    image.save(small, "WEBP", quality=88, method=4)
    kind, data = ("png", lossless) if lossless.tell() <= 2 * small.tell() else ("webp", small)
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"


def _evaluation(path: Path, missing: list[str]) -> Evaluation | None:
    path = path / "summary.json" if path.suffix != ".json" else path
    label = f"{path.parent.name}/{path.name}"
    before = len(missing)
    summary = _json(path, label, missing)
    if not summary:
        if len(missing) == before:
            missing.append(f"{label} holds no summary.")
        return None
    folder = path.parent
    result = Evaluation(
        task=str(summary.get("task") or folder.name),
        kind=str(summary.get("kind", "")),
        protocol=str(summary.get("protocol", "")),
        leakage=_mapping(summary.get("leakage")),
        summary=summary,
        draws=_draws(folder / "draws.npz"),
    )
    for arm, rows in _mapping(summary.get("arms")).items():
        result.arms[str(arm)] = [_score(row) for row in rows or []]
    result.comparisons = [_comparison(row) for row in summary.get("comparisons") or []]
    result.cases = _csv(folder / "cases.csv", f"{folder.name}/cases.csv", missing)
    for row in summary.get("worst") or []:
        image = folder / str(row.get("image")) if row.get("image") else None
        uri = picture(image) if image is not None else None
        if image is not None and uri is None:
            missing.append(f"{result.task}: the picture {image.name} of a worst case cannot be read.")
        result.worst.append({**row, "picture": uri})
    if (searched := folder.parent / "tuning.json").is_file():
        result.tuning = _json(searched, searched.name, missing)
    result.robustness = _robustness(folder / "robustness", missing)
    if not result.arms:
        missing.append(f"{label} holds no scores.")
    if not result.leakage:
        missing.append(f"{label} holds no leakage statement; its scores cannot be trusted without one.")
    return result


def _robustness(folder: Path, missing: list[str]) -> dict[str, Any]:
    """What a robustness study wrote; empty where there was none."""
    path = folder / "robustness.json"
    if not path.is_file():
        return {}
    found = _json(path, f"{folder.name}/{path.name}", missing)
    return {**found, "picture": picture(folder / "sheet.png")} if found else {}


def _score(row: dict[str, Any]) -> Score:
    return Score(
        metric=str(row.get("metric", "")),
        structure=str(row.get("structure") or ""),
        mean=finite(row.get("mean")),
        low=finite(row.get("low")),
        high=finite(row.get("high")),
        n=int(row.get("n") or 0),
        excluded=int(row.get("excluded") or 0),
        replaced=int(row.get("replaced") or 0),
    )


def _comparison(row: dict[str, Any]) -> Comparison:
    return Comparison(
        metric=str(row.get("metric", "")),
        structure=str(row.get("structure") or ""),
        a=str(row.get("a", "")),
        b=str(row.get("b", "")),
        difference=finite(row.get("difference")),
        low=finite(row.get("low")),
        high=finite(row.get("high")),
        p=finite(row.get("p")),
    )


def _run(folder: Path, missing: list[str]) -> PretrainRun:
    from ..pretrain.tracking import read_rows

    run = PretrainRun(name=folder.name, rows=read_rows(folder / "metrics.jsonl"))
    if not run.rows:
        missing.append(f"{folder.name}/metrics.jsonl is missing or empty: no training curves.")
    run.encoder = _json(folder / "encoder.json", f"{folder.name}/encoder.json", missing)
    run.environment = _json(folder / "env.json", f"{folder.name}/env.json", missing)
    config = folder / "config.yaml"
    if config.is_file():
        run.config = _without_folders(config.read_text(encoding="utf-8", errors="replace"))
    for path in sorted((folder / "panels").glob("step-*-*.png")):
        _, step, kind = path.stem.split("-", 2)
        latest = [p for p in run.panels if p[0] == kind]
        uri = picture(path) if step.isdigit() else None
        if uri:
            run.panels = [p for p in run.panels if p not in latest] + [(kind, int(step), uri)]
    if not run.panels:
        missing.append(f"{folder.name}/panels holds no pictures.")
    return run


def _without_folders(text: str) -> str:
    """A configuration without the folders of the machine: values with a slash keep their last part."""
    lines = []
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        bare = value.strip().strip("'\"")
        if colon and ("/" in bare or "\\" in bare):
            line = f"{key}: {bare.replace(chr(92), '/').rstrip('/').rsplit('/', 1)[-1]}"
        lines.append(line)
    return "\n".join(lines)


def _draws(path: Path) -> dict[str, np.ndarray]:
    """Draws of an evaluation; none is no fault: only what pools runs needs them."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, BadZipFile):
        return {}


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _json(path: Path, label: str, missing: list[str]) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        missing.append(f"{label} does not exist.")
        return {}
    except (OSError, ValueError):
        missing.append(f"{label} cannot be read as JSON.")
        return {}
    return _mapping(value)


def _csv(path: Path, label: str, missing: list[str]) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except OSError:
        missing.append(f"{label} does not exist: no per-case plots.")
        return []
