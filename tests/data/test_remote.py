"""Shards behind a URL: the same arrays as from disk, faults survived or named, credentials never shown."""

from __future__ import annotations

import base64
import logging
import multiprocessing
import pickle
import traceback

import fsspec.config
import numpy as np
import pytest
from medloom.data import open_shards
from medloom.data.errors import ConfigError, ShardError, StoreError
from medloom.data.remote.shards import remote_shards
from medloom.data.remote.stores import Patience, Remote, is_url, public
from medloom.data.shards import index as indexing
from medloom.data.shards.reader import SampleRef, Shards

from .loopback import serve

QUICK = Patience(attempts=4, timeout=10.0, wait=0.01)
VOLUMES, PICTURES = "vol-3d-00000", "pic-2d-00000"
MODES = pytest.mark.parametrize("access", ["cache", "range"])


@pytest.fixture
def server(example):
    with serve(example.path) as running:
        yield running


def opened(server, tmp_path, **options) -> Shards:
    return remote_shards(server.url, **{"cache": str(tmp_path / "cache"), "patience": QUICK, **options})


def assert_all_equal(shards, example):
    assert [shards.meta(ref)["key"] for ref in shards.refs()] == list(example.samples)
    for ref in shards.refs():
        sample = shards.sample(ref)
        expected = example.samples[sample.key]
        np.testing.assert_array_equal(sample.image, expected.image)
        assert sample.meta == expected.meta and sample.jpeg == expected.jpeg
        assert (sample.mask is None) == (expected.mask is None)
        if expected.mask is not None:
            np.testing.assert_array_equal(sample.mask, expected.mask)


@MODES
def test_everything_comes_over_http_as_from_disk(example, server, tmp_path, access):
    shards, local = opened(server, tmp_path, access=access), Shards.open(example.path)
    assert_all_equal(shards, example)
    assert shards.manifest.hash == local.manifest.hash
    assert shards.find("pic-b") == local.find("pic-b")
    box = ((5, 11, 64), (30, 70, 26))
    np.testing.assert_array_equal(shards.read(SampleRef(0, 0), *box), local.read(SampleRef(0, 0), *box))
    for key in ("pic-a", "pic-c"):
        got, want = (s.read_resized(s.find(key), (3.5, 4, 400, 500), (50, 60)) for s in (shards, local))
        np.testing.assert_array_equal(got, want)


def test_the_public_door_takes_urls(example, server, monkeypatch, tmp_path):
    monkeypatch.setenv("MEDLOOM_CACHE", str(tmp_path / "here"))
    assert_all_equal(open_shards(server.url), example)
    assert len(list((tmp_path / "here").glob("*.tar"))) == 2
    assert_all_equal(open_shards(f"file://{example.path}"), example)


def test_the_cache_fetches_once_and_the_ranges_only_what_they_need(example, server, tmp_path):
    tar = example.tar(f"{VOLUMES}.tar").stat().st_size
    for _ in range(2):
        assert_all_equal(opened(server, tmp_path, access="cache"), example)
    assert server.sent(f"{VOLUMES}.tar") == tar and server.gets(f"{VOLUMES}.idx") == 1
    server.seen.clear()
    shards = opened(server, tmp_path / "other", access="range")
    shards.read(SampleRef(0, 1))
    member = indexing.load(example.tar(f"{VOLUMES}.idx")).members_of(1)[1]
    assert server.sent(f"{VOLUMES}.tar") <= member.size < tar / 2
    assert not list((tmp_path / "other" / "cache").glob("*.tar"))


def test_a_picture_and_its_description_are_one_request(example, server, tmp_path):
    shards = opened(server, tmp_path, access="range")
    ref = shards.find("pic-c")
    server.seen.clear()
    assert shards.meta(ref, ahead=True)["key"] == "pic-c"
    np.testing.assert_array_equal(shards.read(ref), example.samples["pic-c"].image)
    assert server.gets(f"{PICTURES}.tar") == 1


def test_ranges_near_each_other_are_one_request(example, server, tmp_path):
    store = Remote(server.url, QUICK)
    data = example.tar(f"{VOLUMES}.tar").read_bytes()
    wanted = [(70_000, 10), (0, 5), (3, 40), (70_005, 3)]
    assert [bytes(part) for part in store.read_ranges(f"{VOLUMES}.tar", wanted)] == [
        data[offset : offset + size] for offset, size in wanted
    ]
    assert server.gets(f"{VOLUMES}.tar") == 1


