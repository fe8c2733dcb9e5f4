"""`evaluate(run)`: every arm of a fine-tuning run on a split -> a per-case table, a summary, pictures, a
report.

The long table (case x structure x metric) comes first and every number of the summary is computed from it:
means with bootstrap intervals over patients, paired differences between the pretrained arm and each
baseline, Holm-corrected within the run. Nothing is printed without a leakage statement. Files: cases.csv,
predictions.csv (classification), draws.npz (see `scoring.arm_draws`), summary.json, overlays/*.png,
report.html; salted keys only.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.atomic import csv_text, replacing, write_json, write_text
from ..data.errors import ConfigError
from ..pretrain.folder import environment
from .calibration import calibration
from .config import FinetuneConfig
from .data import Case, prepare
from .ensemble import Together, predictions
from .leakage import pretraining_shards, statement, worst_of
from .metrics import CaseRow, EmptyPolicy, info
from .mirror import mirror_evaluation, use_tracker
from .prediction.labelmaps import write_label_map
from .run import ENCODER, arms, choose_device, public_name, read_run
from .scoring import CaseTable, arm_draws, arm_scores, comparisons
from .subgroups import subgroup_scores
from .tasks import TASKS, Task

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
COLUMNS = (
    "task", "kind", "protocol", "arm", "seed", "case", "subject", "structure", "metric", "value", "status",
)  # fmt: skip
_WORST = 4  # pictures of each arm


def evaluate(
    run: Path | Sequence[Path],
    *,
    split: str = "test",
    out: Path | None = None,
    progress: Progress | None = None,
    pretrain_runs: Sequence[Path] = (),
    mirror: bool = False,
    save: bool = False,
    device: str | None = None,
    tracker: str | None = None,
) -> Path:
    """Score every arm and return the folder that was written (default: RUN/evaluation, or evaluation-val).

    Args:
        run: folder of `finetune`; several (folds) are scored as one, see ensemble.py, and written to
            TASK-PROTOCOL-ensemble beside the first.
        split: test or val.
        pretrain_runs: pretraining runs to show in the report; default: the encoder's own run folder.
        mirror: average segmentations over the task's flips, all combinations (2 to 8 times slower).
        save: write label maps to predictions/ARM/, in the geometry of the source.
        device, tracker: override the run's.

    Raises:
        ConfigError: not a fine-tuning run, or an unknown split.
        CheckpointError: an arm is not finished, or its weights are damaged.
    """
    if split not in ("test", "val"):
        raise ConfigError(f"split: {split!r}: choose test or val")
    runs = [Path(run)] if isinstance(run, str | Path) else [Path(one) for one in run]
    together = Together(runs, [open_run(one, progress) for one in runs], split)
    task = together.task
    folder = Path(out) if out else _folder(runs, task, split)
    config = task.config
    use_tracker(config, tracker)
    leakage = worst_of([_leakage(one, task, split) for one in runs])
    folder.mkdir(parents=True, exist_ok=True)
    place = choose_device(device or config.device)
    table, facts, worst, written = CaseTable(), {}, [], []
    for arm in arms(config):
        network, facts[arm] = together.load(arm)
        network.to(place)
        kept = _score(task, network, arm, split, place, table, mirror, progress, folder if save else None)
        worst += _worst(task, network, arm, split, place, table, folder, kept)
        written += _lines(task, arm, task.cases[split], kept)
    _write_tables(folder, task, table, split, written)
    summary = _summary(task, table, split) | {
        "leakage": leakage,
        "worst": worst,
        "training": facts,
        "skipped": len(task.data.skipped),
        "note": together.note,
        "members": len(runs),
        "environment": environment(),
    }
    write_json(folder / "summary.json", finite(summary))
    together.close()
    renew_report(folder, config, pretrain_runs)
    mirror_evaluation(config, runs, arms(config), folder)
    return folder


def _lines(task: Task, arm: str, cases: Sequence[Case], kept: Sequence[Any]) -> list[dict[str, Any]]:
    """Rows of predictions.csv; none where predictions are not kept."""
    return [
        {"arm": arm, "case": case.key, "subject": case.subject, **line}
        for case, prediction in zip(cases, kept, strict=False)
        for line in task.lines(case, prediction)
    ]


def _folder(runs: Sequence[Path], task: Task, split: str) -> Path:
    name = "evaluation" if split == "test" else f"evaluation-{split}"
    if len(runs) == 1:
        return runs[0] / name
    return runs[0].parent / f"{task.record.name}-{task.config.protocol}-ensemble" / name


def open_run(run: Path, progress: Progress | None) -> Task:
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
        "encoder": public_name(config.encoder),
        "fraction": config.fraction,
        "shots": config.shots,
        "draw": config.draw,
        "steps": config.steps,
        "classes": record.names,
        "unit": record.unit,
        "n": _counts(task),
        "arms": {arm: arm_scores(task, table, arm, split) for arm in arms(config)},
        "comparisons": comparisons(task, table, split),
        "calibration": calibration(task, table, split),
        "subgroups": subgroup_scores(task, table, split),
        "empty_policy": EmptyPolicy().describe() if segmentation else None,
        "nsd_tolerance_mm": record.nsd_tolerance_mm if segmentation else None,
        "nsd_tolerance_verified": record.verified if segmentation else None,
    }


def _score(
    task: Task,
    network: torch.nn.Module,
    arm: str,
    split: str,
    device: torch.device,
    table: CaseTable,
    mirror: bool,
    progress: Progress | None,
    save: Path | None,
) -> list[Any]:
    """Fill the table with one arm; returns the predictions where whole-set metrics need them all."""
    cases, kept = task.cases[split], []
    for done, (case, prediction) in enumerate(
        zip(cases, predictions(task, network, cases, device, mirror=mirror), strict=True), start=1
    ):
        for row in task.rows(case, prediction):
            table.rows.append(case_row(task, arm, case, row))
        if task.set_metrics:
            kept.append(prediction)
        labels = task.label_map(prediction) if save else None
        if save and labels is not None:
            write_label_map(save / "predictions" / arm / case.key, labels, case.meta)
        if progress:
            progress(done, len(cases), f"score {task.record.name} | {arm}")
    if kept:
        table.predicted[arm] = task.stacked(kept)
    return kept


def case_row(task: Task, arm: str, case: Case, row: CaseRow) -> dict[str, Any]:
    """One row of cases.csv."""
    config = task.config
    return {
        "task": task.record.name, "kind": task.record.kind, "protocol": config.protocol, "arm": arm,
        "seed": config.seed, "case": case.key, "subject": case.subject, "structure": row.structure,
        "metric": row.metric, "value": row.value, "status": row.status,
    }  # fmt: skip


def _worst(
    task: Task,
    network: torch.nn.Module,
    arm: str,
    split: str,
    device: torch.device,
    table: CaseTable,
    folder: Path,
    kept: Sequence[Any],
) -> list[dict[str, Any]]:
    """The cases of an arm with the worst mean of `task.worst`, with a picture each."""
    cases, metric = task.cases[split], task.worst
    sign = 1 if info(metric).higher_is_better else -1
    values: dict[str, list[tuple[float, str]]] = {}
    for row in table.rows:
        if (row["arm"], row["metric"]) == (arm, metric) and math.isfinite(row["value"]):
            values.setdefault(row["case"], []).append((sign * row["value"], row["structure"]))
    order = sorted(values, key=lambda key: (sum(v for v, _ in values[key]) / len(values[key]), key))
    number = {case.key: index for index, case in enumerate(cases)}
    rows: list[dict[str, Any]] = []
    for key in order[:_WORST]:
        case, (value, structure) = cases[number[key]], min(values[key])
        again = kept[number[key]] if kept else next(iter(predictions(task, network, [case], device)))
        path = folder / "overlays" / f"{arm}-{key}.png"
        task.picture(path, case, again)
        rows.append({"arm": arm, "case": key, "metric": metric, "structure": structure, "value": sign * value,
                     "image": str(path.relative_to(folder)), **task.caption(case, again)})  # fmt: skip
    return rows


def _counts(task: Task) -> dict[str, dict[str, int]]:
    """Cases and subjects of each split."""
    return {
        part: {"cases": len(cases), "subjects": len({case.subject for case in cases})}
        for part, cases in task.cases.items()
    }


def _write_tables(
    folder: Path, task: Task, table: CaseTable, split: str, lines: Sequence[dict[str, Any]]
) -> None:
    write_text(folder / "cases.csv", csv_text(table.rows, COLUMNS))
    draws = {arm: arm_draws(task, table, arm, split) for arm in arms(task.config)}
    _write_draws(folder / "draws.npz", draws)
    if lines:
        write_text(folder / "predictions.csv", csv_text(lines))


def _write_draws(path: Path, draws: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Bootstrap draws as `arm|metric` -> [R]."""
    named = {f"{arm}|{metric}": values for arm, found in draws.items() for metric, values in found.items()}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **named)


def finite(value: Any) -> Any:
    """JSON has no nan: such numbers become null."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value


def renew_report(folder: Path, config: FinetuneConfig, pretrain_runs: Sequence[Path]) -> None:
    """Write report.html again from what the folder holds now."""
    from .report import write_report

    runs = [Path(path) for path in pretrain_runs]
    own = Path(config.encoder)
    if not runs and own.is_dir() and (own / "metrics.jsonl").is_file():
        runs = [own]
    write_report(folder / "report.html", evaluations=[folder], pretrain_runs=runs, title=config.task.name)
