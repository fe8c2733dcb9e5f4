"""What `medloom watch` and `medloom runs` make of a run folder: states, rates, probes, rows that grow."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from medloom.data.errors import ConfigError
from medloom.pretrain.monitor.beat import Beat, write_beat
from medloom.pretrain.monitor.sparkline import sparkline
from medloom.pretrain.monitor.status import Follower, best_probe, seconds_a_step
from medloom.pretrain.monitor.table import describe, find_runs, folder_bytes

NOW = 1_000_000.0
CONFIG = """
objective: {name: mae}
encoder: {name: vit, model: vit_tiny_patch16_224}
trainer: {steps: 1000}
data: {batch_size: 64}
"""


def row(step: int, clock: float, **more: Any) -> dict[str, Any]:
    return {"step": step, "samples": 64 * step, "time": clock, "loss": 1 / step, **more}


def make_run(folder: Path, rows: list[dict[str, Any]], beat: Beat | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(CONFIG)
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    os.utime(path, (NOW - 30, NOW - 30))
    if beat is not None:
        write_beat(folder, beat)
    return folder


def alive(**changes: Any) -> Beat:
    given = {"state": "running", "time": NOW - 5, "started": NOW - 900, "step": 120, "stepped": NOW - 6,
             "steps": 1000, "ranks": 8}  # fmt: skip
    return Beat(**{**given, **changes})


@pytest.mark.parametrize(
    ("beat", "state"),
    [
        (alive(), "running"),
        (alive(state="starting", step=0, stepped=0.0), "starting"),
        (alive(time=NOW - 61), "lost"),
        (alive(time=NOW + 20), "running"),  # a clock that goes ahead a little
        (alive(stepped=NOW - 301), "stalled"),
        (alive(state="failed", time=NOW - 9999, error="x"), "failed"),
        (alive(state="requeued", time=NOW - 9999), "requeued"),
        (alive(state="stopped", time=NOW - 9999), "stopped"),
        (None, "unknown"),
    ],
)
def test_states(tmp_path: Path, beat: Beat | None, state: str) -> None:
    status = Follower(make_run(tmp_path / "run", [row(100, 50.0), row(120, 60.0)], beat)).look(NOW)
    assert status.state == state
    assert status.wrong is (state in ("lost", "stalled", "failed"))


def test_slow_steps_are_not_taken_for_a_stall(tmp_path: Path) -> None:
    slow = [row(n, 60.0 * n) for n in range(1, 6)]
    assert Follower(make_run(tmp_path / "run", slow, alive(stepped=NOW - 400))).look(NOW).state == "running"


def test_a_run_without_a_heartbeat_is_finished_when_it_left_an_encoder(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [row(1000, 60.0)])
    (run / "encoder.json").write_text("{}")
    assert Follower(run).look(NOW).state == "finished"


def test_progress_and_time_left(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [row(n, 5.0 * n) for n in range(20, 121, 10)], alive())
    (run / "last.ckpt").write_bytes(bytes(1000))
    os.utime(run / "last.ckpt", (NOW - 77, NOW - 77))
    status = Follower(run).look(NOW)
    assert (status.step, status.steps, status.seconds_a_step) == (120, 1000, 5.0)
    assert status.seconds_left == 5.0 * 880
    assert (status.saved_step, status.saved_age, status.saved_bytes) == (None, 77.0, 1000), "an older version"
    (run / "checkpoints.json").write_text('[{"step": 90, "bytes": 1, "seconds": 1.0, "sha256": "0"}]')
    assert Follower(run).look(NOW).saved_step == 90
    assert (status.row_age, status.step_age, status.beat_age) == (30.0, 6.0, 5.0)


def test_checkpoints_in_parts_are_seen(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [row(120, 60.0)], alive())
    for step, written in ((90, NOW - 500), (110, NOW - 40)):
        parts = run / "split" / f"step-{step}"
        parts.mkdir(parents=True)
        for name in ("__0_0.distcp", "__1_0.distcp", "sums.json"):
            (parts / name).write_bytes(bytes(100))
            os.utime(parts / name, (written, written))

    def saved() -> tuple[int | None, float | None, int | None]:
        status = Follower(run).look(NOW)
        return status.saved_step, status.saved_age, status.saved_bytes

    assert saved() == (110, 40.0, 300)
    (run / "last.ckpt").write_bytes(bytes(1000))
    os.utime(run / "last.ckpt", (NOW - 900, NOW - 900))
    for step, newest in ((50, (110, 40.0, 300)), (120, (120, 900.0, 1000))):
        entry = {"step": step, "bytes": 1000, "seconds": 1.0, "sha256": "0"}
        (run / "checkpoints.json").write_text(json.dumps([entry]))
        assert saved() == newest


def test_a_resumed_run_starts_its_clock_anew() -> None:
    assert seconds_a_step([row(10, 900.0), row(20, 1000.0), row(30, 4.0), row(40, 6.0)]) == 0.2
    assert seconds_a_step([row(10, 900.0), row(20, 4.0)]) is None
    assert seconds_a_step([]) is None


def test_rows_are_read_as_they_come(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [row(1, 1.0)], alive())
    follower, path = Follower(run), run / "metrics.jsonl"
    assert [r["step"] for r in follower.look(NOW).run.rows] == [1]
    with path.open("a") as file:
        file.write(json.dumps(row(2, 2.0)) + "\n" + '{"step": 3, "ti')
    assert [r["step"] for r in follower.look(NOW).run.rows] == [1, 2], "half a line waits"
    with path.open("a") as file:
        file.write('me": 3.0}\n')
    assert [r["step"] for r in follower.look(NOW).run.rows] == [1, 2, 3]
    fresh = path.with_name("fresh")
    fresh.write_text("".join(json.dumps(row(n, 1.0)) + "\n" for n in (1, 2, 4, 5, 6)))
    fresh.replace(path)
    assert [r["step"] for r in follower.look(NOW).run.rows] == [1, 2, 4, 5, 6], "a resume writes it anew"


def test_the_best_probe_is_the_best_mean_of_the_first_kind() -> None:
    rows = [
        row(1, 1.0, **{"probe/knn_a": 0.9, "probe/knn_b": 0.1, "probe/rankme": 30.0}),
        row(2, 2.0, **{"probe/knn_a": 0.6, "probe/knn_b": 0.6}),
        row(3, 3.0, **{"probe/knn_a": 0.7, "probe/knn_b": None}),
    ]
    found = best_probe(rows)
    assert found is not None
    assert (found.kind, found.score, found.step) == ("knn", 0.7, 3)
    assert str(best_probe([*rows, row(4, 4.0, **{"probe/linear_a": 0.2})])) == "linear 0.200"
    assert best_probe([row(1, 1.0, **{"probe/rankme": 30.0})]) is None


def test_runs_are_found_below_a_folder_and_not_inside_each_other(tmp_path: Path) -> None:
    make_run(tmp_path / "b" / "deep", [row(10, 1.0)], alive())
    make_run(tmp_path / "a", [row(10, 1.0, alarm="the loss | the rank")], alive())
    make_run(tmp_path / "a" / "inside", [row(10, 1.0)])
    (tmp_path / "finetuned").mkdir()
    (tmp_path / "finetuned" / "config.yaml").write_text("task: x\nencoder: y\n")
    (tmp_path / "finetuned" / "metrics.jsonl").write_text("{}\n")
    found = list(find_runs([tmp_path]))
    assert [str(run.folder.relative_to(tmp_path)) for run in found] == ["a", "b/deep"]
    first = describe(found[0], NOW)
    assert first["alarms"] == ["the loss", "the rank"]
    assert (first["state"], first["method"], first["encoder"]) == ("running", "mae", "vit_tiny_patch16_224")
    with pytest.raises(ConfigError, match="no folder"):
        list(find_runs([tmp_path / "nothing"]))
    with pytest.raises(ConfigError, match="no run"):
        Follower(tmp_path / "finetuned")


def test_hard_links_count_once(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").write_bytes(bytes(3000))
    os.link(tmp_path / "last.ckpt", tmp_path / "step-3.ckpt")
    (tmp_path / "other").write_bytes(bytes(10))
    assert folder_bytes(tmp_path) == 3010


def test_sparklines() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 20) == "▁▂▃▄▅▆▇█"
    assert sparkline([0, 0, 7, 7], 2) == "▁█", "columns are means"
    assert sparkline([1.0, None, float("nan"), 3.0], 10) == "▁  █"
    assert sparkline([2.0, 2.0], 10, blocks="abc") == "bb"
    assert sparkline([], 10) == sparkline([None], 10) == ""


def test_a_real_run_is_read_while_it_goes_on(tiny_config: Callable[..., Any], tmp_path: Path) -> None:
    from medloom.pretrain.run import pretrain

    seen = []

    def look_at() -> dict[str, Any]:
        return describe(Follower(tmp_path / "run"))

    def look(done: int, total: int, what: str) -> None:
        if done == 8:
            deadline = time.monotonic() + 60  # a thread writes the beat
            while look_at()["state"] == "starting" and time.monotonic() < deadline:
                time.sleep(0.01)
            seen.append(look_at())

    pretrain(tiny_config(tmp_path / "run", "probe.every_steps=6"), progress=look)
    assert [(s["state"], s["step"] in range(6, 9), s["steps"], s["ranks"]) for s in seen] == [
        ("running", True, 12, 1)
    ]
    end = look_at()
    assert (end["state"], end["step"], end["method"], end["seconds_left"]) == ("finished", 12, "mae", None)
    assert 0 <= end["best_probe"] <= 1 and end["probe"] == "linear"
    assert end["checkpoint_step"] == 12 and end["checkpoint_bytes"] < end["bytes"]
