"""A build follows a curation: drops what it drops, refuses what it does not know or what has changed."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from medloom.data.curate.curate import curate
from medloom.data.curate.curation import CHANGED, NOT_CURATED, Curation
from medloom.data.errors import ConfigError, ShardError
from medloom.data.ingest.build import build
from medloom.data.ingest.dry_run import dry_run
from medloom.data.privacy import key_of
from medloom.data.shards.reader import Shards
from PIL import Image as Pillow

from .conftest import NAME

SALT = b"a-salt-for-tests"


def key(name: str) -> str:
    return key_of(SALT, "pics", f"{NAME}_{name}")


def stored(out) -> set[str]:
    shards = Shards.open(out)
    return {shards.meta(ref)["key"] for ref in shards.refs()}


def lines(path) -> dict[str, str]:
    return {row["key"]: row["reason"] for row in map(json.loads, path.read_text().splitlines())}


@pytest.fixture
def made(collection, image):
    return collection({"pics": {"a.png": image(1), "b.jpg": image(1), "c.tif": image(1), "d.png": image(2)}})


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_dropped_is_not_stored(made, tmp_path, workers):
    path = curate(made, tmp_path / "curation").path
    out = tmp_path / "out"
    result = build(made, out, curation=path, workers=workers)
    assert stored(out) == {key("a.png"), key("d.png")}
    assert lines(out / "excluded.jsonl") == {key("b.jpg"): "curation: near", key("c.tif"): "curation: copy"}
    assert result.manifest.build["curation"] == Curation.load(path, "small", SALT).digest
    assert result.failures == []


def test_it_is_part_of_the_builds_identity(made, tmp_path):
    path = curate(made, tmp_path / "curation").path
    build(made, tmp_path / "plain")
    with pytest.raises(ShardError, match="curation"):
        build(made, tmp_path / "plain", curation=path)
    build(made, tmp_path / "curated", curation=path)
    with pytest.raises(ShardError, match="curation"):
        build(made, tmp_path / "curated")


def test_a_changed_image_is_refused(made, tmp_path, image):
    path = curate(made, tmp_path / "curation").path
    for name, seed in (("d.png", 8), ("c.tif", 9)):  # one that was kept, one that was dropped
        Pillow.fromarray(image(seed)).save(tmp_path / "in" / "pics" / f"{NAME}_{name}")
    out = tmp_path / "out"
    build(made, out, curation=path)
    assert stored(out) == {key("a.png")}
    assert lines(out / "failures.jsonl") == {key("d.png"): CHANGED, key("c.tif"): CHANGED}


def test_a_new_image_is_refused(made, collection, tmp_path, image):
    path = curate(made, tmp_path / "curation").path
    again = collection(
        {
            "pics": {
                "a.png": image(1),
                "b.jpg": image(1),
                "c.tif": image(1),
                "d.png": image(2),
                "e.png": image(3),
            }
        }
    )
    out = tmp_path / "out"
    build(again, out, curation=path)
    assert stored(out) == {key("a.png"), key("d.png")}
    assert lines(out / "failures.jsonl") == {key("e.png"): NOT_CURATED}


def test_files_of_several_images_lose_single_ones(collection, tmp_path, image):
    """A page of a TIFF that is a copy goes, the others stay."""
    made = collection({"pics": {"a.tif": image(1), "b.png": image(2)}})
    pages = [Pillow.fromarray(image(seed)) for seed in (5, 2, 6)]
    path = tmp_path / "in" / "pics" / f"{NAME}_a.tif"
    pages[0].save(path, save_all=True, append_images=pages[1:])
    result = curate(made, tmp_path / "curation")
    out = tmp_path / "out"
    build(made, out, curation=result.path)
    assert len(stored(out)) == 3
    assert list(lines(out / "excluded.jsonl").values()) == ["curation: copy"]


def test_a_dry_run_counts_what_is_dropped(made, tmp_path):
    path = curate(made, tmp_path / "curation").path
    plan = dry_run(made, tmp_path / "out", shard_bytes=1 << 28, curation=path)
    assert (plan.sources[0].records, plan.sources[0].excluded) == (2, 2)


def test_a_curation_of_something_else(made, tmp_path):
    path = curate(made, tmp_path / "curation").path
    with pytest.raises(ConfigError, match="another salt"):
        Curation.load(path, "small", b"another-salt")
    with pytest.raises(ConfigError, match="collection 'small'"):
        Curation.load(path.parent, "large", SALT)
    with pytest.raises(ConfigError, match="cannot be read"):
        Curation.load(tmp_path / "none.json", "small", SALT)
    path.write_text("[]")
    with pytest.raises(ConfigError, match="not a curation"):
        Curation.load(path, "small", SALT)


def test_moved_and_touched_files_stay_curated(made, tmp_path):
    """What counts is pixels: another disk, another date and another encoding change nothing."""
    path = curate(made, tmp_path / "curation").path
    for file in sorted((tmp_path / "in" / "pics").glob("*_d.png")):
        pixels = np.asarray(Pillow.open(file))
        Pillow.fromarray(pixels).save(file, compress_level=1)
    shutil.copytree(tmp_path / "in", tmp_path / "moved" / "in")
    shutil.copy(tmp_path / "collection.yaml", tmp_path / "moved")
    again = type(made).load(tmp_path / "moved" / "collection.yaml")
    build(again, tmp_path / "out", curation=path)
    assert stored(tmp_path / "out") == {key("a.png"), key("d.png")}
