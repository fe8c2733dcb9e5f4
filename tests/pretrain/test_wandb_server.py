"""W&B against a server on the loopback: one run over requeues, sync, alerts, and a server that is no help."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from medloom.pretrain.config import TrackingConfig
from medloom.pretrain.tracking import Artifact, Tracker, wandb_backend
from PIL import Image

from .wandb_log import files, history
from .wandb_server import WandbServer

DATASET = Artifact("dataset", "shards-abc", {"manifest": "abc"})
ENCODER = Artifact("encoder", "encoder-def", {"sha256": "def"})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[WandbServer]:
    """A server that W&B talks to, as somebody who is logged in."""
    import wandb

    wandb.teardown()  # the process of another test knows another server
    made = WandbServer()
    for key, value in made.environment().items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("USER", "canary-user")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # where W&B would keep copies of files
    monkeypatch.setattr(wandb_backend, "START_SECONDS", 3)
    yield made
    made.fault = ""
    wandb.teardown()
    made.close()


def names_nobody(server: WandbServer, tmp_path: Path) -> None:
    """Nothing that the server was sent says who or where."""
    sent = b"".join(server.bodies)
    for canary in ("canary-user", "canary-folder", "canary-key", os.uname().nodename, str(tmp_path)):
        around = re.search(rb".{0,60}\b" + re.escape(canary.encode()) + rb"\b.{0,60}", sent)
        assert around is None, around


def segment(folder: Path, steps: range, *, config: TrackingConfig | None = None) -> Tracker:
    """One segment that logs `steps`, not finished."""
    values = {"optim": {"lr": 1.0}, "out": "/home/canary-folder/x"}
    tracker = Tracker(folder, config or TrackingConfig(), name="x", values=values, start=steps.start)
    for step in steps:
        tracker.log({"step": step, "samples": 4 * step, "time": 1.0, "loss": 1.0 / (step + 1)})
    return tracker


def test_a_requeued_job_continues_its_run(server: WandbServer, tmp_path: Path) -> None:
    picture = tmp_path / "canary-key.png"
    Image.new("RGB", (4, 6)).save(picture)
    for steps in (range(4), range(4, 6)):
        tracker = segment(tmp_path, steps)
        tracker.uses(DATASET)
        tracker.alert("rank", "collapse", steps.start)
        tracker.made(ENCODER)
        tracker.table("cases", [{"case": 1, "dice": 0.5, "image": "w"}], {"w": picture})
        tracker.finish({"finished": steps.stop == 6})
        assert (tracker.failed, tracker.dropped) == (0, 0)
    ((name, run),) = server.runs.items()
    assert json.loads((tmp_path / "wandb.json").read_text())["id"] == name
    assert [line["trainer/global_step"] for line in run.lines if "loss" in line] == list(range(6))
    assert run.config["optim"]["value"] == {"lr": 1} and run.config["out"]["value"] == "x"
    assert run.summary["finished"] is True and run.exit == 0
    assert run.alerts == ["medloom: rank: step 0: collapse", "medloom: rank: step 4: collapse"]
    assert (run.job, run.group) == ("pretrain", name)
    assert (name, "shards-abc") in server.uses
    assert server.artifacts["shards-abc"]["runs"] == []  # read, not made
    made = server.artifacts["encoder-def"]
    assert made["committed"] and name in made["runs"]
    assert made["metadata"] == ENCODER.facts
    assert any("cases" in line for line in run.lines)
    names_nobody(server, tmp_path)
    assert server.unknown == []


def test_what_two_runs_tell_of_one_encoder_is_one_artifact(server: WandbServer, tmp_path: Path) -> None:
    for job in ("pretrain", "finetune"):
        (tmp_path / job).mkdir()
        tracker = Tracker(tmp_path / job, TrackingConfig(), name=job, values={}, job=job)
        (tracker.made if job == "pretrain" else tracker.uses)(ENCODER)
        tracker.finish({})
    first, second = (json.loads((tmp_path / job / "wandb.json").read_text())["id"]
                     for job in ("pretrain", "finetune"))  # fmt: skip
    assert server.artifacts["encoder-def"]["runs"] == [first]
    assert server.uses == [(second, "encoder-def")]


def test_the_encoder_goes_along_when_asked_for(server: WandbServer, tmp_path: Path) -> None:
    weights = tmp_path / "encoder.safetensors"
    weights.write_bytes(b"weights")
    tracker = segment(tmp_path, range(1), config=TrackingConfig(weights=True))
    tracker.made(Artifact(ENCODER.kind, ENCODER.name, ENCODER.facts, (weights,)))
    tracker.finish({})
    assert server.artifacts["encoder-def-files"]["files"] == {"encoder.safetensors": "weights"}
    assert not list(Path("/var/tmp").glob("medloom-*"))  # copies for the upload are gone


def test_offline_segments_are_synced_as_one_group(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = tmp_path / "canary-key.png"
    Image.new("RGB", (4, 6)).save(picture)
    for steps in (range(3), range(3, 5)):
        tracker = segment(tmp_path, steps, config=TrackingConfig(wandb="offline"))
        tracker.uses(DATASET)
        tracker.made(ENCODER)
        tracker.table("cases", [{"case": 1, "dice": 0.5, "image": "w"}], {"w": picture})
        tracker.finish({})
    assert server.bodies == []
    folders = [str(path.parent) for path in files(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", *folders], env=os.environ, capture_output=True, text=True,
        timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    group = json.loads((tmp_path / "wandb.json").read_text())["group"]
    assert set(server.runs) == {group, f"{group}-1"}
    assert {run.group for run in server.runs.values()} == {group}
    steps = [line["trainer/global_step"] for name in (group, f"{group}-1")
             for line in server.runs[name].lines if "loss" in line]  # fmt: skip
    assert steps == list(range(5))
    assert {name for name, _ in server.uses} == set(server.runs) == {*server.artifacts["encoder-def"]["runs"]}
    assert any(b"<td>0.5</td><td><img" in body for body in server.bodies)
    names_nobody(server, tmp_path)


@pytest.mark.parametrize("fault", ["hang", "error", "refuse"])
def test_a_server_that_does_not_answer_leaves_an_offline_segment(
    fault: str, server: WandbServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if fault == "refuse":
        server.http.server_close()
    server.fault = fault
    tracker = segment(tmp_path, range(5))
    tracker.finish({})
    assert "W&B does not answer" in caplog.text
    found = json.loads((tmp_path / "wandb.json").read_text())["segments"]
    assert [one["mode"] for one in found] == ["online", "offline"]
    (path,) = (path for path in files(tmp_path) if "offline" in str(path))
    assert [row["trainer/global_step"] for row in history(path)] == list(range(5))


@pytest.mark.parametrize("fault", ["hang", "error"])
def test_a_server_that_dies_on_the_way_costs_a_line(
    fault: str, server: WandbServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = segment(tmp_path, range(2))
    while not server.runs:  # it was there at first
        assert tracker.active
    server.fault = fault
    for step in range(2, 6):
        tracker.log({"step": step, "loss": 0.1})
    tracker.finish({}, seconds=2)
    assert "did not answer in time; metrics.jsonl is complete; to upload what is left: wandb sync" in (
        caplog.text
    )
    (path,) = files(tmp_path)
    assert str(path.parent) in caplog.text


def test_python_ends_although_the_server_hangs(tmp_path: Path, server: WandbServer) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from medloom.pretrain.tracking import Tracker, TrackingConfig\n"
        "tracker = Tracker(Path(sys.argv[1]), TrackingConfig(), name='x', values={})\n"
        "tracker.log({'step': 1, 'loss': 0.5})\n"
        "tracker.finish({}, seconds=3)\n"
        "print('after')\n"
    )
    server.fault = "hang"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=os.environ, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout == "after\n"
    assert "Traceback" not in done.stderr
