"""From a collection to shards: contents, failures, privacy, parallel, incremental; always the same bytes."""

from __future__ import annotations

import json
import logging
import shutil

import nibabel
import numpy as np
import pytest
from medloom.data.collection import Collection
from medloom.data.errors import ShardError
from medloom.data.ingest.build import build
from medloom.data.ingest.units import plan
from medloom.data.shards.check import check
from medloom.data.shards.manifest import Manifest
from medloom.data.shards.reader import Shards
from PIL import Image as Pillow

CANARY = "Mustermann"  # stands in file names and subject ids of the collection; must never reach the shards


@pytest.fixture
def collection(tmp_path, make_collection) -> Collection:
    return Collection.load(make_collection(tmp_path / "in"))


def test_a_small_collection(collection, tmp_path):
    calls = []
    result = build(collection, tmp_path / "out", progress=lambda *call: calls.append(call))
    assert result.failures == []
    assert calls[-1][0] == calls[-1][1] == 16
    manifest = Manifest.load(tmp_path / "out")
    assert manifest == result.manifest
    assert [(s.id, s.count, s.ndim, s.licence) for s in manifest.sources] == [
        ("ct-3d", 6, 3, "CC0-1.0"),
        ("derm-2d", 10, 2, "CC-BY-4.0"),
    ]
    assert manifest.sources[0].splits == {"train": 4, "test": 2}
    assert manifest.sources[0].masks == 6
    assert manifest.sources[1].labels == {"class": {"a": 5, "b": 5}}
    assert check(tmp_path / "out") == []
    assert (tmp_path / "out" / "failures.jsonl").read_bytes() == b""

    shards = Shards.open(tmp_path / "out")
    ref = next(shards.refs("ct-3d"))
    meta = shards.meta(ref)
    volume = np.asanyarray(nibabel.load(tmp_path / "in" / "ct" / f"{CANARY}_0.nii.gz").dataobj)
    np.testing.assert_array_equal(shards.read(ref)[0], volume.transpose(2, 1, 0))
    np.testing.assert_array_equal(shards.read_mask(ref), (volume > 0).astype(np.uint8).transpose(2, 1, 0))
    assert meta["mask"]["classes"] == {"1": "box"}
    assert meta["stats"]["foreground"]["box"] == [[4, 5, 6], [16, 17, 18]]
    assert (meta["modality"], meta["organ"], meta["spacing"]) == ("ct", "chest", [1.0, 1.0, 1.0])
    subjects = [shards.meta(ref)["subject"] for ref in shards.refs("ct-3d")]
    assert len(set(subjects)) == 3
    assert subjects[0] == subjects[1]


def test_jpegs_are_stored_as_they_are_and_decode_to_the_same_pixels(collection, tmp_path):
    build(collection, tmp_path / "out")
    shards = Shards.open(tmp_path / "out")
    kinds = []
    for ref in shards.refs("derm-2d"):
        sample = shards.sample(ref)
        kinds.append(sample.jpeg is not None)
    assert sorted(kinds) == [False] * 5 + [True] * 5
    stored = {shards.read(ref).tobytes() for ref in shards.refs("derm-2d")}
    for path in (tmp_path / "in" / "derm").glob("*.*g"):
        pixels = np.asarray(Pillow.open(path)).transpose(2, 0, 1)
        assert np.ascontiguousarray(pixels).tobytes() in stored


def test_nothing_in_the_folder_names_a_file_or_a_person(collection, tmp_path, files_of):
    (tmp_path / "in" / "derm" / f"{CANARY}-3.png").write_bytes(b"no picture")
    (tmp_path / "in" / "derm" / f"{CANARY}-5.png").write_bytes(b"")
    result = build(collection, tmp_path / "out")
    assert len(result.failures) == 2
    assert all(CANARY in failure.path for failure in result.failures)  # the local user can find them
    for name, data in files_of(tmp_path / "out").items():
        assert CANARY.encode() not in data, name
        assert str(tmp_path).encode() not in data, name
        assert CANARY not in name


