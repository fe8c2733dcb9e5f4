"""Shards in S3: a server of moto on the loopback, reached as a user would configure it."""

from __future__ import annotations

import logging

import boto3
import fsspec.config
import numpy as np
import pytest
from medloom.data.errors import StoreError
from medloom.data.remote.shards import remote_shards
from medloom.data.remote.stores import Patience
from medloom.data.shards.reader import SampleRef, Shards
from moto.server import ThreadedMotoServer

QUICK = Patience(attempts=2, timeout=20.0, wait=0.01)
SECRET = "not-a-real-secret"


@pytest.fixture(scope="module")
def endpoint():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def bucket(endpoint, example, monkeypatch):
    """The example folder in s3://shards/v1; endpoint and keys come from fsspec's configuration."""
    access = {"aws_access_key_id": "someone", "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=endpoint, **access)
    client.create_bucket(Bucket="shards")
    for path in example.path.iterdir():
        client.upload_file(str(path), "shards", f"v1/{path.name}")
    settings = {"key": "someone", "secret": SECRET, "client_kwargs": {"endpoint_url": endpoint}}
    monkeypatch.setitem(fsspec.config.conf, "s3", settings)
    return client


@pytest.mark.parametrize("access", ["cache", "range"])
def test_everything_comes_from_s3_as_from_disk(bucket, example, tmp_path, access, caplog):
    caplog.set_level(logging.INFO)
    shards = remote_shards("s3://shards/v1", access=access, cache=str(tmp_path / "c"), patience=QUICK)
    local = Shards.open(example.path)
    for ref in local.refs():
        got, want = shards.sample(ref), local.sample(ref)
        np.testing.assert_array_equal(got.image, want.image)
        assert got.meta == want.meta and got.jpeg == want.jpeg
    box = ((3, 5, 64), (40, 60, 26))
    np.testing.assert_array_equal(shards.read(SampleRef(0, 0), *box), local.read(SampleRef(0, 0), *box))
    assert len(list((tmp_path / "c").glob("*.tar"))) == (2 if access == "cache" else 0)
    assert SECRET not in caplog.text


@pytest.mark.parametrize("access", ["cache", "range"])
def test_what_is_missing_or_cut_in_s3_is_said(bucket, example, tmp_path, access):
    shards = remote_shards("s3://shards/v1", access=access, cache=str(tmp_path / "c"), patience=QUICK)
    tar = example.tar("vol-3d-00000.tar").read_bytes()
    bucket.put_object(Bucket="shards", Key="v1/vol-3d-00000.tar", Body=tar[:3000])
    with pytest.raises(StoreError, match=r"s3://shards/v1/vol-3d-00000\.tar: "):
        shards.read(SampleRef(0, 1))
    bucket.delete_object(Bucket="shards", Key="v1/vol-3d-00000.tar")
    with pytest.raises(StoreError, match=r"s3://shards/v1/vol-3d-00000\.tar: is not there \(404\); expected"):
        shards.read(SampleRef(0, 1))
    with pytest.raises(StoreError, match=r"s3://nowhere/v1/manifest\.json: is not there"):
        remote_shards("s3://nowhere/v1", cache=str(tmp_path / "c"), patience=QUICK)
