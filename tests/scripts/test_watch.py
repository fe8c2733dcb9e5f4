"""`medloom watch` and `medloom runs` as a user meets them."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pytest
from medloom.pretrain.monitor.beat import Beat, write_beat
from medloom.scripts import cli
from medloom.scripts.console import duration


def make_run(folder: Path, **beat: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        "objective: {name: mae}\nencoder: {name: vit3d, size: tiny}\ntrainer: {steps: 500}\n"
        "data: {batch_size: 64}\n"
    )
    rows = [
        {"step": n, "samples": 64 * n, "time": 2.0 * n, "loss": 2.0 - n / 100, "samples_per_s": 32.0,
         "data_wait": 0.031, "mfu": 0.41, "gpu_memory_gb": 61.25, "probe/knn_derm": 0.5 + n / 1000}
        for n in range(10, 101, 10)
    ]  # fmt: skip
    rows[-1]["loss"] = None  # type: ignore[assignment]
    rows[-1]["alarm"] = "loss is not finite; lower optim.base_lr"  # type: ignore[assignment]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "last.ckpt").write_bytes(bytes(2_500_000))
    (folder / "checkpoints.json").write_text('[{"step": 90, "bytes": 1, "seconds": 1.0, "sha256": "0"}]')
    now = time.time()
    given = {"state": "running", "time": now, "started": now - 7260, "step": 104, "stepped": now,
             "steps": 500, "ranks": 4, **beat}  # fmt: skip
    write_beat(folder, Beat(**given))  # type: ignore[arg-type]
    return folder


def test_one_frame_has_what_one_asks_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "mae")
    assert cli.main(["watch", str(run), "--once"]) == 1, "an alarm stands"
    shown = capsys.readouterr().out
    for text in (
        "running", "for 2 h 01 min", "step 104 of 500 (20.8 %)", "13 min left", "mae · vit3d tiny",
        "64 samples on 4 ranks", "2 s a step · 32 samples/s · MFU 41 %", "3.1 % waiting for data",
        "61.2 GiB", "step 90, ", "probe/knn_derm", "▁▂▃▄▄▅▅▆▇█"[:3],
        "ALARM loss is not finite; lower optim.base_lr",
    ):  # fmt: skip
        assert text in shown, f"{text!r} is not in\n{shown}"
    assert next(line for line in shown.splitlines() if line.startswith("loss")).split()[1] == "not"


@pytest.mark.parametrize(
    ("beat", "status", "text"),
    [
        ({"time": -7200}, 1, "no sign of life for 2 h 00 min"),
        ({"stepped": -3000}, 1, "the last step is 50 min old"),
        ({"state": "failed", "error": "NonFiniteLoss"}, 1, "NonFiniteLoss"),
        ({"state": "requeued"}, 1, "waits in the queue"),
        ({"state": "finished"}, 0, "finished"),
    ],
)
def test_a_frame_says_what_a_state_means(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], beat: dict[str, object], status: int, text: str
) -> None:
    ages = {key: time.time() + value for key, value in beat.items() if isinstance(value, int)}
    run = make_run(tmp_path / "run", **{**beat, **ages})
    assert cli.main(["watch", str(run)]) == status, "no terminal: one frame"
    assert text in capsys.readouterr().out


def test_a_screen_follows_until_the_run_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run")
    looks = 0

    def sleep(seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            write_beat(run, Beat(state="finished", time=time.time(), step=500, steps=500))

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setattr("time.sleep", sleep)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "250")  # the path of the run is long
    assert cli.main(["watch", str(run)]) == 0
    assert looks == 3
    assert "running" in terminal.getvalue() and "finished" in terminal.getvalue()


def test_the_table_and_its_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "group" / "first")
    make_run(tmp_path / "second", state="finished")
    assert cli.main(["runs", str(tmp_path)]) == 0
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split() == ["run", "state", "method", "encoder", "step", "left", "loss", "best", "probe",
                            "data", "wait", "row", "age", "size"]  # fmt: skip
    assert first.split() == ["group/first", "running", "ALARM", "mae", "tiny", "104/500", "13", "min",
                             "knn", "0.600", "3.1", "%", "0", "s", "2.5", "MB"]  # fmt: skip
    assert second.split()[:2] == ["second", "finished"]
    assert cli.main(["runs", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(v["state"], v["best_probe_step"], v["loss"]) for v in found] == [
        ("running", 100, None), ("finished", 100, None),
    ]  # fmt: skip


def test_no_runs_and_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["runs", str(tmp_path)]) == 0
    assert "no runs" in capsys.readouterr().out
    assert cli.main(["runs", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert cli.main(["watch", str(tmp_path)]) == 2


def test_durations() -> None:
    assert [duration(s) for s in (3.6, 61, 3599, 7501, 200_000)] == [
        "4 s", "1 min", "59 min", "2 h 05 min", "2 d 7 h",
    ]  # fmt: skip
    assert [duration(s, short=True) for s in (59, 7501, 200_000)] == ["59 s", "2 h", "2 d"]
    assert duration(None) == "?"
