"""Repair of a real build: lost and altered manifests, and the next build making just what was damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from medloom.data.collection import Collection
from medloom.data.ingest.build import build
from medloom.data.shards.check import check
from medloom.data.shards.manifest import Manifest
from medloom.data.shards.repair import apply, plan

from .test_shards_repair import mend, ruin, state


@pytest.fixture
def built(make_collection, tmp_path):
    """(collection, folder) of a real build, with held-out rules and receipts."""
    path = make_collection(tmp_path / "source", held_out="[{dataset: ct, splits: [test]}]")
    collection = Collection.load(path)
    build(collection, tmp_path / "built", shard_bytes=12_000)
    return collection, tmp_path / "built"


def names(folder, pattern):
    return sorted(path.name for path in folder.glob(pattern))


def test_the_next_build_makes_just_the_damaged_shards_again(built, files_of):
    collection, folder = built
    before = files_of(folder)
    tars = names(folder, "*.tar")
    assert len(tars) > 2
    ruin(folder / tars[0])
    made = plan(folder, rebuildable=True)
    assert [(step.do, step.file) for step in made.steps] == [("rebuild", tars[0])]
    assert "medloom shards build small --out" in made.steps[0].how
    times = {name: (folder / name).stat().st_mtime_ns for name in tars}
    assert [step.do for step, _ in apply(made)] == ["rebuild"]
    build(collection, folder, shard_bytes=12_000)
    assert files_of(folder) == before
    again = {name for name in tars if (folder / name).stat().st_mtime_ns != times[name]}
    assert tars[0] in again
    assert len(again) < len(tars)


@pytest.mark.parametrize("damage", ["count", "sha256", "file", "name"])
def test_an_altered_manifest_is_written_again_exactly(built, damage):
    _, folder = built
    path = folder / "manifest.json"
    before = path.read_bytes()
    entry = Manifest.load(folder).sources[0].shards[0]
    old, new = {
        "count": (f'"count": {entry.count}', f'"count": {entry.count + 1}'),
        "sha256": (entry.sha256, entry.sha256[::-1]),
        "file": (entry.file, "x" + entry.file[1:]),
        "name": ('"name": "small"', '"name": "smell"'),
    }[damage]
    path.write_bytes(before.replace(old.encode(), new.encode(), 1))
    made = plan(folder)
    assert [step.do for step in made.steps] == ["manifest"]
    assert "exactly as it was written" in made.steps[0].how
    assert apply(made) == []
    assert path.read_bytes() == before


@pytest.mark.parametrize("receipts", [True, False])
@pytest.mark.parametrize("damage", ["lost", "torn"])
def test_a_lost_manifest_is_recovered_as_far_as_the_shards_tell(built, receipts, damage):
    collection, folder = built
    path = folder / "manifest.json"
    before = Manifest.load(folder)
    if damage == "lost":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:200])
    if not receipts:
        shutil.rmtree(folder / "units")
    assert mend(folder) == []
    assert check(folder) == []
    after = Manifest.load(folder)
    mark = after.build.pop("recovered")
    assert mark["not known"] == ["order of the sources", "rules of what was held out"]
    assert bool(mark["taken as found"]) is not receipts
    assert {s.id: s for s in after.sources} == {s.id: s for s in before.sources}
    assert (after.name, after.build, after.salt_fingerprint) == (
        before.name, before.build, before.salt_fingerprint,
    )  # fmt: skip
    assert after.held_out.excluded == before.held_out.excluded
    assert after.held_out.rules == []
    if receipts:
        assert after.held_out.checked == before.held_out.checked
        build(collection, folder, shard_bytes=12_000)  # which knows it all
        assert Manifest.load(folder) == before


def test_the_manifest_of_a_copy_is_preferred(built, tmp_path):
    _, folder = built
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    before = state(folder)
    (folder / "manifest.json").unlink()
    ruin(folder / names(folder, "*.tar")[0])
    assert {step.do for step in plan(folder, str(copy)).steps} == {"manifest", "copy"}
    assert mend(folder, str(copy)) == []
    assert state(folder) == before
