"""finetune/benchmark: the grid, its cells, restarts, failures, and a page that prints no score alone."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from medloom.data.errors import ConfigError
from medloom.finetune.benchmark.cell import run_cell, state
from medloom.finetune.benchmark.config import BenchmarkConfig, load_benchmark, record_folder, resolve
from medloom.finetune.benchmark.grid import encoders_of, grid, share
from medloom.finetune.benchmark.page import score_rows, summary_rows, write_page
from medloom.finetune.benchmark.pool import run_cells
from medloom.finetune.benchmark.results import difference, read_results
from medloom.finetune.benchmark.slurm import sbatch
from medloom.finetune.benchmark.standing import standings

FAST = {
    "steps": 6, "validations": 2, "batch_size": 8, "head": {"width": 8, "most": 16}, "workers": 0,
}  # fmt: skip


def asked(workshop: Any, out: Path, **changes: Any) -> dict[str, Any]:
    """A benchmark of seconds."""
    root = workshop.root
    values: dict[str, Any] = {
        "encoders": {"mine": str(root / "encoder2d"), "deep": str(root / "encoder3d")},
        "tasks": [str(root / "pictures.yaml"), str(root / "volumes.yaml")],
        "protocols": ["logistic", "full"], "out": str(out), "root": str(root), "cache": str(workshop.cache),
        "device": "cpu", "options": FAST,
    }  # fmt: skip
    return values | changes


@pytest.fixture(scope="module")
def board(
    workshop: Any, pictures: Path, volumes: Path, tmp_path_factory: pytest.TempPathFactory
) -> BenchmarkConfig:
    """A finished benchmark of two seeds. Read it, never write to it."""
    config = load_benchmark(None, asked(workshop, tmp_path_factory.mktemp("board") / "b", seeds=[0, 1]))
    record_folder(config)
    for cell in grid(config):
        run_cell(config, cell)
    write_page(config)
    return config


def test_the_grid_has_each_baseline_once_for_an_architecture(
    workshop: Any, pictures: Path, volumes: Path, tmp_path: Path
) -> None:
    twin = {"twin": f"random:{workshop.root / 'encoder2d'}"}
    values = asked(workshop, tmp_path, encoders={"mine": str(workshop.root / "encoder2d"), **twin})
    names = [cell.name for cell in grid(load_benchmark(None, values))]
    assert len(names) == len(set(names))
    assert {name.split("/")[1] for name in names} == {"mine", "mine.random", "mine.scratch", "twin"}
    assert sorted(name.split("/", 1)[1] for name in names if name.startswith("pictures")) == [
        "mine.random/logistic-100-s0", "mine.scratch/full-100-s0", "mine/full-100-s0",
        "mine/logistic-100-s0", "twin/logistic-100-s0",
    ]  # fmt: skip
    bare = grid(load_benchmark(None, values | {"baselines": []}))
    assert not any("." in cell.encoder for cell in bare)
    volumes_of_random = [n for n in names if n.startswith("volumes/mine.random") or "volumes/twin" in n]
    assert volumes_of_random == [], "no frozen protocol of this grid goes with a segmentation"


def test_shares_of_an_array_are_a_partition(
    workshop: Any, pictures: Path, volumes: Path, tmp_path: Path
) -> None:
    cells = grid(load_benchmark(None, asked(workshop, tmp_path, seeds=[0, 1, 2])))
    for of in (1, 2, 3, len(cells)):
        parts = [share(cells, number, of) for number in range(of)]
        assert sorted(c.name for part in parts for c in part) == sorted(c.name for c in cells)
        assert all(parts)
    with pytest.raises(ConfigError, match="from 0 to 2"):
        share(cells, 3, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocols": ["logistik"]}, "did you mean logistic"),
        ({"encoders": {}}, "encoders: is empty"),
        ({"encoders": {"a b": "timm:resnet18"}}, "a name is letters"),
        ({"options": {"seed": 3}}, "options.seed: is the grid's own"),
        ({"seeds": [1, 1]}, "listed twice"),
        ({"task_options": {"pixtures": {"steps": 2}}}, "did you mean pictures"),
        ({"tasks": ["realdata-bussi"]}, "realdata-busi"),
        ({"protocol": ["full"]}, "protocol: unknown key"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    workshop: Any, pictures: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_benchmark(None, asked(workshop, tmp_path) | changes)


def test_encoders_get_names_and_keep_them(workshop: Any, pictures: Path, tmp_path: Path) -> None:
    assert encoders_of(["runs/mae-2d", "r=timm:resnet18.a1_in1k", "random:timm:resnet18"]) == {
        "mae-2d": "runs/mae-2d", "r": "timm:resnet18.a1_in1k", "random-resnet18": "random:timm:resnet18",
    }  # fmt: skip
    with pytest.raises(ConfigError, match="is taken"):
        encoders_of(["a/x", "b/x"])
    config = load_benchmark(None, asked(workshop, tmp_path / "b"))
    record_folder(config)
    again = load_benchmark(None, {"out": str(tmp_path / "b"), "seeds": [0, 1]})  # the folder knows the rest
    assert again.encoders == config.encoders
    record_folder(again)
    other = asked(workshop, tmp_path / "b", encoders={"mine": str(workshop.root / "encoder3d")})
    with pytest.raises(ConfigError, match="stands for another encoder"):
        record_folder(load_benchmark(None, other))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("text")
    with pytest.raises(ConfigError, match="no benchmark"):
        record_folder(load_benchmark(None, asked(workshop, tmp_path / "thesis")))


def test_a_released_name_stays_one_beside_a_folder_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = {"train": "medloom pretrain tiny-mae-2d"}
    (tmp_path / "registry.yaml").write_text(json.dumps({"chest-2d": released}))
    for name in ("chest-2d", "mine"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("MEDLOOM_WEIGHTS", str(tmp_path / "registry.yaml"))
    monkeypatch.chdir(tmp_path)
    assert resolve("chest-2d") == "chest-2d" and resolve("random:chest-2d") == "random:chest-2d"
    assert resolve("./chest-2d") == str(tmp_path / "chest-2d") and resolve("mine") == str(tmp_path / "mine")


def test_options_of_finished_cells_stay(workshop: Any, board: BenchmarkConfig) -> None:
    changed = asked(workshop, board.folder, options=FAST | {"steps": 7})
    with pytest.raises(ConfigError, match="options"):
        record_folder(load_benchmark(None, changed))


def test_cells_say_what_they_cost_and_what_does_not_fit_is_refused(board: BenchmarkConfig) -> None:
    states = {cell.name: state(cell.folder(board.folder)) for cell in grid(board)}
    assert {name for name, found in states.items() if found == "failed"} == {
        name for name in states if name.startswith(("pictures/deep", "volumes/mine"))
    }
    done = next(cell for cell in grid(board) if cell.name == "pictures/mine/full-100-s1")
    facts = json.loads((done.folder(board.folder) / "cell.json").read_text())
    assert facts["seconds"]["fit"] > 0
    assert facts["memory_mb"] > 50
    refused = board.folder / "cells" / "pictures" / "deep" / "full-100-s0" / "failure.json"
    told = json.loads(refused.read_text())
    assert told["refused"]
    assert "give a 2D encoder" in told["error"]
    assert "traceback" not in told


def test_scores_are_means_over_seeds_of_the_evaluations(board: BenchmarkConfig) -> None:
    results = read_results(board.folder, grid(board))
    with (board.folder / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(score_rows(results)) == len(results.entries)
    for row in rows:
        place = board.folder / "cells" / row["task"] / row["encoder"]
        means = []
        for seed in (0, 1):
            summary = place / f"{row['protocol']}-100-s{seed}" / "evaluation" / "summary.json"
            scores = json.loads(summary.read_text())["arms"][row["arm"]]
            means += [s["mean"] for s in scores
                      if s["metric"] == row["metric"] and s["structure"] in ("", "mean")]  # fmt: skip
        assert float(row["mean"]) == pytest.approx(np.mean(means))
        assert float(row["low"]) <= float(row["mean"]) + 1e-6
        assert float(row["mean"]) <= float(row["high"]) + 1e-6
        assert row["leakage"] == "clean"
        if row["arm"] == "scratch":
            assert not row["gain"]
        elif row["encoder"] != "deep":
            scratch = next(r for r in rows if r["encoder"] == "mine.scratch" and r["task"] == row["task"])
            assert float(row["gain"]) == pytest.approx(float(row["mean"]) - float(scratch["mean"]), abs=0.02)
            assert float(row["gain_low"]) <= float(row["gain"]) + 1e-6 <= float(row["gain_high"]) + 2e-6
    told = summary_rows(results)
    assert {row["encoder"] for row in told} >= {"mine", "mine.scratch", "mine.random", "deep"}


def test_encoders_of_volumes_and_of_pictures_are_not_ranked_together(board: BenchmarkConfig) -> None:
    table = standings(read_results(board.folder, grid(board)))
    assert {(one.protocol, one.ndim) for one in table} == {("logistic", 2), ("full", 2), ("full", 3)}
    for one in table:
        assert {rank.method for rank in one.ranks} == set(one.encoders)
        assert {name.split(".")[0] for name in one.encoders} == {"mine" if one.ndim == 2 else "deep"}


def test_differences_are_paired_by_patient_and_run(board: BenchmarkConfig) -> None:
    results = read_results(board.folder, grid(board))
    entry = results.entries["volumes", "deep", "full", 1.0]
    gap = difference(entry, entry)
    assert (gap.mean, gap.low, gap.high) == (0.0, 0.0, 0.0)
    scratch = results.entries["volumes", "deep.scratch", "full", 1.0]
    gap, turned = difference(entry, scratch), difference(scratch, entry)
    assert gap.mean == pytest.approx(entry.mean - scratch.mean)
    assert (gap.low, gap.high) == pytest.approx((-turned.high, -turned.low))
    alone = read_results(board.folder, [cell for cell in grid(board) if cell.seed == 0])
    one = difference(alone.entries["volumes", "deep", "full", 1.0], scratch)
    assert np.isnan(one.low), "one run against two is no pair"


def test_draws_of_the_labels_are_runs_of_smaller_shares_alone(
    workshop: Any, pictures: Path, tmp_path: Path
) -> None:
    values = asked(workshop, tmp_path, tasks=[str(pictures)], protocols=["logistic"], baselines=[],
                   encoders={"mine": str(workshop.root / "encoder2d")}, fractions=[0.5, 1.0])  # fmt: skip
    config = load_benchmark(None, values | {"draws": [0, 1]})
    record_folder(config)
    cells = grid(config)
    assert [cell.name.rpartition("/")[2] for cell in cells] == [
        "logistic-50-s0", "logistic-50-s0-d1", "logistic-100-s0",
    ]  # fmt: skip
    assert {run_cell(config, cell) for cell in cells} == {"done"}
    page, results = write_page(config)
    half, whole = (results.entries["pictures", "mine", "logistic", share] for share in (0.5, 1.0))
    assert half.runs == [(0, 0), (0, 1)]
    assert half.subjects < whole.subjects
    assert "Fewer labels" in page.read_text()


def test_the_page_shows_the_boards_costs_and_refusals_and_asks_for_nothing(board: BenchmarkConfig) -> None:
    page = (board.folder / "leaderboard.html").read_text()
    for told in ("Leaderboard", "Critical difference", "Firmness", "Did pretraining see the test data?",
                 "Where they fail", "Costs",
                 "What is missing", "give a 2D encoder", "data:image/"):  # fmt: skip
        assert told in page, told
    assert "<script" not in page
    assert "patient-" not in page
    assert str(board.folder.parent) not in page, "no folder of this machine"
    assert page.count("<tr>") > 20


def test_no_score_without_its_leakage_statement(board: BenchmarkConfig, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(board.folder, tmp_path / "b")
    config = load_benchmark(None, {"out": str(tmp_path / "b")})
    for seed in (0, 1):
        path = tmp_path / "b/cells/pictures/mine" / f"logistic-100-s{seed}" / "evaluation" / "summary.json"
        summary = json.loads(path.read_text())
        if seed == 0:
            del summary["leakage"]
        else:
            summary["leakage"] = {"status": "clean"}
        path.write_text(json.dumps(summary))
    page, results = write_page(config)
    assert ("pictures", "mine", "logistic", 1.0) not in results.entries
    assert {f.kind for f in results.failures if f.cell.name.startswith("pictures/mine/")} == {"withheld"}
    assert "no leakage statement, so no score" in page.read_text()


def test_a_leaked_score_has_no_rank(board: BenchmarkConfig, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(board.folder, tmp_path / "b")
    for path in (tmp_path / "b/cells/volumes/deep").glob("*/evaluation/summary.json"):
        summary = json.loads(path.read_text())
        summary["leakage"] = {"status": "leaked", "statement": "The encoder was trained on volumes."}
        path.write_text(json.dumps(summary))
    page, results = write_page(load_benchmark(None, {"out": str(tmp_path / "b")}))
    table = next(one for one in standings(results) if one.ndim == 3)
    assert [rank.method for rank in table.ranks] == ["deep.scratch", "deep"]
    assert all(cell.values["deep"] is None for cell in table.cells)
    assert "Leaked, and so without a rank there: deep on volumes" in page.read_text()


@pytest.mark.slow
def test_processes_do_the_cells_and_one_that_dies_costs_its_cell_alone(
    workshop: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = asked(workshop, tmp_path / "b", encoders={"mine": str(workshop.root / "encoder2d")},
                   tasks=[str(pictures)], protocols=["logistic"], baselines=["random"])  # fmt: skip
    config = load_benchmark(None, values | {"seeds": [0, 1]})
    record_folder(config)
    cells = grid(config)
    hook = tmp_path / "sitecustomize.py"  # the second cell of the worker kills it, as a lack of memory would
    hook.write_text(
        "import medloom.finetune.benchmark.cell as cell, os, signal\nreal = cell._work\n"
        "def work(config, one, folder, progress):\n"
        f"    if one.name == {cells[1].name!r}:\n        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(config, one, folder, progress)\ncell._work = work\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    outcomes = run_cells(config, cells, jobs=1)
    assert [outcomes[cell.name] for cell in cells] == ["done", "failed", "done", "done"]
    told = json.loads((cells[1].folder(config.folder) / "failure.json").read_text())
    assert "SIGKILL; out of memory?" in told["error"]
    monkeypatch.delenv("PYTHONPATH")
    assert run_cell(config, cells[1]) == "done"
    assert not (cells[1].folder(config.folder) / "failure.json").exists()


@pytest.mark.slow
def test_a_stopped_grid_goes_on(workshop: Any, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "b"
    command = [sys.executable, "-m", "medloom.scripts.cli", "benchmark", "--out", str(out)]
    words = [*command, "--encoder", f"mine={workshop.root / 'encoder2d'}", "--task", str(pictures),
             "--protocol", "full", "--no-baseline", "--root", str(workshop.root), f"cache={workshop.cache}",
             "device=cpu", "options.batch_size=8", "options.steps=80", "options.validations=1",
             "options.checkpoint_minutes=0"]  # fmt: skip
    first = out / "cells" / "pictures" / "mine" / "full-100-s0"
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        while child.poll() is None and not (first / "run" / "pretrained" / "last.ckpt").is_file():
            time.sleep(0.1)
        child.send_signal(signal.SIGTERM)
        assert child.wait(120) == 3
    assert state(first) == "open"
    assert not (out / "leaderboard.html").exists()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "1 done" in done.stdout
    rows = (first / "run" / "pretrained" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows if "loss" in json.loads(row)] == list(range(10, 81, 10))


def test_a_cell_that_another_process_does_is_passed_by(workshop: Any, board: BenchmarkConfig) -> None:
    import fcntl

    cell = grid(board)[0]
    with (cell.folder(board.folder) / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run_cell(board, cell) == "elsewhere"


def test_the_array_script_names_every_share(workshop: Any, board: BenchmarkConfig) -> None:
    text = sbatch(board, parts=8, jobs=2)
    assert "#SBATCH --array=0-7\n" in text
    assert '--array "$SLURM_ARRAY_TASK_ID/8" --jobs 2' in text
    assert "--gres" not in text, "the benchmark is one of the CPU"
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0


@pytest.mark.slow
def test_a_ray_cluster_does_the_same(
    workshop: Any, pictures: Path, board: BenchmarkConfig, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    from medloom.finetune.benchmark.cluster import run_on_ray

    values = asked(workshop, tmp_path / "b", tasks=[str(pictures)], protocols=["logistic"],
                   encoders={"mine": str(workshop.root / "encoder2d")}, baselines=["random"])  # fmt: skip
    config = load_benchmark(None, values)
    record_folder(config)
    assert set(run_on_ray(config, grid(config), "local", jobs=1).values()) == {"done"}
    ours = read_results(config.folder, grid(config)).entries
    theirs = read_results(board.folder, [cell for cell in grid(board) if cell.seed == 0]).entries
    for key, entry in ours.items():
        assert entry.mean == pytest.approx(theirs[key].mean, abs=1e-6)
