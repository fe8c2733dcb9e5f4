"""The dry run says what the build then does, decodes nothing and writes nothing."""

from __future__ import annotations

import json

import pytest
from medloom.data.collection import Collection
from medloom.data.errors import ShardError
from medloom.data.ingest import ingest, work
from medloom.data.ingest.build import build
from medloom.data.ingest.dry_run import dry_run
from medloom.data.ingest.headers import header_of
from medloom.data.readers import read
from PIL import Image as Pillow

MB = 1 << 20


@pytest.fixture
def no_decoding(monkeypatch):
    def refuse(*_: object, **__: object):
        raise AssertionError("a pixel was decoded")

    monkeypatch.setattr(ingest, "each", refuse)
    monkeypatch.setattr(work, "each", refuse)
    monkeypatch.setattr(Pillow.Image, "load", refuse)


@pytest.fixture
def yaml(tmp_path, make_collection):
    return make_collection(tmp_path / "in", held_out="[{dataset: ct, splits: [test]}]")


def test_it_counts_what_the_build_stores(yaml, tmp_path, no_decoding):
    (tmp_path / "in" / "derm" / "Mustermann-1.png").unlink()
    plan = dry_run(Collection.load(yaml), tmp_path / "out", shard_bytes=20_000)
    assert not (tmp_path / "out").exists()
    ct, derm = plan.sources
    assert (ct.records, ct.dims, ct.held_out, ct.licence) == (4, "3D", 2, "CC0-1.0")
    assert (derm.records, derm.dims, sum(derm.refused.values())) == (9, "2D", 1)
    assert "missing" in next(iter(derm.refused))
    assert set(derm.kinds) == {"jpeg", "png 8 bit"}
    assert set(ct.kinds) == {"nii.gz 16 bit"}
    assert plan.rules == ["ct (splits test): 2 images, held out by rule"]
    assert (plan.to_hash, plan.hashed) == (2, 0)
    assert ct.done == derm.done == 0
    assert ct.units > 1
    assert plan.to_write == plan.stored
    assert plan.stored[0] < plan.stored[1] < plan.stored[2] < plan.free
    json.dumps(plan.to_dict())


def test_after_the_build_everything_is_done(yaml, tmp_path, files_of):
    collection, out = Collection.load(yaml), tmp_path / "out"
    result = build(collection, out, shard_bytes=20_000)
    (out / "ct-3d-00000.idx").unlink()  # a dry run mends nothing
    before = files_of(out)
    plan = dry_run(collection, out, shard_bytes=20_000)
    assert files_of(out) == before
    assert all(source.done == source.units for source in plan.sources)
    assert plan.to_write == (0, 0, 0)
    assert (plan.to_hash, plan.hashed, plan.seconds) == (0, 2, None)
    assert plan.sources[1].records == result.manifest.sources[1].count
    stored = sum(source.bytes for source in result.manifest.sources)
    assert plan.stored[0] / 3 < stored < plan.stored[2] * 3  # noise pictures and padding: no estimate is near


def test_half_a_build_gives_a_rate(yaml, tmp_path):
    collection, out = Collection.load(yaml), tmp_path / "out"
    build(collection, out, shard_bytes=20_000)
    (out / "units" / "derm-00000.json").unlink()
    plan = dry_run(collection, out, shard_bytes=20_000)
    assert plan.sources[1].done == plan.sources[1].units - 1
    assert 0 < plan.to_write[1] < plan.stored[1]
    assert plan.seconds is not None
    assert plan.seconds > 0


def test_a_source_that_cannot_be_used_does_not_hide_the_others(yaml, tmp_path, no_decoding):
    for path in (tmp_path / "in" / "derm").glob("*.*g"):
        path.unlink()
    plan = dry_run(Collection.load(yaml), tmp_path / "out", shard_bytes=MB)
    assert "none of 10 images can be used" in plan.sources[1].fault
    assert plan.sources[0].records == 4


def test_a_folder_of_another_build_is_refused_as_by_the_build(yaml, tmp_path):
    collection, out = Collection.load(yaml), tmp_path / "out"
    build(collection, out)
    with pytest.raises(ShardError, match="built with profile 'small', now it is 'fast'"):
        dry_run(collection, out, shard_bytes=256 * MB, profile="fast")
    with pytest.raises(ShardError, match="built with profile 'small', now it is 'fast'"):
        build(collection, out, profile="fast")


@pytest.mark.realdata
def test_headers_say_what_readers_find(realdata):
    """Dimensions and decoded bytes; twice the bytes where wide integers turn out to be narrow."""
    from medloom.data.collection import scan
    from medloom.data.config import find_config

    collection = Collection.load(
        find_config("collections", "realdata"), root=realdata, overrides=["salt=12345678"]
    )
    seen: dict[tuple[str, str], int] = {}
    for source, record in scan(collection).records:
        key = (source.dataset, record.paths[0].suffix)
        seen[key] = seen.get(key, 0) + 1
        if seen[key] > 3:
            continue
        header, images = header_of(record), read(record.paths, fourth_axis=source.fourth_axis)
        size = sum(image.array.nbytes for image in images)
        assert header is not None, record.name
        assert header.ndim == images[0].ndim, record.name
        assert size / 2.01 < header.bytes < size * 2.01, record.name
    assert len(seen) > 15
