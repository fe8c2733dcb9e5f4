"""Scores for a model card are those of the released weights, with baselines and leakage statements."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from medloom.data.errors import ConfigError
from medloom.finetune.benchmark.cell import run_cell
from medloom.finetune.benchmark.config import load_benchmark, record_folder
from medloom.finetune.benchmark.grid import grid
from medloom.finetune.benchmark.results import read_results
from medloom.finetune.evaluation import evaluate
from medloom.finetune.released import scores_of
from medloom.pretrain.artefact import read_record
from medloom.pretrain.release.card_sections import held_out, scores


@pytest.fixture(scope="module")
def evaluated(classification_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuning run with its evaluation, in a folder of its own."""
    run = Path(shutil.copytree(classification_run, tmp_path_factory.mktemp("released") / "run"))
    evaluate(run)
    return run


def sha256(workshop: Any) -> str:
    """Of the weights that the runs started from."""
    return str(read_record(workshop.root / "encoder2d" / "encoder.json")["sha256"])


def test_an_evaluation_gives_its_headline_with_baselines(evaluated: Path, workshop: Any) -> None:
    (row,) = scores_of([evaluated], sha256(workshop))
    assert scores_of([evaluated / "evaluation"], sha256(workshop)) == [row]
    summary = json.loads((evaluated / "evaluation" / "summary.json").read_text())
    arms = {arm: {s["metric"]: s for s in rows} for arm, rows in summary["arms"].items()}
    assert (row["task"], row["metric"], row["protocol"], row["fraction"]) == (
        "pictures",
        "auc",
        "logistic",
        1.0,
    )
    assert row["mean"] == arms["pretrained"]["auc"]["mean"] and row["low"] == arms["pretrained"]["auc"]["low"]
    assert row["random"]["mean"] == arms["random"]["auc"]["mean"]
    assert (row["cases"], row["subjects"]) == (12, 6)
    assert row["leakage"] == "clean" and row["statement"] == summary["leakage"]["statement"]


def test_scores_of_other_weights_are_refused(evaluated: Path, workshop: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no score of these weights"):
        scores_of([evaluated], "0" * 64)
    with pytest.raises(ConfigError, match="holds no score of these weights"):
        scores_of([tmp_path], sha256(workshop))
    validation = Path(shutil.copytree(evaluated, tmp_path / "run"))
    path = validation / "evaluation" / "summary.json"
    summary = json.loads(path.read_text())
    path.write_text(json.dumps(summary | {"split": "val"}))
    with pytest.raises(ConfigError, match="on a test split"):
        scores_of([validation], sha256(workshop))
    path.write_text(json.dumps(summary | {"leakage": {}}))
    with pytest.raises(ConfigError, match="no leakage statement"):
        scores_of([validation], sha256(workshop))


def test_a_benchmark_gives_every_protocol_with_its_baselines(
    workshop: Any, pictures: Path, tmp_path: Path
) -> None:
    config = load_benchmark(None, {
        "encoders": {"mine": str(workshop.root / "encoder2d")},
        "tasks": [str(pictures)], "protocols": ["logistic", "knn"], "out": str(tmp_path / "b"),
        "root": str(workshop.root), "cache": str(workshop.cache), "device": "cpu",
    })  # fmt: skip
    record_folder(config)
    for cell in grid(config):
        if cell.arm != "scratch":
            run_cell(config, cell)
    rows = scores_of([tmp_path / "b"], sha256(workshop))
    assert [row["protocol"] for row in rows] == ["knn", "logistic"]
    entries = read_results(config.folder, grid(config)).entries
    for row in rows:
        own = entries["pictures", "mine", row["protocol"], 1.0]
        bare = entries["pictures", "mine.random", row["protocol"], 1.0]
        assert (row["mean"], row["low"], row["high"]) == (own.mean, own.low, own.high)
        assert row["random"]["mean"] == bare.mean and row["scratch"] is None and row["runs"] == 1


def test_the_card_shows_scores_and_statements(evaluated: Path, workshop: Any) -> None:
    rows = scores_of([evaluated], sha256(workshop))
    shown = scores({"scores": rows})
    (row,) = rows
    said = f"{row['mean']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
    assert f"| pictures | logistic | 100 % | auc | {said} |" in shown and "| 12 / 6 | clean |" in shown
    assert f"- pictures: **clean**. {row['statement']}" in held_out({"held_out": {}, "scores": rows})
