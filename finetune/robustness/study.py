"""`study(run, folder)`: every arm under every corruption and severity, beside its score on clean images.

Corrupted images go the way of new ones: they are made from the native image, described as ingest would (an
exposure that normalisation takes back does no harm), normalised, resized and scored. All arms meet the same
pixels. A pair of a corruption and a severity is written when it is done, so a killed study continues; one
with other weights or cases starts again. The price is an evaluation a pair: 35 to 50 of them for all
severities, 60 % of that with severities 1, 3 and 5.

Written into FOLDER/robustness: robustness.csv (arm x corruption x severity x case x structure x metric, clean
rows with severity 0), robustness.json (losses.py), sheet.png.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...data.atomic import csv_text, replacing, sweep, write_json, write_text
from ...data.errors import ConfigError
from ..data import Case
from ..evaluation import COLUMNS, finite, open_run, renew_report
from ..metrics import info
from ..run import MODEL, arms, choose_device, load_arm
from ..tasks import Task
from .corruptions import CORRUPTIONS, SEVERITIES, VERSION, check_severities, corruption, fits, usual
from .losses import Pair, losses
from .scored import DRAWS, Condition, Scored, paired, score_condition
from .sheet import strips, write_sheet

logger = logging.getLogger(__name__)

FOLDER, TABLE, RESULT, SHEET = "robustness", "robustness.csv", "robustness.json", "sheet.png"
CLEAN = "clean"
REAL_SHIFT = ("site", "scanner")  # of the subgroups that the evaluation has compared
_PARTS = "conditions"

Progress = Callable[[int, int, str], None]


def study(
    run: Path,
    folder: Path,
    *,
    corruptions: Sequence[str] | None = None,
    severities: Sequence[int] = SEVERITIES,
    split: str = "test",
    mirror: bool = False,
    device: str | None = None,
    pretrain_runs: Sequence[Path] = (),
    progress: Progress | None = None,
) -> Path:
    """Measure the run's robustness and return the folder that was written, FOLDER/robustness.

    Args:
        run: folder of `finetune`.
        folder: folder of `evaluate` on the same split; its leakage statement goes with the scores.
        corruptions: names of `CORRUPTIONS`; None: those of the cases' modalities.
        severities: of 1 to 5.
        pretrain_runs: for the report, which is written again.

    Raises:
        ConfigError: unknown names, corruptions that no case can take, or `folder` was not evaluated.
    """
    summary = _summary(folder, split)
    task = open_run(Path(run), progress)
    try:
        cases = task.cases[split]
        conditions = _conditions(cases, corruptions, severities)
        out = folder / FOLDER
        _prepare(out / _PARTS, _stamp(task, Path(run), cases, split, mirror))
        place = choose_device(device or task.config.device)
        _score_all(task, Path(run), cases, conditions, out / _PARTS, place, mirror, progress)
        known = arms(task.config)
        pairs = {(c.name, c.severity): _read_pairs(out / _PARTS / f"{c.label}.npz") for c in conditions}
        result = {
            "task": task.record.name,
            "kind": task.record.kind,
            "split": split,
            "version": VERSION,
            "leakage": summary["leakage"],
            "arms": known,
            "metrics": _metrics(task),
            "severities": sorted(set(severities)),
            "corruptions": [
                _described(name, conditions) for name in dict.fromkeys(c.name for c in conditions)
            ],
            **losses(pairs, known, _metrics(task)),
            "shift": [row for row in summary.get("subgroups") or [] if row["variable"] in REAL_SHIFT],
        }
        _write_table(out / TABLE, out / _PARTS, conditions)
        _write_sheet(out / SHEET, task, cases, conditions)
        write_json(out / RESULT, finite(result))
    finally:
        task.data.shards.close()
    renew_report(folder, task.config, pretrain_runs)
    return out


def _summary(folder: Path, split: str) -> dict[str, Any]:
    path = folder / "summary.json"
    if not path.is_file():
        raise ConfigError(f"{folder}: holds no summary.json: run `medloom evaluate` on the run first")
    summary = json.loads(path.read_text())
    if summary.get("split") != split:
        raise ConfigError(
            f"{folder}: was evaluated on {summary.get('split')}, not on {split}: give another --out"
        )
    return summary


def _conditions(
    cases: Sequence[Case], names: Sequence[str] | None, severities: Sequence[int]
) -> list[Condition]:
    """What is to be scored, and on which cases: by modality, or where it is possible when named."""
    check_severities(severities)
    if names is None:
        own = [usual(case.meta) for case in cases]
        wanted = [name for name in CORRUPTIONS if any(name in mine for mine in own)]
        places = {name: tuple(i for i, mine in enumerate(own) if name in mine) for name in wanted}
    else:
        wanted = list(dict.fromkeys(names))
        places = {
            name: tuple(i for i, case in enumerate(cases) if fits(corruption(name), case.meta))
            for name in wanted
        }
    for name in wanted:
        if not places[name]:
            needs = CORRUPTIONS[name].needs
            raise ConfigError(
                f"corruptions: {name} needs {needs} images, and this task has none: leave it out"
            )
    return [Condition(name, s, places[name]) for name in wanted for s in sorted(set(severities))]


def _stamp(task: Task, run: Path, cases: Sequence[Case], split: str, mirror: bool) -> str:
    """Hash of all that a score depends on, but for device and number of cores."""
    digest = hashlib.blake2b(digest_size=12)
    facts = [VERSION, DRAWS, split, mirror, _metrics(task), task.record.nsd_tolerance_mm,
             [case.key for case in cases], task.data.shards.manifest.hash]  # fmt: skip
    digest.update(json.dumps(facts).encode())
    for arm in arms(task.config):
        digest.update(arm.encode())
        with (run / arm / MODEL).open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()


def _metrics(task: Task) -> list[str]:
    """Metrics of which more is better or worse."""
    return [name for name in task.record.metrics if info(name).compared]


def _prepare(parts: Path, stamp: str) -> None:
    """An empty folder, or that of the same study."""
    path = parts / "stamp.json"
    if path.is_file() and json.loads(path.read_text()).get("stamp") != stamp:
        logger.info("%s: of other weights or cases; scored again", parts)
        shutil.rmtree(parts)
    parts.mkdir(parents=True, exist_ok=True)
    sweep(parts)
    write_json(path, {"stamp": stamp})


def _score_all(
    task: Task,
    run: Path,
    cases: Sequence[Case],
    conditions: Sequence[Condition],
    parts: Path,
    device: torch.device,
    mirror: bool,
    progress: Progress | None,
) -> None:
    """Score what is not yet written; the clean images come first, as every pair needs them."""
    missing = [c for c in conditions if not (parts / f"{c.label}.npz").is_file()]
    if not missing:
        return
    networks = {arm: load_arm(task, run / arm)[0].to(device) for arm in arms(task.config)}
    every = Condition(CLEAN, 0, tuple(range(len(cases))))
    total = 1 + len(missing)
    clean = score_condition(task, networks, cases, every, device, mirror)
    write_text(parts / f"{CLEAN}.csv", _rows_text(clean, every))
    for number, condition in enumerate(missing, start=1):
        if progress:
            progress(number, total, f"robustness | {condition.name} {condition.severity}")
        found = score_condition(task, networks, cases, condition, device, mirror)
        write_text(parts / f"{condition.label}.csv", _rows_text(found, condition))
        arrays: dict[str, np.ndarray] = {}
        for arm in networks:
            for metric in _metrics(task):
                pair = paired(task, cases, condition.cases, metric, clean[arm], found[arm])
                arrays |= {f"{arm}|{metric}|clean": pair.clean, f"{arm}|{metric}|found": pair.found}
        with replacing(parts / f"{condition.label}.npz") as path, path.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)  # last: it says that the pair is done
    if progress:
        progress(total, total, "robustness")


def _read_pairs(path: Path) -> dict[tuple[str, str], Pair]:
    """(arm, metric) -> Pair of one condition."""
    with np.load(path, allow_pickle=False) as stored:
        keys = [name.rpartition("|")[0] for name in stored.files if name.endswith("|clean")]
        return {
            (key.partition("|")[0], key.partition("|")[2]): Pair(
                stored[f"{key}|clean"], stored[f"{key}|found"]
            )
            for key in keys
        }


def _rows_text(found: Mapping[str, Scored], condition: Condition) -> str:
    place = {"corruption": condition.name, "severity": condition.severity}
    rows = [row | place for scored in found.values() for case in scored.rows for row in case]
    return csv_text(rows, (*COLUMNS, "corruption", "severity"))


def _write_table(path: Path, parts: Path, conditions: Sequence[Condition]) -> None:
    """The long table of this study, from those of its pairs."""
    rows: list[dict[str, Any]] = []
    for label in (CLEAN, *(condition.label for condition in conditions)):
        with (parts / f"{label}.csv").open(newline="") as file:
            rows += csv.DictReader(file)
    write_text(path, csv_text(rows, (*COLUMNS, "corruption", "severity")))


def _described(name: str, conditions: Sequence[Condition]) -> dict[str, Any]:
    one = CORRUPTIONS[name]
    mine = [condition for condition in conditions if condition.name == name]
    return {"name": name, "title": one.title, "unit": one.unit, "cases": len(mine[0].cases),
            "amounts": {str(c.severity): one.amounts[c.severity - 1] for c in mine}}  # fmt: skip


def _write_sheet(path: Path, task: Task, cases: Sequence[Case], conditions: Sequence[Condition]) -> None:
    """One row a corruption, of the first case in the order of keys that can suffer it."""
    first = {condition.name: min(condition.cases, key=lambda i: cases[i].key) for condition in conditions}
    rows = [
        strip
        for name, index in first.items()
        for strip in strips(task.data.image(cases[index]), cases[index].meta, [name])
    ]
    write_sheet(path, rows, sorted({condition.severity for condition in conditions}))