def test_bad_files_are_listed_with_reasons_and_end_nothing(collection, tmp_path, caplog):
    ct, derm = tmp_path / "in" / "ct", tmp_path / "in" / "derm"
    whole = (ct / f"{CANARY}_0.nii.gz").read_bytes()
    (ct / f"{CANARY}_0.nii.gz").write_bytes(whole[: len(whole) // 2])
    wrong = nibabel.Nifti1Image(np.zeros((5, 5, 5), np.uint8), np.eye(4))
    nibabel.save(wrong, ct / f"{CANARY}_1_seg.nii.gz")
    (derm / f"{CANARY}-1.png").write_bytes(b"")
    picture = (derm / f"{CANARY}-3.png").read_bytes()
    (derm / f"{CANARY}-3.png").write_bytes(picture[: len(picture) // 2])
    with caplog.at_level(logging.WARNING):
        result = build(collection, tmp_path / "out")
    assert result.manifest.count == 12
    assert result.manifest.failures == 4
    by_path = {failure.path: failure.reason for failure in result.failures}
    assert set(by_path) == {
        f"{CANARY}_0.nii.gz", f"{CANARY}_1.nii.gz", f"{CANARY}-1.png", f"{CANARY}-3.png",
    }  # fmt: skip
    assert "empty" in by_path[f"{CANARY}-1.png"] or "0 bytes" in by_path[f"{CANARY}-1.png"]
    assert "5" in by_path[f"{CANARY}_1.nii.gz"]  # the shape of the mask
    rows = [json.loads(line) for line in (tmp_path / "out" / "failures.jsonl").read_text().splitlines()]
    assert [set(row) for row in rows] == [{"key", "dataset", "reason"}] * 4
    assert (
        sorted(row["key"] for row in rows) == [row["key"] for row in rows] == [f.key for f in result.failures]
    )
    assert "refused: <file>: truncated" in caplog.text and CANARY not in caplog.text
    assert check(tmp_path / "out") == []


def test_an_unexpected_fault_of_a_decoder_is_listed_too(collection, tmp_path, monkeypatch):
    from medloom.data.ingest import ingest

    real, calls = ingest.each, []

    def fails_once(paths, **options):
        calls.append(paths)
        if len(calls) == 2:
            raise IndexError("list index out of range")
        return real(paths, **options)

    monkeypatch.setattr(ingest, "each", fails_once)
    result = build(collection, tmp_path / "out")
    (reason,) = [failure.reason for failure in result.failures]
    # Its message may quote the file: where it was raised says as much to who mends it.
    assert reason.startswith("IndexError at test_build.py:") and "out of range" not in reason
    assert result.manifest.count == 15


def test_two_workers_and_small_shards_give_the_same_bytes(collection, tmp_path, files_of):
    build(collection, tmp_path / "one", shard_bytes=20_000)
    calls = []
    build(
        collection, tmp_path / "two", shard_bytes=20_000, workers=2, progress=lambda *call: calls.append(call)
    )
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    assert len(list((tmp_path / "one").glob("*.tar"))) > 4
    assert calls[-1][0] <= calls[-1][1] == 16
    assert not list((tmp_path / "two").rglob(".partial-*"))


def test_a_second_build_does_nothing(collection, tmp_path, files_of):
    build(collection, tmp_path / "out")
    before = {
        p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.*") if p.suffix in (".tar", ".idx")
    }
    content = files_of(tmp_path / "out")
    build(collection, tmp_path / "out", workers=2)
    assert files_of(tmp_path / "out") == content
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_changed_file_rebuilds_its_unit_alone(collection, tmp_path, files_of):
    out = tmp_path / "out"
    build(collection, out)
    stamp = (out / "ct-3d-00000.tar").stat().st_mtime_ns
    Pillow.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "in" / "derm" / f"{CANARY}-1.png")
    build(collection, out)
    assert (out / "ct-3d-00000.tar").stat().st_mtime_ns == stamp
    shards = Shards.open(out)
    assert [9, 9] in [shards.meta(ref)["shape"][1:] for ref in shards.refs("derm-2d")]
    build(collection, tmp_path / "fresh")
    assert files_of(out) == files_of(tmp_path / "fresh")


def test_a_source_that_shrinks_leaves_no_stale_shards(collection, tmp_path, files_of):
    out = tmp_path / "out"
    build(collection, out, shard_bytes=20_000)
    rows = (tmp_path / "in" / "ct" / "manifest.csv").read_text().splitlines()
    (tmp_path / "in" / "ct" / "manifest.csv").write_text("\n".join(rows[:3]) + "\n")
    build(collection, out, shard_bytes=20_000)
    build(collection, tmp_path / "fresh", shard_bytes=20_000)
    assert files_of(out) == files_of(tmp_path / "fresh")


def test_lost_and_cut_outputs_are_made_again(collection, tmp_path, files_of):
    out = tmp_path / "out"
    build(collection, out)
    content = files_of(out)
    (out / "ct-3d-00000.idx").unlink()
    (out / "derm-2d-00000.tar").write_bytes(b"short")
    (out / "units" / "ct-00000.json").write_text("{")
    (out / ".partial-deadbeef-ct-3d-00000.tar").write_bytes(b"left by a killed build")
    build(collection, out)
    assert files_of(out) == content


def test_folders_of_another_build_are_refused(collection, tmp_path):
    out = tmp_path / "out"
    build(collection, out)
    with pytest.raises(ShardError, match=r"shard_bytes.*build into another folder"):
        build(collection, out, shard_bytes=1000)
    with pytest.raises(ShardError, match="keep_held_out"):
        build(collection, out, keep_held_out=True)
    yaml = tmp_path / "in" / "collection.yaml"
    yaml.write_text(yaml.read_text().replace("name: small", "name: other"))
    with pytest.raises(ShardError, match="'small', now it is 'other'"):
        build(Collection.load(yaml), out)
    yaml.write_text(yaml.read_text().replace("other", "small").replace("a-salt-for-tests", "another-salt"))
    with pytest.raises(ShardError, match="salt_fingerprint"):
        build(Collection.load(yaml), out)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.doc").write_text("x")
    with pytest.raises(ShardError, match="holds other files"):
        build(collection, tmp_path / "home")
    assert (tmp_path / "home" / "thesis.doc").exists()


def test_two_builds_in_one_folder_are_refused(collection, tmp_path):
    import fcntl
    import os

    out = tmp_path / "out"
    build(collection, out)
    descriptor = os.open(out, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(ShardError, match="another build"):
            build(collection, out)
    finally:
        os.close(descriptor)
    build(collection, out)


def test_a_source_disk_that_goes_away_stops_the_build(collection, tmp_path, monkeypatch, files_of):
    from medloom.data.ingest import ingest

    out, real = tmp_path / "out", ingest.each

    def unmounted(paths, **options):
        shutil.move(tmp_path / "in" / "derm", tmp_path / "elsewhere")
        monkeypatch.setattr(ingest, "each", real)
        return real(paths, **options)

    build_ct = ingest.each
    calls = []

    def after_ct(paths, **options):
        calls.append(paths)
        return unmounted(paths, **options) if len(calls) == 9 else build_ct(paths, **options)

    monkeypatch.setattr(ingest, "each", after_ct)
    with pytest.raises(ShardError, match="disappeared during the build"):
        build(collection, out)
    assert not list(out.glob("derm*"))
    shutil.move(tmp_path / "elsewhere", tmp_path / "in" / "derm")
    build(collection, out)
    build(collection, tmp_path / "fresh")
    assert files_of(out) == files_of(tmp_path / "fresh")


def test_a_full_disk_ends_the_build_with_the_mend_and_the_next_run_finishes(
    collection, tmp_path, monkeypatch, files_of
):
    import errno
    import os

    from medloom.data.shards.writer import ShardWriter

    real, written = ShardWriter._write, []

    class Full:
        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def close(self):
            pass

    def write(self, data):
        written.append(len(data))
        if len(written) == 60:
            self._file.close()
            self._file = Full()
        return real(self, data)

    out = tmp_path / "out"
    monkeypatch.setattr(ShardWriter, "_write", write)
    with pytest.raises(ShardError, match=r"no space left.*run the same command again"):
        build(collection, out)
    assert not list(out.rglob(".partial-*"))
    assert not list(out.glob("derm*"))
    assert not (out / "manifest.json").exists()
    monkeypatch.undo()
    build(collection, out)
    build(collection, tmp_path / "fresh")
    assert files_of(out) == files_of(tmp_path / "fresh")


def test_a_collection_of_nothing_but_bad_files_is_an_error(collection, tmp_path):
    for path in [*(tmp_path / "in" / "ct").glob("*.gz"), *(tmp_path / "in" / "derm").glob("*.*g")]:
        path.write_bytes(b"rubbish")
    with pytest.raises(ShardError, match="not one image"):
        build(collection, tmp_path / "out")


def test_units_are_a_pure_function_of_the_records(collection):
    from medloom.data.collection import scan

    records = scan(collection).records
    units = plan(records, shard_bytes=20_000, salt=b"12345678")
    assert units == plan(records, shard_bytes=20_000, salt=b"12345678")
    assert [record for unit in units for record in unit.records] == [record for _, record in records]
    assert all(len({record.dataset for record in unit.records}) == 1 for unit in units)
    assert len({unit.name for unit in units}) == len(units)
    assert [u.inputs for u in units] != [
        u.inputs for u in plan(records, shard_bytes=20_000, salt=b"87654321")
    ]


def test_frames_of_a_file_become_samples_of_their_own(tmp_path, make_collection):
    yaml = make_collection(tmp_path / "in")
    series = np.arange(12 * 11 * 10 * 3, dtype=np.int16).reshape(12, 11, 10, 3)
    nibabel.save(nibabel.Nifti1Image(series, np.eye(4)), tmp_path / "in" / "ct" / f"{CANARY}_0.nii.gz")
    text = yaml.read_text().replace("root: ct", "root: ct\n    fourth_axis: frames", 1)
    yaml.write_text(text.replace("mask: mask, ", ""))
    result = build(Collection.load(yaml), tmp_path / "out")
    assert result.manifest.sources[0].count == 8
    shards = Shards.open(tmp_path / "out")
    assert [shards.meta(ref)["frame"] for ref in shards.refs("ct-3d")] == [0, 1, 2, *[None] * 5]
    assert len({shards.meta(ref)["key"] for ref in shards.refs()}) == 18
