"""The same folder from a Ray cluster, also when one of its nodes is killed; clear words when it cannot be.

A cluster takes about ten seconds to start, so two tests of CI make one; none where the extra `ray` is not
installed.
"""

from __future__ import annotations

import os
import signal
import sys

import pytest
from medloom.data.collection import Collection
from medloom.data.errors import ConfigError, ShardError
from medloom.data.ingest.build import build
from medloom.data.shards.check import check


@pytest.fixture(scope="module")
def ray():
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # loopback only; read when ray is imported
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    module = pytest.importorskip("ray")
    handler = signal.getsignal(signal.SIGTERM)
    yield module
    module.shutdown()
    signal.signal(signal.SIGTERM, handler)  # a cluster of Ray's keeps it, and forked processes inherit it


@pytest.fixture
def collection(tmp_path, make_collection) -> Collection:
    return Collection.load(make_collection(tmp_path / "in", held_out="[{dataset: ct, splits: [test]}]"))


def node(cluster, **options):
    return cluster.add_node(
        num_cpus=1,
        object_store_memory=80 << 20,
        include_dashboard=False,
        node_ip_address="127.0.0.1",
        **options,
    )


def test_without_ray_the_extra_is_named(collection, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'medloom\[ray\]'"):
        build(collection, tmp_path / "out", ray="local")


def test_a_cluster_of_this_machine_gives_the_same_bytes(ray, collection, tmp_path, files_of, capfd):
    build(collection, tmp_path / "one", shard_bytes=20_000)
    calls, handler = [], signal.getsignal(signal.SIGTERM)
    build(
        collection, tmp_path / "ray", shard_bytes=20_000, ray="local", workers=2,
        progress=lambda *call: calls.append(call),
    )  # fmt: skip
    assert files_of(tmp_path / "one") == files_of(tmp_path / "ray")
    assert calls[-1][0] == calls[-1][1] == 14
    assert not ray.is_initialized() and signal.getsignal(signal.SIGTERM) is handler
    assert "ray" not in "".join(capfd.readouterr()).lower()


@pytest.mark.timeout(120)
def test_a_node_that_is_killed_is_done_without(ray, collection, tmp_path, files_of, caplog):
    from ray.cluster_utils import Cluster

    build(collection, tmp_path / "one", shard_bytes=6_000)
    cluster = Cluster()
    try:
        node(cluster)
        doomed = node(cluster)
        killed_at: list[int] = []

        def progress(done: int, total: int, what: str) -> None:
            if what.startswith("store") and 0 < done < total and not killed_at:
                cluster.remove_node(doomed, allow_graceful=False)
                killed_at.append(done)

        build(collection, tmp_path / "ray", shard_bytes=6_000, ray=cluster.address, progress=progress)
        assert killed_at
        assert "a Ray node was lost" in caplog.text or "a Ray worker died" in caplog.text
    finally:
        cluster.shutdown()
    assert files_of(tmp_path / "one") == files_of(tmp_path / "ray")
    assert check(tmp_path / "ray") == []


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_an_image_that_crashes_ray_workers_is_found(ray, collection, tmp_path, monkeypatch):
    (tmp_path / "patch").mkdir()
    (tmp_path / "patch" / "sitecustomize.py").write_text(
        "import os, signal\n"
        "from medloom.data.ingest import ingest\n"
        "real = ingest.each\n"
        "def read(paths, **options):\n"
        "    if os.path.basename(paths[0]) == 'Mustermann-3.png':\n"
        "        os.kill(os.getpid(), signal.SIGSEGV)\n"
        "    return real(paths, **options)\n"
        "ingest.each = read\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "patch"))
    result = build(collection, tmp_path / "out", ray="local", workers=1)
    assert [failure.reason for failure in result.failures] == ["the reader crashed (signal 11)"]
    assert result.manifest.count == 13


def test_no_cluster_at_the_address_is_said(ray, collection, tmp_path):
    with pytest.raises(ShardError, match=r"--ray 127.0.0.1:1: no cluster answers"):
        build(collection, tmp_path / "out", ray="127.0.0.1:1")
