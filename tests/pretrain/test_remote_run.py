"""A run on shards behind a URL: the numbers of the disk, and no credential in anything that it leaves."""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from medloom.pretrain.run import pretrain

from ..data.loopback import serve

SECRET = "s3cr3t-t0ken"


class Killed(BaseException):
    """Stands for a kill."""


def die_at_8(done: int, total: int, what: str) -> None:
    if done == 8:
        raise Killed


@pytest.mark.parametrize("options", [(), ("data.mode=sequential", "data.buffer=4"), ("data.access=range",)])
def test_a_remote_run_repeats_the_local_one_and_keeps_its_secret(
    tiny_config: Callable[..., Any],
    tiny_shards: Path,
    rows_of: Callable[[Path], list[dict[str, Any]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    options: tuple[str, ...],
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MEDLOOM_CACHE", str(tmp_path / "cache"))
    local = pretrain(tiny_config(tmp_path / "local", *options))
    with serve(tiny_shards) as server:
        server.authorization = "Basic " + base64.b64encode(f"me:{SECRET}".encode()).decode()
        url = server.url.replace("://", f"://me:{SECRET}@") + f"?X-Signature={SECRET}"
        made = ["resume=true", "tracking.wandb=offline", f"probe.shards={url}", *options]
        config = tiny_config(tmp_path / "remote", *made, shards=url)
        if "data.mode=sequential" not in options:  # that resumes at a shard, hence with other samples
            with pytest.raises(Killed):
                pretrain(config, progress=die_at_8)
        remote = pretrain(tiny_config(tmp_path / "remote", *made, shards=url))
    assert server.gets(".tar")
    assert rows_of(remote) == rows_of(local)
    left = [path for folder in (remote, tmp_path / "cache") for path in folder.rglob("*") if path.is_file()]
    assert {"config.yaml", "last.ckpt", "encoder.json"} <= {path.name for path in left}
    assert any(path.suffix == ".wandb" for path in left)
    for path in left:
        assert SECRET.encode() not in path.read_bytes(), path
    assert f"shards: {server.url}\n" in (remote / "config.yaml").read_text()
    assert caplog.text and SECRET not in caplog.text
