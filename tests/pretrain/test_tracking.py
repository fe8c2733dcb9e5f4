"""metrics.jsonl has no step twice; W&B offline is complete, private, linked, and asks no network."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from medloom.data.errors import ConfigError
from medloom.data.stream.stream import Stream
from medloom.pretrain.config import TrackingConfig
from medloom.pretrain.run import pretrain
from medloom.pretrain.tracking import METRICS, Journal, Tracker, lineage, public, read_rows
from medloom.pretrain.tracking.wandb_backend import choose_mode, next_segment
from PIL import Image

from .wandb_log import files, history, records


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


def test_an_offline_run_mirrors_rows_panels_and_lineage_and_names_nobody(
    tiny_config: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("asked the network"))
    monkeypatch.setenv("USER", "canary-user")
    run = tmp_path / "canary-folder" / "run"
    config = tiny_config(run, "tracking.wandb=auto", "trainer.steps=6")
    with caplog.at_level(logging.INFO):
        pretrain(config)
    (path,) = files(run)
    assert f"wandb sync {path.parent}" in caplog.text
    mirrored = [row for row in history(path) if "loss" in row]
    rows = read_rows(run / METRICS)
    assert [row["trainer/global_step"] for row in mirrored] == [row["step"] for row in rows]
    assert [row["loss"] for row in mirrored] == [row["loss"] for row in rows]
    assert mirrored[-1]["panels/reconstruction/_type"] == "image-file"
    configs = [r.run.config for r in records(path) if r.HasField("run")]
    keys = {update.key: update.value_json for config in configs for update in config.update}
    assert {"optim", "data", "objective"} <= keys.keys()
    assert json.loads(keys["environment"])["git"] == json.loads((run / "env.json").read_text())["git"]
    ids = json.loads((run / "wandb.json").read_text())
    assert [segment["id"] for segment in ids["segments"]] == [path.stem.removeprefix("run-")]
    sent = [r.request.log_artifact.artifact for r in records(path)] + [r.artifact for r in records(path)]
    linked = {artifact.type: artifact for artifact in sent if artifact.type}
    record = json.loads((run / "encoder.json").read_text())
    assert linked["dataset"].name == f"shards-{record['training']['manifest'][:12]}"
    assert linked["dataset"].use_after_commit
    assert linked["encoder"].name == f"encoder-{record['sha256'][:12]}"
    assert not linked["encoder"].use_after_commit
    said = path.read_bytes() + b"".join(p.read_bytes() for p in (path.parent / "files").rglob("*.json"))
    keys_of_samples = {Stream(config.data)[position]["key"] for position in range(48)}
    assert len(keys_of_samples) > 20
    machine = ("canary-user", "canary-folder", os.uname().nodename, str(Path.cwd()))
    for canary in (*machine, *keys_of_samples):
        # Whole words: a machine may be called by two letters, which ids hold by chance.
        assert re.search(rb"\b" + re.escape(canary.encode()) + rb"\b", said) is None, canary


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
    assert len(files(tmp_path)) == 2
    groups = {r.run.run_group for path in files(tmp_path) for r in records(path) if r.HasField("run")}
    assert groups == {found["group"]}


def test_what_is_online_shares_no_id_with_an_offline_segment(tmp_path: Path) -> None:
    modes = ["offline", "online", "offline", "online"]
    first, *others = [next_segment(tmp_path, mode)["id"] for mode in modes]
    assert others == [f"{first}-1", f"{first}-2", f"{first}-1"], "a sync of the first would replace the run"
    recorded = json.loads((tmp_path / "wandb.json").read_text())["segments"]
    assert [(segment["id"], segment["mode"]) for segment in recorded] == list(
        zip([first, *others], modes, strict=True)
    )


def test_a_run_that_is_online_stays_one(tmp_path: Path) -> None:
    first, *others = [next_segment(tmp_path, mode)["id"] for mode in ("online", "offline", "online")]
    assert others == [f"{first}-1", first]


def test_pictures_stay_here_where_they_should(tmp_path: Path) -> None:
    picture = tmp_path / "p.png"
    Image.new("RGB", (4, 4)).save(picture)
    config = TrackingConfig(wandb="offline", images=False)
    tracker = Tracker(tmp_path, config, name="x", values={})
    tracker.log({"step": 1, "loss": 0.5}, {"panels/x": picture})
    tracker.table("cases", [{"case": 1, "dice": 0.5, "image": "w"}], {"w": picture})
    tracker.finish({})
    (path,) = files(tmp_path)
    assert not list((path.parent / "files").rglob("*.png"))
    assert any(row.get("loss") == 0.5 for row in history(path))


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


@pytest.mark.parametrize(
    ("value", "left"),
    [
        ("https://images.hospital.org", ""), ("http://host:9000/", ""), ("s3://bucket", ""),
        ("s3://bucket/a/b.tar", "b.tar"), ("\\\\server\\share\\x", "x"), ("\\\\server", ""),
        ("file:///home/me/x", "x"),
    ],
)  # fmt: skip
def test_no_host_is_public(value: str, left: str) -> None:
    assert public({"a": value}) == {"a": left}


def test_an_encoder_without_a_hash_is_named_by_what_is_public_of_its_source() -> None:
    found = lineage.encoder({"source": "https://images.hospital.org/models/vit.pt"})
    assert found.name == "encoder-vit.pt"
    assert lineage.encoder({"source": "s3://bucket"}).name == "encoder-unknown"


def test_wrong_words_name_the_near_ones(tiny_config: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tracking\.tracker is 'tensorbord'.*tensorboard"):
        tiny_config(tmp_path, "tracking.tracker=tensorbord")
    with pytest.raises(ConfigError, match=r"tracking\.stall_minutes is 0"):
        tiny_config(tmp_path, "tracking.stall_minutes=0")


def test_a_missing_package_is_refused_before_anything_is_written(
    tiny_config: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medloom.pretrain.tracking import config

    monkeypatch.setattr(config, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'medloom\[mlflow\]'"):
        pretrain(tiny_config(tmp_path / "run", "tracking.tracker=mlflow"))
    assert not (tmp_path / "run").exists()