@MODES
@pytest.mark.parametrize("faults", [["cut"], ["500", "500"], ["stall"], ["cut", "500", "stall"]])
def test_faults_that_pass_are_survived(example, server, tmp_path, access, faults):
    server.faults, server.only = list(faults), ".tar"
    patience = Patience(attempts=4, timeout=0.5, wait=0.01)
    shards = opened(server, tmp_path, access=access, patience=patience)
    np.testing.assert_array_equal(shards.read(SampleRef(0, 0)), example.samples["vol-a"].image)
    assert not server.faults
    assert server.gets(f"{VOLUMES}.tar") > len(faults)


@MODES
def test_a_fault_that_stays_ends_the_attempts(server, tmp_path, access):
    server.faults, server.only = ["500"] * 99, ".tar"
    shards = opened(server, tmp_path, access=access)
    with pytest.raises(StoreError, match=rf"{VOLUMES}\.tar: the server answers 500, 4 times in a row"):
        shards.read(SampleRef(0, 0))
    assert server.gets(f"{VOLUMES}.tar") == QUICK.attempts


@MODES
def test_what_is_missing_or_refused_is_said_at_once(server, tmp_path, access):
    shards = opened(server, tmp_path, access=access)
    server.missing.add(f"{VOLUMES}.tar")
    with pytest.raises(StoreError, match=rf"{server.url}/{VOLUMES}\.tar: is not there \(404\); .*upload"):
        shards.read(SampleRef(0, 0))
    assert server.gets(f"{VOLUMES}.tar") == 1
    server.refused = True
    with pytest.raises(StoreError, match=rf"{PICTURES}\.idx: access is refused \(403\); check the cred"):
        shards.read(SampleRef(1, 0))
    with pytest.raises(StoreError, match=r"manifest\.json: access is refused"):
        opened(server, tmp_path, access=access)
    server.refused = False
    server.missing.add("manifest.json")
    with pytest.raises(StoreError, match=r"manifest\.json: is not there \(404\); expected a folder that"):
        opened(server, tmp_path, access=access)


def test_a_server_without_ranges_serves_the_cache_alone(example, server, tmp_path):
    server.ranges = False
    server.faults, server.only = ["ok", "cut"], ".tar"
    assert_all_equal(opened(server, tmp_path, access="cache"), example)
    with pytest.raises(StoreError, match=r"no Range support: set data\.access=cache"):
        opened(server, tmp_path, access="range").read(SampleRef(0, 0))


def test_wrong_bytes_are_fetched_again_once(example, server, tmp_path):
    server.faults, server.only = ["wrong"], f"{VOLUMES}.tar"
    shards = opened(server, tmp_path, access="cache")
    np.testing.assert_array_equal(shards.read(SampleRef(0, 0)), example.samples["vol-a"].image)
    server.faults, server.only = ["wrong"] * 9, f"{PICTURES}.tar"
    with pytest.raises(StoreError, match=rf"{PICTURES}\.tar: SHA-256 .* twice, the manifest says .*upload"):
        shards.read(SampleRef(1, 0))
    assert server.gets(f"{PICTURES}.tar") == 2
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix == ".partial"]


def test_wrong_bytes_of_a_range_are_noticed(server, tmp_path):
    shards = opened(server, tmp_path, access="range")
    server.faults, server.only = ["wrong"] * 9, ".tar"
    for ref in (SampleRef(0, 0), SampleRef(1, 0), SampleRef(1, 2)):
        with pytest.raises(ShardError, match="checksum"):
            shards.read(ref)


@pytest.mark.parametrize("damage", ["cut", "foreign", "other"])
def test_a_wrong_index_is_refused_with_its_mend(example_copy, tmp_path, damage):
    path = example_copy.tar(f"{VOLUMES}.idx")
    good = path.read_bytes()
    other = example_copy.tar(f"{PICTURES}.idx").read_bytes()
    path.write_bytes({"cut": good[:-9], "foreign": b"<html>" * 99, "other": other}[damage])
    with serve(example_copy.path) as server:
        shards = opened(server, tmp_path)
        with pytest.raises(StoreError, match=rf"{VOLUMES}\.idx.*upload the \.idx again"):
            shards.read(SampleRef(0, 0))
        path.write_bytes(good)
        np.testing.assert_array_equal(shards.read(SampleRef(0, 0)), example_copy.samples["vol-a"].image)


