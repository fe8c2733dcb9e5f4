"""Fine-tuning, evaluation and leaderboard in a tracker: linked, complete, and without keys of cases."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from medloom.finetune import mirror
from medloom.finetune.evaluation import evaluate
from medloom.finetune.run import finetune
from medloom.pretrain.tracking import Artifact, TrackingConfig, tracker
from medloom.pretrain.tracking.base import Backend, Segment

from .conftest import SALT, Workshop


class Recording(Backend):
    """Keeps all that it is told."""

    title = "recording"

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.rows: list[dict[str, Any]] = []
        self.tables: dict[str, list[dict[str, Any]]] = {}
        self.images: dict[str, Path] = {}
        self.used: list[Artifact] = []
        self.made: list[Artifact] = []
        self.summary: dict[str, Any] = {}

    def start(self) -> str | None:
        return None

    def row(self, row: Mapping[str, Any], images: Mapping[str, Path]) -> None:
        self.rows.append(dict(row))

    def alert(self, name: str, text: str, step: int) -> None:
        raise AssertionError(name)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]], images: Mapping[str, Path]) -> None:
        self.tables[name] = [dict(row) for row in rows]
        self.images |= images

    def artifact(self, artifact: Artifact, *, used: bool) -> None:
        (self.used if used else self.made).append(artifact)

    def finish(self, summary: Mapping[str, Any], *, failed: bool) -> None:
        self.summary = {**summary, "failed": failed}

    def everything(self) -> str:
        """All that would leave the machine, without pictures."""
        facts = [(artifact.name, artifact.facts) for artifact in self.used + self.made]
        return json.dumps([self.segment.values, self.rows, self.tables, facts, self.summary], default=str)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Recording]:
    """The backends of all trackers that a test makes."""
    made: list[Recording] = []

    def make(_: Any, segment: Segment) -> Recording:
        made.append(Recording(segment))
        return made[-1]

    monkeypatch.setattr(tracker, "make_backend", make)
    return made


def test_fine_tuning_and_its_evaluation_are_linked_and_name_no_case(
    workshop: Workshop, volumes: Path, tmp_path: Path, told: list[Recording]
) -> None:
    config = workshop.config(volumes, tmp_path / "run", "tracking.tracker=wandb")
    run = finetune(config)
    folder = evaluate(run)
    tuned, scored = told
    assert (tuned.segment.job, scored.segment.job) == ("finetune", "evaluate")
    rows = [json.loads(line) for line in (run / "scratch" / "metrics.jsonl").read_text().splitlines()]
    mirrored = [row for row in tuned.rows if any(key.startswith("scratch/") for key in row)]
    assert [row["step"] for row in mirrored] == [row["step"] for row in rows]
    assert [row.get("scratch/loss") for row in mirrored] == [row.get("loss") for row in rows]
    assert tuned.segment.values["environment"] == json.loads((run / "env.json").read_text())
    assert not tuned.summary["failed"] and "pretrained/best/dice" in tuned.summary

    assert [artifact.kind for artifact in tuned.used] == ["dataset", "encoder"]
    sha = json.loads((run / "encoder.json").read_text())["sha256"]
    assert tuned.used[1].name == f"encoder-{sha[:12]}"
    assert [artifact.facts["arm"] for artifact in tuned.made] == ["pretrained", "scratch"]
    assert scored.used == tuned.made  # the same facts, so the same artifacts
    (evaluation,) = scored.made

    summary = json.loads((folder / "summary.json").read_text())
    means = {
        row["metric"]: row["mean"] for row in summary["arms"]["pretrained"] if row["structure"] == "mean"
    }
    assert evaluation.facts["scores"]["pretrained/dice/mean"] == means["dice"]
    with (folder / "cases.csv").open(newline="") as file:
        cases = list(csv.DictReader(file))
    assert len(scored.tables["cases"]) == len(cases)
    assert all(path.is_file() for path in scored.images.values())
    assert {row["image"] for row in scored.tables["worst"]} == set(scored.images)
    sent = tuned.everything() + scored.everything()
    keys = {row["case"] for row in cases} | {row["subject"] for row in cases}
    assert len(keys) >= 4
    for canary in (*keys, SALT, str(tmp_path), str(workshop.root)):
        assert canary not in sent, canary


def test_without_a_tracker_no_model_is_hashed(
    workshop: Workshop, volumes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "fingerprint", lambda _: pytest.fail("read the whole model"))
    mirrors = mirror.FinetuneMirror(
        tracker.Tracker(tmp_path, TrackingConfig(tracker="none"), name="x", values={}),
        workshop.config(volumes, tmp_path / "run"),
    )
    (tmp_path / "arm.json").write_text('{"validation": {"dice": 0.5}}')
    (tmp_path / "model.safetensors").write_bytes(bytes(10))
    mirrors.finished("scratch", tmp_path)
    assert mirrors.summary == {"scratch/best/dice": 0.5}


def test_a_finished_run_is_not_told_again(
    workshop: Workshop, volumes: Path, tmp_path: Path, told: list[Recording]
) -> None:
    items = ("tracking.tracker=wandb", "baseline=false")
    finetune(workshop.config(volumes, tmp_path / "run", *items))
    finetune(workshop.config(volumes, tmp_path / "run", *items))
    assert len(told) == 1


def test_the_leaderboard_is_made_from_the_evaluations(
    workshop: Workshop, volumes: Path, tmp_path: Path, told: list[Recording]
) -> None:
    from medloom.scripts.cli import main

    options = ["steps=4", "validations=1", "batch_size=2", "head.width=8", "head.most=16"]
    command = [
        "benchmark", "--encoder", f"ours={workshop.root / 'encoder3d'}", "--task", str(volumes),
        "--protocol", "full", "--root", str(workshop.root), "--out", str(tmp_path / "board"), "--no-baseline",
        "--tracker", "wandb", "device=cpu", f"cache={workshop.cache}", *(f"options.{o}" for o in options),
    ]  # fmt: skip
    assert main(command) == 0
    (board,) = told
    assert board.segment.job == "benchmark"
    assert [artifact.kind for artifact in board.used] == ["evaluation"]
    assert [artifact.kind for artifact in board.made] == ["benchmark"]
    (row,) = board.tables["leaderboard"]
    assert row["encoder"] == "ours" and board.rows[0][f"score/{row['task']}/ours/full"] == row["mean"]
    assert str(tmp_path) not in board.everything()
