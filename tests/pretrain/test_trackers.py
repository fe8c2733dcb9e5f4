"""The queue before every tracker, the clock that sees a stalled loader, TensorBoard and MLflow read back."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from medloom.pretrain.config import TrackingConfig
from medloom.pretrain.run import pretrain
from medloom.pretrain.stall import StallWatch
from medloom.pretrain.tracking import METRICS, Artifact, Tracker, read_rows, tracker
from medloom.pretrain.tracking.base import Backend
from PIL import Image


class Recording(Backend):
    """Keeps what it is told; `gate` holds it up, `broken` makes every row raise."""

    title = "recording"

    def __init__(self, *, held: bool = False, broken: bool = False) -> None:
        self.told: list[Any] = []
        self.last: dict[str, Any] = {}
        self.gate = threading.Event()
        self.broken = broken
        self.abandoned = False
        if not held:
            self.gate.set()

    def start(self) -> str | None:
        self.gate.wait()
        return None

    def row(self, row: Mapping[str, Any], images: Mapping[str, Path]) -> None:
        if self.broken:
            raise OSError("disk full")
        self.told.append(row["step"])
        self.last = dict(row)

    def alert(self, name: str, text: str, step: int) -> None:
        self.told.append(name)

    def table(self, name: str, rows: Any, images: Any) -> None:
        self.told.append(name)

    def artifact(self, artifact: Artifact, *, used: bool) -> None:
        self.told.append(artifact.name)

    def finish(self, summary: Mapping[str, Any], *, failed: bool) -> None:
        self.told.append("finish")

    def abandon(self, alive: Callable[[], bool]) -> str | None:
        self.abandoned = alive()
        return "left"


def front(backend: Backend, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Tracker:
    monkeypatch.setattr(tracker, "make_backend", lambda *_: backend)
    return Tracker(folder, TrackingConfig(), name="x", values={})


def test_a_full_queue_loses_its_oldest_rows_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracker, "QUEUE", 5)
    slow = Recording(held=True)
    mirror = front(slow, tmp_path, monkeypatch)
    mirror.alert("rank", "collapse", 0)
    for step in range(20):
        mirror.log({"step": step})
    slow.gate.set()
    mirror.finish({})
    assert slow.told == ["rank", 17, 18, 19, "finish"]
    assert "17 rows were dropped" in caplog.text


def test_a_tracker_that_never_answers_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    dead = Recording(held=True)
    mirror = front(dead, tmp_path, monkeypatch)
    mirror.log({"step": 1})
    mirror.finish({}, seconds=0.2)
    assert dead.abandoned
    assert "did not answer in time; metrics.jsonl is complete; left" in caplog.text
    assert "1 rows were dropped" in caplog.text
    dead.gate.set()
    time.sleep(0.1)
    assert dead.told == []  # what nobody waits for is not delivered to a run that is closed


def test_a_tracker_that_raises_is_left_alone_after_some_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = Recording(broken=True)
    mirror = front(broken, tmp_path, monkeypatch)
    for step in range(30):
        mirror.log({"step": step})
    mirror.finish({})
    assert caplog.text.count("disk full") == 1
    assert mirror.failed == tracker.FAILURES
    assert mirror.dropped == 30 - tracker.FAILURES
    assert broken.told == ["finish"]


def test_a_run_is_no_slower_with_a_tracker_that_hangs(
    tiny_config: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent = 0.0

    def timed(self: Tracker, *arguments: Any, **named: Any) -> None:
        nonlocal spent
        begin = time.perf_counter()
        put(self, *arguments, **named)
        spent += time.perf_counter() - begin

    put = Tracker._put
    monkeypatch.setattr(Tracker, "_put", timed)
    dead = Recording(held=True)
    monkeypatch.setattr(tracker, "make_backend", lambda *_: dead)
    options = ("tracking.tracker=wandb", "tracking.wandb=offline", "tracking.finish_seconds=0.1")
    begin = time.perf_counter()
    pretrain(tiny_config(tmp_path / "run", *options))
    assert dead.abandoned
    assert [row["step"] for row in read_rows(tmp_path / "run" / METRICS)] == [1, 3, 6, 9, 12]
    assert spent < 0.02 * (time.perf_counter() - begin)


def test_a_stalled_loader_is_told_once_a_wait() -> None:
    told: list[float] = []
    again = threading.Event()

    def tell(seconds: float) -> None:
        told.append(seconds)
        again.set()

    watch, run = StallWatch(0.2, tell), (cast(Any, None), None)
    watch.on_train_start(*run)
    assert again.wait(30)  # the first batch is waited for, too
    again.clear()
    watch.on_train_batch_start(*run, None, 0)
    assert not again.wait(0.5)  # it did come
    watch.on_train_batch_end(*run, None, None, 0)
    assert again.wait(30)
    time.sleep(0.5)
    assert len(told) == 2 and min(told) >= 0.2
    watch.on_train_end(*run)
    watch._thread.join(30)
    assert not watch._thread.is_alive()


@pytest.mark.parametrize("late", [0, 6])
def test_a_run_whose_loader_stalls_says_so(
    tiny_config: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, late: int,
) -> None:  # fmt: skip
    from medloom.data.loader.loader import Loader

    read, heard = Loader.__iter__, Recording()

    def slow(self: Loader) -> Iterator[dict[str, Any]]:
        for number, batch in enumerate(read(self)):
            time.sleep(1.5 if number == late else 0.0)
            yield batch

    monkeypatch.setattr(Loader, "__iter__", slow)
    monkeypatch.setattr(tracker, "make_backend", lambda *_: heard)
    config = tiny_config(tmp_path / "run", "tracking.tracker=tensorboard", "panels.samples=1")
    monkeypatch.setattr(TrackingConfig, "require", lambda _: None)
    config.tracking.stall_minutes = 0.3 / 60
    pretrain(config)
    assert heard.told.count("stalled") == 1
    assert "no batch for" in caplog.text


def test_rows_with_probes_carry_their_mean_for_sweeps(
    tiny_config: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Recording()
    monkeypatch.setattr(tracker, "make_backend", lambda *_: heard)
    pretrain(
        tiny_config(tmp_path / "run", "trainer.steps=3", "probe.every_steps=3", "probe.scores=[knn,linear]")
    )
    row = read_rows(tmp_path / "run" / METRICS)[-1]
    scores = [value for key, value in row.items() if key.startswith(("probe/knn_", "probe/linear_"))]
    assert len(scores) == 4 and "probe/mean" not in row
    assert heard.last["probe/mean"] == pytest.approx(sum(scores) / 4)


def used(run: Path, tracker_: str) -> None:
    """Two segments with rows, pictures, an alarm, artifacts and a table."""
    picture = run / "p.png"
    Image.new("RGB", (4, 6)).save(picture)
    for start in (0, 2):
        mirror = Tracker(
            run, TrackingConfig(tracker=tracker_), name="x", values={"optim": {"lr": 1.0}, "out": "/home/x"},
            start=start,
        )  # fmt: skip
        for step in range(start + 1, start + 4):
            row = {"step": step, "samples": 4, "time": 1.0, "loss": 1.0 / step, "alarm": "words"}
            mirror.log(row, {"panels/x": picture} if step == 3 else {})
        mirror.uses(Artifact("dataset", "shards-abc", {"manifest": "abc"}))
        mirror.made(Artifact("encoder", "encoder-def", {"sha256": "def"}, (picture,)))
        mirror.alert("rank", "collapse", 3)
        mirror.table("cases", [{"case": 1, "dice": 0.5, "image": "worst"}], {"worst": picture})
        mirror.finish({"loss": 0.2})
        assert (mirror.failed, mirror.dropped) == (0, 0)


def test_tensorboard_reads_a_resumed_run_as_one(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs pip install 'medloom[tensorboard]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    used(tmp_path, "tensorboard")
    seen = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    # The first segment logged step 3, which the second, from step 2, did again: its value counts, once.
    assert [event.step for event in seen.Scalars("loss")] == [1, 2, 3, 4, 5]
    assert seen.Scalars("loss")[-1].value == pytest.approx(0.2)
    (image,) = seen.Images("panels/x")[-1:]
    assert (image.step, image.width, image.height) == (3, 4, 6)
    texts = {tag: seen.Tensors(tag)[-1].tensor_proto.string_val[0] for tag in seen.Tags()["tensors"]}
    assert b"collapse" in texts["alarms/rank"]
    assert b'"manifest": "abc"' in texts["lineage/reads/shards-abc"]
    assert b"| 1 | 0.5 | worst |" in texts["cases"]
    everything = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    names = "".join(path.name for path in (tmp_path / "tensorboard").iterdir()).encode()
    for canary in (os.uname().nodename, "/home", str(tmp_path)):
        assert canary.encode() not in everything + names


def test_mlflow_continues_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="needs pip install 'medloom[mlflow]'")
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("USER", "canary-user")
    run = tmp_path / "run"
    run.mkdir()
    used(run, "mlflow")
    client = MlflowClient((tmp_path / "mlruns").as_uri())
    (found,) = client.search_runs([client.get_experiment_by_name("medloom").experiment_id])
    assert found.info.run_id == json.loads((run / "mlflow.json").read_text())["run"]
    assert found.info.status == "FINISHED"
    assert found.data.params == {"optim.lr": "1.0", "out": "x"}
    values = {metric.step: metric.value for metric in client.get_metric_history(found.info.run_id, "loss")}
    assert values == {step: pytest.approx(1.0 / step) for step in range(1, 6)}
    assert found.data.tags["reads.dataset"] == "shards-abc" and "collapse" in found.data.tags["alarm.rank"]
    assert "canary-user" not in str(found.data.tags) and os.uname().nodename not in str(found)
    held = {item.path for item in client.list_artifacts(found.info.run_id)}
    assert {"cases.csv", "cases", "lineage", "panels", "summary.json"} <= held
    assert "encoder-def" not in held  # files go along only where tracking.weights says so


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_whole_run_reaches_the_tracker(
    name: str, tiny_config: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip(name, reason=f"needs pip install 'medloom[{name}]'")
    with caplog.at_level(logging.WARNING):
        pretrain(tiny_config(tmp_path / "run", f"tracking.tracker={name}"))
    assert "failed" not in caplog.text and "dropped" not in caplog.text
    losses = {row["step"]: row["loss"] for row in read_rows(tmp_path / "run" / METRICS)}
    if name == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        seen = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
        found = {event.step: event.value for event in seen.Scalars("loss")}
    else:
        from mlflow import MlflowClient

        client = MlflowClient((tmp_path / "mlruns").as_uri())
        run = json.loads((tmp_path / "run" / "mlflow.json").read_text())["run"]
        found = {metric.step: metric.value for metric in client.get_metric_history(run, "loss")}
    assert found == pytest.approx(losses)