def test_what_the_disk_damages_in_the_cache_is_fetched_again(example, server, tmp_path, flip):
    shards = opened(server, tmp_path)
    assert_all_equal(shards, example)
    for path in (tmp_path / "cache").glob("*.[ij]*"):
        flip(path, path.stat().st_size // 2)
    assert_all_equal(pickle.loads(pickle.dumps(shards)), example)
    assert server.gets(f"{VOLUMES}.idx") == server.gets("manifest.json") == 2


def test_fsspec_is_configured_as_the_manual_says(example, server, tmp_path, monkeypatch):
    server.authorization = "Bearer abc"
    with pytest.raises(StoreError, match="access is refused"):
        opened(server, tmp_path)
    headers = {"headers": {"Authorization": "Bearer abc"}}
    monkeypatch.setitem(fsspec.config.conf, "http", {"client_kwargs": headers})
    assert_all_equal(opened(server, tmp_path, access="range"), example)


def test_auto_takes_ranges_where_no_cache_is_possible(example, server, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    assert opened(server, tmp_path).folder.ranged is False
    small = opened(server, tmp_path, cache_gb=1e-4)
    assert small.folder.ranged is True
    assert "reading ranges of the store" in caplog.text
    blocked = tmp_path / "file"
    blocked.write_text("")
    diskless = opened(server, tmp_path, cache=str(blocked / "below"))
    assert diskless.folder.ranged is True
    assert_all_equal(diskless, example)
    assert_all_equal(pickle.loads(pickle.dumps(diskless)), example)
    with pytest.raises(StoreError, match=r"cannot hold the cache.*data\.access=range"):
        opened(server, tmp_path, cache=str(blocked / "below"), access="cache")


def test_names_are_checked_before_anything_is_fetched(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.access is 'cash'; did you mean cache"):
        remote_shards("http://127.0.0.1:9", access="cash")
    with pytest.raises(ConfigError, match="cannot open nonsense://"):
        open_shards("nonsense://a/b")
    assert is_url("s3://a/b") and not is_url(tmp_path) and not is_url("file:///a")


def _sums(shards, queue):
    queue.put([float(shards.read(ref).astype(np.float64).sum()) for ref in shards.refs()])


@MODES
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_is_read_from_other_processes_while_open_here(server, tmp_path, access, method):
    shards = opened(server, tmp_path, access=access)
    expected = [float(shards.read(ref).astype(np.float64).sum()) for ref in shards.refs()]
    context = multiprocessing.get_context(method)
    queues = [context.Queue() for _ in range(2)]
    workers = [context.Process(target=_sums, args=(shards, queue)) for queue in queues]
    for worker in workers:
        worker.start()
    assert [queue.get(timeout=60) for queue in queues] == [expected, expected]
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert server.gets("manifest.json") == 1


def test_credentials_serve_the_request_and_are_shown_nowhere(example, server, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    secret = "p4ss-w0rd"
    server.authorization = "Basic " + base64.b64encode(f"me:{secret}".encode()).decode()
    url = server.url.replace("://", f"://me:{secret}@") + f"/?X-Signature={secret}&v=1"
    shards = remote_shards(url, cache=str(tmp_path / "cache"), patience=QUICK, access="range")
    assert_all_equal(shards, example)
    assert any(path.endswith(f".tar?X-Signature={secret}&v=1") for path, _, _ in server.seen)
    assert (
        public(f"see {url} or s3://k:{secret}@bucket/x?y={secret}") == f"see {server.url}/ or s3://bucket/x"
    )
    texts = [str(shards.root)]
    for name, value in (("faults", ["500", "cut"] * 9), ("missing", {f"{VOLUMES}.tar"}), ("refused", True)):
        before = getattr(server, name)
        setattr(server, name, value)
        with pytest.raises(StoreError) as caught:
            shards.meta(SampleRef(0, 0))
        texts += traceback.format_exception(caught.value)
        setattr(server, name, before)
    dead = url.replace(server.url.rpartition(":")[2], "9")
    with pytest.raises(StoreError, match="4 times in a row") as caught:
        remote_shards(dead, cache=str(tmp_path / "cache"), patience=QUICK)
    texts += traceback.format_exception(caught.value)
    assert len(texts) > 8 and secret not in "".join(texts)
    assert "again in" in caplog.text and secret not in caplog.text


def test_pickles_without_open_files(server, tmp_path):
    shards = opened(server, tmp_path)
    shards.read(SampleRef(0, 0))
    assert len(pickle.dumps(shards)) < 1000
