"""`evaluate(run)`: every arm of a fine-tuning run on a split -> a per-case table, a summary, pictures, a
report.

The long table (case x structure x metric) comes first and every number of the summary is computed from it:
means with bootstrap intervals over patients, paired differences between the pretrained arm and each
baseline, Holm-corrected within the run. Nothing is printed without a leakage statement. Files: cases.csv,
predictions.csv (classification), summary.json, overlays/*.png, report.html; salted keys only.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.atomic import write_json, write_text
from ..data.errors import ConfigError
from ..pretrain.folder import environment
from .config import FinetuneConfig
from .data import prepare
from .leakage import pretraining_shards, statement
from .metrics import METRICS, EmptyPolicy, segmentation_case
from .overlays import classification_overlay, segmentation_overlay
from .run import ENCODER, choose_device, load_arm, read_run
from .scoring import CaseTable, arm_scores, comparisons
from .tasks import TASKS, Classification, Segmentation, Task

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
_COLUMNS = (
    "task", "kind", "protocol", "arm", "seed", "case", "subject", "structure", "metric", "value", "status",
)  # fmt: skip
_WORST = 4  # pictures of each arm


def evaluate(
    run: Path,
    *,
    split: str = "test",
    out: Path | None = None,
    progress: Progress | None = None,
    pretrain_runs: Sequence[Path] = (),
    mirror: bool = False,
    device: str | None = None,
) -> Path:
    """Score every arm and return the folder that was written (default: RUN/evaluation, or evaluation-val).

    Args:
        run: folder of `finetune`.
        split: test or val.
        pretrain_runs: pretraining runs to show in the report; default: the encoder's own run folder.
        mirror: average segmentations over the task's flips (2 to 4 times slower).
        device: overrides the run's.

    Raises:
        ConfigError: not a fine-tuning run, or an unknown split.
        CheckpointError: an arm is not finished, or its weights are damaged.
    """
    if split not in ("test", "val"):
        raise ConfigError(f"split: {split!r}: choose test or val")
    run = Path(run)
    folder = Path(out) if out else run / ("evaluation" if split == "test" else f"evaluation-{split}")
    task = _open(run, progress)
    config = task.config
    leakage = _leakage(run, task, split)
    folder.mkdir(parents=True, exist_ok=True)
    place = choose_device(device or config.device)
    table, facts = CaseTable(), {}
    scored: dict[str, Any] = {}
    for arm in config.arms:
        network, facts[arm] = load_arm(task, run / arm)
        network.to(place)
        if isinstance(task, Segmentation):
            scored[arm] = network
            _segment(task, network, arm, split, place, table, mirror, progress)
        else:
            assert isinstance(task, Classification)
            _classify(task, network, arm, split, place, table, progress)
    write_text(folder / "cases.csv", _csv(table.rows, _COLUMNS))
    if isinstance(task, Classification):
        _write_predictions(folder / "predictions.csv", task, table, split)
    summary = _summary(task, table, split) | {
        "leakage": leakage,
        "worst": _worst(task, table, split, folder, scored, place),
        "training": facts,
        "skipped": len(task.data.skipped),
        "environment": environment(),
    }
    write_json(folder / "summary.json", _finite(summary))
    task.data.shards.close()
    _report(folder, config, pretrain_runs)
    return folder


def _open(run: Path, progress: Progress | None) -> Task:
    """The task of a run folder with its data, plan and split."""
    config, plan, parts = read_run(run)
    data = prepare(config.task, root=config.root or ".", cache=config.cache, progress=progress)
    missing = [case.key for case in data.cases if case.key not in parts]
    if missing:
        raise ConfigError(
            f"{run}: case {missing[0]} is not in split.csv: the source changed; fine-tune again"
        )
    return TASKS[config.task.kind](config, data, plan, parts)


def _leakage(run: Path, task: Task, split: str) -> dict[str, Any]:
    encoder = json.loads((run / ENCODER).read_text())
    return statement(
        task.record,
        encoder,
        task.cases[split],
        split=split,
        shards=pretraining_shards(task.config.encoder, encoder),
        salt_fingerprint=task.data.shards.manifest.salt_fingerprint,
    )


def _summary(task: Task, table: CaseTable, split: str) -> dict[str, Any]:
    """What summary.json says of the task and its scores."""
    config, record = task.config, task.record
    segmentation = record.kind == "segmentation"
    return {
        "task": record.name,
        "kind": record.kind,
        "protocol": config.protocol,
        "split": split,
        "seed": config.seed,
        "fraction": config.fraction,
        "steps": config.steps,
        "classes": record.names,
        "note": record.note,
        "n": _counts(task),
        "arms": {arm: arm_scores(task, table, arm, split) for arm in config.arms},
        "comparisons": comparisons(task, table, split),
        "empty_policy": EmptyPolicy().describe() if segmentation else None,
        "nsd_tolerance_mm": record.nsd_tolerance_mm if segmentation else None,
        "nsd_tolerance_verified": record.verified if segmentation else None,
    }


def _segment(
    task: Segmentation,
    network: torch.nn.Module,
    arm: str,
    split: str,
    device: torch.device,
    table: CaseTable,
    mirror: bool,
    progress: Progress | None,
) -> None:
    names = task.record.names
    structures = {output: names[output] for output in range(1, task.record.outputs)}
    cases = task.cases[split]
    for done, case in enumerate(cases, start=1):
        predicted = task.predict(network, case, device, mirror=mirror)
        found = segmentation_case(
            predicted, task.data.mask(case), case.spacing, structures, task.record.nsd_tolerance_mm,
            metrics=task.record.metrics,
        )  # fmt: skip
        for row in found:
            table.rows.append(_row(task, arm, case, row.structure, row.metric, row.value, row.status))
        if progress:
            progress(done, len(cases), f"score {task.record.name} | {arm}")


def _classify(
    task: Classification,
    network: torch.nn.Module,
    arm: str,
    split: str,
    device: torch.device,
    table: CaseTable,
    progress: Progress | None,
) -> None:
    """Per case: whether it is right, and the probability of its true class."""
    cases = task.cases[split]
    probabilities = task.predict(network, cases, device)
    table.probabilities[arm] = probabilities
    for case, row in zip(cases, probabilities, strict=True):
        right = float(int(row.argmax()) == case.label)
        table.rows.append(_row(task, arm, case, "", "correct", right, "ok"))
        table.rows.append(_row(task, arm, case, "", "probability", float(row[case.label]), "ok"))
    if progress:
        progress(len(cases), len(cases), f"score {task.record.name} | {arm}")


def _row(
    task: Task, arm: str, case: Any, structure: str, metric: str, value: float, status: str
) -> dict[str, Any]:
    config = task.config
    return {
        "task": task.record.name, "kind": task.record.kind, "protocol": config.protocol, "arm": arm,
        "seed": config.seed, "case": case.key, "subject": case.subject, "structure": structure,
        "metric": metric, "value": value, "status": status,
    }  # fmt: skip


def _worst(
    task: Task, table: CaseTable, split: str, folder: Path, networks: dict[str, Any], device: torch.device
) -> list[dict[str, Any]]:
    """The worst cases of each arm with a picture: lowest mean of the first metric, or of the true class."""
    by_key = {case.key: case for case in task.cases[split]}
    metric = task.record.metrics[0] if isinstance(task, Segmentation) else "probability"
    sign = 1 if isinstance(task, Classification) or METRICS[metric].higher_is_better else -1
    rows: list[dict[str, Any]] = []
    for arm in task.config.arms:
        values: dict[str, list[tuple[float, str]]] = {}
        for row in table.rows:
            if (row["arm"], row["metric"]) == (arm, metric) and math.isfinite(row["value"]):
                values.setdefault(row["case"], []).append((sign * row["value"], row["structure"]))
        order = sorted(values, key=lambda key: (sum(v for v, _ in values[key]) / len(values[key]), key))
        for key in order[:_WORST]:
            case, (value, structure) = by_key[key], min(values[key])
            path = folder / "overlays" / f"{arm}-{key}.png"
            image = task.data.image(case)
            if isinstance(task, Segmentation):
                predicted = task.predict(networks[arm], case, device)
                segmentation_overlay(path, case, image, task.data.mask(case), predicted)
            else:
                classification_overlay(path, case, image)
            rows.append({"arm": arm, "case": key, "metric": metric, "structure": structure,
                         "value": sign * value, "image": str(path.relative_to(folder))})  # fmt: skip
            if isinstance(task, Classification):
                at = [c.key for c in task.cases[split]].index(key)
                decided = int(table.probabilities[arm][at].argmax())
                rows[-1] |= {
                    "truth": task.record.classes[case.label],
                    "prediction": task.record.classes[decided],
                }
    return rows


def _write_predictions(path: Path, task: Classification, table: CaseTable, split: str) -> None:
    columns = ["arm", "case", "subject", "truth", *(f"p_{name}" for name in task.record.classes)]
    rows = []
    for arm, probabilities in table.probabilities.items():
        for case, values in zip(task.cases[split], probabilities, strict=True):
            named = {
                f"p_{name}": round(float(v), 6) for name, v in zip(task.record.classes, values, strict=True)
            }
            rows.append({"arm": arm, "case": case.key, "subject": case.subject,
                         "truth": task.record.classes[case.label], **named})  # fmt: skip
    write_text(path, _csv(rows, columns))


def _counts(task: Task) -> dict[str, dict[str, int]]:
    """Cases and subjects of each split."""
    return {
        part: {"cases": len(cases), "subjects": len({case.subject for case in cases})}
        for part, cases in task.cases.items()
    }


def _csv(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _finite(value: Any) -> Any:
    """JSON has no nan: such numbers become null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value


def _report(folder: Path, config: FinetuneConfig, pretrain_runs: Sequence[Path]) -> None:
    from .report import write_report

    runs = [Path(path) for path in pretrain_runs]
    own = Path(config.encoder)
    if not runs and own.is_dir() and (own / "metrics.jsonl").is_file():
        runs = [own]
    write_report(folder / "report.html", evaluations=[folder], pretrain_runs=runs, title=config.task.name)
