"""tracking.py: rows without duplicates; W&B offline is complete, private and asks no network."""

from __future__ import annotations

import json
import logging
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from medloom.pretrain.config import TrackingConfig
from medloom.pretrain.run import pretrain
from medloom.pretrain.tracking import METRICS, Journal, Tracker, public, read_rows
from medloom.pretrain.tracking.wandb_backend import choose_mode
from PIL import Image

BLOCK = 32768


def records(path: Path) -> Iterator[Any]:
    """Records of an offline `.wandb` file: a 7-byte header, then LevelDB log blocks of protobuf messages."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = path.read_bytes()
    assert struct.unpack("<4sHB", data[:7]) == (b":W&B", 0xBEE1, 0)
    at, pending = 7, b""
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        pending += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(pending)
            yield record
            pending = b""


def history(path: Path) -> list[dict[str, Any]]:
    """Logged rows of an offline `.wandb` file."""
    rows = []
    for record in records(path):
        if record.HasField("history"):
            items = record.history.item
            rows.append({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items})
    return rows


def wandb_file(run: Path) -> list[Path]:
    return sorted((run / "wandb").glob("offline-run-*/*.wandb"))


def test_rows_beyond_the_checkpoint_and_a_cut_line_go(tmp_path: Path) -> None:
    journal = Journal(tmp_path, keep_until=0)
    for step in (1, 5, 10):
        journal.write({"step": step, "loss": 1.0 / step})
    journal.close()
    path = tmp_path / METRICS
    path.write_bytes(path.read_bytes() + b'{"step": 15, "lo')
    journal = Journal(tmp_path, keep_until=7)
    journal.write({"step": 8, "loss": float("nan"), "rank": 2})
    journal.close()
    assert [row["step"] for row in read_rows(path)] == [1, 5, 8]
    assert read_rows(path)[-1] == {"step": 8, "loss": None, "rank": 2}


def test_mode_is_offline_without_a_login_and_online_with_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert choose_mode("auto") == "offline"
    (tmp_path / "netrc").write_text("machine elsewhere.example login user password x\n")
    assert choose_mode("auto") == "offline"
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai login user password {'0' * 40}\n")
    assert choose_mode("auto") == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert choose_mode("auto") == "offline"
    assert choose_mode("disabled") == "disabled"
    monkeypatch.delenv("WANDB_MODE")
    (tmp_path / "netrc").unlink()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert choose_mode("auto") == "online"


def test_an_offline_run_mirrors_the_rows_and_panels_and_names_nobody(
    tiny_config: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("asked the network"))
    monkeypatch.setenv("USER", "canary-user")
    run = tmp_path / "canary-folder" / "run"
    with caplog.at_level(logging.INFO):
        pretrain(tiny_config(run, "tracking.wandb=auto", "trainer.steps=6"))
    (path,) = wandb_file(run)
    assert f"wandb sync {path.parent}" in caplog.text
    mirrored = [row for row in history(path) if "loss" in row]
    rows = read_rows(run / METRICS)
    assert [row["trainer/global_step"] for row in mirrored] == [row["step"] for row in rows]
    assert [row["loss"] for row in mirrored] == [row["loss"] for row in rows]
    assert mirrored[-1]["panels/reconstruction/_type"] == "image-file"
    configs = [r.run.config for r in records(path) if r.HasField("run")]
    keys = {update.key for config in configs for update in config.update}
    assert {"optim", "data", "objective"} <= keys
    ids = json.loads((run / "wandb.json").read_text())
    assert [segment["id"] for segment in ids["segments"]] == [path.stem.removeprefix("run-")]
    said = path.read_bytes() + b"".join(p.read_bytes() for p in (path.parent / "files").rglob("*.json"))
    for canary in ("canary-user", "canary-folder", os.uname().nodename, str(Path.cwd()), "tiny_pictures-"):
        assert canary.encode() not in said, canary


def test_segments_have_their_own_ids_in_one_group(tmp_path: Path) -> None:
    picture = tmp_path / "p.png"
    Image.new("RGB", (4, 4)).save(picture)
    for step in (1, 2):
        tracker = Tracker(tmp_path, TrackingConfig(wandb="offline"), name="x", values={"a": "/b/c"})
        tracker.log({"step": step, "samples": 4, "time": 1.0, "loss": 0.5}, {"panels/x": picture})
        tracker.finish({"step": step})
    found = json.loads((tmp_path / "wandb.json").read_text())
    first, second = (segment["id"] for segment in found["segments"])
    assert second == f"{first}-1"
    assert first == found["group"]
    assert len(wandb_file(tmp_path)) == 2
    groups = {r.run.run_group for path in wandb_file(tmp_path) for r in records(path) if r.HasField("run")}
    assert groups == {found["group"]}


def test_a_tracker_that_fails_costs_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import wandb

    monkeypatch.setattr(wandb, "init", lambda **_: (_ for _ in ()).throw(RuntimeError("no space")))
    tracker = Tracker(tmp_path, TrackingConfig(wandb="offline"), name="x", values={})
    tracker.log({"step": 1})
    tracker.finish({})
    assert "no space" in caplog.text


def test_the_public_configuration_has_no_folders() -> None:
    values = {"data": {"shards": "/home/me/shards", "sources": ["a"]}, "out": "runs/x", "n": 3}
    assert public(values) == {"data": {"shards": "shards", "sources": ["a"]}, "out": "x", "n": 3}
